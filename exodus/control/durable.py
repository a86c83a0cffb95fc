"""Whether the control store keeps its data: persistence, fsync, eviction, and a server of its own.

Only the control store has the journal, the route, and the ledger. A gateway keeps its intents until
the store has fsynced (`gateway/durability.py`), so `appendfsync everysec` loses nothing. A store
without an AOF loses everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from redis.exceptions import ResponseError

from exodus.control.store import ControlStore
from exodus.net.client import answered


@dataclass(frozen=True)
class StoreFinding:
    """One result, in the words of the pre-flight checks."""

    severity: Literal["ok", "warning", "fatal"]
    what: str
    why: str = ""
    next_step: str = ""


async def check_store(store: ControlStore, sides: Mapping[str, str]) -> list[StoreFinding]:
    """Look at the control store's settings; `sides` are the run ids of source and target by name,
    of a cluster with spaces between.

    Raises:
        redis.exceptions.RedisError, OSError: it does not answer, or refuses INFO.
    """
    info = await answered(store.client.info("everything"))
    found = [
        StoreFinding(
            "fatal",
            f"the control store is the {side}",
            f"both answer with run id {str(info['run_id'])[:12]}…; Exodus's journal would stand "
            "among the application's keys",
            "give the control store a server of its own",
        )
        for side, run_id in sides.items()
        if info["run_id"] in {life.partition("@")[0] for life in run_id.split()}
    ]
    if not int(info.get("aof_enabled", 0)):
        found.append(
            StoreFinding(
                "fatal",
                "the control store has no append-only file",
                "a restart of it loses the journal, the route and the decisions",
                "CONFIG SET appendonly yes, and the same in its configuration",
            )
        )
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append(
            StoreFinding(
                "fatal" if int(info.get("maxmemory", 0)) else "warning",
                f"the control store evicts keys: maxmemory-policy {info['maxmemory_policy']}",
                "what it evicts of the journal is never copied, and nothing tells",
                "CONFIG SET maxmemory-policy noeviction",
            )
        )
    try:
        fsync = (await answered(store.client.config_get("appendfsync"))).get("appendfsync", "")
    except ResponseError as exc:
        found.append(
            StoreFinding(
                "warning",
                "the control store does not tell appendfsync",
                str(exc),
                "look that it is everysec or always",
            )
        )
    else:
        if fsync == "no":
            found.append(
                StoreFinding(
                    "warning",
                    "the control store never fsyncs by itself: appendfsync no",
                    "a power cut loses what the kernel has not written, some 30 s; gateways find "
                    "it out and open a gap",
                    "CONFIG SET appendfsync everysec",
                )
            )
    return found or [
        StoreFinding("ok", "the control store has an append-only file and evicts nothing")
    ]
