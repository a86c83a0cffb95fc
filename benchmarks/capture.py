"""How many packets a second one core turns into a profile, and what reading and pairing take of it.

The packets are of 50 connections that send SET and GET with values of 100 bytes, one at a time:
each packet has a request or an answer, so this is the most work that a packet can be.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from benchmarks.result import Result, result
from exodus.observe.capture_files import CaptureReader
from exodus.observe.events import Event
from exodus.observe.known_commands import known_table
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.observe.segments import Unread, segment_of
from exodus.plan.bounds import CAPTURE_READ_BYTES
from exodus.resp.encode import encode

_PORT = 6379
_CONNECTIONS = 50
_WANTED_PER_S = 100_000
_VALUE = b"x" * 100
_KEYS = 20_000


class _Nothing:
    """Counts events."""

    def __init__(self) -> None:
        self.events = 0

    def add(self, event: Event) -> None:
        del event
        self.events += 1


def _frame(to_server: bool, port: int, seq: int, ack: int, payload: bytes) -> bytes:
    hosts = (b"\x0a\0\0\2", b"\x0a\0\0\1")
    ports = (port, _PORT)
    if not to_server:
        hosts, ports = hosts[::-1], ports[::-1]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0)
    tcp = struct.pack(">HHIIBBHHH", *ports, seq, ack, 5 << 4, 0x18, 65_535, 0, 0)
    return bytes(12) + b"\x08\0" + head + hosts[0] + hosts[1] + tcp + payload


def _file(requests: int) -> bytes:
    parts = [struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)]
    places: dict[int, tuple[int, int]] = {}
    for number in range(requests):
        port = 40_000 + number % _CONNECTIONS
        sent, got = places.get(port, (1, 1))
        key = b"user:%d" % (number * 7_919 % _KEYS)
        write = number % 3 == 0
        asked = encode("SET", key, _VALUE) if write else encode("GET", key)
        answer = b"+OK\r\n" if write else b"$100\r\n" + _VALUE + b"\r\n"
        for turn, frame in enumerate(
            (
                _frame(True, port, sent, got, asked),
                _frame(False, port, got, sent + len(asked), answer),
            )
        ):
            micros = number * 20 + turn * 10
            parts.append(
                struct.pack(
                    "<IIII", 10**9 + micros // 10**6, micros % 10**6, len(frame), len(frame)
                )
            )
            parts.append(frame)
        places[port] = sent + len(asked), got + len(answer)
    return b"".join(parts)


def _rate(packets: int, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return packets / (time.perf_counter() - began)


def measure(*, full: bool) -> Result:
    """Packets a second through each part, in turns."""
    packets = 1_000_000 if full else 200_000
    data = _file(packets // 2)
    pieces = [data[at : at + CAPTURE_READ_BYTES] for at in range(0, len(data), CAPTURE_READ_BYTES)]

    def read() -> None:
        reader = CaptureReader()
        for piece in pieces:
            reader.feed(piece)

    def decode() -> None:
        reader, unread = CaptureReader(), Unread()
        for piece in pieces:
            for _, link, frame, _ in reader.feed(piece):
                segment_of(link, frame, unread)

    def watch(sink: _Nothing | Profile) -> None:
        reader = CaptureReader()
        watcher = PacketWatcher(known_table(), sink, [_PORT])
        for piece in pieces:
            watcher.feed(reader.feed(piece))
        watcher.finish()
        seen = sink.requests if isinstance(sink, Profile) else sink.events
        assert seen == packets // 2
        assert watcher.coverage.requests_without_reply == 0

    runs = [
        {
            "exodus": _rate(packets, lambda: watch(Profile())),
            "events without a profile": _rate(packets, lambda: watch(_Nothing())),
            "decoded down to TCP": _rate(packets, decode),
            "read only": _rate(packets, read),
            "wanted": float(_WANTED_PER_S),
        }
        for _ in range(5 if full else 3)
    ]
    return result(
        name="capture",
        what="packets turned into a workload profile by one core",
        unit="packets/s",
        runs=runs,
        against="wanted",
    )
