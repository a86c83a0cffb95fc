"""Decoding values out of DUMP payloads, in the shape of `value.canonical`, so that a ziplist and a
listpack compare equal.

A server dumps a key in half the time of an answer element by element, and the client cuts one block
of bytes in place of one object an element. This module only shows that two payloads *are* equal. If
it cannot, because they differ or the format is unknown, the values are read by type
(`comparison.py`).

Formats: redis/redis src/rdb.c, ziplist.c, listpack.c, intset.c, t_stream.c; the number of each is
in docs/decisions/0002-payload-versions.md. `tests/property/test_payload_values.py` compares it with
the answers of all servers.
"""

from __future__ import annotations

from struct import unpack_from

from exodus.copy.refoot import FOOTER_BYTES, NEVER
from exodus.net.leg import Reply

_FOOTER_BYTES = (
    FOOTER_BYTES  # a name of this module, which the compiled one reads without a look-up
)
_SET, _HASH, _ZSET = 2, 4, 5
_INTSET, _ZSET_ZIPLIST, _HASH_ZIPLIST, _QUICKLIST, _STREAM = 11, 12, 13, 14, 15
_HASH_LISTPACK, _ZSET_LISTPACK, _QUICKLIST_2, _STREAM_2, _SET_LISTPACK, _STREAM_3 = (
    16,
    17,
    18,
    19,
    20,
    21,
)
_PLAIN_NODE = 1  # of a quicklist: one long element by itself
_DELETED, _SAME_FIELDS = 1, 2  # flags of a stream's entry
_ID_BYTES = 16
_LZF_RATIO_MAX = 100  # three bytes refer to 264 at most
_KINDS = {
    0: b"string",
    **dict.fromkeys((_QUICKLIST, _QUICKLIST_2), b"list"),
    **dict.fromkeys((_SET, _INTSET, _SET_LISTPACK), b"set"),
    **dict.fromkeys((_HASH, _HASH_ZIPLIST, _HASH_LISTPACK, 22, 23, 24, 25), b"hash"),
    **dict.fromkeys((_ZSET, _ZSET_ZIPLIST, _ZSET_LISTPACK), b"zset"),
    **dict.fromkeys((_STREAM, _STREAM_2, _STREAM_3), b"stream"),
}


class UnknownFormatError(Exception):
    """A payload that is of no format known here."""


# What a payload leads to that no server writes
DAMAGED = (
    UnknownFormatError,
    IndexError,
    ValueError,
    OverflowError,
)


def kind_of(payload: bytes) -> bytes:
    """Return the type that TYPE tells of the key; empty where its number is not known here."""
    return _KINDS.get(payload[0], b"") if payload else b""


def apart(kinds: list[bytes], ours: list[Reply], theirs: list[Reply]) -> list[int]:
    """Return the places where two columns are not shown to be equal. Strings are values, all others
    payloads.

    Args:
        kinds: the type of each key on one side; strings are compared byte by byte, whatever is in
            them.
        ours: None and numbers (a key that is large, or has to be read in another way) are never
            equal.
        theirs: the same keys.
    """
    found = []
    for at in range(len(kinds)):
        one, other = ours[at], theirs[at]
        read = type(one) is bytes and type(other) is bytes
        if not read or (one != other and (kinds[at] == b"string" or not same_value(one, other))):
            found.append(at)
    return found


def same_value(one: bytes, other: bytes) -> bool:
    """Return whether two payloads are shown to be of equal values."""
    size = len(one)
    kind = kind_of(one)
    if size <= _FOOTER_BYTES or kind != kind_of(other):
        return False
    if (
        size == len(other)
        and one[0] == other[0]
        and kind
        and one[0] not in NEVER
        and one[:-_FOOTER_BYTES] == other[:-_FOOTER_BYTES]
    ):
        return True
    try:
        ours, theirs = _parts(one), _parts(other)
        # Most often both have the same elements in the same order, and no scores or ids need be
        # made of them.
        return bool(ours == theirs or _value(kind, ours) == _value(kind, theirs))
    except DAMAGED:
        return False


def decode(payload: bytes) -> Reply:
    """Return the value, as `value.canonical` has it; scores of sorted sets in a mapping.

    Raises:
        UnknownFormatError: it is none of a list, set, hash, sorted set or stream whose format is
            known here.
        IndexError, ValueError, OverflowError: it is damaged.
    """
    return _value(kind_of(payload), _parts(payload))


