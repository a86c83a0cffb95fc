"""The journal's own connection to the control store.

It carries a batch a hundred times a second: one buffer out, and the replies in. redis-py's
pipeline took more CPU than relaying the requests that it journalled
(docs/design/gateway-speed.md). Here a batch is one write, and hiredis counts its replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.connect import login_of, open_protocol
from exodus.net.tls import ssl_context
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.resp.encode import Arg, encode, encode_many

_MULTI, _EXEC = encode("MULTI"), encode("EXEC")


class StoreRefused(Exception):
    """The control store answered an error."""


class StorePipe:
    """One connection at a time, made when it is needed. One task uses it."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        self._connection: _StoreConnection | None = None

    async def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Run commands in one MULTI and return their replies.

        Raises:
            OSError, TimeoutError: the store is away. Either all of the commands ran, or none.
            StoreRefused: none ran, unless the error is in EXEC's own reply.
        """
        if self._connection is None or self._connection.lost:
            await self._connect()
        replies = await self._send(_MULTI + encode_many(commands) + _EXEC, len(commands) + 2)
        done = replies[-1]
        if not isinstance(done, list):
            raise StoreRefused(f"EXEC answered {done!r}")
        return done

    async def _connect(self) -> None:
        address = self._store.address
        try:
            context, login = ssl_context(address), login_of(address, "control_store")
        except OperatorError as exc:  # the files may be there at the next attempt
            raise ConnectionError(f"{exc.what}: {exc.why}") from exc
        self._connection = await open_protocol(address, context, _StoreConnection)
        if login:
            await self._send(login, 1)

    async def _send(self, data: bytes, replies: int) -> list[Any]:
        connection = self._connection
        if connection is None:
            raise ConnectionResetError("the control store closed the connection")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await connection.ask(data, replies)
        except BaseException:
            self.close()  # a late reply would be taken for the next batch's
            raise
        for reply in found:
            error = reply if isinstance(reply, hiredis.ReplyError) else None
            if isinstance(reply, list):
                error = next(
                    (inner for inner in reply if isinstance(inner, hiredis.ReplyError)), None
                )
            if error is not None:
                raise StoreRefused(str(error).split(" ", 1)[0])
        return found

    def close(self) -> None:
        """End the connection. The next batch makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _StoreConnection(asyncio.Protocol):
    """One connection: bytes out, and a number of replies in."""

    def __init__(self) -> None:
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._replies: list[Any] = []
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None

    async def ask(self, data: bytes, replies: int) -> list[Any]:
        """Send bytes and wait for a number of replies."""
        if self._transport is None or self.lost:
            raise ConnectionResetError("the control store closed the connection")
        self._replies, self._wanted = [], replies
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        await self._done
        return self._replies

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not Ellipsis:
            self._replies.append(reply)
        if len(self._replies) >= self._wanted and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._done is not None and not self._done.done():
            self._done.set_exception(
                exc
                if isinstance(exc, OSError)
                else ConnectionResetError("the control store closed the connection")
            )
