"""Windows of the gateways' counters in the control store, bounded in number and age."""

from __future__ import annotations

import asyncio
from typing import Any

from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import TELEMETRY_WINDOWS_KEPT_S, TELEMETRY_WINDOWS_MAX
from exodus.telemetry.windows import pack, unpack


async def keep(store: ControlStore, process: str, window: dict[str, Any], at_ms: int) -> None:
    """Add a window of one gateway at a time of the store, and drop what is too old, or too much.

    A thread packs it: with hundreds of commands and key prefixes that takes tens of milliseconds,
    and the sessions share this loop.

    Raises:
        redis.exceptions.RedisError: the store does not take it.
    """
    packed = await asyncio.to_thread(pack, window)
    await answered(
        store.client.xadd(
            store.keys.windows,
            {"process": process, "window": packed},
            maxlen=TELEMETRY_WINDOWS_MAX,
            approximate=True,
        )
    )
    oldest_ms = max(0, at_ms - TELEMETRY_WINDOWS_KEPT_S * 1000)
    await answered(store.client.xtrim(store.keys.windows, minid=oldest_ms, approximate=False))
    # No gateway may be left that does it
    await answered(store.client.expire(store.keys.windows, TELEMETRY_WINDOWS_KEPT_S))


async def read(store: ControlStore, since_ms: int) -> list[dict[str, Any]]:
    """Return the windows since a time of the store, the oldest first."""
    found = await answered(store.client.xrange(store.keys.windows, min=str(since_ms)))
    return [
        {"process": fields[b"process"].decode(), **unpack(fields[b"window"])} for _, fields in found
    ]
