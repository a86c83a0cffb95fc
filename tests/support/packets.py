"""Packets for tests: frames and capture files made by hand, and a recorder of real traffic.

`Recorder` does what tcpdump does, on loopback, with a packet socket of its own: the machines that
run the tests have no tcpdump. It needs root. With FULL=1 `TcpDump` records, too.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from exodus.observe.capture_files import CaptureReader
from exodus.observe.segments import ACK, FIN, RST, SYN

PSH = 8
SERVER_PORT = 6379


class Made(NamedTuple):
    """One packet of a conversation that a test makes."""

    at: float
    frame: bytes
    payload: bytes
    to_server: bool


def ip_packet(
    src: str, dst: str, ports: tuple[int, int], seq: int, ack: int, flags: int, payload: bytes
) -> bytes:
    """An IPv4 or IPv6 packet with a TCP segment."""
    tcp = struct.pack(
        ">HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 4, flags, 65_535, 0, 0
    )
    tcp += payload
    if ":" in src:
        head = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64)
        return (
            head
            + socket.inet_pton(socket.AF_INET6, src)
            + socket.inet_pton(socket.AF_INET6, dst)
            + tcp
        )
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
    return head + socket.inet_aton(src) + socket.inet_aton(dst) + tcp


def ethernet(packet: bytes, vlans: Sequence[int] = ()) -> bytes:
    kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    tags = b"".join(struct.pack(">HH", 0x8100, tag) for tag in vlans)
    return bytes(12) + tags + struct.pack(">H", kind) + packet


def vxlan(frame: bytes) -> bytes:
    """Wrap the frame as a cloud's traffic mirroring does."""
    udp = struct.pack(">HHHH", 50_000, 4789, 16 + len(frame), 0) + struct.pack(">II", 8 << 24, 256)
    body = udp + frame
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    return ethernet(head + socket.inet_aton("10.9.0.1") + socket.inet_aton("10.9.0.2") + body)


LINKS = {
    "ethernet": (1, ethernet),
    "vlan": (1, lambda packet: ethernet(packet, [7])),
    "two vlans": (1, lambda packet: ethernet(packet, [7, 8])),
    "vxlan": (1, lambda packet: vxlan(ethernet(packet))),
    "null": (0, lambda packet: struct.pack("<I", 2) + packet),
    "loop": (108, lambda packet: struct.pack(">I", 2) + packet),
    "raw": (101, lambda packet: packet),
    "sll": (113, lambda packet: bytes(14) + struct.pack(">H", 0x0800) + packet),
    "sll2": (276, lambda packet: struct.pack(">H", 0x0800) + bytes(18) + packet),
}


def pcap(
    packets: Iterable[tuple[float, bytes]],
    link: int = 1,
    *,
    order: str = "<",
    nanoseconds: bool = False,
    snap_bytes: int = 262_144,
) -> bytes:
    """A pcap file."""
    magic, ticks = (0xA1B23C4D, 10**9) if nanoseconds else (0xA1B2C3D4, 10**6)
    found = [struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, snap_bytes, link)]
    for at, frame in packets:
        cut = frame[:snap_bytes]
        whole = int(at)
        found.append(
            struct.pack(order + "IIII", whole, int((at - whole) * ticks), len(cut), len(frame))
        )
        found.append(cut)
    return b"".join(found)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def pcapng(
    packets: Iterable[tuple[float, bytes]], link: int = 1, *, order: str = "<", resolution: int = 6
) -> bytes:
    """A pcapng file with one section, an unknown block, and one interface."""
    options = struct.pack(order + "HHB3x", 9, 1, resolution) + struct.pack(order + "HH", 0, 0)
    found = [
        block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1)),
        block(order, 0x0BAD, b"a block that nobody knows"),
        block(order, 1, struct.pack(order + "HHI", link, 0, 0) + options),
    ]
    for at, frame in packets:
        ticks = int(at * 10**resolution)
        head = struct.pack(
            order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame)
        )
        found.append(block(order, 6, head + frame))
    return b"".join(found)


