"""The switch of a cluster: every node of both sides, there and back, under a cluster client that
checks itself; and what changes while it is under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from examples.shop.check import check
from examples.shop.model import Model
from examples.shop.place import Place
from examples.shop.workload import Tally, Writer
from exodus.control.route import read_route
from exodus.copy.guard import read_write_grants
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.cutover.fence import read_record
from exodus.cutover.settle import settle
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.feeds.feed import begin_feed
from exodus.live import server_runs
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]
MakeCluster = Callable[..., ClusterBox]
WRITERS = 4
PER_S = 100  # writes of each


class Shop:
    """The shop's writers on a cluster client, through the gateway. The model knows each key's
    state.
    """

    def __init__(self, local: LocalMigration) -> None:
        self.model = Model(seed=7, keys=0, began_ms=int(time.time() * 1000))
        self.tally = Tally()
        place = Place(f"redis-cluster://127.0.0.1:{local.port}")
        self._stop = asyncio.Event()
        self._tasks = [
            asyncio.create_task(
                Writer(number, place, self.model, self.tally, writers=WRITERS).run(
                    self._stop, PER_S
                )
            )
            for number in range(WRITERS)
        ]

    async def more(self, count: int = 200) -> None:
        """Wait for this many more acknowledged writes."""
        wanted = self.tally.acknowledged + count

        async def there() -> bool:
            return self.tally.acknowledged >= wanted

        await until(there, within_s=30, otherwise=f"the shop stands still: {self.tally.texts}")

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def judge(self, box: ClusterBox | DatabaseServer) -> dict[str, object]:
        """Compare a side with the model."""
        login = box.address()
        port = box.masters()[0].port if isinstance(box, ClusterBox) else box.port
        scheme = "redis-cluster" if isinstance(box, ClusterBox) else "redis"
        url = f"{scheme}://{login.username}:{login.secret('test')}@127.0.0.1:{port}"
        found = await check(self.model, url)
        wanted = ("lost_writes", "duplicated", "resurrected_keys")
        assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0), found
        return found


async def ready(local: LocalMigration) -> Shop:
    """Gateway, live sync and backfill, under the shop's writes."""
    await local.gateway(settle=settle)
    await begin_feed(local.store, local.plan, local.feed)
    await server_runs.begin(local.store, (await local.engine()).run_ids)
    await local.syncer()
    await local.start_live_sync()
    shop = Shop(local)
    await local.backfill()
    await shop.more()
    return shop


async def switched(local: LocalMigration, to: Side) -> Switch:
    """Switch as an operator does: again, where it was refused or given up."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await switch.apply(local.store, local.plan, to)
        except (DecisionRefused, CutoverAborted):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def fenced(node: DatabaseServer) -> bool:
    with node.client() as client:
        return "-@write" in str(client.acl_getuser("default"))


async def test_there_and_back_between_clusters_of_other_sizes(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Every node of the old side is fenced, none of the new one; nothing is lost either way."""
    source = make_cluster(ServerKind.VALKEY_81, masters=3)
    target = make_cluster(ServerKind.VALKEY_91, masters=2, replicas=1)
    boxes = {Side.SOURCE: source, Side.TARGET: target}
    async with cluster_migration(
        source, target, control_server, tmp_path, cutover=Cutover.GATEWAY
    ) as local:
        shop = await ready(local)
        for to in (Side.TARGET, Side.SOURCE) * (5 if FULL else 1):
            done = await switched(local, to)
            assert done.facts.get("unfinished") is None, done.timeline
            if to is Side.TARGET:
                assert done.facts["replicas_with_all_keys"] == 1
            assert "on each of" in str(done.facts["fenced_users"])
            await shop.more()
            assert (await read_route(local.store)).authority is to
            assert all(fenced(node) for node in boxes[to.other].nodes)
            assert not any(fenced(node) for node in boxes[to].nodes)
        await shop.end()
        await local.drained()
        assert (await local.verify()).divergences == []
        await shop.judge(source)
        await shop.judge(target)
        # redis-py follows no MOVED in a transaction; a reshard gives it the same error.
        assert set(shop.tally.kinds) <= {"MovedError"}, shop.tally.texts


