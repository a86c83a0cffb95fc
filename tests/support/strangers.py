"""`python -m tests.support.strangers SECONDS CLIENTS PORT…`: clients without a login do, all at
once, whatever a stranger can.

A process of its own, so that its cost is not counted as the gateways'. Ends with one JSON line: how
often each act was done.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import uvloop

from exodus.resp.encode import encode

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]
INLINE_COMMANDS = 4_500  # in one burst
_WAITS_S = 0.5
_DIGITS = b"9" * 5_000


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.transport.is_closing():
        raise ConnectionResetError("the other side closed it")
    writer.write(data)


async def _read_some(reader: asyncio.StreamReader) -> None:
    """Read what comes within a moment."""
    try:
        async with asyncio.timeout(_WAITS_S):
            while await reader.read(65_536):
                pass
    except TimeoutError:
        return


async def garbage(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    _send(writer, draw.randbytes(draw.randrange(1, 4_000)))
    await _read_some(reader)


async def half_requests(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    whole = draw.choice(
        (
            b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1000000\r\n" + b"x" * 5_000,
            b"*1\r\n$4\r\nPI",
            b"SET half inl",
        )
    )
    _send(writer, whole[: draw.randrange(1, len(whole))])
    await _read_some(reader)


async def inline_nuls(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    _send(writer, draw.choice((b"SET a b\0\r\n", b"\0\0\0\r\n", b"PING\0\r\n" * 50)))
    await _read_some(reader)


async def huge_bulks(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    del draw
    _send(writer, b"*2\r\n$3\r\nGET\r\n$536870000\r\n")
    for _ in range(20):
        _send(writer, b"x" * 1_000)
        await asyncio.sleep(0.02)
    await _read_some(reader)


async def pipelined_inline(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    del draw
    _send(writer, b"PING\r\n" * INLINE_COMMANDS)
    await _read_some(reader)


async def refused_sets(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    for number in range(20):
        _send(
            writer,
            encode(
                "SET",
                b"%d:" % number
                + draw.randbytes(8)
                + b"k" * draw.choice((100, 8_000, 16_000, 70_000)),
                "v",
            ),
        )
    await _read_some(reader)


async def unknown_names(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    for _ in range(50):
        _send(writer, encode(draw.randbytes(16).hex() * draw.choice((1, 1, 100)), "k"))
    await _read_some(reader)


async def long_numbers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    requests = (
        encode("SELECT", _DIGITS),
        encode("SELECT", 2**63),
        encode("EVAL", "return 1", _DIGITS, "k"),
        encode("MOVE", "k", _DIGITS),
        encode("SWAPDB", 0, _DIGITS),
        encode("LMPOP", _DIGITS, "k", "LEFT"),
        b"*" + _DIGITS + b"\r\n",
        b"*1\r\n$" + _DIGITS + b"\r\n",
    )
    _send(writer, draw.choice(requests))
    await _read_some(reader)


async def channels(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    for _ in range(3):
        word = draw.choice(("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"))
        _send(writer, encode(word, draw.randbytes(8) + b"c" * draw.choice((100, 8_000, 16_000))))
    await _read_some(reader)


async def long_arguments(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
) -> None:
    long = b"k" * draw.choice((17_000, 20_000, 65_000))
    requests = (
        encode("EVAL", "return 1", 1, long),
        encode("FCALL", "f", 1, long),
        encode("BLPOP", long, 1),
        encode("CLIENT", "SETNAME", long),
    )
    _send(writer, draw.choice(requests))
    await _read_some(reader)


ACTS: tuple[Act, ...] = (
    garbage,
    half_requests,
    inline_nuls,
    huge_bulks,
    pipelined_inline,
    refused_sets,
    unknown_names,
    long_numbers,
    channels,
    long_arguments,
)


async def _stranger(number: int, port: int, until_s: float, done: Counter[str]) -> None:
    loop, draw = asyncio.get_running_loop(), random.Random(number)
    turn = number
    while loop.time() < until_s:
        act = ACTS[turn % len(ACTS)]
        turn += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            done["not let in"] += 1
            await asyncio.sleep(0.1)
            continue
        try:
            await act(reader, writer, draw)
            done[act.__name__] += 1
        except OSError:
            done[f"{act.__name__}, cut off"] += 1
        finally:
            writer.transport.abort()


async def _work(seconds: float, clients: int, ports: list[int]) -> Counter[str]:
    done: Counter[str] = Counter()
    until_s = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(
        *[_stranger(number, ports[number % len(ports)], until_s, done) for number in range(clients)]
    )
    return done


if __name__ == "__main__":
    print(
        json.dumps(
            uvloop.run(_work(float(sys.argv[1]), int(sys.argv[2]), list(map(int, sys.argv[3:]))))
        ),
        flush=True,
    )
