"""Packets in, events out: TCP connections put together, for any number of packets.

A segment is handed on when it is the next of its side and everything that its sender had
acknowledged was handed on before: so a reply never comes before its request, in whatever order the
capture has them. Other segments are held. A segment that is missing is waited for

- through `REORDERED_SEGMENTS_MAX` segments of its connection if its receiver has acknowledged it:
  then the capture has it in another order, or missed it;
- through `HELD_SEGMENTS_MAX` otherwise: its sender will send it again;
- for `HELD_SEGMENTS_S` of the capture's time at most.

Then its bytes are lost: they are counted, and both sides find their place again
(`conversation.py`). Memory is bounded by the open connections, and by `HELD_ALL_BYTES_MAX`.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from exodus.commands.table import CommandTable
from exodus.observe.capture_files import Packet
from exodus.observe.conversation import Conversation
from exodus.observe.coverage import Coverage
from exodus.observe.events import Sink
from exodus.observe.segments import ACK, FIN, RST, SYN, segment_of
from exodus.observe.shapes import Shapes
from exodus.plan.bounds import (
    HELD_ALL_BYTES_MAX,
    HELD_SEGMENT_BYTES_MAX,
    HELD_SEGMENTS_MAX,
    HELD_SEGMENTS_S,
    PACKETS_LATE_SYN_BYTES,
    PACKETS_SWEEP_EVERY,
    REORDERED_SEGMENTS_MAX,
    WATCHED_CLOSED_MAX,
    WATCHED_CONNECTIONS_MAX,
    WATCHED_PORTS_MAX,
)

_MASK = (1 << 32) - 1
_HALF = 1 << 31
_CLIENT, _SERVER = 0, 1


class _Held(NamedTuple):
    side: int
    at: float
    seq: int
    ack: int
    flags: int
    payload: bytes
    missing: int


class _Connection:
    """Both sides of one connection, put in order."""

    __slots__ = (
        "acked",
        "closed",
        "confirmed",
        "coverage",
        "held",
        "held_acked",
        "held_bytes",
        "last_at",
        "next",
        "talk",
    )

    def __init__(self, talk: Conversation, coverage: Coverage) -> None:
        self.talk = talk
        self.coverage = coverage
        self.next: list[int | None] = [None, None]  # the next sequence number of each side
        self.acked: list[int | None] = [None, None]  # of each side, by the other's last payload
        # of each side, by the other's last segment without payload
        self.confirmed: list[int | None] = [None, None]
        self.held: list[_Held] = []
        self.held_bytes = 0
        self.held_acked = False  # the receiver has what is missing
        self.closed = [False, False]
        self.last_at = 0.0

    def take(self, one: _Held) -> None:
        """Hand a segment on, or hold it."""
        self.last_at = one.at
        if not self._ready(one):
            self._hold(one)
            return
        self._hand_on(one)
        if self.held:
            self.coverage.reordered_segments += 1
            self._drain()

    def acknowledge(self, side: int, ack: int) -> None:
        """A segment without payload acknowledges the other side's bytes."""
        self.confirmed[1 - side] = ack
        there = self.next[1 - side]
        if not self.held:
            return
        if there is not None and 0 < ((ack - there) & _MASK) < _HALF:
            self.held_acked = True
            self._check()

    def overdue(self, now: float) -> bool:
        """Whether a missing segment was waited for long enough."""
        return bool(self.held) and now - self.held[0].at > HELD_SEGMENTS_S

    def give_up(self) -> None:
        """Count what is missing as lost, up to the next segment that is here."""
        self.coverage.held_at_limit += 1
        self._skip()
        self._drain()

    def finish(self) -> None:
        """Hand on all that is held, over the gaps."""
        while self.held:
            self._skip()
            self._drain()
        for side in (_CLIENT, _SERVER):
            at, confirmed = self.next[side], self.confirmed[side]
            # Bytes that the other side has, and behind which no segment was seen. One: a lost FIN
            if at is not None and confirmed is not None and 1 < ((confirmed - at) & _MASK) < _HALF:
                size = (confirmed - at) & _MASK
                self.coverage.lost_bytes += size
                self._gap(side, size)
        self.talk.finish()

    def _ready(self, one: _Held) -> bool:
        here, there = self.next[one.side], self.next[1 - one.side]
        return (here is None or not 0 < ((one.seq - here) & _MASK) < _HALF) and (
            there is None or not 0 < ((one.ack - there) & _MASK) < _HALF
        )

    def _hold(self, one: _Held) -> None:
        self.held.append(one)
        self.held_bytes += len(one.payload)
        there = self.next[1 - one.side]
        if there is not None and 0 < ((one.ack - there) & _MASK) < _HALF:
            self.held_acked = True
        self._check()

    def _check(self) -> None:
        while self.held and (
            len(self.held) > (REORDERED_SEGMENTS_MAX if self.held_acked else HELD_SEGMENTS_MAX)
            or self.held_bytes > HELD_SEGMENT_BYTES_MAX
            or self.overdue(self.last_at)
        ):
            self.give_up()

    def _drain(self) -> None:
        """Hand on what is ready now."""
        again = True
        while again and self.held:
            again = False
            waiting, self.held, self.held_bytes = self.held, [], 0
            for one in waiting:
                if self._ready(one):
                    self._hand_on(one)
                    again = True
                else:
                    self.held.append(one)
                    self.held_bytes += len(one.payload)
        if not self.held:
            self.held_acked = False

    def _skip(self) -> None:
        """Move over the nearest gap."""
        first = self.held[0]
        here = self.next[first.side]
        side = (
            first.side
            if here is not None and 0 < ((first.seq - here) & _MASK) < _HALF
            else 1 - first.side
        )
        at = self.next[side]
        assert at is not None
        places = [(one.seq if one.side == side else one.ack) - at & _MASK for one in self.held]
        size = min(place for place in places if 0 < place < _HALF)
        self.coverage.lost_bytes += size
        self._gap(side, size)

    def _gap(self, side: int, size: int) -> None:
        at = self.next[side]
        assert at is not None
        self.coverage.gaps += 1
        self.next[side] = (at + size) & _MASK
        if side == _CLIENT:
            self.talk.request_gap()
        else:
            self.talk.reply_gap()

    def _hand_on(self, one: _Held) -> None:
        side, payload, seq = one.side, one.payload, one.seq
        at = self.next[side]
        if at is not None and at != seq:  # it begins before what was handed on
            old = (at - seq) & _MASK
            if old >= len(payload) + one.missing:
                self.coverage.repeated_segments += bool(payload)
                self._flags(one)
                return
            payload = payload[old:]
            seq = at
        # The end of a side takes a sequence number of its own
        ends = (seq + len(payload) + (1 if one.flags & FIN else 0)) & _MASK
        self.next[side] = ends
        if side == _CLIENT:
            there = self.next[_SERVER]
            if payload:
                self.talk.requests(
                    one.at,
                    seq,
                    payload,
                    quiet=(there is None or there == one.ack)
                    and (at is None or self.acked[_CLIENT] == seq),
                )
            if there is None and one.flags & ACK:
                self.next[_SERVER] = one.ack
        elif payload:
            self.talk.replies(one.at, one.ack, payload)
        self.acked[1 - side] = one.ack
        if one.missing and not one.flags & FIN:
            self.coverage.cut_bytes += one.missing
            self._gap(side, one.missing)
        self._flags(one)

    def _flags(self, one: _Held) -> None:
        if one.flags & RST:
            self.closed = [True, True]
        elif one.flags & FIN:
            self.closed[one.side] = True


