"""Changed keys with their databases, packed for a journal entry, and barriers. No I/O."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Key = tuple[int, bytes]  # (database, name)
RESYNC = "resync"  # a barrier for what a feed missed: every key may have changed
_HEAD = struct.Struct("<HI")
_WIDE_DB = (
    0xFFFF  # in the head of a key whose database does not fit: the database follows, in four bytes
)
_DB = struct.Struct("<I")
# Of the most keys; packing is part of every write's cost
_heads = [_HEAD.pack(0, size) for size in range(256)]


def partition_of(db: int, key: bytes, partitions: int) -> int:
    """Return the journal partition of a key. Stable across processes, unlike `hash`."""
    return zlib.crc32(key, db) % partitions


class UnreadableChanges(ValueError):
    """Packed keys or a barrier whose bytes are damaged."""


def pack(keys: Iterable[Key]) -> bytes:
    """Pack keys with their databases into one byte string.

    Raises:
        struct.error, OverflowError: a database above 2**32 - 1, which no server has.
    """
    heads = _heads
    parts: list[bytes] = []
    for db, key in keys:
        size = len(key)
        if not db and size < len(heads):
            parts.append(heads[size])
        elif 0 <= db < _WIDE_DB:
            parts.append(_HEAD.pack(db, size))
        else:
            parts.append(_HEAD.pack(_WIDE_DB, size) + _DB.pack(db))
        parts.append(key)
    return b"".join(parts)


def unpack(packed: bytes) -> list[Key]:
    """Unpack what `pack` packed.

    Raises:
        UnreadableChanges: the bytes end within a key.
    """
    keys: list[Key] = []
    at, end = 0, len(packed)
    while at < end:
        try:
            db, size = _HEAD.unpack_from(packed, at)
            at += _HEAD.size
            if db == _WIDE_DB:
                (db,) = _DB.unpack_from(packed, at)
                at += _DB.size
        except struct.error as exc:
            raise UnreadableChanges(f"{end} bytes of packed keys end within a head") from exc
        if at + size > end:
            raise UnreadableChanges(f"{end} bytes of packed keys end within a key of {size} bytes")
        keys.append((db, packed[at : at + size]))
        at += size
    return keys


Ranges = tuple[tuple[int, int], ...]  # first and last slot of each


@dataclass(frozen=True)
class Barrier:
    """An operation that may have changed every key of `databases` (empty: all of them)."""

    what: str
    databases: tuple[int, ...] = ()

    @classmethod
    def resync(cls, ranges: Ranges | None) -> Barrier:
        """Return the barrier for what a feed missed: of the slots of one node of a cluster, or of a
        whole side.
        """
        if ranges is None:
            return cls(RESYNC)
        return cls(f"{RESYNC}@{'+'.join(f'{first}-{last}' for first, last in ranges)}")

    @property
    def resyncs(self) -> bool:
        """Return whether it stands for what a feed missed."""
        return self.what.partition("@")[0] == RESYNC

    @property
    def ranges(self) -> Ranges | None:
        """Return the slots concerned; None: all.

        Raises:
            ValueError: they are written wrongly.
        """
        _, _, text = self.what.partition("@")
        if not text:
            return None
        pairs = [part.split("-") for part in text.split("+")]
        return tuple((int(first), int(last)) for first, last in pairs)

    def encode(self) -> bytes:
        """Return the barrier as an entry holds it."""
        return f"{self.what}:{','.join(map(str, self.databases))}".encode()

    @classmethod
    def decode(cls, raw: bytes) -> Barrier:
        """Read a barrier from an entry.

        Raises:
            UnreadableChanges: the bytes are no barrier.
        """
        try:
            what, _, dbs = raw.decode().rpartition(":")
            barrier = cls(what, tuple(int(db) for db in dbs.split(",") if db))
            return barrier if barrier.ranges is None or barrier.resyncs else cls(RESYNC)
        except ValueError as exc:
            raise UnreadableChanges(f"{raw[:40]!r} is no barrier") from exc


@dataclass
class Changes:
    """What a partition or the whole journal holds since a position."""

    keys: list[Key] = field(default_factory=list)
    barriers: list[Barrier] = field(default_factory=list)
    # Entries between the position and the first kept one were trimmed: all keys may have changed
    gap: bool = False
    last_id: bytes | None = None
    # When each entry was made, by the store's clock
    times_ms: list[int] = field(default_factory=list)


def parse_entries(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> Changes:
    """Return the keys and barriers of stream entries, in order. An unreadable entry counts as a
    change of every key.
    """
    changes = Changes()
    for entry_id, fields in entries:
        changes.last_id = entry_id
        changes.times_ms.append(int(entry_id.partition(b"-")[0]))
        try:
            if b"k" in fields:
                changes.keys.extend(unpack(fields[b"k"]))
            if b"b" in fields:
                changes.barriers.append(Barrier.decode(fields[b"b"]))
        except UnreadableChanges:
            changes.barriers.append(Barrier(RESYNC))  # it marked keys that nobody can name now
    return changes


def id_order(entry_id: bytes) -> tuple[int, int]:
    """Return a stream id as a value that sorts."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq or b"0")
