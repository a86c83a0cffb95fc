"""Clusters for tests: real masters with slots, and replicas. Failovers and reshards are real ones,
done as `redis-cli --cluster` does them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from exodus.commands.key_slots import slot_of
from exodus.errors import StackError
from exodus.plan.address import Cluster
from exodus.stack.clusters import CLUSTER_SETTINGS, cluster_port, join, slots_of
from exodus.stack.home import Home
from exodus.stack.servers import USER, ServerKind
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

WITHIN_S = 30.0


class ClusterBox:
    """A cluster of a test. Offers what `DatabaseServer` offers, where that makes sense for all
    nodes.
    """

    def __init__(
        self,
        kind: ServerKind,
        folder: Path,
        *,
        masters: int = 3,
        replicas: int = 0,
        spare: int = 0,
        **config: str,
    ) -> None:
        """`spare` nodes know the cluster and have no slots."""
        self.kind = kind
        count = masters * (1 + replicas) + spare
        homes = [Home(folder / f"node-{number}") for number in range(count)]
        for home in homes:
            home.make()
        self._password_file = homes[0].secret("exodus")
        for home in homes[1:]:  # one password for all nodes, as an operator has it
            home.secret("exodus").write_text(self._password_file.read_text())
        settings = {**CLUSTER_SETTINGS, "repl_backlog_size": "16mb", **config}
        self.nodes = [
            DatabaseServer(kind, home.root, port=cluster_port(), **settings) for home in homes
        ]
        try:
            join(
                [node.port for node in self.nodes],
                masters=masters,
                spare=spare,
                username=USER,
                password=self._password_file.read_text().strip(),
            )
        except StackError:
            self.close()
            raise

    # ---- as one server

    def address(self, **more: object) -> Cluster:
        """Return Exodus's address of the cluster. It names two nodes; the others are found."""
        return Cluster(
            cluster=tuple(f"127.0.0.1:{node.port}" for node in self.nodes[:2]),
            username=USER,
            password_file=self._password_file,
            **more,  # type: ignore[arg-type]
        )

    def client(self, **more: object) -> redis.RedisCluster:
        """Return an application's client."""
        return redis.RedisCluster(
            host="127.0.0.1",
            port=next(node for node in self.nodes if node.running).port,
            **more,  # type: ignore[arg-type]
        )

    def contents(self) -> dict[bytes, tuple[bytes, object, bool]]:
        """Return each application's key with its type, its value, and whether it expires."""
        found: dict[bytes, tuple[bytes, object, bool]] = {}
        for node in self.masters():
            with node.client() as client:
                found |= contents_of(client)
        return found

    # ---- topology

    def masters(self) -> list[DatabaseServer]:
        """Return the nodes that have slots, in their order."""
        rows = self._slots()
        ports = dict.fromkeys(int(master[1]) for _, _, master, *_ in rows)
        return [self._by_port(port) for port in ports]

    def replicas_of(self, master: DatabaseServer) -> list[DatabaseServer]:
        ports = {
            int(each[1])
            for _, _, first, *others in self._slots()
            if int(first[1]) == master.port
            for each in others
        }
        return [self._by_port(port) for port in ports]

    def master_of(self, key: str) -> DatabaseServer:
        return self.owner_of(slot_of(key.encode()))

    def _by_port(self, port: int) -> DatabaseServer:
        return next(node for node in self.nodes if node.port == port)

    def _slots(self) -> list[list[object]]:
        node = next(node for node in self.nodes if node.running)
        with node.client() as client:
            return slots_of(client)

    def _id(self, node: DatabaseServer) -> str:
        with node.client() as client:
            return client.execute_command("CLUSTER", "MYID").decode()

    def wait_ready(self) -> None:
        """Wait until every running node reports the cluster as ok, and all agree on the slots."""

        def agreed() -> bool:
            views = set()
            for node in self.nodes:
                if not node.running:
                    continue
                with node.client() as client:
                    if b"cluster_state:ok" not in _raw(client, "CLUSTER", "INFO"):
                        return False
                    rows = slots_of(client)
                    views.add(tuple((row[0], row[1], row[2][1], len(row)) for row in rows))
            return len(views) == 1

        wait_until(agreed, within_s=WITHIN_S, otherwise="the nodes do not agree")

    def wait_hosts(self, wanted: set[str]) -> None:
        """Wait until every node names these hosts and no others."""

        def told() -> bool:
            found = set()
            for node in self.nodes:
                with node.client() as client:
                    rows = slots_of(client)
                    found |= {each[0].decode() for row in rows for each in row[2:]}
            return found == wanted

        wait_until(told, within_s=WITHIN_S, otherwise="the nodes do not tell their host names")

    # ---- faults

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let no node call another failed meanwhile. At the end all nodes go on."""

        def wait_ms(timeout: str) -> None:
            for node in self.nodes:
                with node.client() as client:
                    client.config_set("cluster-node-timeout", timeout)

        wait_ms("60000")
        try:
            yield
        finally:
            for node in self.nodes:
                node.resume()
            wait_ms(CLUSTER_SETTINGS["cluster_node_timeout"])

    def failover(self, master: DatabaseServer) -> DatabaseServer:
        """CLUSTER FAILOVER, as an operator does; return the new master."""
        (replica, *_) = self.replicas_of(master)
        with replica.client() as client:
            client.execute_command("CLUSTER", "FAILOVER")

        def done() -> bool:
            return replica in self.masters() and master not in self.masters()

        wait_until(done, within_s=WITHIN_S, otherwise="no failover")
        return replica

    def kill(self, master: DatabaseServer) -> DatabaseServer:
        """kill -9 of a master; return the replica that becomes one."""
        (replica, *_) = self.replicas_of(master)
        master.kill()
        wait_until(
            lambda: replica in self.masters(),
            within_s=WITHIN_S,
            otherwise="no failover after a kill",
        )
        return replica

    def reshard(
        self, slots: range, to: DatabaseServer, *, pause_s: float = 0.0, keys_at_once: int = 100
    ) -> None:
        """Move slots to a node, as `redis-cli --cluster reshard` does."""
        for slot in slots:
            self.move_slot(slot, to, pause_s=pause_s, keys_at_once=keys_at_once)
        self.wait_ready()

    def migrate_slots(self, slots: range, to: DatabaseServer) -> None:
        """Move those slots of a range that one node has, by CLUSTER MIGRATESLOTS."""
        owner = self.owner_of(slots[0])
        last = next(
            min(last, slots[-1])
            for first, last, master, *_ in self._slots()
            if first <= slots[0] <= last
        )
        if owner is to:
            return
        wanted = self._id(to)
        with owner.client() as client:
            client.execute_command(
                *("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slots[0], last, "NODE", wanted)
            )
        wait_until(
            lambda: self.owner_of(slots[0]) is to, within_s=WITHIN_S, otherwise="slots did not move"
        )
        self.wait_ready()

    def owner_of(self, slot: int) -> DatabaseServer:
        return next(
            self._by_port(int(master[1]))
            for first, last, master, *_ in self._slots()
            if first <= slot <= last
        )

    def move_slot(
        self, slot: int, to: DatabaseServer, *, pause_s: float = 0.0, keys_at_once: int = 100
    ) -> None:
        owner = self.owner_of(slot)
        if owner is to:
            return
        with self.migrating(slot, to):
            time.sleep(pause_s)  # the slot is on its way for at least so long: what is tested
            self.move_keys(slot, owner, to, keys_at_once=keys_at_once)

    @contextmanager
    def migrating(self, slot: int, to: DatabaseServer) -> Iterator[DatabaseServer]:
        """Hold a slot in migration: its keys may be on either node. At the end it has arrived."""
        owner = self.owner_of(slot)
        ours, theirs = self._id(owner), self._id(to)
        with owner.client() as here, to.client() as there:
            there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ours)
            here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", theirs)
            yield owner
            self.move_keys(slot, owner, to)
            # From whom a master of Redis 6.2 hears that its last slot is gone, it follows.
            left = [row for row in self._slots() if row[2][1] == owner.port]  # type: ignore[index]
            last = [(first, end) for first, end, *_ in left] == [(slot, slot)]
            for each in (here, there) if last else (there, here):
                each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", theirs)

    def move_keys(
        self,
        slot: int,
        owner: DatabaseServer,
        to: DatabaseServer,
        *,
        keys_at_once: int = 100,
        at_most: int | None = None,
    ) -> int:
        moved = 0
        login = to.address()
        with owner.client() as here:
            while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
                if at_most is not None:
                    keys = keys[: at_most - moved]
                if not keys:
                    break
                here.execute_command(
                    *("MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "AUTH2"),
                    *(login.username, login.secret("test"), "KEYS", *keys),
                )
                moved += len(keys)
        return moved

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def contents_of(client: redis.Redis) -> dict[bytes, tuple[bytes, object, bool]]:
    """Return each application's key of one server, database 0, with its type, its value, and
    whether it expires.
    """
    reads = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    found: dict[bytes, tuple[bytes, object, bool]] = {}
    for key in client.scan_iter(count=1_000):
        if key.startswith(b"exodus"):
            continue
        kind = client.type(key)
        if kind != b"none":
            found[key] = (kind, reads[kind](key), client.pttl(key) >= 0)
    return found


def _raw(client: redis.Redis, *command: object) -> object:
    raw = client.connection_pool.get_connection()
    try:
        raw.send_command(*command)
        return raw.read_response()
    finally:
        client.connection_pool.release(raw)


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[object]:
    """Return a function that starts a cluster for this test."""
    boxes: list[ClusterBox] = []

    def make(kind: ServerKind, **more: object) -> ClusterBox:
        box = ClusterBox(kind, tmp_path / f"cluster-{len(boxes)}", **more)  # type: ignore[arg-type]
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        box.close()
