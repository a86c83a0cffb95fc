"""A load generator as small as can be, so that what is between it and the server shows: `python -m
benchmarks.load --help`.

Requests and the sizes of their replies are fixed, so it counts bytes and parses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from functools import partial
from typing import cast

import uvloop

from exodus.resp.encode import encode

_KEYS = 1000


class _LoadClient(asyncio.Protocol):
    def __init__(
        self,
        batches: list[bytes],
        reply_bytes: int,
        deadline: float,
        every_s: float,
        latencies: list[float],
        done: asyncio.Future[None],
    ) -> None:
        self._batches, self._reply_bytes, self._deadline, self._every_s = (
            batches,
            reply_bytes,
            deadline,
            every_s,
        )
        self._latencies, self._done = latencies, done
        self._due = 0.0
        self._turn, self._left, self._sent = 0, 0, 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent > self._deadline:
            self._transport.close()
            return
        self._left = self._reply_bytes
        self._transport.write(self._batches[self._turn % len(self._batches)])
        self._turn += 1

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left == 0:
            now = time.perf_counter()
            self._latencies.append(now - self._sent)
            self._due = max(self._due + self._every_s, now)
            if self._due > now:
                asyncio.get_running_loop().call_later(self._due - now, self._send)
            else:
                self._send()
        elif self._left < 0:
            self._done.set_exception(AssertionError(f"more bytes than asked for: {data[:100]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self._done.done():
            self._done.set_result(None)


async def _run(options: argparse.Namespace) -> dict[str, float]:
    value = b"x" * options.bytes
    one_reply = (
        len(b"$%d\r\n" % options.bytes) + options.bytes + 2 if options.command == "get" else 5
    )
    name = options.prefix.encode() + b"%d"
    batches = [
        b"".join(
            encode("GET", name % ((turn * options.pipeline + index) % _KEYS))
            if options.command == "get"
            else encode("SET", name % ((turn * options.pipeline + index) % _KEYS), value)
            for index in range(options.pipeline)
        )
        for turn in range(max(64, _KEYS // options.pipeline))  # all keys
    ]
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    every_s = options.connections * options.pipeline / options.rate if options.rate else 0.0
    began = time.perf_counter()
    ends = [loop.create_future() for _ in range(options.connections)]
    for end in ends:
        await loop.create_connection(
            partial(
                _LoadClient,
                batches,
                one_reply * options.pipeline,
                began + options.seconds,
                every_s,
                latencies,
                end,
            ),
            "127.0.0.1",
            options.port,
        )
    await asyncio.wait_for(asyncio.gather(*ends), options.seconds + 30)
    seconds = time.perf_counter() - began
    latencies.sort()
    count = len(latencies)
    return {
        "requests": float(count * options.pipeline),
        "seconds": seconds,
        "p50_us": latencies[count // 2] * 1e6,
        "p99_us": latencies[int(count * 0.99)] * 1e6,
    }


def main() -> None:
    """Run, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--command", choices=("get", "set"), required=True)
    parser.add_argument("--prefix", default="bench:", help="what the names of keys begin with")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        help="requests a second, all connections together; 0 for as fast as it goes",
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    print(json.dumps(uvloop.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
