"""What the event loop and the kernel alone cost: a relay of one connection to one that reads
nothing.

`python -m benchmarks.relay PORT SOURCE_PORT`
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class _End(asyncio.Protocol):
    """One of the two connections; what it reads goes to the other."""

    def __init__(self, other: asyncio.Transport | None, source_port: int) -> None:
        self._other, self._source_port = other, source_port
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._other is None:
            self._connecting = asyncio.get_running_loop().create_task(
                self._connect(cast("asyncio.Transport", transport))
            )

    async def _connect(self, client: asyncio.Transport) -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: _End(client, self._source_port), "127.0.0.1", self._source_port
        )
        self._other = transport
        transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._other is not None:
            self._other.close()


async def _serve(port: int, source_port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: _End(None, source_port), "127.0.0.1", port
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
