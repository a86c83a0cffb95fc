"""Clusters as sides: copying, verifying and live sync by node, in every pairing, under failovers
and reshards.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis
import redis.asyncio

from exodus.backfill import slices
from exodus.backfill.slices import copy_slice
from exodus.commands.key_slots import slot_of
from exodus.control import freshness
from exodus.control.checkpoint import load_progress
from exodus.control.gaps import open_gaps
from exodus.control.topology import read_failovers, read_topologies
from exodus.copy import guarded_cluster
from exodus.copy.impact import Pace, Paces, read_paces
from exodus.copy.scan import plan_slices
from exodus.errors import SourceError, TargetError
from exodus.feeds.feed import begin_feed
from exodus.live import server_runs
from exodus.net import routed
from exodus.net.clusters import cluster_of
from exodus.plan.bounds import CLUSTER_ANSWER_S
from exodus.plan.scope import Rename
from exodus.plan.settings import Budget
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.verify import reconcile as reconciling
from exodus.verify.reconcile import keys_of, reconcile, repair, verify
from tests.support.clusters import ClusterBox, contents_of
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
MakeCluster = Callable[..., ClusterBox]
MakeServer = Callable[..., DatabaseServer]
Box = ClusterBox | DatabaseServer


def fill(client: redis.Redis | redis.RedisCluster, count: int = 600, prefix: str = "k") -> None:
    """Write keys of every plain type, some with an expiry, and one too large for a command."""
    pipe = client.pipeline(transaction=False)
    for number in range(count):
        name = f"{prefix}:{number}"
        pipe.set(f"{name}:string", f"value {number}", ex=3_600 if number % 3 == 0 else None)
        if number % 10 == 0:
            pipe.rpush(f"{name}:list", *range(20))
            pipe.sadd(f"{name}:set", *[f"m{each}" for each in range(20)])
            pipe.hset(f"{name}:hash", mapping={f"f{each}": each for each in range(20)})
            pipe.zadd(f"{name}:zset", {f"z{each}": each / 3 for each in range(20)})
            pipe.xadd(f"{name}:stream", {"a": str(number)}, id=f"{number + 1}-1")
    pipe.execute()
    client.set(f"{prefix}:large", "x" * 3_000_000)


def contents(box: Box) -> dict[bytes, tuple[bytes, object, bool]]:
    if isinstance(box, ClusterBox):
        return box.contents()
    with box.client() as client:
        return contents_of(client)


async def local_between(
    source: Box, target: Box, control: DatabaseServer, folder: Path, **plan: object
) -> LocalMigration:
    fields = {"cutover": Cutover.OWN, "feed": Feed.TRACKING, "slices": 2, **plan}
    local = LocalMigration(source, target, control, folder, **fields)  # type: ignore[arg-type]
    await local.open()
    return local


PAIRS = {
    "standalone to cluster": (ServerKind.REDIS_62, 0, ServerKind.VALKEY_91, 3),
    "cluster to standalone": (ServerKind.VALKEY_81, 3, ServerKind.REDIS_82, 0),
    "cluster to cluster": (ServerKind.REDIS_62, 3, ServerKind.VALKEY_91, 3),
    "to fewer masters": (ServerKind.VALKEY_81, 3, ServerKind.REDIS_82, 2),
    "to six masters": (ServerKind.REDIS_82, 4, ServerKind.REDIS_82, 6),
}


@pytest.mark.parametrize("pair", PAIRS)
async def test_a_backfill_makes_both_sides_equal(
    pair: str,
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    ours, our_masters, theirs, their_masters = PAIRS[pair]
    source = make_cluster(ours, masters=our_masters) if our_masters else make_server(ours)
    target = make_cluster(theirs, masters=their_masters) if their_masters else make_server(theirs)
    local = await local_between(source, target, control_server, tmp_path)
    try:
        with source.client() as client:
            fill(client)
        await local.start_live_sync()
        await local.backfill()
        report = await local.verify()
        assert report.divergences == []
        assert report.keys_authority == report.keys_verified == len(contents(source))
        assert contents(source) == contents(target)
    finally:
        await local.close()


@pytest.mark.parametrize("kind", list(ServerKind))
async def test_each_node_tells_what_a_single_server_of_its_kind_tells(
    kind: ServerKind, make_cluster: MakeCluster, make_server: MakeServer
) -> None:
    """A node refuses questions about keys of other nodes' slots. That refusal says nothing about
    its abilities.
    """
    box, alone = make_cluster(kind), make_server(kind)
    facts = await Endpoint(Side.SOURCE, box.address()).facts()
    single = await Endpoint(Side.SOURCE, alone.address()).facts()
    assert facts.capabilities == single.capabilities
    assert facts.payload_version == single.payload_version is not None
    assert (facts.engine, facts.version) == (single.engine, single.version)
    assert facts.database_count == 1


class Writers:
    """Writers of an application. Each writes its own keys repeatedly.

    Like a cluster client it tries again after an error, so the last value of each key is known.
    """

    NUMBER = 4
    KEYS = 60

    def __init__(self, box: Box, seed: int = 1) -> None:
        self._box = box
        self._random = random.Random(seed)
        self._stop = asyncio.Event()
        self.acknowledged: dict[str, str] = {}
        self.count = 0
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self.NUMBER)]

    def _client(self) -> redis.asyncio.Redis | redis.asyncio.RedisCluster:
        if isinstance(self._box, ClusterBox):
            node = next(node for node in self._box.nodes if node.running)
            return redis.asyncio.RedisCluster(host="127.0.0.1", port=node.port)
        return redis.asyncio.Redis(port=self._box.port)

    async def _write(self, writer: int) -> None:
        client, number = self._client(), 0
        try:
            while not self._stop.is_set():
                number += 1
                name = f"w{writer}:{self._random.randrange(self.KEYS)}"
                value = f"{writer}.{number}"
                try:
                    if number % 7 == 0:
                        await client.delete(name)
                        value = ""
                    else:
                        await client.set(name, value)
                except (redis.RedisError, OSError):
                    self.acknowledged.pop(name, None)  # whether it was written is not known
                    await asyncio.sleep(0.02)
                else:
                    self.acknowledged[name] = value
                    self.count += 1
                await asyncio.sleep(0.001)
        finally:
            await client.aclose()

    async def more(self, count: int = 200) -> None:
        wanted = self.count + count

        async def there() -> bool:
            return self.count >= wanted

        await until(there, within_s=40, otherwise="the writers stand still")

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def check(self, box: Box) -> None:
        """Each acknowledged write is there."""
        found = contents(box)
        for name, value in self.acknowledged.items():
            key = name.encode()
            assert (found[key][1] if key in found else b"") == value.encode(), name


async def begin(local: LocalMigration) -> None:
    """Live sync, as Migrate begins it."""
    await begin_feed(local.store, local.plan, local.feed)
    await server_runs.begin(local.store, (await local.engine()).run_ids)
    await local.syncer()
    await local.start_live_sync()


async def quiet(local: LocalMigration) -> None:
    """Wait until the target has every write, and no rescan runs."""
    feed = (await local.engine()).feed

    async def done() -> bool:
        comparing = await server_runs.left(local.store, only_comparing=True)
        return await feed.drained() and not comparing

    await until(done, within_s=60, otherwise="live sync never caught up")


FEEDS = [Feed.REPLICATION, Feed.TRACKING, Feed.NOTIFICATIONS]


@pytest.mark.parametrize("feed", FEEDS)
async def test_live_sync_follows_every_node(
    feed: Feed,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, notify_keyspace_events="AK")
    target = make_cluster(ServerKind.VALKEY_91, masters=2, notify_keyspace_events="AK")
    local = await local_between(source, target, control_server, tmp_path, feed=feed)
    try:
        with source.client() as client:
            fill(client, 200)
        await begin(local)
        writers = Writers(source)
        await writers.more()
        await local.backfill()
        await writers.more()
        with source.client() as client:
            client.delete("k:0:string", "k:large")
        await writers.end()
        await quiet(local)
        assert contents(source) == contents(target)
        writers.check(target)
        report = await local.verify()
        assert report.divergences == []
        assert report.keys_verified == report.keys_authority
    finally:
        await local.close()


async def test_a_verification_during_a_reshard_counts_for_nothing(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could miss a key that moves to a node which was scanned already."""
    source, target = make_cluster(ServerKind.VALKEY_81), make_server(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path)
    try:
        with source.client() as client:
            fill(client, 50)
        await local.start_live_sync()
        await local.backfill()
        engine = await local.engine()
        assert (await reconcile(engine, "before"))["divergences"] == []
        seen = await freshness.last_pass(local.store)

        async def reshards(*given: object, **more: object) -> object:
            report = await verify(*given, **more)  # type: ignore[arg-type]
            await asyncio.to_thread(source.move_slot, 0, source.masters()[1])
            return report

        monkeypatch.setattr(reconciling, "verify", reshards)
        with pytest.raises(SourceError, match="slots moved"):
            await reconcile(engine, "meanwhile")
        assert await freshness.last_pass(local.store) == seen
        monkeypatch.undo()
        assert (await reconcile(engine, "after"))["divergences"] == []
    finally:
        await local.close()