_IN_THE_MIDDLE = [
    (side, what, before)
    for side in Side
    for what in ("failover", "reshard", "pause")
    for before in ("hold", "raise_fence", "close_epoch", "change_authority")
    if FULL
    or (side, what, before)
    in (
        (Side.SOURCE, "failover", "raise_fence"),
        (Side.SOURCE, "reshard", "change_authority"),
        (Side.TARGET, "failover", "change_authority"),
        (Side.TARGET, "pause", "close_epoch"),
    )
]


def change(box: ClusterBox, what: str) -> Callable[[], None]:
    """Let something happen to a side; return what mends it."""
    master = box.masters()[0]
    if what == "failover":
        box.failover(master)
        return lambda: None
    if what == "reshard":
        box.reshard(range(20), box.masters()[1])
        return lambda: None
    master.pause()
    return master.resume


async def test_what_changes_in_the_middle_gives_the_switch_up_or_completes_it(
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never half: after a switch that was given up, writes go on at the old side, no node is
    fenced, and every writer has its right on every node of the follower.
    """
    source = make_cluster(ServerKind.VALKEY_81, masters=2, replicas=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2, replicas=1)
    boxes = {Side.SOURCE: source, Side.TARGET: target}
    async with cluster_migration(
        source, target, control_server, tmp_path, hold_seconds_max=8.0, cutover=Cutover.GATEWAY
    ) as local:
        shop = await ready(local)
        for side, what, before in _IN_THE_MIDDLE:
            mend: list[Callable[[], None]] = []
            done = getattr(switch, before)

            async def after_a_change(running: Switch, side=side, what=what, done=done) -> None:  # type: ignore[no-untyped-def]
                mend.append(await asyncio.to_thread(change, boxes[side], what))  # noqa: B023
                await done(running)

            with monkeypatch.context() as patch:
                patch.setattr(switch, before, after_a_change)
                with pytest.raises((CutoverAborted, DecisionRefused)):
                    await switch.apply(local.store, local.plan, Side.TARGET)
            for each in mend:
                each()
            for box in boxes.values():
                await asyncio.to_thread(box.wait_ready)
            await shop.more(50)
            assert (await read_route(local.store)).authority is Side.SOURCE
            await _put_right(local, boxes)
        await switched(local, Side.TARGET)
        await shop.more()
        await shop.end()
        await _agree(local)
        await shop.judge(target)


async def _put_right(local: LocalMigration, boxes: dict[Side, ClusterBox]) -> None:
    """What the switch could not undo at once, the gateways settle."""
    route = await read_route(local.store)
    endpoint = Endpoint(route.follower, local.plan.address(route.follower))

    async def settled() -> bool:
        await settle(local.store, local.plan)
        now = await read_route(local.store)
        grants = await read_write_grants(endpoint, local.plan.name)
        return (
            all(value == b"%d" % now.writer_epoch for value in grants.values())
            and not any(fenced(node) for box in boxes.values() for node in box.nodes)
            and await read_record(local.store, Side.SOURCE) is None
        )

    await until(settled, within_s=30, otherwise="what a given-up switch left was never settled")


async def _agree(local: LocalMigration) -> None:
    async def equal() -> bool:
        return (await local.verify()).divergences == []

    await local.drained()
    await until(equal, within_s=40, otherwise="the sides never agreed")


async def test_a_gateway_without_a_listener_for_a_node_does_not_switch(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Clients would be told of fewer nodes than there are."""
    source = make_cluster(ServerKind.VALKEY_81, masters=2)
    target = make_cluster(ServerKind.VALKEY_91, masters=3)
    async with cluster_migration(
        source, target, control_server, tmp_path, listen={"listeners": 2}
    ) as local:
        await local.gateway(settle=settle)
        await begin_feed(local.store, local.plan, local.feed)
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        with pytest.raises(DecisionRefused, match="listener"):
            await switch.apply(local.store, local.plan, Side.TARGET)


async def test_a_stray_of_the_old_side_is_refused_on_every_node(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.REDIS_62, masters=2)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    async with cluster_migration(
        source, target, control_server, tmp_path, feed=Feed.TRACKING
    ) as local:
        shop = await ready(local)
        await switched(local, Side.TARGET)
        with source.client() as stray:
            for name in ("a", "b", "c", "d"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    stray.set(name, 1)
        await shop.more()
        await shop.end()
        await _agree(local)
        await shop.judge(target)
