"""Several processes on one port: a dead one is started again, a new version takes the port over,
and no client is refused.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from exodus.control import journal
from exodus.control.registry import heartbeats
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess
from tests.support.wait import until, wait_until

pytestmark = pytest.mark.fault


@pytest.fixture
def processes() -> Iterator[list[GatewayProcess]]:
    started: list[GatewayProcess] = []
    yield started
    for process in started:
        process.kill()


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(encode("PING"))
        return sock.recv(16) == b"+PONG\r\n"


async def test_workers_share_a_port_and_a_killed_one_comes_back_with_its_intents(
    local: LocalMigration, processes: list[GatewayProcess]
) -> None:
    await local.change(journal="all")
    gateway = GatewayProcess(local, "--workers", "2")
    processes.append(gateway)
    gateway.wait_said("listens on", times=2)

    async def both() -> bool:
        return {beat.process for beat in await heartbeats(local.store, "gateway")} == {
            "gw-0",
            "gw-1",
        }

    await until(both, within_s=10, otherwise="the workers did not register under ids of their own")
    source = local.servers[Side.SOURCE].client()
    # The source does not answer a write. When the worker dies, only the intent is left.
    source.execute_command("CLIENT", "PAUSE", "30000", "WRITE")
    sock = socket.create_connection(("127.0.0.1", local.port))
    sock.sendall(encode("SET", "left", "behind"))
    logged = [local.folder / "state" / f"gw-{number}" for number in range(2)]
    wait_until(
        lambda: any(
            b"left" in path.read_bytes()
            for folder in logged
            for path in folder.glob("intent-*.log")
        ),
        within_s=10,
        otherwise="the intent was not logged",
    )
    workers = psutil.Process(gateway.started.process.pid).children()
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    source.execute_command("CLIENT", "UNPAUSE")
    sock.close()
    gateway.wait_said("listens on", times=4)
    gateway.wait_said("that an earlier process of this id had under way")

    async def journalled() -> bool:
        changes = await journal.since(
            local.store, dict.fromkeys(range(local.plan.partitions), b"0-0")
        )
        return (0, b"left") in changes.keys

    await until(journalled, within_s=10, otherwise="the intent was not journalled")
    assert _answers(local.port)
    assert gateway.end() == 0


async def test_a_new_version_takes_the_port_over_and_no_connection_is_refused(
    local: LocalMigration, processes: list[GatewayProcess]
) -> None:
    await local.change(journal="all")
    old = GatewayProcess(local, "--workers", "2", "--drain", "0.5", name="old")
    processes.append(old)
    old.wait_said("listens on", times=2)
    stop, asked, failures = asyncio.Event(), [0], []

    async def connect() -> None:
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
                writer.write(encode("SET", "k", asked[0]))
                if await asyncio.wait_for(reader.readexactly(5), 20) != b"+OK\r\n":
                    failures.append("an answer that is none")
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as exc:
                failures.append(repr(exc))
            asked[0] += 1
            await asyncio.sleep(0.005)

    connecting = [asyncio.create_task(connect()) for _ in range(4)]
    new = GatewayProcess(local, "--workers", "2", name="new")
    processes.append(new)
    await asyncio.to_thread(old.started.process.wait, 60)
    before = asked[0]
    await until(
        lambda: _more(asked, before), within_s=20, otherwise="nobody answers after the takeover"
    )
    stop.set()
    await asyncio.gather(*connecting)
    assert failures == []
    assert old.started.process.returncode == 0

    async def only_new() -> bool:
        return {beat.process for beat in await heartbeats(local.store, "gateway")} == {
            "gw-2",
            "gw-3",
        }

    await until(
        only_new,
        within_s=10,
        otherwise="the old workers are still registered, or the new ones are not",
    )
    assert new.end() == 0


async def _more(asked: list[int], before: int) -> bool:
    return asked[0] > before + 50


async def test_a_drain_lets_sessions_end_and_says_what_remains(
    local: LocalMigration, processes: list[GatewayProcess]
) -> None:
    gateway = GatewayProcess(local, "--drain", "1")
    processes.append(gateway)
    gateway.wait_said("listens on")
    idle = redis.Redis(port=local.port, single_connection_client=True)
    idle.ping()
    blocked = socket.create_connection(("127.0.0.1", local.port))
    blocked.sendall(encode("BLPOP", "nothing", 0))
    source = local.servers[Side.SOURCE].client()
    wait_until(
        lambda: source.info("clients")["blocked_clients"] == 1,
        within_s=10,
        otherwise="BLPOP never arrived",
    )
    gateway.signal(signal.SIGTERM)
    wait_until(
        lambda: _refused(local.port),
        within_s=10,
        otherwise="a draining gateway accepts connections",
    )
    assert idle.ping(), "a session goes on while the gateway drains"
    assert gateway.end() == 0
    assert gateway.said(
        r"2 sessions did not end .*: 1 blocked, 1 idle|2 sessions did not end .*: 1 idle, 1 blocked"
    )
    assert await heartbeats(local.store, "gateway") == []
    assert not gateway.said("leaked")
    blocked.close()


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_health_follows_the_authority_and_the_store_only_degrades(
    local: LocalMigration, processes: list[GatewayProcess], make_server, tmp_path: Path
) -> None:
    source, control = make_server(ServerKind.REDIS_62), make_server(ServerKind.VALKEY_91)
    other = LocalMigration(source, local.servers[Side.TARGET], control, tmp_path / "other")
    (tmp_path / "other").mkdir()
    await other.open()
    gateway = GatewayProcess(other, "--connections", "1000000")
    processes.append(gateway)
    gateway.wait_said("listens on")
    wait_until(lambda: gateway.health()[0] == 200, within_s=10, otherwise="never ready")
    assert "maxclients" in gateway.health()[1]
    source.pause()
    wait_until(
        lambda: gateway.health()[0] == 503,
        within_s=20,
        otherwise="ready though the source does not answer",
    )
    source.resume()
    wait_until(lambda: gateway.health()[0] == 200, within_s=20, otherwise="never ready again")
    control.kill()
    wait_until(
        lambda: "control store is away" in gateway.health()[1],
        within_s=20,
        otherwise="the store's absence is not told",
    )
    status, why = gateway.health()
    assert status == 200
    assert why.startswith("degraded")
    assert _answers(other.port)
    await other.close()


async def test_a_unix_socket(
    local: LocalMigration, processes: list[GatewayProcess], tmp_path: Path
) -> None:
    path = tmp_path / "gw.sock"
    gateway = GatewayProcess(local, "--listen", f"unix:{path}")
    processes.append(gateway)
    gateway.wait_said("listens on")
    client = redis.Redis(unix_socket_path=str(path))
    client.set("k", "v")
    assert local.servers[Side.SOURCE].client().get("k") == b"v"
    gateway.signal(signal.SIGTERM)
    assert gateway.end() == 0
    assert not path.exists()


async def test_a_second_process_of_the_same_state_folder_is_refused(
    local: LocalMigration, processes: list[GatewayProcess]
) -> None:
    first = GatewayProcess(local, "--listen", "127.0.0.1:0")
    processes.append(first)
    first.wait_said("listens on")
    second = GatewayProcess(local, "--listen", "127.0.0.1:0", name="second")
    processes.append(second)
    assert second.started.process.wait(30) == 2
    assert second.said("belongs to a gateway that runs")
    assert (local.folder / "state" / "lock").exists()
