"""The MIGRATE lane: the source sends keys itself. Nothing that it sends late is executed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis

from exodus.backfill import migrate
from exodus.backfill.migrate import MigrateLane, open_migrate_lane
from exodus.closing import ends
from exodus.control.checkpoint import load_progress
from exodus.copy.key import BatchReport, CopyMethod
from exodus.cutover import switch
from exodus.engine import Engine
from exodus.errors import DecisionRefused, EpochEnded
from exodus.plan.vocabulary import CopyStrategy, Side
from tests.fault.test_strategies import fill_large
from tests.fault.test_switch import _writers
from tests.fault.test_verify import fill
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@pytest_asyncio.fixture
async def sending(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    with valkey91.client() as target:
        target.execute_command("ACL", "SETUSER", "default", "-restore")
    local = LocalMigration(
        redis62, valkey91, control_server, tmp_path, strategy=CopyStrategy.MIGRATE
    )
    await local.open()
    yield local
    await local.close()
    with valkey91.client() as target:
        for name in target.acl_users():
            if name.startswith("exodus-"):
                target.acl_deluser(name)


async def _begin(local: LocalMigration) -> Engine:
    await local.gateway()
    await local.syncer()
    await migrate.check_possible(local.plan)
    await local.start_live_sync()
    engine = await local.engine()
    await migrate.prove(engine)
    return engine


async def _lane(engine: Engine) -> MigrateLane:
    copier = await engine.copier(engine.guard(), name="exodus-backfill")
    return await open_migrate_lane(engine, copier, "test/0/0 of 1")


def _no_more(following: int, found: int) -> bool:
    del following, found
    return False


def _sent_late(sending: LocalMigration, lane: MigrateLane) -> tuple[str | int, ...]:
    """Return what the source sends with the lane's user, for a test to send too late."""
    login = ("AUTH2", lane._user, lane._password)
    port = sending.plan.target.port
    return ("MIGRATE", "127.0.0.1", port, "", 0, 500, "COPY", "REPLACE", *login, "KEYS", "k")


async def _end(lane: MigrateLane) -> None:
    await lane._copier.close()
    await lane.close()


async def test_everything_is_equal_under_writes_and_what_could_not_be_sent_is_counted(
    sending: LocalMigration,
) -> None:
    source = sending.servers[Side.SOURCE].client()
    fill(source)
    large = fill_large(source)
    for number in range(3_000):
        source.set(f"cold:{number}", "x" * 20, px=600_000 if number % 5 == 0 else None)
    await _begin(sending)
    stop = asyncio.Event()
    writing = asyncio.create_task(_writers(sending, stop))
    await sending.backfill()
    stop.set()
    await writing
    await sending.drained()
    report = await sending.verify()
    assert report.divergences == []
    assert report.ttl_drift_ms_max <= 2
    slices = (await load_progress(sending.store, "run")).values()
    sent = sum(progress.strategies["MIGRATE"] for progress in slices)
    why = {
        why: sum(progress.not_sent.get(why, 0) for progress in slices)
        for progress in slices
        for why in progress.not_sent
    }
    assert sent >= 3_000
    assert why["it is large"] >= len(large)
    assert all(
        progress.keys_seen
        == progress.keys_copied
        + progress.keys_removed
        + progress.keys_skipped
        + progress.keys_failed
        for progress in slices
    )


async def test_one_that_is_sent_after_the_switch_is_refused(sending: LocalMigration) -> None:
    """A source or a process was frozen with a MIGRATE in flight. On the new authority it would
    overwrite newer writes.
    """
    engine = await _begin(sending)
    source, target = sending.servers[Side.SOURCE].client(), sending.servers[Side.TARGET].client()
    app = sending.app()
    await app.set("k", "old")
    lane = await _lane(engine)
    try:
        report = BatchReport()
        assert await lane._send(0, [(b"k", 1)], report) == ""
        assert (target.get("k"), report.copied) == (b"old", 1)
        late = _sent_late(sending, lane)
        await sending.drained()
        assert (await switch.apply(sending.store, sending.plan, Side.TARGET)).switched
        await app.set("k", "new")
        with pytest.raises(redis.ResponseError, match="WRONGPASS"):
            source.execute_command(*late)
        with pytest.raises(EpochEnded):  # the process itself, which tries to get a new user
            await lane._send(0, [(b"k", 1)], BatchReport())
        assert target.get("k") == b"new"
        assert [name for name in target.acl_users() if name.startswith("exodus-")] == []
    finally:
        await _end(lane)


