"""Which keys changed: keys with their databases, packed for an entry, and barriers. No I/O; `journal.py` carries them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Key = tuple[int, bytes]  # (database, name)
RESYNC = "resync"  # a barrier for what a feed missed: every key may have changed
_HEAD = struct.Struct("<HI")
_heads = [_HEAD.pack(0, size) for size in range(256)]  # of the most keys; packing is part of every write's cost


def partition_of(db: int, key: bytes, partitions: int) -> int:
    """The journal partition, and so the one lane, of a key. Stable across processes, unlike `hash`."""
    return zlib.crc32(key, db) % partitions


def pack(keys: Iterable[Key]) -> bytes:
    """Keys with their databases in one byte string."""
    heads = _heads
    parts: list[bytes] = []
    for db, key in keys:
        size = len(key)
        if not db and size < len(heads):
            parts.append(heads[size])
        else:
            parts.append(_HEAD.pack(db, size))
        parts.append(key)
    return b"".join(parts)


def unpack(packed: bytes) -> list[Key]:
    """The reverse of `pack`."""
    keys: list[Key] = []
    at = 0
    while at < len(packed):
        db, size = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        keys.append((db, packed[at : at + size]))
        at += size
    return keys


@dataclass(frozen=True)
class Barrier:
    """An operation that may have changed every key of `databases` (empty: all of them)."""

    what: str
    databases: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """As it stands in an entry."""
        return f"{self.what}:{','.join(map(str, self.databases))}".encode()

    @classmethod
    def decode(cls, raw: bytes) -> Barrier:
        """The reverse of `encode`."""
        what, _, dbs = raw.decode().partition(":")
        return cls(what, tuple(int(db) for db in dbs.split(",") if db))


@dataclass
class Changes:
    """What a partition or the whole journal holds since a position."""

    keys: list[Key] = field(default_factory=list)
    barriers: list[Barrier] = field(default_factory=list)
    gap: bool = False  # entries between the position and the first kept one were trimmed: all keys may have changed
    last_id: bytes | None = None
    times_ms: list[int] = field(default_factory=list)  # when each entry was made, by the store's clock


def parse_entries(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> Changes:
    """Keys and barriers of stream entries, in their order."""
    changes = Changes()
    for entry_id, fields in entries:
        changes.last_id = entry_id
        changes.times_ms.append(int(entry_id.partition(b"-")[0]))
        if b"k" in fields:
            changes.keys.extend(unpack(fields[b"k"]))
        if b"b" in fields:
            changes.barriers.append(Barrier.decode(fields[b"b"]))
    return changes


def id_order(entry_id: bytes) -> tuple[int, int]:
    """A stream id as something that sorts."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq or b"0")