def _parts(payload: bytes) -> list[Reply]:
    """Return the elements as they were written, one after the other; of a stream its nodes, the
    last id and the groups.
    """
    number, body = payload[0], _Body(payload)
    found: list[Reply] = []
    if number in (_HASH_LISTPACK, _ZSET_LISTPACK, _SET_LISTPACK):
        found = _listpack(body.text(), numbers=False)
    elif number in (_HASH_ZIPLIST, _ZSET_ZIPLIST):
        found = _ziplist(body.text())
    elif number == _QUICKLIST:
        for _ in range(body.length()):
            found += _ziplist(body.text())
    elif number == _QUICKLIST_2:
        for _ in range(body.length()):
            if body.length() == _PLAIN_NODE:
                found.append(body.text())
            else:
                found += _listpack(body.text(), numbers=False)
    elif number == _INTSET:
        found = _intset(body.text())
    elif number in (_SET, _HASH):
        for _ in range(body.length() * (1 + (number == _HASH))):
            found.append(body.text())
    elif number == _ZSET:
        for _ in range(body.length()):
            found += (body.text(), body.score())
    elif number in (_STREAM, _STREAM_2, _STREAM_3):
        found = _stream(number, body)
    else:
        raise UnknownFormatError(f"type {number}")
    body.end()
    return found


def _value(kind: bytes, parts: list[Reply]) -> Reply:
    if kind == b"list":
        return parts
    if kind == b"set":
        return frozenset(parts)
    if kind == b"hash":
        return {parts[at]: parts[at + 1] for at in range(0, len(parts), 2)}
    if kind == b"zset":
        return {parts[at]: float(parts[at + 1]) for at in range(0, len(parts), 2)}
    nodes, last_id, groups = parts
    entries: list[tuple[bytes, tuple[bytes, ...]]] = []
    for first_id, packed in nodes:
        ms, sequence = _halves(first_id)
        entries += _entries(ms, sequence, _listpack(packed, numbers=True))
    return entries, last_id, groups


def _stream(number: int, body: _Body) -> list[Reply]:
    """Nodes, last id, and groups with their consumers and what is pending; not when consumers were
    seen, nor what older versions lack.
    """
    nodes = []
    for _ in range(body.length()):
        first_id = body.text()
        if len(first_id) != _ID_BYTES:
            raise UnknownFormatError("a stream's node without an id")
        nodes.append((first_id, body.text()))
    body.length()  # of the stream
    last_id = body.stream_id()
    if number >= _STREAM_2:
        for _ in range(5):  # the first id, the largest deleted one, and how many were ever added
            body.length()
    groups = []
    for _ in range(body.length()):
        name, last_delivered = body.text(), body.stream_id()
        if number >= _STREAM_2:
            body.length()  # entries read
        pending = {}
        for _ in range(body.length()):
            raw = body.raw(_ID_BYTES)
            pending[raw] = (int.from_bytes(body.raw(8), "little"), body.length())
        consumers = []
        for _ in range(body.length()):
            consumer = body.text()
            body.skip(16 if number >= _STREAM_3 else 8)  # when it was seen, and active
            mine = []
            for _ in range(body.length()):
                raw = body.raw(_ID_BYTES)
                ms, sequence = _halves(raw)
                mine.append((_id(ms, sequence), *pending.get(raw, ())))
            consumers.append((consumer, sorted(mine)))
        groups.append((name, last_delivered, sorted(consumers)))
    return [nodes, last_id, sorted(groups)]


def _halves(raw: bytes) -> tuple[int, int]:
    """Milliseconds and sequence of an id of 16 bytes."""
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")


def _id(ms: int, sequence: int) -> bytes:
    return b"%d-%d" % (ms, sequence)