async def test_who_takes_a_slice_up_voids_what_was_sent_before(sending: LocalMigration) -> None:
    engine = await _begin(sending)
    source = sending.servers[Side.SOURCE].client()
    source.set("k", 1)
    lane = await _lane(engine)
    late = _sent_late(sending, lane)
    assert source.execute_command(*late) == b"OK"
    again = await _lane(engine)
    try:
        with pytest.raises(redis.ResponseError, match="WRONGPASS"):
            source.execute_command(*late)
        await ends.stop(sending.store, sending.plan, "rollback")
        assert [
            name
            for name in sending.servers[Side.TARGET].client().acl_users()
            if name.startswith("exodus-")
        ] == []
    finally:
        await _end(lane)
        await _end(again)


async def test_what_ran_into_its_timeout_goes_another_way(sending: LocalMigration) -> None:
    """The target stands still for longer than MIGRATE waits. Its keys changed meanwhile, and are
    equal in the end.
    """
    await _begin(sending)
    source, target = sending.servers[Side.SOURCE].client(), sending.servers[Side.TARGET]
    source.mset({f"k{number}": "old" for number in range(200)})
    engine = await sending.engine()
    lane = await _lane(engine)
    report = BatchReport()
    try:
        target.pause()
        scanning = asyncio.create_task(lane.scan(0, 0, report, more=_no_more))
        await asyncio.sleep(1.6)
        assert not scanning.done()
        await asyncio.to_thread(source.mset, {f"k{number}": "new" for number in range(200)})
        target.resume()
        _, keys, sent = await scanning
        assert len(keys) == len(sent.others) == 200
        assert {
            why: count for why, count in report.not_sent.items() if why.startswith("MIGRATE: IOERR")
        } == report.not_sent
        await lane._copier.write(0, sent, report)
    finally:
        target.resume()
        await _end(lane)
    with target.client() as theirs:
        assert theirs.mget(keys) == [b"new"] * 200


async def test_an_expiry_is_exact_however_long_a_key_was_on_its_way(
    sending: LocalMigration,
) -> None:
    """MIGRATE sends the time left, and the target counts it from the moment of execution."""
    await _begin(sending)
    source, target = sending.servers[Side.SOURCE].client(), sending.servers[Side.TARGET]
    at_ms = 1_000 * source.time()[0] + 600_000
    source.set("k", 1)
    source.pexpireat("k", at_ms)
    lane = await _lane(await sending.engine())
    report = BatchReport()
    try:
        target.pause()
        scanning = asyncio.create_task(lane.scan(0, 0, report, more=_no_more))
        await asyncio.sleep(0.4)
        target.resume()
        *_, sent = await scanning
        assert (sent.keys, report.strategies[CopyMethod.MIGRATE]) == ([b"k"], 1)
        with target.client() as theirs:
            assert theirs.pexpiretime("k") > at_ms + 100
            await lane._copier.write(0, sent, report)
            assert abs(theirs.pexpiretime("k") - at_ms) <= 2
    finally:
        target.resume()
        await _end(lane)


async def test_no_key_is_looked_at_before_its_chunk_has_the_feeds_positions(
    sending: LocalMigration,
) -> None:
    """A key that was read ahead for one chunk is read again for the next: its expiry may have
    changed before that chunk noted the feed's position.
    """
    await _begin(sending)
    source = sending.servers[Side.SOURCE].client()
    source.mset({f"k{number}": 1 for number in range(2_000)})
    lane = await _lane(await sending.engine())
    try:
        cursor, *_ = await lane.scan(0, 0, BatchReport(), more=lambda following, found: True)
        assert lane._ahead is not None
        await lane._ahead[1]
        for number in range(2_000):
            source.expire(f"k{number}", 600)
        _, keys, sent = await lane.scan(0, cursor, BatchReport(), more=_no_more)
        assert len(sent.keys) == len([key for key in keys if key.startswith(b"k")]) > 0
    finally:
        await _end(lane)


async def test_where_a_late_one_could_do_harm_it_is_refused(
    sending: LocalMigration, modern: LocalMigration
) -> None:
    target = sending.servers[Side.TARGET].client()
    await migrate.check_possible(sending.plan)
    target.execute_command("ACL", "SETUSER", "default", "+@all")
    with pytest.raises(DecisionRefused) as refused:
        await migrate.check_possible(sending.plan)
    assert "'default' may RESTORE without a password" in refused.value.why
    with pytest.raises(DecisionRefused) as refused:
        await migrate.check_possible(modern.plan)
    assert "payload version 12 of the source does not fit the target's 80" in refused.value.why
    with pytest.raises(ValueError, match="MIGRATE sends keys as they are"):
        type(sending.plan).model_validate({**sending.plan.model_dump(), "keep_usage": True})