class PacketWatcher:
    """The connections of all packets; events go to `sink`."""

    def __init__(
        self, table: CommandTable, sink: Sink, ports: Iterable[int], *, hashed: bool = False
    ) -> None:
        self.coverage = Coverage()
        self.shapes = Shapes(table, hashed=hashed)
        self.first_at = 0.0  # times of the first and the last packet, in s
        self.last_at = 0.0
        self.held_bytes = 0
        self.ports_seen: Counter[int] = Counter()  # others than the watched ones
        self.addresses: set[str] = set()  # of clients, the first `WATCHED_CONNECTIONS_MAX`
        self._sink = sink
        self._ports = frozenset(port.to_bytes(2, "big") for port in ports)
        self._open: dict[bytes, tuple[_Connection, int]] = {}  # by addresses and ports, each way
        self._holding: dict[bytes, _Connection] = {}
        self._closed: dict[bytes, None] = {}

    @property
    def open_connections(self) -> int:
        """Connections that are kept track of."""
        return len(self._open) // 2

    def feed(self, packets: Sequence[Packet]) -> None:
        """Take packets."""
        if packets and not self.coverage.packets:
            self.first_at = packets[0].at
        coverage, unread = self.coverage, self.coverage.unread
        known = self._open.get
        for at, link, data, _ in packets:
            coverage.packets += 1
            self.last_at = at
            if coverage.packets % PACKETS_SWEEP_EVERY == 0:
                self._sweep(at)
            segment = segment_of(link, data, unread)
            if segment is None:
                continue
            key, seq, ack, flags, payload, missing = segment
            found = known(key)
            if not payload and not missing and not flags & (SYN | FIN | RST):
                if found is not None:
                    found[0].acknowledge(found[1], ack)
                continue
            if found is None or flags & SYN:
                found = self._begin(key, seq, flags)
                if found is None:
                    continue
            coverage.segments += 1
            connection, side = found
            if flags & RST and not flags & ACK:
                ack = connection.next[1 - side] or 0
            connection.take(_Held(side, at, seq, ack, flags, payload, missing))
            if connection.held:
                self._holding[key] = connection
            if connection.closed[0] and (connection.closed[1] or flags & RST):
                self._end(key)

    def finish(self) -> None:
        """The capture ends."""
        for key in list(self._open):
            if key in self._open:
                self._end(key)

    def _begin(self, key: bytes, seq: int, flags: int) -> tuple[_Connection, int] | None:
        """Begin a connection; None where the segment is not one of the watched ports."""
        if key[-2:] in self._ports:
            side = _CLIENT
        elif key[-4:-2] in self._ports:
            side = _SERVER
        else:
            self.coverage.other_ports += 1
            for raw in (key[-4:-2], key[-2:]):  # of many clients, the server's is the most frequent
                port = int.from_bytes(raw, "big")
                if port in self.ports_seen or len(self.ports_seen) < WATCHED_PORTS_MAX:
                    self.ports_seen[port] += 1
            return None
        found = self._open.get(key)
        if flags & SYN:
            at = None if found is None else found[0].next[side]
            if at is not None and ((at - seq - 1) & _MASK) < PACKETS_LATE_SYN_BYTES:
                return None  # it came again, or late
            if found is not None and at is not None:
                self._end(key)  # the ports are used anew
                found = None
            self._closed.pop(_one_way(key, side), None)
        elif _one_way(key, side) in self._closed or flags & (FIN | RST):
            return None  # the end of a connection that is over
        if found is None:
            found = self._new(key, side, whole=bool(flags & SYN))
        if flags & SYN:
            found[0].next[side] = found[0].acked[side] = (seq + 1) & _MASK
            return None
        return found

    def _new(self, key: bytes, side: int, *, whole: bool) -> tuple[_Connection, int]:
        coverage = self.coverage
        if len(self._open) >= 2 * WATCHED_CONNECTIONS_MAX:
            silent = min(self._open, key=lambda each: self._open[each][0].last_at)
            coverage.connections_forgotten += 1
            self._end(silent)
        coverage.connections += 1
        coverage.connections_before += not whole
        address = _address(_one_way(key, side))
        if len(self.addresses) < WATCHED_CONNECTIONS_MAX:
            self.addresses.add(address)
        talk = Conversation(
            self.shapes, self._sink, coverage, coverage.connections, address, whole=whole
        )
        connection = _Connection(talk, coverage)
        self._open[key] = connection, side
        self._open[_turned(key)] = connection, 1 - side
        return self._open[key]

    def _end(self, key: bytes) -> None:
        connection, side = self._open.pop(key)
        self._open.pop(_turned(key))
        self._holding.pop(key, None)
        self._holding.pop(_turned(key), None)
        connection.finish()
        if len(self._closed) >= WATCHED_CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        self._closed[_one_way(key, side)] = None

    def _sweep(self, now: float) -> None:
        """Wait no longer for what silent connections miss, and for more than the bound of all."""
        self._holding = {key: each for key, each in self._holding.items() if each.held}
        for connection in self._holding.values():
            while connection.overdue(now):
                connection.give_up()
        self.held_bytes = sum(each.held_bytes for each in self._holding.values())
        for connection in self._holding.values():
            while self.held_bytes > HELD_ALL_BYTES_MAX and connection.held:
                self.held_bytes -= connection.held_bytes
                connection.give_up()
                self.held_bytes += connection.held_bytes


def _turned(key: bytes) -> bytes:
    """Return the key of the other direction."""
    half = (len(key) - 4) // 2
    return key[half : 2 * half] + key[:half] + key[-2:] + key[-4:-2]


def _one_way(key: bytes, side: int) -> bytes:
    """Return the key of the client's direction."""
    return key if side == _CLIENT else _turned(key)


def _address(key: bytes) -> str:
    """Return the client's address of its direction's key."""
    half = (len(key) - 4) // 2
    host = socket.inet_ntop(socket.AF_INET if half == 4 else socket.AF_INET6, key[:half])
    return f"{host}:{int.from_bytes(key[-4:-2], 'big')}"