def _entries(ms: int, sequence: int, packed: list[Reply]) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """Decode the entries of one node. Ids count from the node's, and most entries have the fields
    of its first.
    """
    found = []
    count = _number(packed[2])
    fields = [_text(field) for field in packed[3 : 3 + count]]
    at = 4 + count
    for _ in range(_number(packed[0]) + _number(packed[1])):
        flags = _number(packed[at])
        entry_id = _id(ms + _number(packed[at + 1]), sequence + _number(packed[at + 2]))
        at += 3
        told: list[bytes] = []
        if flags & _SAME_FIELDS:
            for number in range(count):
                told += (fields[number], _text(packed[at + number]))
            at += count
        else:
            size = 2 * _number(packed[at])
            for number in range(at + 1, at + 1 + size):
                told.append(_text(packed[number]))
            at += 1 + size
        at += 1  # how far back it began
        if not flags & _DELETED:
            found.append((entry_id, tuple(told)))
    if at != len(packed):
        raise UnknownFormatError("a stream's node that does not end with its last entry")
    return found


def _number(value: Reply) -> int:
    if type(value) is not int or value < 0:
        raise UnknownFormatError("no number where a stream's node has one")
    return value


def _text(value: Reply) -> bytes:
    return value if type(value) is bytes else b"%d" % value


class _Body:
    """What is between a payload's type byte and its footer, read from the left."""

    __slots__ = ("_at", "_data", "_end", "_view")

    def __init__(self, payload: bytes) -> None:
        self._data = payload
        self._view = payload
        self._at = 1
        self._end = len(payload) - _FOOTER_BYTES

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != self._end:
            raise UnknownFormatError(f"{self._end - self._at} bytes more than expected")

    def raw(self, size: int) -> bytes:
        """So many bytes."""
        found = _cut(self._data, self._at, size, self._end)
        self._at += size
        return found

    def skip(self, size: int) -> None:
        """Pass so many bytes over."""
        if size > self._end - self._at:
            raise IndexError("no more bytes")
        self._at += size

    def score(self) -> float:
        """Read a double."""
        return float(unpack_from("<d", self.raw(8))[0])

    def length(self) -> int:
        """Read a count, or a number of a stream."""
        view, at = self._view, self._at
        if at >= self._end:
            raise IndexError("no more lengths")
        first = view[at]
        how = first >> 6
        if how == 0:
            self._at = at + 1
            return first & 0x3F
        if how == 1:
            self._at = at + 2
            # Which may be the footer's: the next one who reads finds the end
            return (first & 0x3F) * 256 + view[at + 1]
        self._at = at + 1
        if first not in (0x80, 0x81):
            raise UnknownFormatError("no length where one was expected")
        size = 8 if first == 0x81 else 4
        self.skip(size)
        value = 0
        for number in range(at + 1, at + 1 + size):
            value = value * 256 + view[number]
        return value

    def stream_id(self) -> bytes:
        """Milliseconds and sequence."""
        ms = self.length()
        return _id(ms, self.length())

    def text(self) -> bytes:
        """Read a string: plain, as a number, or compressed."""
        view, at = self._view, self._at
        if at >= self._end:
            raise IndexError("no more strings")
        first = view[at]
        if first < 0xC0:
            return self.raw(self.length())
        self._at = at + 1
        if first == 0xC3:
            packed_size, size = self.length(), self.length()
            return _unpacked(self.raw(packed_size), size)
        if first > 0xC2:
            raise UnknownFormatError(f"a string of kind {first}")
        return b"%d" % int.from_bytes(self.raw(1 << (first & 3)), "little", signed=True)


def _cut(data: bytes, at: int, size: int, end: int) -> bytes:
    """So many bytes of those before `end`."""
    view = data
    if size < 0 or size > end - at:
        raise IndexError("bytes beyond the end")
    return view[at : at + size]


def _signed(data: bytes, at: int, size: int) -> int:
    """Read a little-endian number of `size` bytes."""
    view = data
    if size > len(data) - at:
        raise IndexError("a number beyond the end")
    value = view[at + size - 1]
    if value >= 0x80:
        value -= 0x100
    for number in range(size - 2, -1, -1):
        value = value * 256 + view[at + number]
    return value


