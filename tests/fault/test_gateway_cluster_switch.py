"""Sessions of cluster clients move between clusters when the authority changes, and back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import coredis
import coredis.exceptions
import glide
import pytest
import redis
from redis.cluster import RedisCluster

from exodus.commands.key_slots import slot_of
from exodus.control import registry
from exodus.control.heartbeats import GatewayHeartbeat, ProcessState
from exodus.control.route import read_route
from exodus.copy.guard import set_writer_epoch
from exodus.feeds.feed import JournalFeed
from exodus.plan.vocabulary import Feed, Hold, JournalMode, Side
from exodus.resp.encode import encode
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.cluster_app import ClusterApp
from tests.support.cluster_gateway import cluster_migration, gateway_process
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.ioredis import installed_ioredis
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
MakeCluster = Callable[..., ClusterBox]
_UNMAPPED = "Unable to map slot"


def through(local: LocalMigration, **more: object) -> RedisCluster:
    return RedisCluster(host="127.0.0.1", port=local.port, **more)  # type: ignore[arg-type]


async def beats(local: LocalMigration, condition: Callable[[GatewayHeartbeat], bool]) -> None:
    await registry.wait_for(
        local.store, "gateway", condition, within_s=20, otherwise="a gateway does not follow"
    )


async def begin_live_sync(local: LocalMigration) -> None:
    """The gateways' journal is the feed."""
    await beats(local, lambda beat: bool(beat.at_ms))
    route = await read_route(local.store)
    await set_writer_epoch(
        Endpoint(Side.TARGET, local.plan.target), local.plan.name, route.writer_epoch
    )
    route = await local.change(journal=JournalMode.ALL, sync=True, feed=Feed.GATEWAY)
    await beats(local, lambda beat: beat.epoch == route.epoch)


async def switch(local: LocalMigration, to: Side) -> None:
    """Hold, drain, close the old epoch, change the route: a switch without fences."""
    held = await local.change(hold=Hold.WRITES)
    await beats(
        local,
        lambda beat: (
            beat.epoch == held.epoch
            and beat.state is ProcessState.HELD
            and not beat.facts.unflushed
        ),
    )
    feed = JournalFeed(local.store, local.plan.partitions)
    await until(feed.drained, within_s=20, otherwise="the journal never drained")
    writer = held.writer_epoch + 1
    for side in (to, to.other):
        await set_writer_epoch(Endpoint(side, local.plan.address(side)), local.plan.name, writer)
    route = await local.change(authority=to, hold=Hold.NONE, writer_epoch=writer)
    await beats(local, lambda beat: beat.epoch == route.epoch)


