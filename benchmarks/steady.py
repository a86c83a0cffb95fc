"""A steady load that says how long each request took and when: `python -m benchmarks.steady
--help`.

Writers send small pipelines at fixed times, whether the last one was answered or not, so that a
stall is seen by everything that would have been sent meanwhile. Readers do the same with single
GETs. One JSON object a line: at what monotonic time, how long in ms, read or write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from exodus.resp.encode import encode

_VALUE = b"x" * 100
_GET_REPLY_BYTES = len(b"$100\r\n") + 100 + 2
_KEYS = 2_000


def _same(client: _SteadyClient) -> _SteadyClient:
    return client


class _SteadyClient(asyncio.Protocol):
    def __init__(
        self, kind: str, number: int, per_batch: int, found: list[tuple[float, float, str]]
    ) -> None:
        self._kind, self._number, self._per_batch, self._found = kind, number, per_batch, found
        self._reply_bytes = 5 * per_batch if kind == "write" else _GET_REPLY_BYTES
        self._sent: deque[float] = deque()
        self._turn, self._got = 0, 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self) -> None:
        self._turn += 1
        if self._kind == "write":
            keys = [
                b"bench:%d" % ((self._number * 997 + self._turn * self._per_batch + index) % _KEYS)
                for index in range(self._per_batch)
            ]
            data = b"".join(encode("SET", key, _VALUE) for key in keys)
        else:
            data = encode("GET", b"bench:%d" % (self._turn % _KEYS))
        self._sent.append(time.monotonic())
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        now = time.monotonic()
        while self._got >= self._reply_bytes:
            self._got -= self._reply_bytes
            sent = self._sent.popleft()
            self._found.append((sent, (now - sent) * 1000, self._kind))


async def _run(options: argparse.Namespace) -> list[tuple[float, float, str]]:
    loop = asyncio.get_running_loop()
    found: list[tuple[float, float, str]] = []
    clients: list[_SteadyClient] = []
    for number in range(options.writers + options.readers):
        kind = "write" if number < options.writers else "read"
        client = _SteadyClient(kind, number, options.batch, found)
        await loop.create_connection(
            partial(_same, client),
            "127.0.0.1",
            options.ports[number % len(options.ports)],
        )
        clients.append(client)
    every_s = options.writers * options.batch / options.per_s
    stop = asyncio.Event()

    async def beat(client: _SteadyClient, offset: float, every: float) -> None:
        due = loop.time() + offset
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - loop.time()))
            client.send()
            due = max(due + every, loop.time() - every)

    writers = [
        beat(client, every_s * number / options.writers, every_s)
        for number, client in enumerate(clients[: options.writers])
    ]
    readers = [
        beat(client, 0.001 * number, 0.005)
        for number, client in enumerate(clients[options.writers :])
    ]
    tasks = [asyncio.create_task(work) for work in (*writers, *readers)]
    while not options.stop_file.exists():
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.5)
    return found


def main() -> None:
    """Run until the stop file is there, then write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--per-s", type=float, default=5_000)
    parser.add_argument("--writers", type=int, default=10)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--stop-file", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text("\n".join(json.dumps(row) for row in uvloop.run(_run(options))))


if __name__ == "__main__":
    main()
