"""A retry after a rollback copies nothing twice, whether live sync stayed on, or was off while keys
changed.
"""

from __future__ import annotations

import pytest

from exodus.backfill import runs
from exodus.closing import ends
from exodus.control.checkpoint import load_progress
from exodus.control.route import read_route
from exodus.copy.guard import set_writer_epoch
from exodus.cutover import switch
from exodus.plan.scope import Filters
from exodus.plan.vocabulary import JournalMode, Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import mark_differing
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault
KEYS = 2_000


async def _start(local: LocalMigration) -> runs.CopyRun:
    """As Migrate does."""
    route = await read_route(local.store)
    writer = route.writer_epoch + 1
    run = await runs.begin(local.store, local.plan, epoch=route.epoch, writer_epoch=writer)
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, writer)
    await local.change(journal=JournalMode.ALL, sync=True, writer_epoch=writer)
    await local.backfill(run.run)
    return run


async def _copied(local: LocalMigration, run: runs.CopyRun) -> tuple[int, int]:
    """Return the keys and chunks that the backfill has copied."""
    slices = (await load_progress(local.store, run.run)).values()
    assert all(progress.done for progress in slices)
    return sum(progress.keys_copied for progress in slices), sum(
        progress.chunks for progress in slices
    )


async def _migrated(local: LocalMigration) -> runs.CopyRun:
    with local.servers[Side.SOURCE].client() as source:
        for number in range(KEYS):
            source.set(f"k:{number}", number, px=3_600_000 if number % 3 == 0 else None)
    await local.gateway()
    await local.syncer()
    run = await _start(local)
    assert not run.kept
    assert (await _copied(local, run))[0] >= KEYS  # SCAN may give a key twice
    await local.drained()
    return run


async def test_what_changed_while_live_sync_was_off_is_all_that_is_copied_again(
    local: LocalMigration,
) -> None:
    run = await _migrated(local)
    before = await _copied(local, run)
    await ends.stop(local.store, local.plan, "rollback")
    app = local.app()
    for number in range(10):
        await app.set(f"k:{number}", "changed")
    await app.persist("k:30")
    await app.delete(*[f"k:{number}" for number in range(100, 105)])
    for number in range(7):
        await app.rpush(f"new:{number}", 1)
    local.servers[Side.TARGET].client().set("extra", 1)
    counts = local.syncers["syncer-1"][0].tally.counts
    already = dict(counts)
    again = await _start(local)
    assert (again.run, again.kept, again.to_compare) == (run.run, True, True)
    assert await _copied(local, again) == before
    assert (await mark_differing(await local.engine())).marked == 10 + 1 + 5 + 7 + 1
    await runs.compared(local.store, again)
    await local.drained()
    assert counts["copied"] - already["copied"] == 10 + 1 + 7
    assert counts["removed"] - already["removed"] == 5 + 1
    assert (await local.verify()).divergences == []
    now = await runs.current(local.store)
    assert now is not None
    assert not now.to_compare


async def test_there_and_back_keeps_what_was_copied(local: LocalMigration) -> None:
    run = await _migrated(local)
    before = await _copied(local, run)
    for to in (Side.TARGET, Side.SOURCE):
        assert (await switch.apply(local.store, local.plan, to)).switched
        await local.app().set(f"written at the {to}", 1)
    now = await runs.current(local.store)
    assert now == run
    await local.backfill(run.run)
    assert await _copied(local, run) == before
    await local.drained()
    assert (await local.verify()).divergences == []


async def test_another_plan_or_an_emptied_target_begins_a_new_copy(local: LocalMigration) -> None:
    run = await _migrated(local)
    await ends.stop(local.store, local.plan, "rollback")
    route = await read_route(local.store)
    other = local.plan.model_copy(
        update={"filters": Filters.model_validate({"exclude": [{"pattern": "k:1*"}]})}
    )
    assert (
        await runs.begin(local.store, local.plan, epoch=route.epoch, writer_epoch=90)
    ).run == run.run
    assert (
        await runs.begin(local.store, other, epoch=route.epoch, writer_epoch=91)
    ).run == "backfill-91"
    local.servers[Side.TARGET].client().flushall()
    await ends.stop(local.store, local.plan, "once more")
    await local.store.save_report(
        "owned", {**(await local.store.report("owned") or {}), "run": run.run, "of": run.of}
    )
    begun = await runs.begin(local.store, local.plan, epoch=route.epoch, writer_epoch=92)
    assert (begun.run, begun.kept) == ("backfill-92", False)
