"""Removing an ended migration from the control store. Its evidence goes into a bundle, and its name
is free again.

One line in `exodus:archive` remains: what was archived, when, and where the bundle is. An
interrupted archive starts again from its beginning.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from exodus.closing import bundle
from exodus.closing.collect import collect
from exodus.control import ledger, registry
from exodus.control.schema import ARCHIVE
from exodus.control.store import ControlStore, Json
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.plan.bounds import ARCHIVE_SCAN_KEYS
from exodus.plan.plan import Plan


async def check_may_be_archived(store: ControlStore) -> str:
    """Return how the migration ended; `never begun` where no phase of it was ever decided.

    Raises:
        DecisionRefused: it goes on, or a process still works by it.
    """
    entries = await ledger.read(store)
    end = ledger.ending(entries)
    if end is None and any(entry.event == "decided" for entry in entries):
        raise DecisionRefused(
            f"{store.migration} is not archived: it has not ended",
            why="it was neither finalised nor abandoned, so that its journal, its route and its "
            "decisions are needed",
            next_step="exodus status; to give it up: exodus start rollback, then exodus answer "
            "abandon",
        )
    now_ms = await store.now_ms()
    beats = [
        beat
        for kind in ("gateway", "syncer", "comparer")
        for beat in await registry.heartbeats(store, kind)
    ]
    alive = [
        f"{beat.kind} {beat.process} on {beat.host}" for beat in beats if not beat.stale(now_ms)
    ]
    if alive:
        raise DecisionRefused(
            f"{store.migration} is not archived: {len(alive)} of its processes run",
            why=f"they read their route from what would be removed: {', '.join(alive)}",
            next_step="move the applications from the gateways (exodus redirect), stop these "
            "processes (SIGTERM), and archive it then",
        )
    return "never begun" if end is None else str(end[0])


async def archive(store: ControlStore, plan: Plan, folder: Path, *, by: str, why: str) -> Json:
    """Write the bundle into a new folder, note that in the control store, and remove the
    migration's keys from there.

    Raises:
        DecisionRefused: it has not ended, or a process still works by it.
        OperatorError: the folder holds something already.
    """
    ended = await check_may_be_archived(store)
    head = bundle.write(folder, await collect(store, plan))
    now_ms = await store.now_ms()
    note = {
        "migration": store.migration,
        "ended": ended,
        "archived_ms": now_ms,
        "by": by,
        "why": why,
        "folder": str(folder),
        "head": head,
    }
    await answered(
        store.client.hset(ARCHIVE, f"{store.migration}/{now_ms}", orjson.dumps(note).decode())
    )
    names = [
        name
        async for name in store.client.scan_iter(
            match=store.keys.prefix + "*", count=ARCHIVE_SCAN_KEYS
        )
    ]
    for start in range(0, len(names), ARCHIVE_SCAN_KEYS):
        await answered(store.client.unlink(*names[start : start + ARCHIVE_SCAN_KEYS]))
    return note


async def archived(store: ControlStore, migration: str = "") -> list[Json]:
    """Return what was archived in this control store, oldest first; of one migration where it is
    named.
    """
    raw = await answered(store.client.hgetall(ARCHIVE))
    notes: list[Json] = [orjson.loads(value) for value in raw.values()]
    return sorted(
        (note for note in notes if migration in ("", note["migration"])),
        key=lambda note: int(note["archived_ms"]),
    )
