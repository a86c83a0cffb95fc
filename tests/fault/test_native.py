"""Native replication: the target is the source's replica, and only the switch promotes it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.closing import ends
from exodus.control import journal
from exodus.control.route import read_route
from exodus.control.schema import native_guard_key
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.errors import CutoverAborted, DecisionRefused, TargetError
from exodus.native import expiries, link, possible, replica
from exodus.net.leg import Leg, Reply
from exodus.plan.vocabulary import CopyStrategy, Side
from exodus.rehearsal.rehearse import rehearse
from exodus.resp.encode import Arg
from exodus.stack.servers import ServerKind
from exodus.verify import reconcile
from tests.fault.test_switch import _writers
from tests.support.fleet import Fleet
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
_CLOCK_MS = (
    2  # two readings of a server's clock may differ by this from the clock that it expires by
)


@pytest_asyncio.fixture
async def older(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    local = LocalMigration(
        redis62, valkey91, control_server, tmp_path, strategy=CopyStrategy.NATIVE
    )
    await local.open()
    yield local
    await local.close()


@pytest_asyncio.fixture
async def same(
    redis82: DatabaseServer, make_server, control_server: DatabaseServer, tmp_path: Path
) -> AsyncIterator[LocalMigration]:
    local = LocalMigration(
        redis82,
        make_server(ServerKind.REDIS_82),
        control_server,
        tmp_path,
        strategy=CopyStrategy.NATIVE,
    )
    await local.open()
    yield local
    await local.close()


async def _begin(local: LocalMigration) -> None:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()


def _role(box: DatabaseServer) -> str:
    with box.client() as client:
        return client.info("replication")["role"]


async def test_nothing_is_lost_there_and_back_from_an_older_server(older: LocalMigration) -> None:
    await _there_and_back(older)


async def test_nothing_is_lost_there_and_back_between_equal_servers(same: LocalMigration) -> None:
    await _there_and_back(same)


async def _there_and_back(local: LocalMigration) -> None:
    """The replica is promoted by the cutover; from then on changes flow by keys, both ways."""
    source, target = local.servers[Side.SOURCE], local.servers[Side.TARGET]
    with source.client() as client:
        for number in range(2000):
            client.set(f"cold:{number}", "x" * 20, px=600_000 if number % 5 == 0 else None)
        client.xadd("stream", {"a": 1})
    await _begin(local)
    stop = asyncio.Event()
    writing = asyncio.create_task(_writers(local, stop))
    await local.app().flushdb()  # a replica does as its source
    await local.app().set("after the flush", 1, px=600_000)
    goal = await journal.ends(local.store, local.plan.partitions)

    async def caught_up() -> bool:
        return await journal.reached(local.store, goal)

    await until(caught_up, within_s=20, otherwise="live sync never came to what was in the journal")
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert [
        row["step"] for row in done.timeline if row["step"] == "promote" and "failed" not in row
    ] == ["promote"]
    assert (done.switched, _role(target), (await read_route(local.store)).native) == (
        True,
        "master",
        False,
    )
    for to in (Side.SOURCE, Side.TARGET):
        await asyncio.sleep(0.2)
        assert (await switch.apply(local.store, local.plan, to)).switched
    stop.set()
    acknowledged = await writing
    await local.drained()
    report = await local.verify()
    assert report.divergences == []
    with target.client() as client:
        assert client.config_get("masterauth") == {"masterauth": ""}
        assert client.exists("after the flush") == 1
        wrong = [key for key, value in acknowledged.items() if client.get(key) != b"%d" % value]
    assert wrong == []


async def test_a_switch_that_is_given_up_leaves_a_replica(
    older: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after the promotion, before the route names the target. The target becomes a
    replica again under a new grant, and a second switch works.
    """
    await _begin(older)
    app = older.app()
    await app.set("k", 1)
    before = (await read_route(older.store)).writer_epoch

    async def fails(_: Switch) -> None:
        assert _role(older.servers[Side.TARGET]) == "master"
        raise CutoverAborted("given up", why="the test wants it", next_step="none")

    with monkeypatch.context() as patch:
        patch.setattr(switch, "open_new", fails)
        with pytest.raises(CutoverAborted, match="given up"):
            await switch.apply(older.store, older.plan, Side.TARGET)
    await app.set("k", 2)  # writes go on at the source
    route = await read_route(older.store)
    assert (route.authority, route.native, route.writer_epoch) == (Side.SOURCE, True, before + 1)
    await older.filled()
    await older.drained()
    assert (await older.verify()).divergences == []
    assert older.servers[Side.TARGET].client().get("k") == b"2"
    assert (await switch.apply(older.store, older.plan, Side.TARGET)).switched


