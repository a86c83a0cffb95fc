"""Questions to servers about their topology, over connections that are kept between questions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import hiredis

from exodus.net.connect import login_of, open_streams
from exodus.net.tls import ssl_context
from exodus.plan.address import Address
from exodus.plan.bounds import INQUIRY_READ_BYTES
from exodus.resp.encode import Arg, encode, encode_many

_NAME = "exodus-topology"  # no application's connection


class Inquiry:
    """Connections for questions, one a server. `field` names their address in errors."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._kept: dict[Address, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()

    async def ask(self, address: Address, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Return the replies, errors as values. Where the server has ended the connection, ask once
        more.

        Raises:
            OSError: the server does not answer.
            OperatorError: the password cannot be read.
        """
        try:
            return await self._ask(address, commands)
        except OSError:
            self.hang_up(address)  # the server may have ended it long ago
            return await self._ask(address, commands)

    async def _ask(self, address: Address, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        begin, wanted = b"", len(commands)
        if address not in self._kept:
            self._kept[address] = await open_streams(address, ssl_context(address))
            login = login_of(address, self._field)
            begin = login + encode("CLIENT", "SETNAME", _NAME)
            wanted += 1 + bool(login)
        reader, writer = self._kept[address]
        writer.write(begin + encode_many(commands))
        parser, replies = hiredis.Reader(), list[Any]()
        while len(replies) < wanted:
            data = await reader.read(INQUIRY_READ_BYTES)
            if not data:
                raise ConnectionError("it ended the connection")
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                replies.append(reply)
        return replies[-len(commands) :]

    def hang_up(self, address: Address | None = None) -> None:
        """End the connection to a server, or all connections."""
        ended = [address] if address is not None else list(self._kept)
        for each in ended:
            if (kept := self._kept.pop(each, None)) is not None:
                kept[1].close()
