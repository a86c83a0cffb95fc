"""Connections are accepted a few at a time, and again when there is room."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from exodus.gateway import acceptor
from exodus.gateway.acceptor import Acceptor
from exodus.plan.bounds import ACCEPTS_A_PASS
from tests.support.wait import until

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Echo(asyncio.Protocol):
    """Sends back what it gets, and counts what began and ended."""

    made = lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).made += 1
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        type(self).lost += 1


@pytest.fixture
def echo() -> type[Echo]:
    return type("Echo", (Echo,), {"made": 0, "lost": 0})


def _listening(family: int = socket.AF_INET, at: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(at)  # type: ignore[arg-type]
    sock.listen(4096)
    sock.setblocking(False)
    return sock


def _connected(sock: socket.socket) -> socket.socket:
    client = socket.socket(sock.family, socket.SOCK_STREAM)
    client.connect(sock.getsockname())
    return client


async def _echoes(client: socket.socket) -> bool:
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"hello")
    async with asyncio.timeout(10):
        return await loop.sock_recv(client, 100) == b"hello"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("unix", [False, True])
def test_a_pass_begins_a_few(
    loop: Callable[[], asyncio.AbstractEventLoop], unix: bool, echo: type[Echo], tmp_path: Path
) -> None:
    async def work() -> None:
        at = (socket.AF_UNIX, str(tmp_path / "at")) if unix else ()
        sock = _listening(*at)
        clients = [_connected(sock) for _ in range(50)]
        begun, most = 0, 0

        def protocol() -> Echo:
            nonlocal begun
            begun += 1
            return echo()

        accepts = Acceptor(protocol, sock, None)
        while begun < len(clients):
            before = begun
            await asyncio.sleep(0)
            most = max(most, begun - before)
        assert most == ACCEPTS_A_PASS
        assert all([await _echoes(client) for client in clients])
        accepts.close()
        accepts.close()  # ends it twice: nothing happens
        assert await _echoes(clients[0]), "a connection ended with the listener"
        for client in clients:
            client.close()

        async def ended() -> bool:
            return echo.lost == len(clients)

        await until(ended, within_s=10, otherwise=f"{echo.lost} ended")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENETDOWN])
async def test_without_room_it_waits_and_then_goes_on(
    number: int,
    echo: type[Echo],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(socket.socket):
        full = True

        def accept(self) -> tuple[socket.socket, object]:
            if self.full:
                raise OSError(number, os.strerror(number))
            return super().accept()

    monkeypatch.setattr(acceptor, "ACCEPTS_AGAIN_S", 0.1)
    listening = _listening()
    sock = Full(fileno=listening.detach())
    accepts = Acceptor(echo, sock, None)
    with caplog.at_level(logging.ERROR), _connected(sock) as client:
        await asyncio.sleep(0.35)
        told = caplog.text.count("no connection can be accepted")
        assert 1 <= told <= 4, f"{told} lines: it did not wait"
        sock.full = False
        assert await _echoes(client)
    accepts.close()


async def test_closed_while_it_waits_for_room_it_stays_closed(echo: type[Echo]) -> None:
    accepts = Acceptor(echo, _listening(), None)
    accepts._loop.remove_reader(accepts._sock)
    accepts._later = accepts._loop.call_later(0.01, accepts._listen)
    accepts.close()
    await asyncio.sleep(0.05)
    assert echo.made == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_does_not_speak_tls_ends_alone(
    loop: Callable[[], asyncio.AbstractEventLoop], echo: type[Echo]
) -> None:
    async def work() -> None:
        sock = _listening()
        accepts = Acceptor(echo, sock, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        with _connected(sock) as client:
            client.setblocking(False)
            running = asyncio.get_running_loop()
            await running.sock_sendall(client, b"PING\r\n" * 10)
            async with asyncio.timeout(10):
                while await running.sock_recv(client, 100):
                    pass  # the alert, then the end
        async with asyncio.timeout(10):
            while accepts._beginning:
                await asyncio.sleep(0.01)
        assert echo.made == 0
        accepts.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())
