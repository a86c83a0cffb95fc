"""From a captured frame to a TCP segment: link layer, VLAN, VXLAN, IPv4 and IPv6.

`segment_of` never raises on what a network sent. It returns None for what is no TCP, and counts
what it could not read in the `Unread` that it is given. Link types are those of
https://www.tcpdump.org/linktypes.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, unpack_from

from exodus.plan.bounds import SEGMENTS_EXTENSIONS_MAX, SEGMENTS_LAYERS_MAX, SEGMENTS_VLANS_MAX

ETHERNET, NULL, LOOP, SLL, SLL2 = 1, 0, 108, 113, 276
_RAW = (101, 12, 14, 228, 229)  # an IP packet without anything before it
_IPV4, _IPV6, _VLANS = 0x0800, 0x86DD, (0x8100, 0x88A8, 0x9100)
_TCP, _UDP = 6, 17
_VXLAN_PORT, _VXLAN_BYTES = 4789, 8
_EXTENSIONS = (0, 43, 60)  # hop by hop, routing, destination: IPv6 headers before the TCP header
_FRAGMENT = 44
_TCP_HEAD = Struct(">IIBB").unpack_from

FIN, SYN, RST, ACK = 1, 2, 4, 16

# addresses and ports as one key · sequence · acknowledged · flags · payload · payload bytes missing
Segment = tuple[bytes, int, int, int, bytes, int]


@dataclass
class Unread:
    """Frames that hold no segment that could be read, by reason."""

    link_types: int = 0
    other_protocols: int = 0  # ARP, ICMP, UDP: no traffic of a server
    fragments: int = 0
    malformed: int = 0


def segment_of(link: int, data: bytes, unread: Unread) -> Segment | None:
    """Return the TCP segment of one frame, or None where it has none."""
    # What nearly every frame is: Ethernet, IPv4 without options, TCP
    if link == ETHERNET and data[12:15] == b"\x08\x00\x45" and data[23:24] == b"\x06":
        return _ipv4(data, 14, unread, 0)
    at = _network_layer(link, data, unread)
    return None if at < 0 else _network(data, at, unread, 0)


def _network_layer(link: int, data: bytes, unread: Unread) -> int:
    """Return where the IP packet begins, or -1."""
    if link == ETHERNET:
        return _ethernet(data, 0, unread)
    if link in (NULL, LOOP):
        return 4
    if link == SLL:
        return 16
    if link == SLL2:
        return 20
    if link in _RAW:
        return 0
    unread.link_types += 1
    return -1


def _ethernet(data: bytes, at: int, unread: Unread) -> int:
    at += 12
    for _ in range(SEGMENTS_VLANS_MAX):
        if at + 2 > len(data):
            unread.malformed += 1
            return -1
        kind = (data[at] << 8) | data[at + 1]
        at += 2
        if kind not in _VLANS:
            if kind in (_IPV4, _IPV6):
                return at
            unread.other_protocols += 1
            return -1
        at += 2
    unread.malformed += 1
    return -1


def _network(data: bytes, at: int, unread: Unread, layer: int) -> Segment | None:
    version = data[at] >> 4 if at < len(data) else 0
    if version == 4:
        return _ipv4(data, at, unread, layer)
    if version == 6:
        return _ipv6(data, at, unread, layer)
    unread.malformed += 1
    return None


def _ipv4(data: bytes, at: int, unread: Unread, layer: int) -> Segment | None:
    if at + 20 > len(data):
        unread.malformed += 1
        return None
    head = (data[at] & 15) * 4
    if ((data[at + 6] & 0x3F) << 8) | data[at + 7]:  # more fragments, or not the first
        unread.fragments += 1
        return None
    # Zero where the network card cuts the packet (TSO): then all that was captured is of it
    length = (data[at + 2] << 8) | data[at + 3] or len(data) - at
    if head < 20 or length < head:
        unread.malformed += 1
        return None
    return _transport(
        data[at + 9], data, at + head, at + length, data[at + 12 : at + 20], unread, layer
    )


def _ipv6(data: bytes, at: int, unread: Unread, layer: int) -> Segment | None:
    if at + 40 > len(data):
        unread.malformed += 1
        return None
    length = (data[at + 4] << 8) | data[at + 5] or len(data) - at - 40
    end = at + 40 + length
    protocol, addresses = data[at + 6], data[at + 8 : at + 40]
    at += 40
    for _ in range(SEGMENTS_EXTENSIONS_MAX):
        if protocol not in _EXTENSIONS:
            break
        if at + 8 > len(data):
            unread.malformed += 1
            return None
        protocol, at = data[at], at + 8 + data[at + 1] * 8
    if protocol == _FRAGMENT:
        unread.fragments += 1
        return None
    return _transport(protocol, data, at, end, addresses, unread, layer)


def _transport(
    protocol: int, data: bytes, at: int, end: int, addresses: bytes, unread: Unread, layer: int
) -> Segment | None:
    """Return the segment at a place; `end` is where the IP packet ends on the wire."""
    if protocol == _UDP and layer < SEGMENTS_LAYERS_MAX:
        return _vxlan(data, at, unread, layer)
    if protocol != _TCP:
        unread.other_protocols += 1
        return None
    if at + 20 > len(data):
        unread.malformed += 1
        return None
    seq, ack, offset, flags = _TCP_HEAD(data, at + 4)
    begin = at + (offset >> 4) * 4
    if begin < at + 20 or begin > end:
        unread.malformed += 1
        return None
    payload = data[begin:end]
    return (
        addresses + data[at : at + 4],
        seq,
        ack,
        flags,
        payload,
        end - begin - len(payload),
    )


def _vxlan(data: bytes, at: int, unread: Unread, layer: int) -> Segment | None:
    """Return the segment of the frame that a cloud's traffic mirroring wraps."""
    inner = at + 8 + _VXLAN_BYTES
    if inner > len(data) or unpack_from(">H", data, at + 2)[0] != _VXLAN_PORT:
        unread.other_protocols += 1
        return None
    begin = _ethernet(data, inner, unread)
    return None if begin < 0 else _network(data, begin, unread, layer + 1)
