"""Several syncers: they share partitions, take over a dead one's, and copy a hot key a bounded
number of times.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
import redis.asyncio as redis

from exodus import cancellation
from exodus.control import registry
from exodus.control.route import read_route
from exodus.control.schema import guard_key
from exodus.engine import open_engine
from exodus.feeds import reader
from exodus.live import lanes
from exodus.live.lanes import Lanes
from exodus.plan.bounds import LEASE_MS
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import Feed, Side
from exodus.verify.reconcile import verify
from tests.support.fleet import Fleet
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def test_a_right_that_comes_after_its_route_is_taken(local: LocalMigration) -> None:
    """A gateway gave a switch up: the new route is published before the follower gets the new write
    grant (seed 135 of the drawn faults).
    """
    await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()
    target, guard = local.servers[Side.TARGET].client(), guard_key(local.plan.name)
    target.set(guard, "closed by a switch")
    route = await local.change(writer_epoch=(await read_route(local.store)).writer_epoch + 1)
    await local.app().set("k", "v")

    async def refused() -> bool:
        return "closed by a switch" in syncer.heartbeat(0).why

    await until(refused, within_s=10, otherwise="the lanes wrote without a right")
    assert target.get("k") is None
    target.set(guard, route.writer_epoch)
    await local.drained()
    assert target.get("k") == b"v"


async def test_an_error_of_exodus_does_not_end_live_sync(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the lanes, they start again, and the heartbeat gives the reason."""
    planted = iter([RuntimeError("planted")])
    real = Lanes._sync

    async def failing(lanes: Lanes, *more: object) -> None:
        for error in planted:
            raise error
        await real(lanes, *more)

    monkeypatch.setattr(Lanes, "_sync", failing)
    await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()
    await local.app().set("k", "v")
    await local.drained()
    assert local.servers[Side.TARGET].client().get("k") == b"v"
    beat = syncer.heartbeat(0)
    assert beat.facts.task_failures == 1
    assert "an error of Exodus: RuntimeError: planted" in beat.why