async def test_whoever_is_late_neither_promotes_nor_makes_a_replica(older: LocalMigration) -> None:
    """A grant of an ended epoch is refused. It would empty the new authority, or stop its
    follower.
    """
    await _begin(older)
    right = (await read_route(older.store)).writer_epoch
    target = older.servers[Side.TARGET]
    async with await replica.connect_side(older.plan, Side.TARGET) as leg:
        with pytest.raises(CutoverAborted, match="was not promoted"):
            await replica.promote(leg, older.plan, right - 1, b"closed by an older one")
    assert _role(target) == "slave"
    await switch.apply(older.store, older.plan, Side.TARGET)
    await older.app().set("on the new authority", 1)
    with pytest.raises(DecisionRefused, match="was not made a replica"):
        await replica.attach(older.plan, right)
    await replica.detach(older.plan, right)  # of a rollback that slept through it
    assert (_role(target), target.client().get("on the new authority")) == ("master", b"1")
    assert target.client().get(native_guard_key(older.plan.name)).startswith(b"closed by")  # type: ignore[union-attr]


async def test_one_that_was_frozen_in_the_middle_of_it_changes_nothing(
    older: LocalMigration,
) -> None:
    """It looked, froze, and wakes with its transaction after the grant went to another process."""
    await _begin(older)
    right = b"%d" % (await read_route(older.store)).writer_epoch
    target, key = older.servers[Side.TARGET], native_guard_key(older.plan.name)
    with target.client() as frozen:
        pipe = frozen.pipeline()
        pipe.watch(key)
        assert pipe.get(key) == right
        await older.change(writer_epoch=int(right) + 1)
        await replica.reopen(older.plan, await read_route(older.store), b"")

        async def came_along() -> bool:
            return target.client().get(key) == b"%d" % (int(right) + 1)

        await until(came_along, within_s=5, otherwise="the source's key did not come along")
        pipe.multi()
        pipe.execute_command("REPLICAOF", "NO", "ONE")
        with pytest.raises(Exception, match="Watched variable changed"):
            pipe.execute()
    assert _role(target) == "slave"


async def test_a_switch_that_is_killed_after_the_promotion_is_settled(
    valkey81: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path
) -> None:
    """The gateways end the hold and give the grant of a new epoch. The syncers make the target a
    replica again.

    The source propagates expiries as absolute times. With an older one, expiries set during the
    second copy would come late by its length.
    """
    store = make_server(ServerKind.VALKEY_91, appendonly="yes")
    fleet = Fleet(
        valkey81,
        valkey91,
        store,
        tmp_path / "fleet",
        gateways=1,
        syncers=1,
        strategy="native",
        hold_seconds_max=1.0,
    )
    await fleet.open()
    try:
        application = await fleet.application()
        switcher = fleet.switcher(Side.TARGET, "close the epoch")
        await switcher.start()
        assert await switcher.reached()
        assert _role(valkey91) == "master"
        switcher.signal(signal.SIGKILL)
        await switcher.ended()
        await application.flows(within_s=30)

        async def again() -> bool:
            return (await link.look(fleet.plan)).up

        await until(again, within_s=30, otherwise="the target never became a replica again")
        route = await read_route(fleet.store)
        assert (route.authority, route.native, route.sync) == (Side.SOURCE, True, True)
        await fleet.agrees(application)
        await application.end()
    finally:
        await fleet.close()


async def test_a_target_that_was_restarted_becomes_a_replica_again(same: LocalMigration) -> None:
    await _begin(same)
    app, target = same.app(), same.servers[Side.TARGET]
    await app.mset({f"k{number}": number for number in range(100)})
    await same.drained()
    target.save()
    target.stop()
    await app.set("k1", "meanwhile")
    target.start()
    await same.filled()
    await same.drained()
    assert target.client().get("k1") == b"meanwhile"
    assert (await same.verify()).divergences == []


async def test_a_rollback_before_the_cutover_detaches_it_and_abandon_cleans(
    older: LocalMigration,
) -> None:
    await _begin(older)
    await older.app().set("k", 1)
    await older.drained()
    with pytest.raises(DecisionRefused, match="cannot be rehearsed now"):
        await rehearse(older.store, older.plan)
    stopped = await ends.stop(older.store, older.plan, "rollback")
    target = older.servers[Side.TARGET]
    assert (stopped["not_told"], _role(target), target.client().get("k")) == ("", "master", b"1")
    with pytest.raises(DecisionRefused):
        await replica.attach(older.plan, (await read_route(older.store)).writer_epoch - 1)
    found = await ends.abandon(older.store, older.plan, clean_target=True)
    assert (found["target_keys_removed"], found["left_by_exodus"]) == (1, [])


async def test_a_batch_waits_for_the_replica_and_a_lost_link_is_no_lie(
    older: LocalMigration,
) -> None:
    """While the target stands still, no batch counts as synced."""
    await _begin(older)
    app, target = older.app(), older.servers[Side.TARGET]
    await app.set("k", 1)
    await older.drained()
    feed = (await older.engine()).feed
    target.pause()
    try:
        await app.set("k", 2)
        await older.flushed()
        await asyncio.sleep(0.3)
        assert not await feed.drained()
    finally:
        target.resume()
    await older.drained()
    assert target.client().get("k") == b"2"


