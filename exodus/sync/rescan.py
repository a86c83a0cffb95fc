"""What a FLUSHDB, FLUSHALL or SWAPDB, or a gap in a feed, may have changed: found by looking at both sides instead of repeating it."""

from __future__ import annotations

from exodus.control.changes import RESYNC, Barrier
from exodus.sync.engine import Engine
from exodus.sync.scan import scan_once

_BATCH_KEYS = 500


async def rescan(engine: Engine, barrier: Barrier) -> int:
    """Mark the keys concerned as changed; how many.

    A FLUSH is not repeated on the follower: a key written after it can stand in the journal before it (two connections, one
    window), and would be lost. Keys of the follower that the authority lacks are marked instead, which is free of order.
    """
    marked = 0
    swapped = barrier.what in ("swapdb", RESYNC)  # keys changed that both sides have: all are marked
    sides = (engine.follower, engine.authority) if swapped else (engine.follower,)
    for side in sides:
        for node in await side.nodes():
            databases = barrier.databases or tuple((await node.facts()).databases)
            for db in databases:
                async with (
                    await node.connect(db, name="exodus-rescan") as leg,
                    await (await engine.authority.nodes())[0].connect(db, name="exodus-rescan") as authority,
                ):
                    cursor = -1
                    while cursor:
                        cursor, keys = await scan_once(leg, max(cursor, 0), _BATCH_KEYS)
                        if not swapped:
                            there = await authority.pipeline([("EXISTS", key) for key in keys])
                            keys = [key for key, exists in zip(keys, there, strict=True) if exists != 1]
                        await engine.feed.mark((db, key) for key in keys)
                        marked += len(keys)
    return marked
