"""The switch of a cluster: every node of both sides, there and back, under a cluster client that
checks itself; and what changes while it is under way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from examples.shop.check import check
from examples.shop.model import Model
from examples.shop.place import Place
from examples.shop.workload import Writer, WriterTally
from exodus.control import registry
from exodus.control.listener_map import publish_listeners, read_listeners
from exodus.control.route import read_route
from exodus.copy.guard import read_write_grants
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.cutover.fence import read_record
from exodus.cutover.listeners_check import check_listeners, check_same_listeners, lacks
from exodus.cutover.settle import settle
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.feeds.feed import JournalFeed, begin_feed
from exodus.live import server_runs
from exodus.plan.vocabulary import Cutover, Feed, JournalMode, Side
from exodus.rehearsal.journal_proof import prove_listeners
from exodus.rehearsal.nodes import find_nodes
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.cluster_app import ClusterApp
from tests.support.cluster_gateway import cluster_migration, gateway_process
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
MakeCluster = Callable[..., ClusterBox]
WRITERS = 4
PER_S = 100  # writes of each


class Shop:
    """The shop's writers on a cluster client, through the gateway. The model knows each key's
    state.

    They have a thread and a loop of their own, as the gateway runs in the test's.
    """

    def __init__(self, local: LocalMigration) -> None:
        self.model = Model(seed=7, keys=0, began_ms=int(time.time() * 1000))
        self.tally = WriterTally()
        self._place = Place(f"redis-cluster://127.0.0.1:{local.port}")
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            asyncio.run(self._write())
        except BaseException as exc:
            self._failed.append(exc)
            raise

    async def _write(self) -> None:
        stop = asyncio.Event()
        writers = [
            Writer(number, self._place, self.model, self.tally, writers=WRITERS).run(stop, PER_S)
            for number in range(WRITERS)
        ]
        tasks = [asyncio.create_task(each) for each in writers]
        while not self._stop.is_set() and not any(task.done() for task in tasks):
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*tasks)

    async def more(self, count: int = 200) -> None:
        """Wait for this many more acknowledged writes."""
        wanted = self.tally.acknowledged + count

        async def there() -> bool:
            assert not self._failed, self._failed
            return self.tally.acknowledged >= wanted

        await until(there, within_s=30, otherwise=f"the shop stands still: {self.tally.texts}")

    async def end(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

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


@asynccontextmanager
async def ready(local: LocalMigration) -> AsyncIterator[Shop]:
    """Gateway, live sync and backfill, under the shop's writes."""
    await local.gateway(settle=settle)
    await begin_feed(local.store, local.plan, local.feed)
    await server_runs.begin(local.store, (await local.engine()).run_ids)
    await local.syncer()
    await local.start_live_sync()
    shop = Shop(local)
    try:
        await local.backfill()
        await shop.more()
        yield shop
    finally:
        await shop.end()


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