async def test_an_expiry_that_came_late_is_mended_by_saying_it_again(older: LocalMigration) -> None:
    """Redis 6.2 propagates the time left, so a replica that stood still gives the key more. Only
    the source can correct that.
    """
    await _begin(older)
    app, source, target = (
        older.app(),
        older.servers[Side.SOURCE].client(),
        older.servers[Side.TARGET],
    )
    await app.set("before", 1, ex=600)
    await older.drained()
    target.pause()
    try:
        await app.set("late", 1, ex=600)
        await asyncio.sleep(2)
    finally:
        target.resume()
    await older.drained()
    report = await older.verify()
    assert [(found.key, found.kind) for found in report.divergences] == [(b"late", "expiry")]
    read = source.register_script(
        "local t = redis.call('TIME') return {t[1] * 1000 + math.floor(t[2] / 1000) + "
        "redis.call('PTTL', KEYS[1])}"
    )
    (at_ms,) = read(["late"])
    engine = await older.engine()
    assert await reconcile.repair(engine, [(0, b"late"), (0, b"gone")]) == {}
    assert (await older.verify()).divergences == []
    assert abs(read(["late"])[0] - at_ms) <= _CLOCK_MS  # the source's own readers see what they saw
    assert abs(target.client().pexpiretime("late") - at_ms) <= _CLOCK_MS


async def test_a_write_that_comes_while_an_expiry_is_said_again_wins(
    older: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = older.servers[Side.SOURCE].client()
    source.set("k", 1, px=600_000)
    ordinary = Leg.transaction

    async def overtaken(leg: Leg, commands: Sequence[Sequence[Arg]]) -> list[Reply] | None:
        source.set("k", 2)  # and with that no expiry any more
        return await ordinary(leg, commands)

    monkeypatch.setattr(Leg, "transaction", overtaken)
    assert await expiries.restate_expiries(older.plan, [(0, b"k")]) == []
    assert (source.get("k"), source.ttl("k")) == (b"2", -1)


async def test_a_key_whose_expiry_changes_at_every_try_is_listed_with_the_reason(
    older: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _begin(older)
    source = older.servers[Side.SOURCE].client()
    source.set("k", 1, px=600_000)
    source.set("calm", 1, px=600_000)
    ordinary = Leg.transaction

    async def overtaken(leg: Leg, commands: Sequence[Sequence[Arg]]) -> list[Reply] | None:
        if commands[0][:2] == ("PEXPIREAT", b"k"):
            source.pexpire("k", 600_000)
        return await ordinary(leg, commands)

    monkeypatch.setattr(Leg, "transaction", overtaken)
    left = await reconcile.repair(await older.engine(), [(0, b"k"), (0, b"calm")])
    assert left == {
        (
            0,
            b"k",
        ): f"it changed at each of {expiries.EXPIRIES_RESTATEMENTS} tries to say its expiry again"
    }


async def test_what_cannot_be_is_refused_and_the_target_left_alone(
    modern: LocalMigration, older: LocalMigration
) -> None:
    """A copy that the target cannot load would leave it empty, so it is not tried."""
    target = modern.servers[Side.TARGET].client()
    plan = modern.plan.model_copy(update={"strategy": CopyStrategy.NATIVE})
    with pytest.raises(DecisionRefused, match="replica of the source") as refused:
        await possible.check_possible(plan, modern.store)
    assert "redis 8.2.3 saves version 12, valkey 9.1.2 loads 80" in refused.value.why
    target.set("somebody's", 1)
    with pytest.raises(DecisionRefused) as refused:
        await possible.check_possible(older.plan, older.store)
    assert "the target holds 1 keys" in refused.value.why
    target.flushall()
    tls = older.plan.model_copy(
        update={"source": older.plan.source.model_copy(update={"tls": True})}
    )
    assert "is reached by TLS, and the target's own setting tls-replication is no" in str(
        await possible._why_not_target(tls)
    )
    target.execute_command("ACL", "SETUSER", "exodus", "-replicaof")
    try:
        with pytest.raises(DecisionRefused) as refused:
            await possible.check_possible(older.plan, older.store)
        assert "REPLICAOF" in refused.value.why.upper()
    finally:
        target.execute_command("ACL", "SETUSER", "exodus", "+@all")
    target.replicaof("127.0.0.1", 1)
    with pytest.raises(DecisionRefused) as refused:
        await possible.check_possible(older.plan, older.store)
    assert "is a replica of 127.0.0.1:1" in refused.value.why
    with pytest.raises(TargetError, match="waits for the replica"):
        await replica.check_filled(older.plan)
