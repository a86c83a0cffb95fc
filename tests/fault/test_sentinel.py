"""Sides behind Sentinel: failovers at every point of a migration, on both sides.

No acknowledged write may be lost beyond what asynchronous replication itself lost. That loss is
reported with its window, and nothing outside the window may be missing.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
import redis.asyncio as redis

from exodus.backfill.slices import copy_slice
from exodus.control.gaps import open_gaps
from exodus.control.run_ids import known_run_ids
from exodus.control.topology import read_failovers, read_topologies
from exodus.copy.scan import plan_slices
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.cutover.settle import settle
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError
from exodus.feeds.feed import begin_feed
from exodus.net import masters
from exodus.net.leg import Leg
from exodus.plan.vocabulary import Feed, Side
from exodus.stack.home import free_port
from exodus.verify.reconcile import keys_of, reconcile, repair
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.sentinels import WITHIN_S, ServiceBox
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
KEYS = 2_000
# SENTINEL FAILOVER leaves the old master a master for up to ten seconds, and takes as long to test.
_FAILOVERS = [
    (side, how, when)
    for side in Side
    for how in ("kill", "command")
    for when in ("backfill", "live sync")
    if FULL
    or (side, how, when)
    in (
        (Side.SOURCE, "kill", "backfill"),
        (Side.TARGET, "kill", "live sync"),
    )
]
_IN_THE_MIDDLE = [
    (side, how, before)
    for side in Side
    for how in ("kill", "command")
    for before in ("hold", "raise_fence", "close_epoch", "change_authority")
    if FULL
    or (side, how, before)
    in (
        (Side.SOURCE, "kill", "raise_fence"),
        (Side.TARGET, "kill", "close_epoch"),
    )
]
WRITERS = 4
ON_ITS_WAY_MS = 100  # an answer that the gateway had passed on


class Load:
    """Writers through the gateway. Each writes each name once, and notes what was acknowledged."""

    def __init__(self, local: LocalMigration) -> None:
        self.local = local
        self.acknowledged: dict[str, int] = {}  # name → ms when it was
        self.errors: list[str] = []
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]

    async def _write(self, writer: int) -> None:
        client = redis.Redis(port=self.local.port, socket_timeout=5)
        number = 0
        while not self._stop.is_set():
            number += 1
            name = f"w{writer}:{number}"
            try:
                await client.set(name, number)
            except (redis.RedisError, OSError) as exc:
                self.errors.append(f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(0.02)
            else:
                self.acknowledged[name] = int(time.time() * 1000)
            await asyncio.sleep(0.002)
        await client.aclose()

    async def more(self, count: int = 50, within_s: float = WITHIN_S) -> None:
        """Wait for this many more acknowledged writes."""
        wanted = len(self.acknowledged) + count

        async def there() -> bool:
            return len(self.acknowledged) >= wanted

        await until(there, within_s=within_s, otherwise=f"no writes: {self.errors[-3:]}")

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def check(self, authority: ServiceBox | DatabaseServer) -> int:
        """Return how many acknowledged writes the authority lacks; each must be in the window of a
        failover that was reported.
        """
        names = list(self.acknowledged)
        with authority.client() as client:
            found = client.mget(names)
        lost = [name for name, value in zip(names, found, strict=True) if value is None]
        failovers = await read_failovers(self.local.store)
        for name in lost:
            at = self.acknowledged[name]
            assert any(
                (each.safe_until_ms is None or at >= each.safe_until_ms)
                and at <= each.at_ms + ON_ITS_WAY_MS
                for each in failovers
            ), (name, at, failovers)
        return len(lost)


async def _local(
    source: ServiceBox | DatabaseServer,
    target: ServiceBox | DatabaseServer,
    control: DatabaseServer,
    folder: Path,
    **plan: object,
) -> LocalMigration:
    local = LocalMigration(source, target, control, folder, **plan)  # type: ignore[arg-type]
    await local.open()
    with source.client() as client:
        client.mset({f"k{number}": number for number in range(KEYS)})
    await local.gateway(settle=settle)
    await local.syncer()
    await begin_feed(local.store, local.plan, local.feed)
    await local.start_live_sync()
    return local


async def _noted(local: LocalMigration, count: int = 1) -> None:
    async def there() -> bool:
        return len(await read_failovers(local.store)) >= count

    await until(there, within_s=WITHIN_S, otherwise="the failover was never noted")


async def _agrees(local: LocalMigration, load: Load, authority: Side = Side.SOURCE) -> int:
    """At rest, check that both sides are equal; return how many writes the database itself lost."""
    await load.end()
    syncer = local.syncers["syncer-1"][0]
    state = ""

    async def recovered() -> bool:
        nonlocal state
        gaps = await open_gaps(local.store)
        state = f"{gaps} {syncer.heartbeat(0).why}"
        if any("are only on the" in str(gap["why"]) for gap in gaps.values()):
            # Keys that only the follower has wait for a person's confirmation, given here.
            report = await reconcile(await local.engine(), "test", settle_s=0.1)
            await repair(await local.engine(), keys_of(report), remove_extra=True)
            await reconcile(await local.engine(), "test", settle_s=0.1)
        lives = await known_run_ids(local.store)
        return lives == (await local.engine()).run_ids and not gaps and not syncer.heartbeat(0).why

    try:
        await until(recovered, within_s=30, otherwise="-")
    except AssertionError:
        raise AssertionError(f"live sync never recovered: {state}") from None
    await local.drained()
    assert (await local.verify()).divergences == []
    return await load.check(local.servers[authority])


async def test_a_leg_goes_to_the_master_and_ends_with_its_role(source_service: ServiceBox) -> None:
    before = source_service.master()
    async with await Leg.connect(source_service.address(), Side.SOURCE) as leg:
        assert leg.address.port == before.port
        source_service.failover()
        after = await asyncio.to_thread(source_service.wait_other, before)
        async with await Leg.connect(source_service.address(), Side.SOURCE) as new:
            assert new.address.port == after.port
        await asyncio.sleep(0)
        with pytest.raises(ExodusError):
            await leg.call("PING")


@pytest.mark.parametrize(("side", "how", "when"), _FAILOVERS)
async def test_a_failover_loses_nothing_more(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
    side: Side,
    how: str,
    when: str,
) -> None:
    local = await _local(source_service, target_service, control_server, tmp_path)
    box = source_service if side is Side.SOURCE else target_service
    try:
        load = Load(local)
        if when == "live sync":
            await local.backfill()
        engine = await local.engine()
        pieces = await plan_slices(engine.authority, local.plan.slices)
        if when == "backfill":
            for piece in pieces[: len(pieces) // 2]:
                await copy_slice(engine, "run", piece, budget_s=60)
        await load.more(random.randrange(20, 80))
        before = box.master()
        box.kill_master() if how == "kill" else box.failover()
        if when == "backfill":
            for piece in pieces:
                assert (await copy_slice(engine, "run", piece, budget_s=60)).done
        await _noted(local)
        await load.more(100)
        await asyncio.to_thread(box.wait_other, before)
        lost = await _agrees(local, load)
        (failover,) = await read_failovers(local.store)
        assert failover.side is side
        assert (await read_topologies(local.store))[side].epoch == 2
        assert lost == 0 or side is Side.SOURCE
        if side is Side.TARGET:
            assert load.errors == []  # no application notices
    finally:
        await local.close()


# ---------------------------------------------------------------------- the switch


async def _switched(local: LocalMigration, to: Side) -> dict[str, object]:
    """Switch as an operator does: try again where it was refused or given up. Return its facts."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return (await switch.apply(local.store, local.plan, to)).facts
        except (DecisionRefused, CutoverAborted):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def test_both_ways_between_two_services(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Every server of the old side is fenced, and none of the new one."""
    local = await _local(source_service, target_service, control_server, tmp_path)
    boxes = {Side.SOURCE: source_service, Side.TARGET: target_service}
    try:
        load = Load(local)
        await local.backfill()
        for to in (Side.TARGET, Side.SOURCE):
            facts = await _switched(local, to)
            assert facts["replicas_with_all_keys"] == 1
            await load.more()
            assert all(map(DatabaseServer.fenced, boxes[to.other].nodes))
            assert not any(map(DatabaseServer.fenced, boxes[to].nodes))
        assert await _agrees(local, load) == 0
        assert load.errors == []
        assert await read_failovers(local.store) == []
        assert set(await read_topologies(local.store)) == set(Side)
    finally:
        await local.close()


async def test_from_one_server_to_a_service_and_back(
    redis62: DatabaseServer,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A side without Sentinels has one server to be fenced, and the other one has each of its."""
    local = await _local(redis62, target_service, control_server, tmp_path)
    boxes = {Side.SOURCE: [redis62], Side.TARGET: target_service.nodes}
    try:
        load = Load(local)
        await local.backfill()
        for to in (Side.TARGET, Side.SOURCE):
            facts = await _switched(local, to)
            assert facts.get("replicas_with_all_keys") == (1 if to is Side.TARGET else None)
            await load.more()
            assert all(map(DatabaseServer.fenced, boxes[to.other]))
            assert not any(map(DatabaseServer.fenced, boxes[to]))
        assert await _agrees(local, load) == 0
        assert load.errors == []
    finally:
        await local.close()


@pytest.mark.parametrize(("side", "how", "before"), _IN_THE_MIDDLE)
async def test_a_failover_in_the_middle_gives_the_switch_up(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    side: Side,
    how: str,
    before: str,
) -> None:
    """Nothing is switched, no server stays fenced, and writes continue. A later switch works."""
    local = await _local(
        source_service, target_service, control_server, tmp_path, hold_seconds_max=8.0
    )
    box = source_service if side is Side.SOURCE else target_service
    done = getattr(switch, before)
    killed: list[DatabaseServer] = []

    async def after_a_failover(running: Switch) -> None:
        was = await asyncio.to_thread(box.master)
        if how == "kill":
            killed.append(box.kill_master())
        else:
            await asyncio.to_thread(box.failover)
        await asyncio.to_thread(box.wait_other, was)
        await done(running)

    try:
        load = Load(local)
        await local.backfill()
        await load.more()
        with monkeypatch.context() as patch:
            patch.setattr(switch, before, after_a_failover)
            with pytest.raises((CutoverAborted, DecisionRefused)):
                await switch.apply(local.store, local.plan, Side.TARGET)
        await load.more(50)
        for server in killed:
            server.start()
            await asyncio.to_thread(box.follow, server)
        assert not any(map(DatabaseServer.fenced, (*source_service.nodes, *target_service.nodes)))
        await _agrees(local, load)
        load = Load(local)
        await _switched(local, Side.TARGET)
        await load.more()
        await _agrees(local, load, Side.TARGET)
    finally:
        await local.close()


async def test_a_failover_of_the_new_authority(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """After the switch, changes still flow back, and the source is equal again."""
    local = await _local(source_service, target_service, control_server, tmp_path)
    try:
        load = Load(local)
        await local.backfill()
        await _switched(local, Side.TARGET)
        await load.more()
        before = target_service.kill_master()
        await _noted(local)
        await load.more(100)
        await asyncio.to_thread(target_service.wait_other, before)
        await _agrees(local, load, Side.TARGET)
        assert all(map(DatabaseServer.fenced, source_service.nodes))
    finally:
        await local.close()


async def test_servers_of_the_old_side_that_appear_are_fenced(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Its master is killed and comes back without its fence: the gateways fence it. The way back
    restores each server's rules.
    """
    local = LocalMigration(source_service, target_service, control_server, tmp_path)  # type: ignore[arg-type]
    await local.open()
    try:
        await local.gateway(settle=settle)
        await local.syncer()
        await local.start_live_sync()
        load = Load(local)
        await local.backfill()
        await _switched(local, Side.TARGET)
        await load.more()
        before = source_service.kill_master()
        await asyncio.to_thread(source_service.wait_other, before)
        before.start()
        source_service.follow(before)
        assert not before.fenced()

        async def fenced() -> bool:
            return all(map(DatabaseServer.fenced, source_service.nodes))

        await until(fenced, within_s=20, otherwise="the server that came back was never fenced")
        assert await _agrees(local, load, Side.TARGET) == 0
        load = Load(local)
        await _switched(local, Side.SOURCE)
        await load.more()
        assert not any(map(DatabaseServer.fenced, source_service.nodes))
        assert await _agrees(local, load) == 0
    finally:
        await local.close()


# ---------------------------------------------------------------------- what is not known


async def test_without_sentinels_applications_are_served_and_nobody_switches(
    source_service: ServiceBox,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """So does a gateway that starts meanwhile: the control store knows the last master."""
    local = await _local(source_service, valkey91, control_server, tmp_path)
    try:
        load = Load(local)
        await local.backfill()
        await load.more()

        async def noted() -> bool:
            return Side.SOURCE in await read_topologies(local.store)

        await until(noted, within_s=5, otherwise="the master was never noted")
        source_service.pause_sentinels(2)
        with pytest.raises(DecisionRefused, match="not known for certain") as caught:
            await switch.apply(local.store, local.plan, Side.TARGET)
        assert "only 1 of 3 Sentinels answer" in caught.value.why
        source_service.pause_sentinels(3)
        masters._masters.clear()  # as in a process that has just started
        port = free_port()
        await local.gateway("gw-2", port)
        client = redis.Redis(port=port)
        assert await client.set("served", 1)
        await client.aclose()
        await load.more()
        assert load.errors == []
    finally:
        source_service.restart_sentinels()
        await local.close()


async def test_a_frozen_sentinel_that_wakes_does_not_lead_back(
    source_service: ServiceBox,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Until it hears of the failover, it names the old master, with an older epoch."""
    local = await _local(source_service, valkey91, control_server, tmp_path)
    try:
        load = Load(local)
        await local.backfill()
        before = source_service.master()
        source_service.pause_sentinels(1)
        before.kill()
        await _noted(local)
        after = masters.standing(source_service.address()).port
        await load.more(50)
        source_service.wake_sentinels()
        for _ in range(20):
            assert (await masters.located(source_service.address())).port == after
            await asyncio.sleep(0.02)
        await _agrees(local, load)
        assert len(await read_failovers(local.store)) == 1
    finally:
        source_service.restart_sentinels()
        await local.close()


async def test_the_replication_stream_goes_on_at_the_new_master(
    target_service: ServiceBox,
    redis82: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """By replication id and offset. The stream has no gap, and includes writes that passed no
    gateway.
    """
    local = await _local(target_service, redis82, control_server, tmp_path, feed=Feed.REPLICATION)
    try:
        load = Load(local)
        await local.backfill()
        syncer = local.syncers["syncer-1"][0]

        async def follows() -> bool:
            return syncer._stream is not None and syncer._stream.connects > 0

        await until(follows, within_s=10, otherwise="the stream was never read")
        await load.end()
        with target_service.client() as client:
            client.set("before", 1)
            client.wait(1, 1_000)
        await until(local.feed_drained, within_s=10, otherwise="the stream was never drained")
        target_service.kill_master()
        await _noted(local)

        async def again() -> bool:
            return syncer._stream is not None and syncer._stream.connects > 1

        await until(again, within_s=10, otherwise="the stream was never read again")
        assert syncer._stream is not None
        assert syncer._stream.gaps == 0
        with target_service.client() as client:
            client.set("after", 1)
        await until(local.feed_drained, within_s=20, otherwise="the stream was never drained")
        assert await _agrees(local, load) == 0
        with redis82.client() as client:
            assert client.mget("before", "after") == [b"1", b"1"]
    finally:
        await local.close()