def _unpacked(packed: bytes, size: int) -> bytes:
    """LZF: runs of literal bytes, and references to up to 8 KB before (redis/redis src/lzf_d.c)."""
    end = len(packed)
    if size > _LZF_RATIO_MAX * end:
        raise IndexError("more than can come out of it")
    made = bytearray(size)
    view, out = packed, made
    at, to = 0, 0
    while at < end:
        control = view[at]
        at += 1
        if control < 32:
            count = control + 1
            if count > end - at or count > size - to:
                raise IndexError("a run beyond the end")
            for number in range(count):
                out[to + number] = view[at + number]
            at += count
            to += count
            continue
        count = control >> 5
        if at + (count == 7) >= end:
            raise IndexError("a reference that is cut off")
        if count == 7:
            count += view[at]
            at += 1
        start = to - (control & 0x1F) * 256 - view[at] - 1
        at += 1
        count += 2
        if start < 0 or count > size - to:
            raise IndexError("a reference beyond the ends")
        for number in range(count):  # one by one: it may reach into what it writes
            out[to + number] = out[start + number]
        to += count
    if to != size:
        raise IndexError("fewer bytes than were announced")
    return bytes(made)


def _intset(data: bytes) -> list[bytes]:
    size = _signed(data, 0, 4)
    if size not in (2, 4, 8):
        raise UnknownFormatError(f"numbers of {size} bytes")
    return [
        b"%d" % _signed(data, at, size) for at in range(8, 8 + size * _signed(data, 4, 4), size)
    ]


def _ziplist(data: bytes) -> list[bytes]:
    """Elements up to Redis 6.2: the length of the one before, an encoding, the bytes."""
    found = []
    view, last = data, len(data) - 1  # an 0xFF
    at = 10
    while at < last:
        at += 1 if view[at] < 0xFE else 5
        if at >= last:
            raise IndexError("an element without an encoding")
        first = view[at]
        if first < 0x40:
            size = first
            at += 1
        elif first < 0x80:
            size = (first & 0x3F) * 256 + view[at + 1]
            at += 2
        elif first < 0xC0:
            if at + 4 > last:
                raise IndexError("an element without a length")
            size = ((view[at + 1] * 256 + view[at + 2]) * 256 + view[at + 3]) * 256 + view[at + 4]
            at += 5
        else:
            at += 1
            if 0xF1 <= first <= 0xFD:
                found.append(b"%d" % (first - 0xF1))
                continue
            if first == 0xFE:
                size = 1
            elif first == 0xC0:
                size = 2
            elif first == 0xF0:
                size = 3
            elif first == 0xD0:
                size = 4
            elif first == 0xE0:
                size = 8
            else:
                raise UnknownFormatError(f"encoding {first} in a ziplist")
            found.append(b"%d" % _signed(data, at, size))
            at += size
            continue
        found.append(_cut(data, at, size, last))
        at += size
    if at != last or view[last] != 0xFF:
        raise UnknownFormatError("a ziplist that does not end where it should")
    return found


def _listpack(data: bytes, *, numbers: bool) -> list[Reply]:
    """Elements from Redis 7.0 on, and of streams: an encoding, the bytes, the length of both.
    Integers stay such with `numbers`.
    """
    found: list[Reply] = []
    view, last = data, len(data) - 1  # an 0xFF
    at = 6
    while at < last:
        first = view[at]
        head, size, value, number = 1, 0, 0, False
        if first < 0x80:
            number, value = True, first
        elif first < 0xC0:
            size = first & 0x3F
        elif first < 0xE0:
            number, head = True, 2
            value = (first & 0x1F) * 256 + view[at + 1]
            if value >= 1 << 12:
                value -= 1 << 13
        elif first < 0xF0:
            head, size = 2, (first & 0x0F) * 256 + view[at + 1]
        elif first == 0xF0:
            if at + 4 > last:
                raise IndexError("an element without a length")
            head, size = (
                5,
                ((view[at + 4] * 256 + view[at + 3]) * 256 + view[at + 2]) * 256 + view[at + 1],
            )
        elif first < 0xF5:
            number, head = True, 9 if first == 0xF4 else first - 0xF0 + 2
            value = _signed(data, at + 1, head - 1)
        else:
            raise UnknownFormatError(f"encoding {first} in a listpack")
        if not number:
            found.append(_cut(data, at + head, size, last))
        elif numbers:
            found.append(value)
        else:
            found.append(b"%d" % value)
        size += head
        at += size + (
            1
            if size < 1 << 7
            else 2
            if size < 1 << 14
            else 3
            if size < 1 << 21
            else 4
            if size < 1 << 28
            else 5
        )
    if at != last or view[last] != 0xFF:
        raise UnknownFormatError("a listpack that does not end where it should")
    return found
