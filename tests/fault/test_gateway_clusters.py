"""The gateway in front of clusters: cluster clients see its listeners as the nodes, through
failovers, reshards, and outages of the control store.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
from redis.cluster import ClusterNode, LoadBalancingStrategy, RedisCluster
from redis.exceptions import RedisClusterException

from exodus.commands.slots import slot_of
from exodus.control.listener_map import read_listeners
from exodus.gateway.hub import Gateway
from exodus.gateway.tables import Tables
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.resp.scanner import ReplyScanner
from exodus.stack.servers import ServerKind
from tests.support.cluster_gateway import LISTENERS, cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until, wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]
MakeCluster = Callable[..., ClusterBox]
MakeServer = Callable[..., DatabaseServer]


def through(local: LocalMigration, *, listener: int = 0, **more: object) -> RedisCluster:
    """A cluster client of the gateway."""
    return RedisCluster(host="127.0.0.1", port=local.port + listener, **more)  # type: ignore[arg-type]


def ask(port: int, *requests: bytes) -> list[bytes]:
    """Send requests over one connection, and return the frames of the replies."""
    scanner, data, found, at = ReplyScanner(), b"", [], 0
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as sock:
        sock.sendall(b"".join(requests))
        while len(found) < len(requests):
            part = sock.recv(65_536)
            assert part, f"the connection ended after {data!r}"
            data += part
            for reply in scanner.feed(part):
                found.append(data[at : at + reply.size])
                at += reply.size
    return found


PROGRAM: list[tuple[object, ...]] = [
    *[("SET", f"key:{number}", number) for number in range(40)],
    *[("GET", f"key:{number}") for number in range(40)],
    *[("INCR", f"count:{number % 3}") for number in range(9)],
    ("SET", "{tag}1", "a", "PX", 100_000),
    ("MSET", "{tag}2", "b", "{tag}3", "c"),
    ("MGET", "{tag}1", "{tag}2", "{tag}3", "{tag}4"),
    ("MGET", "key:1", "key:2"),  # several slots
    ("DEL", "{tag}2", "{tag}3"),
    ("RPUSH", "list", *range(50)),
    ("LRANGE", "list", 0, -1),
    ("BLPOP", "list", 1),
    ("HSET", "hash", "a", "-MOVED 1 127.0.0.1:1", "b", "-ASK 2 c:3\r\n"),
    ("HGETALL", "hash"),
    ("ZADD", "zset", 1.5, "a", 2, "b"),
    ("ZRANGE", "zset", 0, -1, "WITHSCORES"),
    ("XADD", "stream", "1-1", "f", "v"),
    ("XRANGE", "stream", "-", "+"),
    ("EVAL", "return redis.call('INCR', KEYS[1])", 1, "count:0"),
    ("EVAL", "return redis.error_reply('MOVE no')", 1, "count:0"),
    ("GET", "hash"),  # the wrong type
    ("TTL", "missing"),
    ("SETRANGE", "large", 200_000, "x"),
    ("GET", "large"),
]


def run(client: RedisCluster, program: list[tuple[object, ...]]) -> list[object]:
    found: list[object] = []
    for args in program:
        try:
            found.append(client.execute_command(*args))
        except (redis.RedisError, RedisClusterException) as exc:
            found.append((type(exc).__name__, str(exc)))
    with client.pipeline() as pipe:
        for number in range(40):
            pipe.set(f"piped:{number}", number).get(f"key:{number}")
        found.append(pipe.execute())
    with client.pipeline(transaction=True) as transaction:
        transaction.incr("{tag}n").incr("{tag}n").get("{tag}1")
        found.append(transaction.execute())
    found.append(sorted(client.scan_iter(count=10)))
    found.append(client.dbsize())
    return found


def both(kinds: list[ServerKind]) -> list[tuple[ServerKind, int]]:
    return [(kind, protocol) for kind in kinds for protocol in (2, 3)]


@pytest.mark.parametrize(("kind", "protocol"), both(list(ServerKind)))
async def test_a_cluster_client_gets_the_same_replies_as_directly(
    kind: ServerKind,
    protocol: int,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """The twin of the cluster is asked directly."""
    source, twin = make_cluster(kind), make_cluster(kind)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        await local.gateway()

        def compare() -> None:
            with (
                through(local, listener=1, protocol=protocol) as client,
                twin.client(protocol=protocol) as direct,
            ):
                ours, theirs = run(client, PROGRAM), run(direct, PROGRAM)
                for request, got, wanted in zip(
                    [*PROGRAM, "pipeline", "transaction", "scan", "dbsize"],
                    ours,
                    theirs,
                    strict=True,
                ):
                    assert got == wanted, request
                ports = {node.port for node in client.get_nodes()}
                assert ports == {local.port + number for number in range(3)}

        await asyncio.to_thread(compare)


@pytest.mark.parametrize("kind", list(ServerKind))
@pytest.mark.parametrize("listed", [False, True])
async def test_no_reply_names_a_node(
    kind: ServerKind,
    listed: bool,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_cluster(kind, replicas=1)
    twin = make_cluster(kind, masters=1)
    listen: dict[str, object] = {"replicas": "listed" if listed else "hidden"}
    async with cluster_migration(source, twin, control_server, tmp_path, listen=listen) as local:
        await local.gateway()
        words = ["SLOTS", "NODES"] + (["SHARDS"] if kind is not ServerKind.REDIS_62 else [])
        node_id = source._id(source.masters()[0])
        asked = [encode("CLUSTER", word) for word in words]
        asked += [encode("CLUSTER", "REPLICAS", node_id), encode("CLUSTER", "SLAVES", node_id)]
        asked += [encode("MULTI"), asked[0], encode("EXEC")]
        count = 6 if listed else 3
        for protocol in (2, 3):
            for listener in range(count):
                frames = await asyncio.to_thread(
                    ask, local.port + listener, encode("HELLO", protocol), *asked
                )
                said = b"".join(frames[1:])
                for node in source.nodes:
                    assert b"%d" % node.port not in said
                for number in range(count):
                    assert b"%d" % (local.port + number) in frames[1]
                    assert b"127.0.0.1:%d@" % (local.port + number) in frames[2]
                assert frames[-1].count(b"%d" % local.port) >= 1


class Load:
    """Counters of a cluster client: what was acknowledged, and which errors there were."""

    def __init__(self, open_client: Callable[[], RedisCluster], *, pause_s: float = 0.0) -> None:
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()  # increments that an error answered
        self.errors: Counter[str] = Counter()
        self._open, self._pause_s = open_client, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self._open() as client:
            number = 0
            while not self._stop.is_set():
                key = f"counter:{number % 97}"
                number += 1
                try:
                    client.incr(key)
                    self.acknowledged[key] += 1
                except (redis.RedisError, RedisClusterException) as exc:
                    self.unknown[key] += 1
                    self.errors[type(exc).__name__] += 1
                time.sleep(self._pause_s)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_more(self, count: int) -> None:
        """Wait until so many more increments were acknowledged."""
        wanted = self.acknowledged.total() + count
        wait_until(
            lambda: self.acknowledged.total() >= wanted, within_s=30, otherwise="no write passes"
        )

    def check(self, box: ClusterBox) -> None:
        """Compare what was acknowledged with what is there."""
        with box.client() as client:
            for key, count in self.acknowledged.items():
                there = int(client.get(key) or 0)
                assert count <= there <= count + self.unknown[key], key


async def test_a_manual_failover_and_a_reshard_are_followed_without_an_error(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1, spare=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        gateway = await local.gateway()

        def act() -> None:
            with Load(lambda: through(local)) as load:
                load.wait_more(200)
                for master in source.masters():
                    source.failover(master)
                    load.wait_more(200)
                spare = source.nodes[-1]
                source.reshard(range(0, 16_384, 400), spare)
                load.wait_more(400)
                source.reshard(range(0, 16_384, 400), source.masters()[0])
                load.wait_more(200)
            assert load.errors == {}
            assert load.acknowledged.total() >= 1_400
            load.check(source)
            first, second, *_ = source.masters()
            key = next(f"k{n}" for n in range(999) if source.master_of(f"k{n}") is first)
            with source.migrating(slot_of(key.encode()), second), through(local) as client:
                client.set(key, "asked for")
                assert client.get(key) == b"asked for"

        await asyncio.to_thread(act)
        assert dict(gateway.sessions_closed) == {}
        assert gateway.nodes.redirects["MOVED"] > 0
        assert gateway.nodes.redirects["ASK"] > 0


async def test_a_killed_master_is_followed_while_the_control_store_is_away(
    make_cluster: MakeCluster, make_server: MakeServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.REDIS_82, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    control = make_server(ServerKind.VALKEY_91)
    async with cluster_migration(source, twin, control, tmp_path) as local:
        await local.gateway()
        await agreed(local)
        control.pause()

        def act() -> None:
            with Load(lambda: through(local)) as load:
                load.wait_more(200)
                with source.client() as client:
                    client.wait(1, 1_000, target_nodes=RedisCluster.PRIMARIES)
                source.kill(source.masters()[1])
                load.wait_more(500)
            with through(local) as client:  # a new client finds all of them
                assert len(client.get_primaries()) == 3
                assert all(client.ping(target_nodes=node) for node in client.get_primaries())

        try:
            await asyncio.to_thread(act)
        finally:
            control.resume()
        await agreed(local)


async def agreed(local: LocalMigration) -> None:
    """Wait until all gateways use the published maps."""

    async def done() -> bool:
        maps = await read_listeners(local.store)
        wanted = {str(side): known.version for side, known in maps.items()}
        return bool(wanted) and all(
            gateway.nodes.versions == wanted for gateway, _ in local.gateways.values()
        )

    await until(done, within_s=20, otherwise="the gateways do not agree")


async def test_gateways_agree_which_listener_stands_for_which_node(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=2)
    async with (
        cluster_migration(source, twin, control_server, tmp_path) as local,
        cluster_migration(source, twin, control_server, tmp_path) as other,
    ):
        await local.gateway()
        second = await local.gateway("gw-2", port=other.port)
        await agreed(local)
        before = second.nodes.maps[Side.SOURCE]
        first = source.masters()[0]
        await asyncio.to_thread(source.failover, first)

        async def followed() -> bool:
            return all(
                gateway.nodes.maps[Side.SOURCE].nodes != before.nodes
                for gateway, _ in local.gateways.values()
            )

        await until(followed, within_s=20, otherwise="the failover was not seen")
        await agreed(local)
        published = (await read_listeners(local.store))[Side.SOURCE]
        assert published.version > before.version
        for gateway, _ in local.gateways.values():
            assert gateway.nodes.maps[Side.SOURCE].nodes == published.nodes
        ours, theirs = [
            await asyncio.to_thread(ask, port, encode("CLUSTER", "SLOTS"))
            for port in (local.port, other.port)
        ]
        shown = {b"%d" % (local.port + at): b"%d" % (other.port + at) for at in range(3)}
        for port, twin_port in shown.items():
            ours = [ours[0].replace(b":" + port, b":" + twin_port)]
        assert ours == theirs


async def test_a_gateway_that_starts_without_the_store_keeps_the_map(
    make_cluster: MakeCluster, make_server: MakeServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    control = make_server(ServerKind.VALKEY_91)
    async with cluster_migration(source, twin, control, tmp_path) as local:
        gateway = await local.gateway()
        await agreed(local)
        before = gateway.nodes.maps[Side.SOURCE].nodes
        for at in (2, 0):
            await asyncio.to_thread(source.failover, source.masters()[at])

        async def followed() -> bool:
            nodes = gateway.nodes.maps[Side.SOURCE].nodes
            return all(nodes[at].node_id not in ("", before[at].node_id) for at in (0, 2))

        await until(followed, within_s=20, otherwise="the failovers were not seen")
        await agreed(local)
        gateway.route_follower.remember()
        known = gateway.nodes.maps
        assert gateway._last_route.listener_maps() == known
        control.pause()
        try:
            begun = Gateway(local.store, local.plan, gateway_tables(gateway), gateway.options)
            await begun.nodes.begin(begun._last_route.listener_maps())
            assert {side: each.nodes for side, each in begun.nodes.maps.items()} == {
                side: each.nodes for side, each in known.items()
            }
        finally:
            control.resume()


def gateway_tables(gateway: Gateway) -> Tables:
    return Tables(gateway.groups.main.orders.table)


async def test_a_node_without_a_listener_is_an_error_that_names_no_node(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(
        source, twin, control_server, tmp_path, listen={"listeners": 2}
    ) as local:
        gateway = await local.gateway()
        last = source.masters()[2]
        key = next(f"k{n}" for n in range(100) if source.master_of(f"k{n}") is last)
        frames = await asyncio.to_thread(
            ask, local.port, encode("SET", key, "v"), encode("CLUSTER", "SLOTS")
        )
        assert frames[0].startswith(b"-CLUSTERDOWN the gateway has no listener left")
        assert b"%d" % last.port not in b"".join(frames)
        assert gateway.heartbeat(0).facts.nodes_without_listener == 1
        assert gateway.nodes.untold.total() >= 2
        samples = {name: value for name, _, _, value in gateway.metrics()}
        assert samples["exodus_gateway_untold_nodes_total"] >= 2


@contextmanager
def raw(port: int) -> Iterator[redis.Connection]:
    connection = redis.Connection(host="127.0.0.1", port=port)
    connection.connect()
    try:
        yield connection
    finally:
        connection.disconnect()


async def test_an_unused_listener_answers_as_a_master_without_slots(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        await local.gateway()

        def act() -> None:
            with through(local, listener=LISTENERS - 1) as client:
                assert run(client, PROGRAM[:40]) is not None
                assert {node.port for node in client.get_nodes()} == {
                    local.port + number for number in range(3)
                }
                node = ClusterNode("127.0.0.1", local.port + LISTENERS - 1)
                assert node not in client.get_nodes()

        await asyncio.to_thread(act)


async def test_replicas_serve_reads_of_readonly_sessions(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, masters=2, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    listen: dict[str, object] = {"replicas": "listed"}
    async with cluster_migration(source, twin, control_server, tmp_path, listen=listen) as local:
        await local.gateway()

        def act() -> None:
            with through(local) as client:
                client.set("k", "v")
                client.wait(1, 1_000, target_nodes=client.get_node_from_key("k"))
            with through(
                local, load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN
            ) as client:
                assert len(client.get_replicas()) == 2
                assert {client.get("k") for _ in range(20)} == {b"v"}
            replicas = {node.port for node in client.get_replicas()}
            served = set()
            for port in replicas:
                with raw(port) as connection:
                    connection.send_command("READONLY")
                    assert connection.read_response() == b"OK"
                    connection.send_command("GET", "k")
                    try:
                        served.add(connection.read_response())
                    except redis.RedisError as exc:
                        assert str(exc).partition(":")[0] != ""
            assert served == {b"v"}

        await asyncio.to_thread(act)
