"""The six race rules on real servers, each with the damage that follows when the rule is
removed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from exodus.backfill import slices
from exodus.control import journal
from exodus.control.changes import Barrier, Key, partition_of
from exodus.control.checkpoint import SliceProgress, load_progress, save_progress
from exodus.control.schema import lane_guard_key
from exodus.copy.guard import Guard, set_writer_epoch
from exodus.copy.key import BatchReport, Copier
from exodus.copy.read import Reader
from exodus.copy.scan import plan_slices
from exodus.errors import EpochEnded
from exodus.gateway.journaler import Journaler
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


async def _running(local: LocalMigration) -> None:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()


@pytest.mark.parametrize("rule", [True, False])
async def test_1_the_journal_comes_after_the_answer(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """The source delays a write. An entry made before its answer is synced too early, and never
    again.
    """
    if not rule:
        begin = Journaler.__init__

        def eager(self: Journaler, *arguments: Any) -> None:
            begin(self, *arguments)
            intend, mark = self.intend, self.mark

            def intend_and_mark(keys: list[Key], barrier: Barrier | None) -> None:
                intend(keys, barrier)
                mark(keys, barrier)

            self.intend, self.mark = intend_and_mark, lambda *_: None

        monkeypatch.setattr(Journaler, "__init__", eager)
    # A paused Redis 6.2 lets no script run, and so would keep the lane from reading too early: it
    # reads by plain commands here.
    monkeypatch.setattr(Reader, "keys", Reader._plainly)
    await _running(local)
    app, source = local.app(), local.servers[Side.SOURCE].client()
    await app.set("k", "old")
    await local.drained()
    source.execute_command("CLIENT", "PAUSE", "600", "WRITE")
    writing = asyncio.create_task(app.set("k", "new"))
    await asyncio.sleep(0.3)
    await local.drained()
    await writing
    await local.drained()
    await asyncio.sleep(0.1)
    target = local.servers[Side.TARGET].client()
    assert (target.get("k") == b"new") is rule


@pytest.mark.parametrize("rule", [True, False])
async def test_2_a_lane_that_lost_its_lease_writes_nothing(
    local: LocalMigration, rule: bool
) -> None:
    """A partition has two owners. The one that froze between reading and writing must not overwrite
    what the new one wrote.
    """
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, 0)
    partition = partition_of(0, b"k", local.plan.partitions)
    engine = await local.engine()
    target.set(lane_guard_key(local.plan.name, partition), 1)
    old = await engine.copier(engine.guard({partition: 1}) if rule else Guard())
    source.set("k", "old")
    report = BatchReport()
    states = await old.read(0, [b"k"], report)
    source.set("k", "new")
    target.set(lane_guard_key(local.plan.name, partition), 2)
    new = await engine.copier(engine.guard({partition: 2}))
    await new.sync_keys(0, [b"k"])
    if rule:
        with pytest.raises(EpochEnded):
            await old.write(0, states, report)
    else:
        await old.write(0, states, report)
    assert (target.get("k") == b"new") is rule
    await old.close()
    await new.close()


async def _write_between(local: LocalMigration, monkeypatch: pytest.MonkeyPatch, act) -> None:
    """Let `act` run between a backfill chunk's reading and its writing, and live sync finish with
    it.
    """
    write, acted = Copier.write, []

    async def late(self: Copier, db: int, states: list, report: BatchReport) -> None:
        if not acted and any(state.key == b"k" for state in states):
            acted.append(True)
            await act()
            await local.drained()
        await write(self, db, states, report)

    monkeypatch.setattr(Copier, "write", late)


@pytest.mark.parametrize("rule", [True, False])
async def test_3_what_changed_under_a_chunk_is_synced_again(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A stale RESTORE of the backfill lands after live sync's fresh one."""
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    source.set("k", "old")
    await _running(local)
    app = local.app()
    real = Copier.write

    async def act() -> None:
        monkeypatch.setattr(Copier, "write", real)
        await app.set("k", "new")

    await _write_between(local, monkeypatch, act)
    if not rule:
        monkeypatch.setattr(slices, "mark_overtaken", _nothing)
    await local.backfill()
    await local.drained()
    assert (target.get("k") == b"new") is rule


async def _nothing(*_: object) -> int:
    return 0


@pytest.mark.parametrize("rule", [True, False])
async def test_4_a_flush_under_a_chunk_counts_as_all_its_keys(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Keys of a chunk that was read before a FLUSHALL and written after it must not come back."""
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    source.mset({f"c{number}": "x" for number in range(50)} | {"k": "old"})
    await _running(local)
    app = local.app()
    real = Copier.write

    async def act() -> None:
        monkeypatch.setattr(Copier, "write", real)
        await app.flushall()
        await app.set("after", "1")

    await _write_between(local, monkeypatch, act)
    if not rule:
        monkeypatch.setattr(slices, "mark_overtaken", _nothing)
    await local.backfill()
    await local.drained()
    left = sorted(key for key in target.keys("*") if not key.startswith(b"exodus:"))
    assert (left == [b"after"]) is rule


@pytest.mark.parametrize("rule", [True, False])
async def test_5_a_restart_voids_the_cursor(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    rule: bool,
) -> None:
    """A cursor of a server's earlier life silently skips keys: the slice begins anew instead."""
    source = make_server(ServerKind.REDIS_62, save="3600 1")
    client = source.client()
    pipe = client.pipeline(transaction=False)
    for number in range(20_000):
        pipe.set(f"key:{number}", number)
    pipe.execute()
    local = LocalMigration(source, valkey91, control_server, tmp_path, slices=1)
    await local.open()
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, 0)
    engine = await local.engine()
    (piece,) = await plan_slices(engine.authority, 1)
    halfway = None
    while halfway is None or halfway.keys_seen < 10_000:
        halfway = await slices.copy_slice(engine, "run", piece, budget_s=0)
    source.save()
    source.stop()
    source.start()
    engine = await local.engine()
    if not rule:
        progress = (await load_progress(local.store, "run"))[piece.slice_id]
        assert isinstance(progress, SliceProgress)
        progress.run_id = engine.authority_facts.run_id
        await save_progress(local.store, "run", progress)
    done = await slices.copy_slice(engine, "run", piece, budget_s=60)
    assert done.done
    assert done.restarts == int(rule)
    report = await local.verify()
    assert (report.divergences_total == 0) is rule
    await local.close()


@pytest.mark.parametrize("rule", [True, False])
async def test_6_who_was_frozen_before_the_switch_writes_nothing_after_it(
    local: LocalMigration, rule: bool
) -> None:
    """A syncer read before the switch and wakes after it. It would overwrite a write on the new
    authority.
    """
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, 0)
    engine = await local.engine()
    frozen = await engine.copier(engine.guard() if rule else Guard())
    source.set("k", "old")
    report = BatchReport()
    states = await frozen.read(0, [b"k"], report)
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, -1)
    target.set("k", "written after the switch")
    if rule:
        with pytest.raises(EpochEnded):
            await frozen.write(0, states, report)
    else:
        await frozen.write(0, states, report)
    assert (target.get("k") == b"written after the switch") is rule
    await frozen.close()


async def test_a_trimmed_journal_counts_as_a_gap(local: LocalMigration) -> None:
    """A chunk whose first position the journal no longer has must count all its keys as changed."""
    await journal.append(local.store, [(0, b"a")], local.plan.partitions)
    before = dict.fromkeys(range(local.plan.partitions), b"1-0")
    assert not (await journal.since(local.store, before)).gap
    await local.store.client.hset(local.store.keys.trimmed, "3", b"2-0")
    assert (await journal.since(local.store, before)).gap
