"""The journal's own connection to the control store: one buffer out and the replies in, a hundred times a second.

redis-py's pipeline cost more CPU a second than relaying the requests that it journalled (docs/design/gateway-speed.md).
Here a batch is one write, and its replies
are counted by hiredis as they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.tls import ssl_context
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.resp.encode import Arg, encode, encode_many

_MULTI, _EXEC = encode("MULTI"), encode("EXEC")


class StoreRefused(Exception):
    """The control store answered with an error."""


class StorePipe:
    """One connection at a time, made when it is needed. Not shared between tasks."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        self._link: _Link | None = None

    async def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Run commands in one MULTI; return their replies.

        Raises:
            OSError, TimeoutError: the store is away. All of the commands may have run, or none.
            StoreRefused: none has, unless the error stands in EXEC's own reply.
        """
        if self._link is None or self._link.lost:
            await self._connect()
        replies = await self._send(_MULTI + encode_many(commands) + _EXEC, len(commands) + 2)
        done = replies[-1]
        if not isinstance(done, list):
            raise StoreRefused(f"EXEC answered {done!r}")
        return done

    async def _connect(self) -> None:
        address = self._store.address
        try:
            context, secret = ssl_context(address), address.secret("control_store")
        except OperatorError as exc:  # files may be there again at the next try, and until then the store is as good as away
            raise ConnectionError(f"{exc.what}: {exc.why}") from exc
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, self._link = await asyncio.get_running_loop().create_connection(
                _Link,
                address.host,
                address.port,
                ssl=context,
                server_hostname=(address.server_name or address.host) if context else None,
            )
        if secret is not None:
            await self._send(encode("AUTH", *([address.username] if address.username else []), secret), 1)

    async def _send(self, data: bytes, replies: int) -> list[Any]:
        link = self._link
        if link is None:
            raise ConnectionResetError("the control store closed the connection")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await link.ask(data, replies)
        except BaseException:
            self.close()  # a late reply would be taken for the next batch's
            raise
        for reply in found:
            error = reply if isinstance(reply, hiredis.ReplyError) else None
            if isinstance(reply, list):
                error = next((inner for inner in reply if isinstance(inner, hiredis.ReplyError)), None)
            if error is not None:
                raise StoreRefused(str(error).split(" ", 1)[0])
        return found

    def close(self) -> None:
        """End the connection; the next batch makes a new one."""
        if self._link is not None:
            self._link.close()
            self._link = None


class _Link(asyncio.Protocol):
    """One connection: bytes out, and a count of replies in."""

    def __init__(self) -> None:
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._replies: list[Any] = []
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None

    async def ask(self, data: bytes, replies: int) -> list[Any]:
        """Send, and wait for so many replies."""
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
            self._done.set_exception(exc if isinstance(exc, OSError) else ConnectionResetError("the control store closed the connection"))
