"""The gateway in front of clusters: cluster clients see its listeners as the nodes, through
failovers, reshards, and outages of the control store.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.cluster import ClusterNode, LoadBalancingStrategy, RedisCluster
from redis.exceptions import RedisClusterException

from exodus.commands.key_slots import slot_of
from exodus.control import registry
from exodus.control.listener_map import ListenerMap, read_listeners
from exodus.gateway.hub import Gateway
from exodus.gateway.tables import Tables
from exodus.plan.bounds import CLUSTER_BUS_PORTS
from exodus.plan.vocabulary import JournalMode, Side
from exodus.resp.encode import encode
from exodus.resp.scanner import ReplyScanner
from exodus.stack.servers import ServerKind
from tests.fault.test_tls import Authority, client_tls
from tests.support.cluster_gateway import (
    LISTENERS,
    cluster_migration,
    free_ports,
    gateway_process,
)
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until, wait_until

pytestmark = pytest.mark.fault
# The oldest and the newest; FULL=1 has all.
KINDS = list(ServerKind) if FULL else [ServerKind.REDIS_62, ServerKind.VALKEY_91]
MakeCluster = Callable[..., ClusterBox]
MakeServer = Callable[..., DatabaseServer]


def through(local: LocalMigration, *, listener: int = 0, **more: object) -> RedisCluster:
    """A cluster client of the gateway."""
    return RedisCluster(host="127.0.0.1", port=local.port + listener, **more)  # type: ignore[arg-type]


def ask(
    port: int, *requests: bytes, tls: ssl.SSLContext | None = None, name: str = ""
) -> list[bytes]:
    """Send requests over one connection, and return the frames of the replies."""
    scanner, data, found, at = ReplyScanner(), b"", [], 0
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with closing(tls.wrap_socket(plain, server_hostname=name) if tls else plain) as sock:
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


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cluster_client_gets_the_same_replies_as_directly(
    kind: ServerKind, make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """The twin of the cluster is asked directly."""
    source, twin = make_cluster(kind), make_cluster(kind)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        await local.gateway()

        def compare(protocol: int) -> None:
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
                for each in (client, direct):
                    each.flushall(target_nodes=RedisCluster.PRIMARIES)

        for protocol in (2, 3):
            await asyncio.to_thread(compare, protocol)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_reply_names_a_node(
    kind: ServerKind, make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(kind, replicas=1)
    twin = make_cluster(kind, masters=1)
    words = ["SLOTS", "NODES"] + (["SHARDS"] if kind is not ServerKind.REDIS_62 else [])
    node_id = source._id(source.masters()[0])
    asked = [encode("CLUSTER", word) for word in words]
    asked += [encode("CLUSTER", "REPLICAS", node_id), encode("CLUSTER", "SLAVES", node_id)]
    asked += [encode("MULTI"), asked[0], encode("EXEC")]
    for replicas, count in (("hidden", 3), ("listed", 6)):
        listen: dict[str, object] = {"replicas": replicas}
        folder = tmp_path / replicas
        async with cluster_migration(source, twin, control_server, folder, listen=listen) as local:
            await local.gateway()
            told = {local.port + number for number in range(count)}
            for protocol, port in itertools.product((2, 3), told):
                frames = await asyncio.to_thread(ask, port, encode("HELLO", protocol), *asked)
                said = b"".join(frames[1:])
                for node in source.nodes:
                    assert b":%d" % node.port not in said
                    assert b"@%d" % (node.port + CLUSTER_BUS_PORTS) not in said
                assert all(b":%d\r\n" % each in frames[1] for each in told)
                assert all(b" 127.0.0.1:%d@" % each in frames[2] for each in told)
                assert b":%d\r\n" % local.port in frames[-1]


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
                time.sleep(self._pause_s)  # the pace of a writer, which is a thread

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


async def test_a_store_that_lost_the_map_gets_it_back(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with (
        cluster_migration(source, twin, control_server, tmp_path) as local,
        cluster_migration(source, twin, control_server, tmp_path) as other,
    ):
        first = await local.gateway()
        await local.gateway("gw-2", port=other.port)
        await agreed(local)
        known = first.nodes.maps[Side.SOURCE].nodes
        older = ListenerMap(version=1, nodes={0: known[2]})
        for lost in ({}, {str(Side.SOURCE): older.model_dump_json()}):
            await local.store.client.delete(local.store.keys.listeners)
            if lost:
                await local.store.client.hset(local.store.keys.listeners, mapping=lost)

            async def back() -> bool:
                published = (await read_listeners(local.store)).get(Side.SOURCE, ListenerMap())
                return published.nodes == known

            await until(back, within_s=20, otherwise="the map was not published again")
            await agreed(local)
            assert first.nodes.maps[Side.SOURCE].nodes == known


async def test_writes_of_a_lost_connection_are_marked_once_their_node_cannot_run_them(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, cluster_node_timeout="60000")
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        gateway = await local.gateway()
        await local.change(journal=JournalMode.ALL)
        node = source.masters()[1]
        key = next(f"k{n}" for n in range(99) if source.master_of(f"k{n}") is node)
        _, writer = await asyncio.open_connection("127.0.0.1", local.port + 1)

        async def connected() -> bool:
            return any(each.leg is not None for each in gateway.connections)

        await until(connected, within_s=10, otherwise="no session")
        node.pause()
        try:
            writer.write(encode("SET", key, "v"))
            await writer.drain()

            async def sent() -> bool:
                return any(each.session.writes_in_flight for each in gateway.connections)

            await until(sent, within_s=10, otherwise="no write is under way")
            for each in gateway.connections:
                each.drop_leg()

            async def lost() -> bool:
                return len(gateway.lost_legs) == 1

            await until(lost, within_s=10, otherwise="no leg was lost")
        finally:
            node.resume()

        async def flushed() -> bool:
            return not gateway.unflushed and not len(gateway.lost_legs)

        await until(flushed, within_s=20, otherwise="the lost connection is not settled")
        assert dict(gateway.journaler.gaps) == {}
        entries = [
            entry
            for partition in range(local.plan.partitions)
            for _, entry in await local.store.client.xrange(local.store.keys.journal(partition))
        ]
        assert any(key.encode() in value for entry in entries for value in entry.values())
        writer.close()


async def test_a_frozen_master_is_left_when_its_replica_takes_over(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_91, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        await local.gateway()

        def act() -> None:
            with Load(lambda: through(local)) as load:
                load.wait_more(200)
                with source.client() as client:
                    client.wait(1, 1_000, target_nodes=RedisCluster.PRIMARIES)
                frozen = source.masters()[1]
                frozen.pause()
                try:
                    load.wait_more(500)
                finally:
                    frozen.resume()
                load.wait_more(200)
            assert set(load.errors) <= {"ConnectionError", "TimeoutError", "ClusterDownError"}

        await asyncio.to_thread(act)


async def test_workers_of_one_gateway_share_all_listeners(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        with gateway_process(local, workers=2):

            def act() -> None:
                with Load(lambda: through(local)) as load:
                    load.wait_more(200)
                    source.failover(source.masters()[0])
                    load.wait_more(400)
                assert load.errors == {}
                load.check(source)

            await asyncio.to_thread(act)

            async def both_served() -> bool:
                with socket.create_connection(("127.0.0.1", local.port)):  # the kernel chooses who
                    beats = await registry.heartbeats(local.store, "gateway")
                served = [beat for beat in beats if beat.facts.connections_ever]
                return len(served) == len(beats) == 2

            await until(both_served, within_s=20, otherwise="one worker got no connection")


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


async def test_a_script_leads_no_listener_to_an_address_of_its_choice(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, masters=1)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        gateway = await local.gateway()
        before = gateway.nodes.maps[Side.SOURCE]
        stranger = control_server.port
        script = f"return redis.error_reply('MOVED 1 127.0.0.1:{stranger}')"
        known = f"return redis.error_reply('MOVED 1 127.0.0.1:{source.nodes[0].port}')"
        frames = await asyncio.to_thread(
            ask, local.port, encode("EVAL", script, "0"), encode("EVAL", known, "0")
        )
        assert frames[0].startswith(b"-TRYAGAIN the gateway does not know this node")
        assert frames[1] == b"-MOVED 1 127.0.0.1:%d\r\n" % local.port
        assert gateway.nodes.maps[Side.SOURCE].nodes == before.nodes
        assert gateway.nodes.untold["a script named a node that is not known"] == 1


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


@pytest.mark.parametrize("endpoint", ["hostname", "unknown-endpoint"])
@pytest.mark.parametrize("kind", [ServerKind.REDIS_82, ServerKind.VALKEY_91])
async def test_clients_reach_nodes_however_these_announce_themselves(
    kind: ServerKind,
    endpoint: str,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """By names that only the address map knows, or by none at all."""
    source = make_cluster(kind, cluster_preferred_endpoint_type=endpoint)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    names = {f"node-{number}.inner": "127.0.0.1" for number in range(3)}
    if endpoint == "hostname":
        for name, node in zip(names, source.nodes, strict=True):
            with node.client() as client:
                client.config_set("cluster-announce-hostname", name)
        source.wait_hosts(set(names))
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        local.plan = local.plan.model_copy(update={"source": source.address(address_map=names)})
        await local.store.save_plan(local.plan)
        await local.gateway()

        def act() -> None:
            with through(local) as client:
                for number in range(60):
                    client.set(f"k{number}", number)
                assert {node.port for node in client.get_nodes()} == {
                    local.port + number for number in range(3)
                }
            words = ["SLOTS", "SHARDS", "NODES"]
            key = next(f"k{n}" for n in range(60) if source_port(n) != source.nodes[0].port)
            frames = ask(
                local.port, *[encode("CLUSTER", word) for word in words], encode("GET", key)
            )
            assert b"inner" not in b"".join(frames)
            assert frames[3].startswith(b"-MOVED ")
            assert b" 127.0.0.1:%d" % (local.port + 1) in frames[3] or (
                b" 127.0.0.1:%d" % (local.port + 2) in frames[3]
            )

        def source_port(number: int) -> int:
            slot = slot_of(f"k{number}".encode())
            return source.nodes[min(2, slot * 3 // 16_384)].port

        await asyncio.to_thread(act)


async def test_clients_are_told_the_address_that_they_reached(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    async with cluster_migration(source, twin, control_server, tmp_path) as local:
        await local.gateway(host="::1")

        def act() -> None:
            with RedisCluster(host="::1", port=local.port) as client:
                for number in range(60):
                    client.set(f"k{number}", number)
                assert {node.host for node in client.get_nodes()} == {"::1"}

        await asyncio.to_thread(act)


@asynccontextmanager
async def _behind_a_port_map(outer: int, inner: int, count: int) -> AsyncIterator[None]:
    """Lead ports from `outer` on to those from `inner` on, as a load balancer or a NAT does."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, here), pump(there, writer))

    servers = [
        await asyncio.start_server(partial(relay, inner + number), "127.0.0.1", outer + number)
        for number in range(count)
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def test_clients_behind_changed_ports_are_told_those(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    outer = free_ports(3)
    listen: dict[str, object] = {"advertise": f"elsewhere.test:{outer}"}
    async with cluster_migration(source, twin, control_server, tmp_path, listen=listen) as local:
        await local.gateway(advertise="127.0.0.1")  # this host's, in place of the plan's

        def act() -> None:
            with RedisCluster(host="127.0.0.1", port=outer) as client:
                for number in range(50):
                    client.set(f"k{number}", number)
                assert {node.port for node in client.get_nodes()} == set(range(outer, outer + 3))

        async with _behind_a_port_map(outer, local.port, 3):
            await asyncio.to_thread(act)
        assert len(source.contents()) == 50


async def test_tls_clients_are_told_the_name_in_the_certificate(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """In place of the address that they reached, which no certificate has to name."""
    source = make_cluster(ServerKind.VALKEY_81)
    twin = make_cluster(ServerKind.VALKEY_91, masters=1)
    authority = Authority(tmp_path)
    cert, key = authority.certificate("gw.test", "gateway")
    listen: dict[str, object] = {"advertise": "elsewhere.test"}
    async with cluster_migration(source, twin, control_server, tmp_path, listen=listen) as local:
        await local.gateway(cert_file=cert, key_file=key, advertise="gw.test")
        last = source.masters()[2]
        moved = next(f"k{n}" for n in range(99) if source.master_of(f"k{n}") is last)
        asked = [encode("CLUSTER", "SLOTS"), encode("CLUSTER", "SHARDS"), encode("GET", moved)]
        frames = await asyncio.to_thread(
            ask, local.port, *asked, tls=client_tls(authority), name="gw.test"
        )
        said = b"".join(frames)
        assert b"127.0.0.1:" not in said
        assert b"elsewhere" not in said
        assert frames[0].count(b"$7\r\ngw.test\r\n") == 3
        assert frames[1].count(b"tls-port\r\n:%d\r\n" % local.port) == 1
        assert frames[2].endswith(b" gw.test:%d\r\n" % (local.port + 2))
