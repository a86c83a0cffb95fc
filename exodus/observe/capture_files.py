"""Reading capture files: pcap and pcapng, bytes in, packets out, at any split of the bytes.

Formats: pcap as tcpdump writes it (micro- or nanoseconds, either byte order) and pcapng with
section, interface, enhanced, and simple packet blocks. Unknown blocks are skipped. Nothing that a
file holds makes the reader raise: what cannot be read sets `broken` to the reason, and the packets
before it count. Nothing is kept but the bytes of one unfinished record, at most
`CAPTURE_RECORD_BYTES_MAX`.

docs/decisions/0015-reading-packets.md says why no library does this.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from exodus.plan.bounds import CAPTURE_INTERFACES_MAX, CAPTURE_RECORD_BYTES_MAX

_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_SECTION_BLOCK, _INTERFACE_BLOCK, _SIMPLE_BLOCK, _ENHANCED_BLOCK = 0x0A0D0D0A, 1, 3, 6
_PCAP_HEAD_BYTES, _RECORD_HEAD_BYTES, _BLOCK_HEAD_BYTES, _BLOCK_BYTES_MIN = 24, 16, 8, 12
_RESOLUTION_OPTION, _OFFSET_OPTION = 9, 14


class Packet(NamedTuple):
    """One packet of a capture: `at` in s since 1970, `link` the link type (`LINKTYPE_` number)."""

    at: float
    link: int
    data: bytes
    wire_bytes: int  # that it had on the wire; more than `data` where the capture cut it


class _Interface(NamedTuple):
    link: int
    snap_bytes: int
    tick_s: float
    offset_s: int


class CaptureReader:
    """The packets of one file or stream."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self._kept = b""
        self._kind = ""
        self._order = "<"
        self._tick_s = 1e-6
        self._link = 0
        self._interfaces: list[_Interface] = []
        self._last_at = 0.0

    @property
    def begun(self) -> bool:
        """Whether the beginning of a capture was read."""
        return bool(self._kind)

    @property
    def partial_bytes(self) -> int:
        """Bytes of a record that is not complete: at a file's end, the file was cut off."""
        return len(self._kept)

    def feed(self, data: bytes) -> list[Packet]:
        """Take what was read; return the packets that it completes."""
        if self.broken is not None:
            return []
        data = self._kept + data if self._kept else data
        found: list[Packet] = []
        at = self._begin(data) if not self._kind else 0
        if self._kind == "pcap":
            at = self._records(data, at, found)
        elif self._kind == "pcapng":
            at = self._blocks(data, at, found)
        self._kept = b"" if self.broken is not None else data[at:]
        return found

    def _begin(self, data: bytes) -> int:
        """Find out the format; return where the first record begins."""
        magic = data[:4]
        if magic == _SECTION:
            self._kind = "pcapng"
        elif magic in _PCAP and len(data) >= _PCAP_HEAD_BYTES:
            self._kind = "pcap"
            self._order, self._tick_s = _PCAP[magic]
            # The upper bits say how long a frame check sequence is, which the IP length excludes
            self._link = Struct(self._order + "I").unpack_from(data, 20)[0] & 0xFFFF
            return _PCAP_HEAD_BYTES
        elif len(magic) == 4 and magic not in _PCAP:
            self.broken = f"neither pcap nor pcapng: it begins with {magic.hex()}"
        return 0

    def _records(self, data: bytes, at: int, found: list[Packet]) -> int:
        head = Struct(self._order + "IIII").unpack_from
        tick_s, link, end = self._tick_s, self._link, len(data)
        while at + _RECORD_HEAD_BYTES <= end:
            seconds, fraction, captured, wire_bytes = head(data, at)
            if captured > CAPTURE_RECORD_BYTES_MAX:
                self.broken = f"a packet of {captured} bytes"
                break
            begin = at + _RECORD_HEAD_BYTES
            if begin + captured > end:
                break
            at = begin + captured
            found.append(Packet(seconds + fraction * tick_s, link, data[begin:at], wire_bytes))
        return at

    def _blocks(self, data: bytes, at: int, found: list[Packet]) -> int:
        end = len(data)
        while at + _BLOCK_BYTES_MIN <= end:
            if data[at : at + 4] == _SECTION:
                order = data[at + 8 : at + 12]
                if order not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                    self.broken = "a section without a byte order"
                    break
                self._order = "<" if order == b"\x4d\x3c\x2b\x1a" else ">"
                self._interfaces = []
            kind, size = Struct(self._order + "II").unpack_from(data, at)
            if size < _BLOCK_BYTES_MIN or size % 4 or size > CAPTURE_RECORD_BYTES_MAX:
                self.broken = f"a block of {size} bytes"
                break
            if at + size > end:
                break
            body = data[at + _BLOCK_HEAD_BYTES : at + size - 4]
            at += size
            self._block(kind, body, found)
            if self.broken is not None:
                break
        return at

    def _block(self, kind: int, body: bytes, found: list[Packet]) -> None:
        if kind == _ENHANCED_BLOCK and len(body) >= 20:
            index, high, low, captured, wire_bytes = Struct(self._order + "IIIII").unpack_from(body)
            if index >= len(self._interfaces) or captured > len(body) - 20:
                self.broken = "a packet of no interface, or longer than its block"
                return
            of = self._interfaces[index]
            self._last_at = ((high << 32) | low) * of.tick_s + of.offset_s
            found.append(Packet(self._last_at, of.link, body[20 : 20 + captured], wire_bytes))
        elif kind == _SIMPLE_BLOCK and len(body) >= 4 and self._interfaces:
            of = self._interfaces[0]
            (wire_bytes,) = Struct(self._order + "I").unpack_from(body)
            captured = min(wire_bytes, of.snap_bytes or wire_bytes, len(body) - 4)
            found.append(Packet(self._last_at, of.link, body[4 : 4 + captured], wire_bytes))
        elif kind == _INTERFACE_BLOCK and len(body) >= 8:
            if len(self._interfaces) >= CAPTURE_INTERFACES_MAX:
                self.broken = f"more than {CAPTURE_INTERFACES_MAX} interfaces"
                return
            link, _, snap_bytes = Struct(self._order + "HHI").unpack_from(body)
            self._interfaces.append(_Interface(link, snap_bytes, *self._clock(body[8:])))

    def _clock(self, options: bytes) -> tuple[float, int]:
        """Return the length of a tick in s and the offset in s of an interface's times."""
        tick_s, offset_s, at = 1e-6, 0, 0
        while at + 4 <= len(options):
            code, size = Struct(self._order + "HH").unpack_from(options, at)
            value = options[at + 4 : at + 4 + size]
            at += 4 + size + (-size % 4)
            if code == _RESOLUTION_OPTION and len(value) == 1:
                power = value[0] & 0x7F
                tick_s = 2.0**-power if value[0] & 0x80 else 10.0**-power
            elif code == _OFFSET_OPTION and len(value) == 8:
                (offset_s,) = Struct(self._order + "q").unpack(value)
        return tick_s, offset_s
