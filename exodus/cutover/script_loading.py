"""Loading the applications' scripts on the new side before it becomes the authority.

A client calls a loaded script by its digest for as long as its connection lasts, also inside a
transaction or a pipeline, where NOSCRIPT cannot be repaired. Gateways keep the texts that they have
seen in the control store (`exodus/gateway/scripts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from exodus.control.heartbeats import GatewayHeartbeat
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import SCRIPT_LOADING_BATCH


async def load_scripts(store: ControlStore, leg: Leg, loaded: set[bytes]) -> list[str]:
    """Load what the gateways have seen and `loaded` does not have; what the server refuses, each
    with its reason.

    Raises:
        SourceError, TargetError: the server was lost.
        redis.exceptions.RedisError: the store was.
    """
    known: dict[bytes, bytes] = await answered(store.client.hgetall(store.keys.scripts))
    missing = [(sha, text) for sha, text in known.items() if sha not in loaded]
    refused: list[str] = []
    for start in range(0, len(missing), SCRIPT_LOADING_BATCH):
        part = missing[start : start + SCRIPT_LOADING_BATCH]
        for node in await leg.nodes():  # the nodes of a cluster do not share scripts
            replies = await node.pipeline([("SCRIPT", "LOAD", text) for _, text in part])
            for (sha, _), reply in zip(part, replies, strict=True):
                loaded.add(sha)
                if isinstance(reply, ReplyError):
                    refused.append(f"{sha.decode()[:12]}…: {str(reply)[:200]}")
    return refused


def unseen(gateways: Iterable[GatewayHeartbeat]) -> int:
    """Return how many scripts applications call whose text no gateway has seen."""
    return sum(beat.facts.scripts_unseen for beat in gateways)


def told(count: int) -> str:
    """Return the same for a form; empty where there is none."""
    if not count:
        return ""
    return (
        f"{count} scripts are called by EVALSHA whose text no gateway has seen: load them on "
        "the target, or calls inside transactions fail"
    )
