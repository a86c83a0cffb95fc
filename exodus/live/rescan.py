"""Finding what a FLUSHDB, FLUSHALL, SWAPDB, or a gap in a feed changed, by comparing both sides."""

from __future__ import annotations

from exodus.control.changes import Barrier
from exodus.copy.scan import scan_once
from exodus.engine import Engine
from exodus.live.server_runs import may_remove
from exodus.net.leg import NoDatabase
from exodus.plan.bounds import RESCAN_BATCH_KEYS
from exodus.plan.own_keys import is_own
from exodus.verify.extra_keys import open_extra_keys
from exodus.verify.only import Only
from exodus.verify.reconcile import mark_differing


async def rescan(engine: Engine, barrier: Barrier) -> int:
    """Mark the keys concerned as changed; how many.

    A FLUSH is not repeated on the follower: a key written after it can stand in the journal before
    it (two connections, one window), and would be lost. Keys of the follower that the authority
    lacks are marked instead, which is free of order.
    """
    if barrier.resyncs:  # anything may have changed: what is equal needs no copy
        only = Only.of(engine, {engine.route.authority: barrier.ranges})
        remove_extra = await may_remove(engine)
        return (await mark_differing(engine, remove_extra=remove_extra, only=only)).marked
    marked = 0
    # Keys changed that both sides have: all of the authority's are marked too
    swapped = barrier.what == "swapdb"
    extra_keys = await open_extra_keys(engine, name="exodus-rescan")
    try:
        for side in (engine.follower, engine.authority) if swapped else (engine.follower,):
            ours = side is engine.authority
            for node in await side.each_node():
                # Where keys have other databases there, all of the follower's are looked at.
                named = barrier.databases if ours or not engine.scope.renames else ()
                for db in named or tuple((await node.facts()).databases):
                    async with await node.connect(name="exodus-rescan") as leg:
                        try:
                            await leg.select(db)
                        except NoDatabase:
                            continue  # no key is there
                        cursor = -1
                        while cursor:
                            cursor, keys = await scan_once(leg, max(cursor, 0), RESCAN_BATCH_KEYS)
                            keys = [key for key in keys if not is_own(key)]
                            found = (
                                [(db, key) for key in keys]
                                if ours
                                else [
                                    (at, extra.key)
                                    for at, extra in await extra_keys.among(db, keys)
                                ]
                            )
                            await engine.feed.mark(found)
                            marked += len(found)
    finally:
        await extra_keys.close()
    return marked
