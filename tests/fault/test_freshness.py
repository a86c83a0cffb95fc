"""Which keys are verified since their last write, dirty, or never verified: exact through writes,
restarts, flushes and passes.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus.control.changes import Barrier, Changes
from exodus.control.freshness import Freshness, Pass, read_freshness
from exodus.live import recheck
from exodus.live.recheck import DirtyKeys
from exodus.plan.vocabulary import Side
from exodus.verify.reconcile import keys_of, reconcile, repair
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

_PASS = Pass(at_ms=1, positions={0: "5-0"}, keys=10)


def _entry(entry_id: bytes, *names: bytes, barrier: bool = False) -> Changes:
    return Changes(
        keys=[(0, name) for name in names],
        last_id=entry_id,
        barriers=[Barrier("flushall")] if barrier else [],
    )


def test_a_key_written_again_while_it_was_compared_stays_dirty() -> None:
    dirty = DirtyKeys(_PASS)
    dirty.note(_entry(b"6-0", b"a", b"b"))
    compared = dict(dirty.keys)
    dirty.note(_entry(b"7-0", b"a"))
    dirty.settle(compared, [(0, b"a"), (0, b"b")])
    assert list(dirty.keys) == [(0, b"a")]
    assert dirty.state(9).oldest_ms == 7


def test_a_newer_pass_speaks_for_what_was_written_before_it() -> None:
    dirty = DirtyKeys(_PASS)
    dirty.note(_entry(b"6-0", b"a"))
    dirty.note(_entry(b"8-0", b"b"))
    dirty.restart(Pass(at_ms=2, positions={0: "7-0"}, keys=10), 0)
    assert list(dirty.keys) == [(0, b"b")]


def test_more_dirty_keys_than_are_kept_count_as_never_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recheck, "DIRTY_KEYS_MAX", 2)
    dirty = DirtyKeys(_PASS)
    dirty.note(_entry(b"6-0", b"a", b"b", b"c"))
    assert dirty.state(9).overflow
    assert dirty.keys == {}


def test_without_a_pass_nothing_is_verified() -> None:
    assert (
        str(Freshness(keys=0, dirty=0, oldest_dirty_s=0, never=0, pass_age_s=None))
        == "never verified"
    )
    assert (
        str(Freshness(keys=10_000, dirty=2, oldest_dirty_s=40, never=0, pass_age_s=60))
        == "99.98 % verified, 2 dirty, oldest 40 s"
    )
    gap = Freshness(
        keys=10_000_000,
        dirty=0,
        oldest_dirty_s=0,
        never=0,
        pass_age_s=60,
        gaps=("scripts whose keys are not known",),
    )
    assert str(gap) == "99.99 % verified, 0 dirty, 1 OPEN GAP: scripts whose keys are not known"
    assert gap.share < 1


@pytest.mark.fault
async def test_dirty_keys_are_compared_and_forgotten(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    source.mset({f"k{number}": number for number in range(500)})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    partitions = local.plan.partitions
    assert (await read_freshness(local.store, partitions)).pass_age_s is None
    found = await reconcile(await local.engine(), "test", settle_s=0.05)
    assert found["keys_verified"] == 500

    async def all_verified() -> bool:
        state = await read_freshness(local.store, partitions)
        return state.share == 1.0 and state.pass_age_s is not None

    await until(all_verified, within_s=15, otherwise="the pass was not taken up")
    # Comparing is prevented: a written key stays dirty, and counts once.
    real, gate = recheck.Keeper._compare, asyncio.Event()

    async def held(self: recheck.Keeper, *args: object) -> None:
        await gate.wait()
        await real(self, *args)

    monkeypatch.setattr(recheck.Keeper, "_compare", held)
    app = local.app()
    for number in range(40):
        await app.set(f"k{number % 20}", f"again {number}")
    await app.delete("k30")
    await local.drained()

    async def counted() -> bool:
        keepers = [syncer._lanes._keeper for syncer, _ in local.syncers.values()]
        return (
            sum(len(dirty.keys) for keeper in keepers for dirty in keeper.partitions.values()) == 21
        )

    await until(counted, within_s=10, otherwise="not every written key is dirty")
    # A restart loses nothing: the journal since the pass is read again.
    monkeypatch.setattr(recheck.Keeper, "_compare", real)
    syncer, task = local.syncers.pop("syncer-1")
    gate.set()
    syncer.stop()
    await task
    # Nothing reads the journal meanwhile. The key was written since the pass, so it is compared
    target.set("k5", "spoiled")
    await local.syncer("syncer-2")

    async def one_left() -> bool:
        state = await read_freshness(local.store, partitions)
        return (state.dirty, state.never) == (1, 0)

    await until(one_left, within_s=15, otherwise="the spoiled key was not the one left")
    found = await reconcile(await local.engine(), "test", settle_s=0.05)
    assert keys_of(found) == [(0, b"k5")]
    assert await repair(await local.engine(), keys_of(found)) == {}
    await until(all_verified, within_s=15, otherwise="the repaired key stayed dirty")
    assert target.get("k5") == source.get("k5")


@pytest.mark.fault
async def test_after_a_flush_a_new_pass_is_needed(local: LocalMigration) -> None:
    local.servers[Side.SOURCE].client().mset({f"k{number}": number for number in range(50)})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    await reconcile(await local.engine(), "test", settle_s=0.05)
    await local.app().flushall()
    await local.drained()

    async def unknown() -> bool:
        state = await read_freshness(local.store, local.plan.partitions)
        # No lane is waited for: only a pass can tell
        return state.never > 0 and state.overflowed > 0

    await until(unknown, within_s=15, otherwise="the flush changed nothing")
    await local.app().set("new", 1)
    await local.drained()
    await reconcile(await local.engine(), "test", settle_s=0.05)

    async def known() -> bool:
        state = await read_freshness(local.store, local.plan.partitions)
        return (state.never, state.dirty, state.keys, state.overflowed) == (0, 0, 1, 0)

    await until(known, within_s=15, otherwise="the new pass was not taken up")
