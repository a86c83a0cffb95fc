"""Servers and processes that go away: applications continue, and nothing is lost in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from exodus.control import journal
from exodus.cutover import steps_before_hold, switch
from exodus.errors import CutoverAborted
from exodus.gateway.intents import IntentLog
from exodus.gateway.spool import Spool
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def test_the_store_away_is_no_application_error_and_loses_nothing(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path
) -> None:
    """Ten seconds without the control store, under writes. No write waits for it, however busy this
    machine is.
    """
    control = make_server(ServerKind.VALKEY_91, appendonly="yes")
    local = LocalMigration(redis62, valkey91, control, tmp_path)
    await local.open()
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    app, errors, stop = local.app(), [], asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            try:
                await app.set(f"k:{written % 500}", written)
                await app.rpush(f"l:{written % 20}", written)
            except redis.RedisError as exc:
                errors.append(exc)
            written += 1
            await asyncio.sleep(0.001)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.5)
    control.stop()
    in_each_second = []
    for _ in range(10):
        before = written
        await asyncio.sleep(1)
        in_each_second.append(written - before)
    gateway, _ = local.gateways["gw-1"]
    assert gateway.journaler.spooled > 0
    control.start()
    await until(lambda: _flushed(gateway), within_s=20, otherwise="the spool was never replayed")
    await asyncio.sleep(0.5)
    stop.set()
    await writing
    assert min(in_each_second) > 0, in_each_second
    assert errors == []
    await local.drained()
    assert (await local.verify()).divergences == []
    await local.close()


async def _flushed(gateway) -> bool:
    return gateway.journaler.spooled == 0 and gateway.journaler.store_away_since is None


async def test_a_gateway_that_was_killed_journals_its_intents_at_its_next_start(
    local: LocalMigration, tmp_path: Path
) -> None:
    missed: list[object] = []
    log = IntentLog(tmp_path / "gw-1", missed.append)
    log.append([(0, b"forwarded"), (2, b"too")], None)
    assert not missed
    del log  # as by kill -9: nothing was flushed, closed or reported
    await local.gateway("gw-1")

    async def there() -> bool:
        changes = await journal.since(
            local.store, dict.fromkeys(range(local.plan.partitions), b"0-0")
        )
        return set(changes.keys) == {(0, b"forwarded"), (2, b"too")}

    await until(there, within_s=5, otherwise="the intents were not journalled")


def test_a_torn_record_ends_the_reading_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.append([(0, b"a")], [])
    assert spool.append([(1, b"b")], [])
    path = tmp_path / "spool.log"
    path.write_bytes(path.read_bytes()[:-1])
    assert [keys for keys, _ in Spool(tmp_path).batches([])] == [[(0, b"a")]]


def test_a_full_spool_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exodus.gateway.spool.SPOOL_BYTES_MAX", 40)
    spool = Spool(tmp_path)
    assert spool.append([(0, b"a")], [])
    assert not spool.append([(0, b"x" * 100)], [])
    assert spool.keys == 1


async def test_a_hold_that_nobody_ends_ends_by_itself(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A flow that dies during a switch must not keep applications waiting."""
    local = LocalMigration(redis62, valkey91, control_server, tmp_path, hold_seconds_max=0.5)
    await local.open()
    await local.gateway()
    await local.change(hold="writes")
    app = local.app()
    assert await asyncio.wait_for(app.set("k", "v"), 6)
    await local.close()


async def test_a_switch_that_cannot_drain_is_undone(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is stopped. The switch gives up within its time and lifts the fence, and writes
    continue at the source.
    """
    monkeypatch.setattr(steps_before_hold, "SWITCH_PRE_DRAIN_S", 0.2)
    monkeypatch.setattr(switch, "SWITCH_STEP_S", 1.5)
    monkeypatch.setattr(steps_before_hold, "SWITCH_PRE_DRAIN_MS", 60_000)
    local.plan = local.plan.model_copy(update={"hold_seconds_max": 1.0})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    app = local.app()
    target = local.servers[Side.TARGET]
    await app.set("k", 0)
    await local.drained()
    target.pause()
    try:
        await app.set("k", 1)
        with pytest.raises(CutoverAborted):
            await switch.apply(local.store, local.plan, Side.TARGET)
        assert await asyncio.wait_for(app.set("k", 2), 5)
    finally:
        target.resume()
    assert local.servers[Side.SOURCE].client().get("k") == b"2"
    await local.drained()
    assert (await local.verify()).divergences == []


async def test_the_target_away_delays_no_application(local: LocalMigration) -> None:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    app = local.app()
    local.servers[Side.TARGET].pause()
    try:
        for number in range(200):
            assert await asyncio.wait_for(app.set(f"k{number}", number), 2)
    finally:
        local.servers[Side.TARGET].resume()
    await local.drained()
    assert (await local.verify()).divergences == []


async def test_journalling_is_off_until_the_route_asks_for_it(local: LocalMigration) -> None:
    await local.gateway()
    app = local.app()
    await app.set("before", 1)
    await local.change(journal=JournalMode.ALL)
    await app.set("after", 1)
    await local.flushed()
    changes = await journal.since(local.store, dict.fromkeys(range(local.plan.partitions), b"0-0"))
    assert set(changes.keys) == {(0, b"after")}