async def test_the_journal_of_the_gateways_is_proved_on_every_node(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source, target = make_cluster(ServerKind.VALKEY_81), make_cluster(ServerKind.VALKEY_91)
    async with cluster_migration(
        source, target, control_server, tmp_path, cutover=Cutover.GATEWAY, feed=Feed.GATEWAY
    ) as local:
        await local.gateway()

        async def published() -> bool:
            return len(await read_listeners(local.store)) == len(Side)

        await until(published, within_s=20, otherwise="no map of listeners was published")
        feed = JournalFeed(local.store, local.plan.partitions)
        nodes = await find_nodes(local.store, local.plan)
        with pytest.raises(DecisionRefused, match="not to be relied on") as refused:
            await prove_listeners(feed, local.plan, nodes, within_s=1.5)  # nobody journals yet
        assert "none came to the journal" in refused.value.why
        await local.change(journal=JournalMode.ALL)
        names = await prove_listeners(feed, local.plan, nodes, within_s=20)
        assert {source.master_of(name) for name in names} == set(source.masters())
        assert source.contents() == {}


@pytest.mark.parametrize("feed", [Feed.TRACKING, Feed.GATEWAY])
async def test_there_and_back_between_clusters_of_other_sizes(
    feed: Feed, make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Every node of the old side is fenced, none of the new one; nothing is lost either way."""
    source = make_cluster(ServerKind.VALKEY_81, masters=3)
    target = make_cluster(ServerKind.VALKEY_91, masters=2, replicas=1)
    boxes = {Side.SOURCE: source, Side.TARGET: target}
    async with (
        cluster_migration(
            source, target, control_server, tmp_path, cutover=Cutover.GATEWAY, feed=feed
        ) as local,
        ready(local) as shop,
    ):
        for to in (Side.TARGET, Side.SOURCE) * (5 if FULL else 1):
            done = await switched(local, to)
            assert done.facts.get("unfinished") is None, done.timeline
            if to is Side.TARGET:
                assert done.facts["replicas_with_all_keys"] == 1
            assert "on each of" in str(done.facts["fenced_users"])
            await shop.more()
            if to is Side.TARGET:  # the new authority fails over, under its applications
                await asyncio.to_thread(target.failover, target.masters()[0])
                await shop.more()
            assert (await read_route(local.store)).authority is to
            assert all(fenced(node) for node in boxes[to.other].nodes)
            assert not any(fenced(node) for node in boxes[to].nodes)
        await shop.end()
        await local.drained()
        assert (await local.verify()).divergences == []
        await shop.judge(source)
        await shop.judge(target)
        assert shop.tally.errors == 0, shop.tally.texts


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
    async with (
        cluster_migration(
            source, target, control_server, tmp_path, hold_seconds_max=8.0, cutover=Cutover.GATEWAY
        ) as local,
        ready(local) as shop,
    ):
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
    source = make_cluster(ServerKind.REDIS_62, masters=2, spare=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    async with (
        cluster_migration(source, target, control_server, tmp_path, feed=Feed.TRACKING) as local,
        ready(local) as shop,
    ):
        await switched(local, Side.TARGET)
        with source.client() as stray:
            for name in ("a", "b", "c", "d"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    stray.set(name, 1)
        # A node that appears on the old side is fenced by the gateways.
        appeared = source.nodes[-1]
        await asyncio.to_thread(source.reshard, range(16), appeared)

        async def no_way_in() -> bool:
            return await asyncio.to_thread(fenced, appeared)

        await until(no_way_in, within_s=20, otherwise="the new node was not fenced")
        await shop.more()
        await shop.end()
        await _agree(local)
        await shop.judge(target)
        await _another_map_is_noticed(local)


async def _another_map_is_noticed(local: LocalMigration) -> None:
    """Before a switch begins, under its hold, and before the route changes."""
    versions = await check_listeners(local.store, local.plan)
    running = Switch(
        local.store, local.plan, Side.SOURCE, await read_route(local.store), listeners=versions
    )
    await check_same_listeners(running)
    (beat,) = await registry.heartbeats(local.store, "gateway")
    assert lacks(beat, versions) == ""
    known = (await read_listeners(local.store))[Side.SOURCE]
    after = known.model_copy(update={"version": known.version + 1})
    assert await publish_listeners(local.store, Side.SOURCE, after)
    assert "map of the source" in lacks(beat, {**versions, "source": after.version})
    with pytest.raises(CutoverAborted, match="stand for other nodes now"):
        await check_same_listeners(running)


if FULL:

    @pytest.mark.timeout(600)
    async def test_ten_switches_give_a_client_no_error_that_a_reshard_does_not(
        make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
    ) -> None:
        """2,000 writes a second by redis-py's cluster client, through a gateway in a process of its
        own. First a real reshard of the source, then ten switches there and back.
        """
        source = make_cluster(ServerKind.VALKEY_81)
        target = make_cluster(ServerKind.VALKEY_91)
        async with cluster_migration(
            source, target, control_server, tmp_path, cutover=Cutover.GATEWAY
        ) as local:

            def through() -> redis.RedisCluster:
                return redis.RedisCluster(host="127.0.0.1", port=local.port)

            with gateway_process(local):
                await begin_feed(local.store, local.plan, local.feed)
                await server_runs.begin(local.store, (await local.engine()).run_ids)
                await local.syncer()
                await local.start_live_sync()
                await local.backfill()
                with ClusterApp(through) as resharded:
                    await asyncio.to_thread(resharded.wait_more, 2_000)
                    for slots, to in ((range(0, 600, 2), 1), (range(0, 600, 2), 0)):
                        await asyncio.to_thread(source.reshard, slots, source.nodes[to])
                    await asyncio.to_thread(resharded.wait_more, 2_000)
                await asyncio.to_thread(resharded.check, source)
                with through() as client:  # the next application begins with none of them
                    for key in {*resharded.counts, *resharded.deleted}:
                        client.delete(key)
                holds: list[object] = []
                with ClusterApp(through) as app:
                    for number in range(10):
                        await asyncio.to_thread(app.wait_more, 2_000)
                        to = Side.SOURCE if number % 2 else Side.TARGET
                        holds.append((await switched(local, to)).facts["hold_ms"])
                    await asyncio.to_thread(app.wait_more, 2_000)
                await _agree(local)
                await asyncio.to_thread(app.check, source)
                await asyncio.to_thread(app.check, target)
            print("hold ms", holds)
            for name, each in (("reshard", resharded), ("switches", app)):
                print(name, each.acknowledged, dict(each.errors), f"stall {each.stall_s:.3f} s")
            assert set(app.errors) <= set(resharded.errors)