@pytest.mark.parametrize("masters", [3, 2])
async def test_ten_switches_lose_nothing_under_a_cluster_client(
    masters: int, make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    target = make_cluster(ServerKind.VALKEY_91, masters=masters)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        with gateway_process(local):
            await begin_live_sync(local)
            await local.syncer()
            await local.backfill()
            with ClusterApp(lambda: through(local)) as app:
                to = Side.TARGET
                for _ in range(10):
                    await asyncio.to_thread(app.wait_more, 1_000)
                    await switch(local, to)
                    to = to.other
                await asyncio.to_thread(app.wait_more, 1_000)
            await local.drained()
            await until(
                JournalFeed(local.store, local.plan.partitions).drained,
                within_s=20,
                otherwise="the journal never drained",
            )
            print("acknowledged", app.acknowledged, "errors", dict(app.errors), app.stall_s)
            assert app.errors == {}
            await asyncio.to_thread(app.check, source)
            await asyncio.to_thread(app.check, target)
            report = await local.verify()
            assert report.divergences == []


async def test_live_sync_by_the_gateways_journal_makes_a_cluster_equal(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Failovers and reshards of the source, and the redirects that they cause, are in between."""
    source = make_cluster(ServerKind.REDIS_82, replicas=1, spare=1)
    target = make_cluster(ServerKind.VALKEY_91)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        gateway = await local.gateway()
        await begin_live_sync(local)
        await local.syncer()
        await local.backfill()

        def act() -> None:
            with ClusterApp(lambda: through(local), threads=2, per_s=600) as app:
                app.wait_more(300)
                source.reshard(range(0, 16_384, 800), source.nodes[-1])
                app.wait_more(300)
                source.failover(source.masters()[1])
                app.wait_more(300)
            assert app.errors == {}
            app.check(source)

        await asyncio.to_thread(act)
        await local.drained()
        assert gateway.nodes.redirects.total() > 0
        assert dict(gateway.journaler.gaps) == {}
        assert (await local.verify()).divergences == []


async def test_a_session_keeps_its_state_when_it_moves_between_clusters(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, masters=2)
    target = make_cluster(ServerKind.VALKEY_91, masters=3)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        await local.gateway()
        await begin_live_sync(local)
        await local.syncer()
        # A channel whose slot stays at the first listener, and one that goes to the second.
        names = [f"c{number}" for number in range(200)]
        stays = next(name for name in names if slot_of(name.encode()) < 5_000)
        leaves = next(name for name in names if 6_000 < slot_of(name.encode()) < 8_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", local.port)

        async def say(*args: object) -> None:
            writer.write(encode(*args))  # type: ignore[arg-type]

        async def hear(wanted: bytes) -> None:
            async with asyncio.timeout(10):
                assert await reader.readexactly(len(wanted)) == wanted

        def confirmation(kind: bytes, name: str, count: int, mark: bytes = b">") -> bytes:
            return b"%b3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:%d\r\n" % (
                *(mark, len(kind), kind, len(name), name.encode(), count),
            )

        await say("HELLO", "3")
        async with asyncio.timeout(10):
            while b"modules" not in await reader.readuntil(b"\r\n"):
                pass
            await reader.readuntil(b"\r\n")
        await say("CLIENT", "SETNAME", "carried")
        await say("READONLY")
        await hear(b"+OK\r\n" * 2)
        await say("SSUBSCRIBE", stays)
        await hear(confirmation(b"ssubscribe", stays, 1))
        await say("SSUBSCRIBE", leaves)
        await hear(confirmation(b"ssubscribe", leaves, 2))
        await switch(local, Side.TARGET)
        # As when a slot moves away: the client is told that the subscription ended.
        await hear(confirmation(b"sunsubscribe", leaves, 1))
        await say("CLIENT", "GETNAME")
        await hear(b"$7\r\ncarried\r\n")
        with target.owner_of(slot_of(stays.encode())).client() as client:
            assert client.execute_command("SPUBLISH", stays, "m") == 1
            flags = {each["name"]: each["flags"] for each in client.client_list()}
            assert "r" in flags["carried"]
        await hear(
            b">3\r\n$8\r\nsmessage\r\n$%d\r\n%b\r\n$1\r\nm\r\n" % (len(stays), stays.encode())
        )
        writer.close()


async def test_transactions_and_blocked_pops_move_to_the_node_of_their_listener(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    target = make_cluster(ServerKind.VALKEY_91)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        await local.gateway()
        await begin_live_sync(local)
        await local.syncer()
        key = next(f"k{n}" for n in range(99) if source.master_of(f"k{n}") is source.masters()[1])

        def connect() -> redis.Connection:
            connection = redis.Connection(host="127.0.0.1", port=local.port + 1)
            connection.connect()
            return connection

        blocked, open_multi = await asyncio.to_thread(connect), await asyncio.to_thread(connect)
        blocked.send_command("BLPOP", f"{{{key}}}list", 30)
        for args in (("MULTI",), ("INCR", key)):
            open_multi.send_command(*args)
            await asyncio.to_thread(open_multi.read_response)
        await switch(local, Side.TARGET)
        open_multi.send_command("EXEC")
        assert await asyncio.to_thread(open_multi.read_response) == [1]

        def push() -> None:
            with through(local) as client:
                client.rpush(f"{{{key}}}list", "v")

        await asyncio.to_thread(push)
        popped = await asyncio.to_thread(blocked.read_response)
        assert popped == [f"{{{key}}}list".encode(), b"v"]
        with target.client() as client:
            assert client.get(key) == b"1"
        blocked.disconnect()
        open_multi.disconnect()


async def test_a_slot_that_an_application_empties_is_emptied_on_the_follower(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """CLUSTER FLUSHSLOT of Valkey 9 names no key."""
    source = make_cluster(ServerKind.VALKEY_91, masters=2)
    target = make_cluster(ServerKind.VALKEY_81, masters=2)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        await local.gateway()
        await begin_live_sync(local)
        await local.syncer()

        def act() -> None:
            with through(local) as client:
                for number in range(40):
                    client.set(f"k{number}", number)
                slot = slot_of(b"k7")
                client.execute_command(
                    *("CLUSTER", "FLUSHSLOT", slot, "SYNC"),
                    target_nodes=client.get_node_from_key("k7"),
                )
                assert client.get("k7") is None

        await asyncio.to_thread(act)
        await local.drained()

        async def equal() -> bool:
            return await asyncio.to_thread(lambda: source.contents() == target.contents())

        await until(equal, within_s=30, otherwise="the follower kept the key")
        assert b"k7" not in target.contents()
        assert len(target.contents()) == 39


class _Counting:
    """A client library that increments counters of its own until it is told to stop."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self._port = name, port
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.violations: list[str] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        if self.name == "glide":
            node = glide.NodeAddress("127.0.0.1", self._port)
            client = await glide.GlideClusterClient.create(
                glide.GlideClusterClientConfiguration([node], request_timeout=10_000)
            )
            try:
                await self._count(client.incr)
            finally:
                await client.close()
        elif self.name == "ioredis":
            await self._count_apart()
        else:
            cluster = coredis.RedisCluster("127.0.0.1", self._port)
            async with cluster:
                await self._count(cluster.incr)

    async def _count(self, incr: Callable[[str], Awaitable[int]]) -> None:
        number = 0
        while not self._stop.is_set():
            key = f"{self.name}:{number % 50}"
            number += 1
            try:
                found = await incr(key)
            except (coredis.exceptions.RedisError, glide.GlideError) as exc:
                self.errors[f"{type(exc).__name__}: {exc}"] += 1
                continue
            self._note(key, found)

    def _note(self, key: str, found: int) -> None:
        if found != self.counts[key] + 1:
            self.violations.append(f"{key} is {found}, and not {self.counts[key] + 1}")
        self.counts[key] = found

    async def _count_apart(self) -> None:
        """Let a program of ioredis count."""
        program, folder = await installed_ioredis("ioredis_cluster.mjs")
        process = await asyncio.create_subprocess_exec(
            *("node", str(program), str(self._port), str(folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async for line in process.stdout:
            key, _, said = line.decode().strip().partition(" ")
            if key == "!":
                self.errors[said] += 1
            else:
                self._note(key, int(said))
            if self._stop.is_set():
                process.stdin.close()  # it ends, and tells what it has
        await process.wait()

    def stop(self) -> None:
        self._stop.set()

    async def wait_more(self, count: int) -> None:
        wanted = self.counts.total() + count

        async def done() -> bool:
            return self.counts.total() >= wanted

        await until(done, within_s=60, otherwise=f"no write of {self.name} passes: {self.errors}")


# ioredis needs node and npm.
@pytest.mark.parametrize("name", ["coredis", "glide", *(["ioredis"] if FULL else [])])
async def test_other_cluster_clients_follow_failovers_and_switches(
    name: str, make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    async with cluster_migration(source, target, control_server, tmp_path, feed=Feed.AUTO) as local:
        with gateway_process(local):
            await begin_live_sync(local)
            await local.syncer()
            await local.backfill()
            app = _Counting(name, local.port)
            running = asyncio.create_task(app.run())
            try:
                await app.wait_more(200)
                await asyncio.to_thread(source.failover, source.masters()[1])
                await app.wait_more(200)
                for to in (Side.TARGET, Side.SOURCE, Side.TARGET):
                    await switch(local, to)
                    await app.wait_more(300)
            finally:
                app.stop()
                await running
            await local.drained()
            assert app.violations == []
            # What coredis says itself until it has asked for the slots again.
            refreshes = sum(count for error, count in app.errors.items() if _UNMAPPED in error)
            assert app.errors.total() == refreshes < 20
            wanted = {key.encode(): b"%d" % count for key, count in app.counts.items()}

            async def equal() -> bool:
                # The gateway is a process of its own: its journal may have the last writes later.
                both = [await asyncio.to_thread(box.contents) for box in (source, target)]
                return all(
                    {key: value for key, (_, value, _) in each.items()} == wanted for each in both
                )

            await until(equal, within_s=20, otherwise="a side lacks acknowledged writes")
