"""Accepts applications' connections, a few in each pass of the event loop.

The loop's own server accepts all that wait at once, and reads from all of them in its next pass.
Two hundred clients that came again every half second so held up everybody else for 25 ms.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from exodus.plan.bounds import ACCEPTS_A_PASS, ACCEPTS_AGAIN_S

log = logging.getLogger(__name__)


class Acceptor:
    """Gives each connection of a listening socket a protocol, until it is closed.

    Args:
        protocol: makes a connection's protocol.
        sock: listens, and does not block.
        tls: the handshake's context; None: no TLS.
    """

    def __init__(
        self,
        protocol: Callable[[], asyncio.Protocol],
        sock: socket.socket,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._protocol = protocol
        self._sock = sock
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._closed = False
        self._listen()

    def close(self) -> None:
        """Accept no more. Connections that have begun stay."""
        if not self._closed:
            self._closed = True
            if self._later is not None:
                self._later.cancel()
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _listen(self) -> None:
        self._later = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_PASS):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process took it, or its client has gone
            except OSError as exc:  # no file descriptor, no memory, no network
                log.error("no connection can be accepted for %d s: %s", ACCEPTS_AGAIN_S, exc)
                self._loop.remove_reader(self._sock)
                self._later = self._loop.call_later(ACCEPTS_AGAIN_S, self._listen)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError as exc:  # also what a handshake fails with
            log.debug("a connection ended before it began: %s", exc)
            connection.close()