async def test_leases_last_through_a_long_rescan(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another syncer would begin the same rescan, and both would read every key."""
    seen: list[set[bytes]] = []

    async def long(*_: object) -> int:
        for _ in range(8):
            await asyncio.sleep(LEASE_MS / 4_000)
            names = [local.store.keys.lease(each) for each in range(local.plan.partitions)]
            seen.append(set(await local.store.client.mget(names)))
        return 0

    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.drained()
    names = [local.store.keys.lease(each) for each in range(local.plan.partitions)]

    async def taken() -> bool:
        return None not in await local.store.client.mget(names)

    await until(taken, within_s=10, otherwise="not every partition was taken")
    before = set(await local.store.client.mget(names))
    monkeypatch.setattr(lanes, "rescan", long)
    await local.app().flushdb()
    await local.drained()
    assert seen
    assert all(owners == before and None not in owners for owners in seen)


async def test_what_live_sync_stands_at_is_told(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower does not answer. The heartbeat names the step that waits, and its keys."""
    monkeypatch.setattr(lanes, "LANES_STANDING_S", 0.5)
    await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()
    await local.app().set("first", "v")
    await local.drained()
    assert syncer.heartbeat(0).why == ""
    local.servers[Side.TARGET].pause()
    try:
        await local.app().set("k", "v")

        async def told() -> bool:
            why = syncer.heartbeat(0).why
            return "live sync copies 1 keys from 0:k on" in why or "renews its leases" in why

        await until(told, within_s=20, otherwise="nothing was told of the stall")
    finally:
        local.servers[Side.TARGET].resume()
    await local.drained()
    assert syncer.heartbeat(0).why == ""


async def test_syncers_share_partitions_and_take_over_from_a_dead_one(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Each of two processes has half of the partitions. After kill -9 of one, the other has all,
    and nothing is missing.
    """
    fleet = Fleet(redis62, valkey91, control_server, tmp_path / "fleet", gateways=1)
    await fleet.open()
    try:
        await fleet.migrate()

        async def shares() -> dict[str, list[int]]:
            return {
                beat.process: beat.facts.partitions
                for beat in await registry.heartbeats(fleet.store, "syncer")
            }

        async def halves() -> bool:
            found = list((await shares()).values())
            each = fleet.plan.partitions // 2
            return [len(share) for share in found] == [each, each] and len(
                {*found[0], *found[1]}
            ) == 2 * each

        await until(halves, within_s=20, otherwise="the partitions were not shared")
        app = redis.Redis(port=fleet.ports[0])
        await app.mset({f"k{number}": number for number in range(200)})
        fleet.members["syncer-1"].kill()
        await app.mset({f"k{number}": -number for number in range(200)})

        async def taken_over() -> bool:
            # The survivor is busy all the while
            await app.mset({f"k{number}": -number for number in range(200)})
            return (await shares())["syncer-2"] == list(range(fleet.plan.partitions))

        try:
            await until(taken_over, within_s=20, otherwise="nobody took over from the dead syncer")
        except AssertionError:
            beats = [beat.model_dump() for beat in await registry.heartbeats(fleet.store, "syncer")]
            raise AssertionError(f"nobody took over from the dead syncer: {beats}") from None
        finally:
            await app.aclose()
        engine = await open_engine(fleet.store, fleet.plan)
        await until(engine.feed.drained, within_s=20, otherwise="the journal never drained")
        assert (await verify(engine, settle_s=0.1)).divergences == []
        assert valkey91.client().get("k7") == b"-7"
    finally:
        await fleet.close()


async def test_a_hot_key_is_copied_far_less_often_than_it_is_written(local: LocalMigration) -> None:
    await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()
    app = local.app()
    before = syncer.tally.counts["copied"]
    for _ in range(50):
        pipe = app.pipeline(transaction=False)
        for _ in range(200):
            pipe.incr("hot")
        await pipe.execute()
    await local.drained()
    assert local.servers[Side.TARGET].client().get("hot") == b"10000"
    copied = syncer.tally.counts["copied"] - before
    assert 1 <= copied <= 1_000
    assert syncer.tally.lag.total_count or syncer._rates.lag_ms_p99


async def test_a_probe_key_shows_when_a_write_is_seen_at_the_follower(
    local: LocalMigration,
) -> None:
    """The probe goes through the gateway and is removed again. Without a gateway, status says why
    nothing is measured.
    """
    local.plan = local.plan.model_copy(update={"gateway": Listen(port=local.port)})
    await local.store.save_plan(local.plan)
    gateway = await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()

    async def measured() -> bool:
        return (syncer.heartbeat(0).facts.probe_lag_ms_p99 or 0) > 0

    await until(measured, within_s=15, otherwise="no probe was ever seen at the follower")
    facts = syncer.heartbeat(0).facts
    assert (facts.probes_missed, facts.probe_why) == (0, "")
    assert 0 < facts.probe_lag_ms_p50 <= facts.probe_lag_ms_p99
    assert "exodus_syncer_probe_lag_ms_p99" in {name for name, *_ in syncer.metrics()}
    gateway.stop()

    async def said() -> bool:
        return "connection to the source" in (syncer.heartbeat(0).facts.probe_why or "")

    await until(said, within_s=15, otherwise="it was not said that there is no gateway")
    await local.drained()
    assert local.servers[Side.TARGET].client().keys("*lag-probe*") == []


async def test_an_epoch_that_ends_leaves_no_connection_however_often_it_is_cancelled(
    modern: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks may be cancelled repeatedly, even while they return their connections."""
    monkeypatch.setattr(cancellation, "CANCEL_AGAIN_S", 0.0)
    modern.plan = modern.plan.model_copy(update={"feed": Feed.REPLICATION})
    await modern.store.save_plan(modern.plan)
    await modern.gateway()
    await reader.begin(modern.store, (await modern.engine()).authority)
    await modern.syncer()
    servers = list(modern.servers.values())

    def ours() -> list[str]:
        return [
            client["name"]
            for box in servers
            for client in box.client().client_list()
            if client["name"] in ("exodus-syncer", "exodus-feed")
        ]

    for _ in range(3):
        await modern.start_live_sync()

        async def at_work() -> bool:
            return set(ours()) == {"exodus-syncer", "exodus-feed"}

        await until(at_work, within_s=15, otherwise="live sync never began")
        await modern.change(sync=False)

        async def gone() -> bool:
            return not ours()

        await until(gone, within_s=10, otherwise="connections were left open")


async def test_a_list_that_grows_is_warned_of_once(
    local: LocalMigration, caplog: pytest.LogCaptureFixture
) -> None:
    """Each write of it copies the whole list. The warning names the cost, the key and the
    remedy.
    """
    await local.gateway()
    syncer = await local.syncer()
    await local.start_live_sync()
    app = local.app()
    await app.rpush("grows", *[secrets.token_bytes(500_000) for _ in range(8)])

    async def costs() -> bool:
        await app.rpush("grows", "a little")
        return bool(syncer.heartbeat(0).facts.heavy)

    await until(costs, within_s=60, otherwise="nobody counted what the list costs")
    (row,) = syncer.heartbeat(0).facts.heavy
    assert (row["db"], row["key"]) == (0, "grows")
    assert row["bytes"] > 64_000_000
    for _ in range(3):
        await app.rpush("grows", "a little")
    await local.drained()
    said = [
        record.getMessage()
        for record in caplog.records
        if "was copied whole" in record.getMessage()
    ]
    assert len(said) == 1
    assert "strategy: native" in said[0]
