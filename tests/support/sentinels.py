"""A service behind Sentinel for tests: a master, replicas and three Sentinels, one of each a
session. A failover is real: kill -9, or SENTINEL FAILOVER.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from exodus.plan.address import Service
from exodus.stack.home import Home, free_port
from exodus.stack.processes import end, start
from exodus.stack.servers import USER, ServerKind, binary, start_sentinel, wait_server
from tests.support.servers import DatabaseServer

SENTINELS = 3
WITHIN_S = 40.0  # a Sentinel that finds no replica fit waits four seconds


class ServiceBox:
    """A service of a test. Offers what `DatabaseServer` offers, for the current master."""

    def __init__(
        self, kind: ServerKind, folder: Path, *, name: str = "mymaster", replicas: int = 1
    ) -> None:
        self.kind = kind
        self._folder = folder
        self.name = name
        config = {"repl_diskless_sync_delay": "0", "repl_backlog_size": "16mb"}
        homes = [Home(folder / f"node-{number}") for number in range(replicas + 1)]
        for home in homes:
            home.make()
        self._password_file = homes[0].secret("exodus")
        for home in homes[1:]:  # one password for the service, as an operator has it
            home.secret("exodus").write_text(self._password_file.read_text())
        self.nodes = [DatabaseServer(kind, home.root, **config) for home in homes]
        for node in self.nodes[1:]:
            self._follow(node, self.nodes[0])
        self._wait_in_step()
        ports = [free_port() for _ in range(SENTINELS)]
        self.sentinels = [
            start_sentinel(
                kind,
                name=f"sentinel-{number}",
                port=port,
                folder=folder / f"sentinel-{number}",
                log=folder / f"sentinel-{number}.log",
                service=name,
                master_port=self.nodes[0].port,
                quorum=2,
            )
            for number, port in enumerate(ports)
        ]
        for sentinel in self.sentinels:
            wait_server(sentinel)
        self.wait_ready()

    # ---- as one server

    @property
    def port(self) -> int:
        return self.master().port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def address(self, **more: object) -> Service:
        """Return Exodus's address of the service."""
        return Service(
            sentinels=tuple(f"127.0.0.1:{each.port}" for each in self.sentinels),
            service=self.name,
            username=USER,
            password_file=self._password_file,
            **more,  # type: ignore[arg-type]
        )

    def client(self, **more: object) -> redis.Redis:
        return self.master().client(**more)

    # ---- failovers

    def asked(self, number: int = 0) -> redis.Redis:
        """Return a client of one Sentinel."""
        return redis.Redis(port=self.sentinels[number].port, decode_responses=True, protocol=2)

    def master(self) -> DatabaseServer:
        """Return the server that most Sentinels name, once it says that it is the master."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            named = []
            for number in range(SENTINELS):
                with self.asked(number) as sentinel:
                    named.append(int(sentinel.sentinel_get_master_addr_by_name(self.name)[1]))  # type: ignore[attr-defined]
            port = max(named, key=named.count)
            box = next(node for node in self.nodes if node.port == port)
            if named.count(port) == SENTINELS and _role(box) == "master":
                return box
            time.sleep(0.02)
        raise AssertionError(f"the Sentinels of {self.name} do not agree on a master")

    def replicas(self) -> list[DatabaseServer]:
        master = self.master()
        return [node for node in self.nodes if node is not master]

    def kill_master(self) -> DatabaseServer:
        """kill -9; the Sentinels make a replica the master."""
        box = self.master()
        box.kill()
        return box

    def failover(self) -> None:
        """SENTINEL FAILOVER, as an operator does; returns at once."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                with self.asked() as sentinel:
                    sentinel.execute_command("SENTINEL FAILOVER", self.name)
                    return
            except redis.ResponseError:  # the failover before is not over
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def pause_sentinels(self, count: int) -> None:
        """SIGSTOP the last `count` of them."""
        for sentinel in self.sentinels[-count:]:
            sentinel.started.process.send_signal(signal.SIGSTOP)

    def wake_sentinels(self) -> None:
        """SIGCONT. They act on nothing for 30 s (TILT), and answer as before."""
        for sentinel in self.sentinels:
            sentinel.started.process.send_signal(signal.SIGCONT)

    def restart_sentinels(self) -> None:
        """Start all anew, each with its own state: without TILT."""
        for number, sentinel in enumerate(self.sentinels):
            sentinel.started.process.kill()
            sentinel.started.process.wait()
            folder = self._folder / f"sentinel-{number}"
            command = [str(binary(self.kind)), str(folder / "sentinel.conf"), "--sentinel"]
            sentinel.started = start(
                f"sentinel-{number}", command, log=sentinel.started.log, port=sentinel.port
            )
        for sentinel in self.sentinels:
            wait_server(sentinel)

    def wait_other(self, before: DatabaseServer) -> DatabaseServer:
        """Wait for another master than `before`."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            master = self.master()
            if master is not before:
                return master
            time.sleep(0.05)
        raise AssertionError(f"no failover of {self.name} within {WITHIN_S} s")

    def restore(self) -> None:
        """Bring all servers up, in step and empty, with their first settings and users."""
        for node in self.nodes:
            if node.server.started.process.poll() is not None:
                node.start()
            node.resume()
        master = self.master()
        for node in self.nodes:
            if node is not master and _role(node) == "master":
                self._follow(node, master)
        for node in self.nodes:
            with node.client(decode_responses=True) as client:
                for user in set(client.acl_users()) - {"default", USER}:
                    client.acl_deluser(user)
                client.execute_command(
                    "ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all"
                )
                client.config_set("min-replicas-to-write", 0)
        with master.client() as client:
            client.flushall()
            client.script_flush()
            if self.kind is not ServerKind.REDIS_62:
                client.function_flush()
        self._wait_in_step()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every Sentinel knows the others and the replicas."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            said = []
            for number in range(SENTINELS):
                with self.asked(number) as sentinel:
                    rows = sentinel.sentinel_slaves(self.name)  # type: ignore[attr-defined]
                    up = sum(row["flags"] == "slave" for row in rows)
                    said.append({**sentinel.sentinel_master(self.name), "up": up})  # type: ignore[attr-defined]
            if all(
                row["num-other-sentinels"] == SENTINELS - 1
                and row["up"] >= len(self.nodes) - 1
                and row["flags"] == "master"
                for row in said
            ):
                return
            time.sleep(0.05)
        raise AssertionError(f"the Sentinels of {self.name} do not know each other: {said}")

    def follow(self, node: DatabaseServer) -> None:
        """Make a server a replica of the master, as its Sentinels do after some seconds."""
        self._follow(node, self.master())

    def _follow(self, node: DatabaseServer, master: DatabaseServer) -> None:
        with node.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", master.port)

    def _wait_in_step(self) -> None:
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            found = [_replication(node) for node in self.nodes]
            offsets = {
                row["master_repl_offset" if row["role"] == "master" else "slave_repl_offset"]
                for row in found
            }
            up = all(row["role"] == "master" or row["master_link_status"] == "up" for row in found)
            if up and len(offsets) == 1 and [row["role"] for row in found].count("master") == 1:
                return
            time.sleep(0.03)
        raise AssertionError(f"the replicas of {self.name} are not in step: {found}")

    def close(self) -> None:
        end([sentinel.started.running() for sentinel in self.sentinels])
        for node in self.nodes:
            node.close()


def _replication(box: DatabaseServer) -> dict[str, object]:
    with box.client() as client:
        return client.info("replication")


def _role(box: DatabaseServer) -> str:
    try:
        return str(_replication(box)["role"])
    except redis.ConnectionError:
        return "down"


def _session_service(kind: ServerKind, name: str):  # type: ignore[no-untyped-def]
    @pytest.fixture(scope="session")
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceBox]:
        box = ServiceBox(kind, tmp_path_factory.mktemp(name), name=name)
        yield box
        box.close()

    return fixture


_source_service = _session_service(ServerKind.REDIS_62, "old-master")
_target_service = _session_service(ServerKind.VALKEY_91, "new-master")


@pytest.fixture
def source_service(_source_service: ServiceBox) -> ServiceBox:
    _source_service.restore()
    return _source_service


@pytest.fixture
def target_service(_target_service: ServiceBox) -> ServiceBox:
    _target_service.restore()
    return _target_service