class Talk:
    """The packets of one connection, with the numbers that TCP would give them."""

    def __init__(
        self,
        port: int = 40_000,
        *,
        client: str = "10.0.0.2",
        server: str = "10.0.0.1",
        first: tuple[int, int] = (1_000, 9_000),
        link: str = "ethernet",
        begin: bool = True,
        at: float = 1_700_000_000.0,
    ) -> None:
        self.link, self._wrap = LINKS[link]
        self._ends = ((client, server), (server, client))
        self._ports = ((port, SERVER_PORT), (SERVER_PORT, port))
        self._next = list(first)
        self.at = at
        self.made: list[Made] = []
        if begin:
            self._add(0, SYN, b"")
            self._add(1, SYN | ACK, b"")

    def client(self, data: bytes) -> Self:
        """What the client sends, in one packet."""
        return self._add(0, ACK | PSH, data)

    def server(self, data: bytes) -> Self:
        """What the server sends, in one packet."""
        return self._add(1, ACK | PSH, data)

    def ack(self, side: int) -> Self:
        """A side acknowledges what it has, and sends nothing."""
        return self._add(side, ACK, b"")

    def reset(self, side: int) -> Self:
        """A side resets the connection."""
        return self._add(side, RST, b"")

    def close(self) -> Self:
        """Both sides end."""
        self._add(0, ACK | FIN, b"")
        self._add(1, ACK | FIN, b"")
        return self._add(0, ACK, b"")

    def _add(self, side: int, flags: int, data: bytes) -> Self:
        packet = ip_packet(
            *self._ends[side],
            self._ports[side],
            self._next[side],
            self._next[1 - side] if flags & ACK else 0,
            flags,
            data,
        )
        self._next[side] += len(data) + bool(flags & (SYN | FIN))
        self.at += 0.0001
        self.made.append(Made(self.at, self._wrap(packet), data, side == 0))
        return self

    def packets(self) -> list[tuple[float, bytes]]:
        return [(made.at, made.frame) for made in self.made]

    def pcap(self, **more: object) -> bytes:
        return pcap(self.packets(), self.link, **more)  # type: ignore[arg-type]


# Recording what really goes over loopback.

_SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING = 263, 6, 4
_SO_TIMESTAMPNS, _SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 35, 26, 33
_BUFFER_BYTES = 256 * 1024 * 1024


def _port_filter(port: int) -> list[tuple[int, int, int, int]]:
    """A classic BPF program: Ethernet, IPv4, TCP, from or to the port."""
    return [
        (0x28, 0, 0, 12),  # ldh [12]
        (0x15, 0, 8, 0x0800),
        (0x30, 0, 0, 23),  # ldb [23]
        (0x15, 0, 6, 6),
        (0xB1, 0, 0, 14),  # ldx 4*([14]&0xf)
        (0x48, 0, 0, 14),  # ldh [x + 14]
        (0x15, 2, 0, port),
        (0x48, 0, 0, 16),  # ldh [x + 16]
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]


class Recorder:
    """Records the packets of one port on loopback while its context is open."""

    def __init__(self, port: int) -> None:
        self.packets: list[tuple[float, bytes]] = []
        self.dropped = 0  # by the kernel, because this process was slow
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        program = b"".join(struct.pack("HBBI", *each) for each in _port_filter(port))
        kept = ctypes.create_string_buffer(program)
        filter_ = struct.pack("HL", len(program) // 8, ctypes.addressof(kept))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind(("lo", 3))  # every protocol
        self._socket.settimeout(0.2)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder", daemon=True)

    def _record(self) -> None:
        while True:
            try:
                frame, ancillary, _, address = self._socket.recvmsg(1 << 18, 64)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            if address[2] == _PACKET_OUTGOING:  # loopback shows each packet twice
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            self.packets.append((seconds + nanoseconds / 1e9, frame))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.dropped = struct.unpack("II", statistics)[1]
        self._socket.close()

    def write(self, path: Path) -> Path:
        """Write the packets as tcpdump does."""
        path.write_bytes(pcap(self.packets, nanoseconds=True))
        return path


class TcpDump:
    """Records the same by tcpdump (Debian's package)."""

    def __init__(self, port: int) -> None:
        self.packets: list[tuple[float, bytes]] = []
        self.dropped = -1  # by the kernel, as tcpdump says at its end
        self._command = [
            *("tcpdump", "-i", "lo", "-w", "-", "-U", "-B", "65536"),
            *("--time-stamp-precision=nano", "tcp", "port", str(port)),
        ]

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, stdout=self._file, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        assert b"listening on lo" in self._process.stderr.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        size = -1
        while size != (size := os.fstat(self._file.fileno()).st_size):
            # tcpdump does not tell when it has written all. The kernel hands packets over at least
            # once a second, so after 2.5 s without a new one all are in the file.
            time.sleep(2.5)
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=10)
        found = re.search(rb"(\d+) packets dropped by kernel", said)
        assert found is not None, said.decode()
        self.dropped = int(found[1])
        self._file.seek(0)
        reader = CaptureReader()
        self.packets = [(packet.at, packet.data) for packet in reader.feed(self._file.read())]
        self._file.close()
