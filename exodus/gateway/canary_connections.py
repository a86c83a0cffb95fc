"""Canary connections: the gateway asks the follower over two connections, one a protocol.

All sessions of the process share them. Only canary reads wait for them, at most `wait_s`. A lost
connection fails the reads under way on it and those that come later. It is not made again before
the next share is chosen; by then the limit has ended the canary.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import cast

from exodus.gateway.canary_reads import Canary, CanaryRead
from exodus.gateway.session import Session
from exodus.net.connect import login_of, open_protocol
from exodus.plan.address import Address
from exodus.plan.bounds import CANARY_IN_FLIGHT_MAX, CONNECT_TIMEOUT_S
from exodus.resp.encode import encode
from exodus.resp.scanner import Reply, ReplyScanner

_PROTOCOLS = (2, 3)


class CanaryConnections:
    """Sends canary reads to the follower."""

    def __init__(
        self,
        canary: Canary,
        address: Address,
        tls: ssl.SSLContext | None,
        *,
        field: str,
        wait_s: float,
        elsewhere: Callable[[bytes, str], bool] | None = None,
    ) -> None:
        """`elsewhere` is told of each error, and of the host that was asked; it says whether the
        read was asked at the wrong node.
        """
        self._elsewhere = elsewhere
        self._canary = canary
        self._address, self._tls, self._field = address, tls, field
        self._wait_s = wait_s
        self._connections: dict[int, _CanaryConnection] = {}
        self._due: deque[tuple[float, Session, CanaryRead]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        """Connect. A follower without RESP3 is asked only for sessions of RESP2.

        Raises:
            OSError, TimeoutError: it refuses the connection or the login.
        """
        self.close()
        login = [request for request in [login_of(self._address, self._field)] if request]
        for protocol in _PROTOCOLS:
            connection = await self._open()
            commands = [*login, encode("CLIENT", "SETNAME", "exodus-canary")]
            if protocol != 2:
                commands.append(encode("HELLO", protocol))
            try:
                answers = await connection.prepare(commands)
            except BaseException:
                connection.close()
                raise
            if any(reply.error for reply in answers):
                connection.close()
                if protocol == 2:
                    raise ConnectionRefusedError("it refuses the login of Exodus")
                continue
            self._connections[protocol] = connection

    @property
    def lost(self) -> bool:
        """Tell whether a connection ended."""
        return not self._connections or any(each.lost for each in self._connections.values())

    async def _open(self) -> _CanaryConnection:
        return await open_protocol(
            self._address, self._tls, lambda: _CanaryConnection(self._canary, self._is_elsewhere)
        )

    def _is_elsewhere(self, said: bytes) -> bool:
        return self._elsewhere is not None and self._elsewhere(said, self._address.host)

    def ask(self, session: Session, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Send a session's read to the follower."""
        connection = self._connections.get(protocol)
        if connection is None:
            read.left_out() if self._connections else read.lost()
            return
        if connection.lost or len(connection.asked) >= CANARY_IN_FLIGHT_MAX:
            read.lost()
            return
        now = monotonic()
        connection.ask(session, read, request, now)
        self._due.append((now + self._wait_s, session, read))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._end_late_reads)

    def _end_late_reads(self) -> None:
        self._timer = None
        now = monotonic()
        while self._due and (self._due[0][0] <= now or self._due[0][2].done):
            _, session, read = self._due.popleft()
            if not read.done:
                read.gave_up()
                session.from_follower()
        if self._due:
            self._timer = asyncio.get_running_loop().call_later(
                max(0.0, self._due[0][0] - now), self._end_late_reads
            )

    def close(self) -> None:
        """End the connections. Reads under way fail."""
        for connection in self._connections.values():
            connection.close()
        self._connections = {}


class _CanaryConnection(asyncio.Protocol):
    """One connection: requests out, replies in, in order."""

    def __init__(self, canary: Canary, elsewhere: Callable[[bytes], bool]) -> None:
        self.lost = False
        self._elsewhere = elsewhere
        self.asked: deque[tuple[Session, CanaryRead, float]] = deque()
        self._canary = canary
        self._transport: asyncio.Transport | None = None
        self._scanner = ReplyScanner()
        self._unread = b""
        self._early: list[Reply] = []
        self._wanted = 0
        self._prepared: asyncio.Future[None] | None = None

    async def prepare(self, commands: list[bytes]) -> list[Reply]:
        """Send the commands that come before all reads, and wait for their replies."""
        if self._transport is None:
            raise ConnectionResetError("the follower closed the connection")
        self._wanted = len(commands)
        self._prepared = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join(commands))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await self._prepared
        return self._early

    def ask(self, session: Session, read: CanaryRead, request: bytes, now: float) -> None:
        self.asked.append((session, read, now))
        if self._transport is not None:
            self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffered = self._unread + data if self._unread else data
        at = 0
        for reply in self._scanner.feed(data):
            frame, at = buffered[at : at + reply.size], at + reply.size
            if len(self._early) < self._wanted:
                self._early.append(reply)
                if (
                    len(self._early) == self._wanted
                    and self._prepared is not None
                    and not self._prepared.done()
                ):
                    self._prepared.set_result(None)
            elif not reply.push:
                self._take(reply, frame)
        self._unread = buffered[at:]

    def _take(self, reply: Reply, frame: bytes) -> None:
        session, read, asked = self.asked.popleft()
        self._canary.answer_us.record(int((monotonic() - asked) * 1_000_000))
        if not read.done:
            if reply.error and self._elsewhere(reply.head):
                read.left_out()
            else:
                read.answered(frame, error=reply.error)
            session.from_follower()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._prepared is not None and not self._prepared.done():
            self._prepared.set_exception(
                exc
                if isinstance(exc, OSError)
                else ConnectionResetError("the follower closed the connection")
            )
        for session, read, _ in self.asked:
            if not read.done:
                read.lost()
                session.from_follower()
        self.asked.clear()
