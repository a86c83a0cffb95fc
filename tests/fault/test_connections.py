"""Many connections, idle or short-lived: none is refused, none stays behind, and memory does not
grow with those that left.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault
IDLE = 10_000 if FULL else 1_000  # in two workers, each of which needs two open files a connection
ROUND = 3_000 if FULL else 300  # connections that come and go between two looks
PONG = b"+PONG\r\n"


@pytest.fixture
def gateway(local: LocalMigration) -> Iterator[GatewayProcess]:
    started = GatewayProcess(local, "--workers", "2")
    started.wait_said("listens on", times=2)
    yield started
    started.kill()


class Watched:
    """The workers of a gateway and the source's side of their connections."""

    def __init__(self, gateway: GatewayProcess, local: LocalMigration) -> None:
        self.workers = psutil.Process(gateway.started.process.pid).children()
        self._source = local.servers[Side.SOURCE].client()
        self._source.config_set("maxclients", IDLE + 500)

    def open_files(self) -> int:
        return sum(worker.num_fds() for worker in self.workers)

    def rss(self) -> int:
        return sum(worker.memory_info().rss for worker in self.workers)

    def clients(self) -> int:
        return int(self._source.info("clients")["connected_clients"])

    def cpu_s(self) -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers)

    def rest(self, port: int) -> tuple[int, int, int]:
        """Open files, the source's clients and memory after a first connection has come and
        gone.
        """
        clients = self.clients()
        sock = _asked(port)
        assert sock.recv(16) == PONG
        sock.close()
        wait_until(
            lambda: self.clients() <= clients,
            within_s=10,
            otherwise="the first connection did not leave",
        )
        return self.open_files(), clients, self.rss()

    def wait_as(self, files: int, clients: int) -> None:
        wait_until(
            lambda: self.open_files() <= files and self.clients() <= clients,
            within_s=30,
            otherwise=f"more than {files} files or {clients} clients are still there",
        )


def _asked(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.sendall(encode("PING"))
    return sock


async def test_idle_connections_cost_little_and_leave_nothing(
    local: LocalMigration, gateway: GatewayProcess
) -> None:
    watched = Watched(gateway, local)
    files, clients, rss = watched.rest(local.port)
    idle = []
    try:
        for _ in range(IDLE // 50):
            batch = [_asked(local.port) for _ in range(50)]
            assert all(sock.recv(16) == PONG for sock in batch)
            idle += batch
        each = (watched.rss() - rss) / len(idle)
        began, spent = time.monotonic(), watched.cpu_s()
        time.sleep(2)
        share = (watched.cpu_s() - spent) / (time.monotonic() - began)
        print(f"{len(idle)} idle connections: {each / 1024:.1f} kB each, {share:.1%} of a core")
        assert each < 24 * 1024
        for sock in idle[:: max(1, IDLE // 20)]:  # still served
            sock.sendall(encode("PING"))
            assert sock.recv(16) == PONG
    finally:
        for sock in idle:
            sock.close()
    watched.wait_as(files, clients)
    assert gateway.health()[0] == 200


async def test_connections_that_come_and_go_leave_nothing(
    local: LocalMigration, gateway: GatewayProcess
) -> None:
    watched = Watched(gateway, local)

    def come_and_go() -> None:
        for number in range(ROUND):
            sock = _asked(local.port)
            if number % 3:  # the others close without waiting for their answer
                assert sock.recv(16) == PONG
            sock.close()

    files, clients, _ = watched.rest(local.port)
    come_and_go()  # what a process takes once
    watched.wait_as(files, clients)
    rss = watched.rss()
    began = time.monotonic()
    come_and_go()
    print(f"{ROUND / (time.monotonic() - began):.0f} connections a second, one after the other")
    watched.wait_as(files, clients)
    assert watched.rss() - rss < 4 * 1024 * 1024
