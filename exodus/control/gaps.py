"""Open gaps: writes or losses that no journal covers. Each blocks a cutover until both sides were
compared.

A gap is a field of one hash: its name, and a JSON document with `why`, `at_ms` (by the store's
clock), and further facts.
"""

from __future__ import annotations

import logging

import orjson

from exodus.control.store import ControlStore, Json
from exodus.net.client import answered

log = logging.getLogger(__name__)


async def open_gap(store: ControlStore, name: str, why: str, **facts: object) -> None:
    """Open a gap, or open it again with another reason."""
    log.info("gap %s is open: %s", name, why)
    detail = {"why": why, "at_ms": await store.now_ms(), **facts}
    await answered(store.client.hset(store.keys.gap, name, orjson.dumps(detail).decode()))


async def close_gap(store: ControlStore, name: str) -> None:
    """Close a gap."""
    log.info("gap %s is closed", name)
    await answered(store.client.hdel(store.keys.gap, name))


log = logging.getLogger(__name__)


async def open_gaps(store: ControlStore) -> dict[str, Json]:
    """Return all open gaps by name."""
    raw = await answered(store.client.hgetall(store.keys.gap))
    return {name.decode(): orjson.loads(value) for name, value in raw.items()}