async def test_a_verification_finds_a_key_that_moved_to_a_node_that_was_copied(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """The gateways' journal does not tell of it, since no application wrote the key."""
    source = make_cluster(ServerKind.VALKEY_81, masters=2)
    target = make_server(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path, feed=Feed.AUTO)
    try:
        with source.client() as client:
            fill(client, 100)
        await local.start_live_sync()
        engine = await local.engine()
        first, second = source.masters()
        names = [f"k:{number}:string" for number in range(100)]
        moved = next(name for name in names if source.master_of(name) is first)
        for piece in reversed(await plan_slices(engine.authority, local.plan.slices)):
            if (await engine.authority.node(piece.node)).place.port == first.port:
                await asyncio.to_thread(source.move_slot, slot_of(moved.encode()), second)
            await copy_slice(engine, "run", piece, budget_s=60)
        found = await reconcile(engine, "after")
        assert [(row["key"], row["kind"]) for row in found["divergences"]] == [(moved, "missing")]
        await local.syncer()
        assert await repair(engine, keys_of(found)) == {}
        assert contents(source) == contents(target)
    finally:
        await local.close()


async def test_databases_move_to_where_a_cluster_has_them(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """By renames, or to a cluster that has several (Valkey 9)."""
    source, target = make_server(ServerKind.REDIS_62), make_cluster(ServerKind.VALKEY_91, masters=2)
    wide = make_cluster(ServerKind.VALKEY_91, masters=2, cluster_databases="16")
    for db in (0, 3):
        with source.client(db=db) as client:
            fill(client, 60, prefix=f"db{db}")
    rename = Rename(database=3, to_database=0, prefix="", to_prefix="three:")
    for box, renames in ((target, (rename,)), (wide, ())):
        folder = tmp_path / f"{len(renames)}"
        folder.mkdir()
        local = await local_between(source, box, control_server, folder, renames=renames)
        try:
            await local.start_live_sync()
            await local.backfill()
            report = await local.verify()
            assert report.divergences == []
            assert report.keys_verified == 2 * len(contents(source))
        finally:
            await local.close()
    assert {key for key in contents(target) if key.startswith(b"three:")} == {
        b"three:" + key.replace(b"db0", b"db3") for key in contents(source)
    }


async def test_keys_of_one_slot_are_copied_together(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Hash tags: a large slot, and a large key in it."""
    source, target = make_cluster(ServerKind.REDIS_82), make_cluster(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path)
    try:
        with source.client() as client:
            fill(client, 2_000, prefix="{tag}")
            client.rpush("{tag}:long", *[f"element {number}" for number in range(200_000)])
        await local.start_live_sync()
        await local.backfill()
        assert (await local.verify()).divergences == []
        assert contents(source) == contents(target)
    finally:
        await local.close()


@pytest.mark.parametrize("side", list(Side))
async def test_after_a_failover_only_that_nodes_slots_are_compared(
    side: Side,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Differences in that node's slots are copied again. A difference planted in another slot
    stays: nobody looked there.
    """
    boxes = {
        each: make_cluster(ServerKind.VALKEY_81, replicas=int(each is side), masters=2)
        for each in Side
    }
    target = boxes[Side.TARGET]
    local = await local_between(boxes[Side.SOURCE], target, control_server, tmp_path)
    try:
        with boxes[Side.SOURCE].client() as client:
            fill(client, 100)
        await begin(local)
        await local.backfill()
        await quiet(local)
        failed, other = boxes[side].masters()
        names = [f"k:{number}:string" for number in range(100)]
        here = next(name for name in names if boxes[side].master_of(name) is failed)
        elsewhere = next(name for name in names if boxes[side].master_of(name) is other)
        with target.client() as client:
            wrong = dict.fromkeys((here, elsewhere), "spoiled")
            client.mset_nonatomic(wrong)
            await asyncio.to_thread(boxes[side].failover, failed)

            async def mended() -> bool:
                return client.get(here) != b"spoiled"

            await until(mended, within_s=30, otherwise="the failed node's slots were not compared")
            await quiet(local)
            assert client.get(elsewhere) == b"spoiled"
    finally:
        await local.close()


async def test_the_replication_stream_of_a_shard_goes_on_at_its_new_master(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """By replication id and offset: the stream has no gap. The failover is told with its window."""
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    local = await local_between(source, target, control_server, tmp_path, feed=Feed.REPLICATION)
    try:
        with source.client() as client:
            fill(client, 50)
        await begin(local)
        await local.backfill()
        stream = local.syncers["syncer-1"][0]._stream
        assert stream is not None

        async def read(count: int) -> bool:
            return stream.connects >= count and not stream.why

        await until(lambda: read(3), within_s=20, otherwise="a node's stream was never read")
        await quiet(local)
        failed = source.masters()[0]
        key = next(f"k{n}" for n in range(99) if source.master_of(f"k{n}") is failed)
        with source.client() as client:
            client.set(key, "before")
            client.wait(1, 1_000, target_nodes=client.get_node_from_key(key))
            await quiet(local)
            promoted = await asyncio.to_thread(source.kill, failed)
            await until(lambda: read(4), within_s=20, otherwise="the new master is not read")
            assert stream.gaps == 0

            async def noted() -> bool:
                return bool(await read_failovers(local.store))

            await until(noted, within_s=20, otherwise="the failover was not noted")
            (failover,) = await read_failovers(local.store)
            assert failover.before == f"127.0.0.1:{failed.port}"
            assert failover.master == f"127.0.0.1:{promoted.port}"
            assert failover.safe_until_ms is not None
            assert 0 <= failover.at_ms - failover.safe_until_ms < 20_000
            assert failover.lost_bytes_min == 0
            client.set(key, "after")
        await quiet(local)
        assert contents(source) == contents(target)
        assert stream.gaps == 0
    finally:
        await local.close()


async def test_a_key_that_no_node_takes_for_now_stays_marked_and_comes_later(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The staging key of a large key is on the node that imports the slot. To rename it, both names
    have to be there: TRYAGAIN, as long as the slot is on its way.
    """
    monkeypatch.setattr(guarded_cluster, "CLUSTER_REDIRECT_S", 0.3)
    source, target = make_server(ServerKind.VALKEY_81), make_cluster(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path)
    try:
        with source.client() as client:
            fill(client, 50)
            client.set("other:large", "y" * 3_000_000)
        await begin(local)
        slot = slot_of(b"k:large")
        to = next(node for node in target.masters() if node is not target.owner_of(slot))
        with target.migrating(slot, to):
            await local.backfill()
            progress = (await load_progress(local.store, "run")).values()
            assert sum(each.restarts for each in progress) == 0
            assert sum(each.re_marked for each in progress) == 1
            assert not await local.feed_drained()
            found = contents(target)
            assert b"k:large" not in found
            assert len(found) == len(contents(source)) - 1
        await quiet(local)
        assert contents(source) == contents(target)
        assert (await local.verify()).divergences == []
    finally:
        await local.close()


def _paced(box: ClusterBox) -> list[int]:
    """Return the ports of the masters that a pace is connected to."""
    found = []
    for node in box.masters():
        with node.client() as client:
            if "exodus-pace" in {each["name"] for each in client.client_list()}:
                found.append(node.port)
    return found


async def test_the_budget_of_each_node_is_kept_by_what_it_answers_itself(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A backfill measures the node of its slice, and a verification measures every node."""
    source, target = make_cluster(ServerKind.VALKEY_81), make_server(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path)

    def measured() -> set[int]:
        return set(_paced(source))

    try:
        with source.client() as client:
            fill(client, 100)
        await local.start_live_sync()
        engine = await local.engine()
        ports, seen = [], []
        for piece in await plan_slices(engine.authority, local.plan.slices):
            await copy_slice(
                engine, "run", piece, budget_s=60, on_progress=lambda _: seen.append(measured())
            )
            ports.append((await engine.authority.node(piece.node)).place.port)
        assert seen == [{port} for port in ports]
        assert set(ports) == {node.port for node in source.masters()}
        async with Paces(local.store, engine.authority, local.plan.budget, what="verification"):
            assert measured() == set(ports)
    finally:
        await local.close()


async def test_a_slice_watches_the_replicas_of_those_nodes_that_it_writes_to(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A connection to every node of the target a slice is most of what a small slice costs."""
    source, target = make_cluster(ServerKind.VALKEY_81), make_cluster(ServerKind.VALKEY_91)
    local = await local_between(source, target, control_server, tmp_path)

    def watched() -> list[int]:
        return _paced(target)

    try:
        await local.start_live_sync()
        engine = await local.engine()
        for node in await engine.authority.each_node():
            pace = Pace(local.store, node, Budget(), what="slice", follower=engine.follower)
            async with pace:
                await until(
                    lambda: read_paces(local.store), within_s=10, otherwise="it looked at nothing"
                )
                assert node.first_slot is not None
                owner = cluster_of(target.address()).known.owner(node.first_slot)
                assert owner is not None
                assert watched() == [target.address().server(owner.master).port]
    finally:
        await local.close()


async def test_a_slot_that_no_node_serves_is_asked_for_again_within_a_bound(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster without a majority of its masters answers CLUSTERDOWN."""
    box = make_cluster(ServerKind.VALKEY_91)
    alive, *others = box.masters()
    key = next(f"k{n}" for n in range(99) if box.master_of(f"k{n}") is alive)

    async def down() -> bool:
        with alive.client() as client:
            return client.cluster("INFO")["cluster_state"] == "fail"

    endpoint, name = Endpoint(Side.SOURCE, box.address()), key.encode()
    async with await endpoint.connect(name="test", slot=slot_of(name)) as leg:
        assert await leg.call("SET", name, "v") == b"OK"
        for node in others:
            node.kill()
        await until(down, within_s=20, otherwise="the cluster does not notice")
        monkeypatch.setattr(routed, "CLUSTER_REDIRECT_S", 0.3)
        with pytest.raises(SourceError, match="is not served now") as refused:
            await leg.call("GET", name)
        assert "CLUSTERDOWN" in refused.value.why
        monkeypatch.setattr(routed, "CLUSTER_REDIRECT_S", 60.0)
        asked = asyncio.create_task(leg.call("GET", name))
        for node in others:
            await asyncio.to_thread(node.start)
        assert await asked == b"v"


class Faults:
    """Faults of a cluster, each once, while something else goes on."""

    def __init__(self, box: ClusterBox, seed: int) -> None:
        self.box = box
        self.random = random.Random(seed)

    async def failover(self) -> None:
        """CLUSTER FAILOVER of one shard."""
        master = self.random.choice(
            [node for node in self.box.masters() if self.box.replicas_of(node)]
        )
        await asyncio.to_thread(self.box.failover, master)

    async def kill(self) -> None:
        """kill -9 of one master that has a replica."""
        master = self.random.choice(
            [node for node in self.box.masters() if self.box.replicas_of(node)]
        )
        await asyncio.to_thread(self.box.kill, master)

    async def pause(self) -> None:
        """A master stands still until its replica is the master, and wakes."""
        master = self._not_asked()
        (replica, *_) = self.box.replicas_of(master)
        master.pause()
        try:
            await until(
                lambda: asyncio.to_thread(lambda: replica in self.box.masters()),
                within_s=20,
                otherwise="no failover after a pause",
            )
        finally:
            master.resume()
        await asyncio.to_thread(self.box.wait_ready)

    async def silence(self) -> None:
        """A master does not answer for longer than a look waits, and nobody takes its place."""
        with self.box.patient():
            self._not_asked().pause()
            await asyncio.sleep(2 * CLUSTER_ANSWER_S)  # as long as it is silent

    def _not_asked(self) -> DatabaseServer:
        """Return a master with a replica that is not the node which `ClusterBox` asks."""
        asked = next(node for node in self.box.nodes if node.running)
        masters = [node for node in self.box.masters() if self.box.replicas_of(node)]
        return self.random.choice([node for node in masters if node is not asked])

    async def reshard(self) -> None:
        """A range of slots moves, those of some keys among them."""
        wanted = [slot_of(f"k:{number}:string".encode()) for number in range(12)]
        wanted += [slot_of(f"w0:{number}".encode()) for number in range(12)]
        masters = self.box.masters()
        for slot in wanted:
            to = self.random.choice(masters)
            await asyncio.to_thread(self.box.move_slot, slot, to, pause_s=0.02)
        await asyncio.to_thread(self.box.wait_ready)

    async def atomic(self) -> None:
        """The same by CLUSTER MIGRATESLOTS, which Valkey 9 has."""
        for number in range(6):
            slot = slot_of(f"k:{number}:string".encode())
            to = self.random.choice(self.box.masters())
            await asyncio.to_thread(self.box.migrate_slots, range(slot, slot + 40), to)


# Seeds 0 to 7 of each in the long form: more than a hundred.
_FAULTS = [
    (fault, side, feed, seed)
    for fault in ("failover", "kill", "pause", "silence", "reshard", "atomic")
    for side in Side
    for feed in (Feed.REPLICATION, Feed.TRACKING)
    for seed in range(8 if FULL else 1)
    if FULL
    or (fault, side, feed)
    in (
        ("failover", Side.SOURCE, Feed.TRACKING),
        ("failover", Side.TARGET, Feed.REPLICATION),
        ("kill", Side.SOURCE, Feed.REPLICATION),
        ("kill", Side.TARGET, Feed.TRACKING),
        ("pause", Side.SOURCE, Feed.TRACKING),
        ("silence", Side.TARGET, Feed.REPLICATION),
        ("reshard", Side.SOURCE, Feed.REPLICATION),
        ("reshard", Side.SOURCE, Feed.TRACKING),
        ("reshard", Side.TARGET, Feed.TRACKING),
        ("atomic", Side.SOURCE, Feed.TRACKING),
        ("atomic", Side.SOURCE, Feed.REPLICATION),
        ("atomic", Side.TARGET, Feed.REPLICATION),
    )
]


_LATER_S = 1.0  # at most, between the writes after the copy and the second fault


@pytest.mark.parametrize(("fault", "side", "feed", "seed"), _FAULTS)
async def test_a_fault_during_backfill_and_live_sync_loses_nothing(
    fault: str,
    side: Side,
    feed: Feed,
    seed: int,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Moments are drawn by the seed: how much is copied when the first fault comes, and how long
    after the copy the second one does.
    """
    for bound in ("BACKFILL_BATCH_KEYS", "BACKFILL_NODE_BATCH_KEYS", "BACKFILL_CHUNK_KEYS"):
        monkeypatch.setattr(slices, bound, 48)
    boxes = {
        Side.SOURCE: make_cluster(
            ServerKind.VALKEY_91 if fault == "atomic" else ServerKind.VALKEY_81,
            replicas=int(side is Side.SOURCE),
        ),
        Side.TARGET: make_cluster(ServerKind.VALKEY_91, replicas=int(side is Side.TARGET)),
    }
    source, target = boxes[Side.SOURCE], boxes[Side.TARGET]
    local = await local_between(source, target, control_server, tmp_path, feed=feed)
    faults = Faults(boxes[side], seed)
    try:
        with source.client() as client:
            fill(client, 400)
        await begin(local)
        writers = Writers(source)
        await writers.more()
        breaking = await copied_with_a_fault(local, faults, getattr(faults, fault))
        await breaking
        await writers.more()
        moved = fault in ("reshard", "atomic")

        async def told() -> bool:
            if fault == "silence":
                return True  # nobody is another node's successor
            failed_over = moved or bool(await read_failovers(local.store))
            return failed_over and (await read_topologies(local.store))[side].epoch > 1

        # The watch does not report a change that is undone between two of its looks.
        await until(told, within_s=10, otherwise="nobody tells of the fault")
        await asyncio.sleep(faults.random.uniform(0, _LATER_S))
        if fault != "kill":
            await getattr(faults, fault)()
        await writers.more()
        await writers.end()
        await quiet(local)
        found = await reconcile(await local.engine(), "after the faults")
        # The servers themselves: MIGRATE sends the time left, so a reshard changes expiries by ms,
        # and a failover loses what no replica had.
        allowed = {
            ("reshard", Side.TARGET): {"expiry"},
            ("failover", Side.SOURCE): {"extra"},
            ("kill", Side.SOURCE): {"extra"},
            ("pause", Side.SOURCE): {"extra"},
        }.get((fault, side), set())
        assert {row["kind"] for row in found["divergences"]} <= allowed, found["divergences"]
        if found["divergences"]:
            engine = await local.engine()
            assert await repair(engine, keys_of(found), remove_extra=True) == {}
            found = await reconcile(engine, "after the repair")
        assert found["divergences"] == []

        async def closed() -> bool:
            return not await open_gaps(local.store)

        # Live sync may notice the second fault while the sides are compared here.
        await until(closed, within_s=30, otherwise="live sync never compared the sides")
        assert contents(source) == contents(target)
        if moved or fault == "silence":
            writers.check(target)  # a failover may lose what no replica had
    finally:
        await local.close()


async def copied_with_a_fault(
    local: LocalMigration, faults: Faults, fault: Callable[[], Awaitable[None]]
) -> asyncio.Task[None]:
    """Copy all slices, and begin a fault when a share of the keys is copied that the seed draws;
    return the fault.

    Slices are copied by a chunk a call, as Migrate's tasks do with a short budget. A call is made
    again after a side was away.
    """
    share, total, seen = faults.random.random(), 0, dict[str, int]()
    engine = await local.engine()
    pieces = await plan_slices(engine.authority, local.plan.slices)
    for facts in [await node.facts() for node in await engine.authority.each_node()]:
        total += sum(facts.databases.values())
    breaking: asyncio.Task[None] | None = None
    for piece in pieces:
        away = 0
        while away < 5:
            if breaking is None and sum(seen.values()) >= share * total:
                breaking = asyncio.create_task(fault())
            try:
                progress = await copy_slice(await local.engine(), "run", piece, budget_s=0)
            except (SourceError, TargetError):
                away += 1
                await asyncio.sleep(1)
                continue
            seen[piece.slice_id] = progress.keys_seen
            if progress.done:
                break
        else:
            raise AssertionError("a slice was never copied")
    return breaking or asyncio.create_task(fault())
