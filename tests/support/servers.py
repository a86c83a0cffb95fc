"""Real servers for tests: one of each kind a session, emptied before each test; more on demand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from exodus.plan.address import Address
from exodus.stack.home import Home, free_port
from exodus.stack.processes import end
from exodus.stack.servers import Server, ServerKind, start_server, wait_server


class DatabaseServer:
    """One server of a test."""

    def __init__(
        self,
        kind: ServerKind,
        folder: Path,
        *,
        private: bool = False,
        port: int | None = None,
        **config: str,
    ) -> None:
        self.kind = kind
        home = Home(folder)
        home.make()
        self._arguments = {
            "kind": kind,
            "name": str(kind),
            "port": port or free_port(),
            "folder": home.data,
            "log": home.log("server"),
            "password_file": home.secret("exodus"),
            "private": private,
            **config,
        }
        self.server: Server
        self.start()
        with self.client(decode_responses=True) as client:
            self._settings: dict[str, str] = client.config_get()
            self._users: list[str] = client.acl_list()

    def restore(self) -> None:
        """Empty it and restore its first settings and users: an earlier test may have changed
        anything.
        """
        with self.client(decode_responses=True) as client:
            client.replicaof("NO", "ONE")
            for setting, value in client.config_get().items():
                if value != self._settings[setting]:
                    client.config_set(setting, self._settings[setting])
            for user in set(client.acl_users()) - {rule.split()[1] for rule in self._users}:
                client.acl_deluser(user)
            for rule in self._users:
                if rule not in client.acl_list():
                    _, name, *rules = rule.split()
                    client.execute_command("ACL", "SETUSER", name, "reset", *rules)
            client.flushall()
            client.script_flush()
            client.config_resetstat()  # the counts of commands tell which modules were used
            if self.kind is not ServerKind.REDIS_62:
                client.function_flush()

    def start(self) -> None:
        """Start it (again), on the same port and folder."""
        self.server = start_server(**self._arguments)  # type: ignore[arg-type]
        wait_server(self.server)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def running(self) -> bool:
        return self.server.started.process.poll() is None

    @property
    def pid(self) -> int:
        return self.server.started.process.pid

    def address(self) -> Address:
        return self.server.address()

    def client(self, **more: object) -> redis.Redis:
        """Return a client with Exodus's login."""
        address = self.address()
        return redis.Redis(
            port=self.port, username=address.username, password=address.secret("test"), **more
        )  # type: ignore[arg-type]

    def save(self) -> None:
        """Write the dump that the next start loads, after any running save for a replica."""
        with self.client() as client:
            while True:
                try:
                    client.save()
                except redis.ResponseError as exc:
                    if "already in progress" not in str(exc):
                        raise
                    time.sleep(0.05)
                else:
                    return

    def fenced(self) -> bool:
        """Return whether the fence by ACL takes writes from applications."""
        with self.client() as client:
            return "-@write" in str(client.acl_getuser("default"))

    def kill(self) -> None:
        self.server.started.process.kill()
        self.server.started.process.wait()

    def stop(self) -> None:
        end([self.server.started.running()])
        self.server.started.process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self.server.started.process.poll() is None:
            self.resume()
            self.kill()


def _session_server(kind: ServerKind, **config: str):  # type: ignore[no-untyped-def]
    @pytest.fixture(scope="session")
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
        box = DatabaseServer(kind, tmp_path_factory.mktemp(str(kind).replace(".", "")), **config)
        yield box
        box.close()

    return fixture


_redis62 = _session_server(ServerKind.REDIS_62)
# A stream begins at once
_redis82 = _session_server(ServerKind.REDIS_82, repl_diskless_sync_delay="0")
_valkey81 = _session_server(ServerKind.VALKEY_81)
_valkey91 = _session_server(ServerKind.VALKEY_91)
_control = _session_server(ServerKind.VALKEY_91, appendonly="yes")


def _emptied(name: str):  # type: ignore[no-untyped-def]
    @pytest.fixture
    def fixture(request: pytest.FixtureRequest) -> DatabaseServer:
        box: DatabaseServer = request.getfixturevalue(name)
        box.restore()
        return box

    return fixture


redis62 = _emptied("_redis62")
redis82 = _emptied("_redis82")
valkey81 = _emptied("_valkey81")
valkey91 = _emptied("_valkey91")
control_server = _emptied("_control")


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[object]:
    """Return a function that starts one more server for this test."""
    servers: list[DatabaseServer] = []

    def make(kind: ServerKind, **config: str) -> DatabaseServer:
        box = DatabaseServer(kind, tmp_path / f"server-{len(servers)}", **config)
        servers.append(box)
        return box

    yield make
    for box in servers:
        box.close()
