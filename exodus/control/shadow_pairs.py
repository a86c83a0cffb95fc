"""Sampled requests and their replies, packed for an entry of the shadow stream. No I/O.

An entry's field `p` holds many pairs: an entry for each would cost the gateway more than the
relaying of the request.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEAD = struct.Struct("<IBIII")


class Pair(NamedTuple):
    """A request, the reply to it, and who sent it."""

    db: int
    write: bool
    request: bytes
    reply: bytes
    client: bytes = b""


class UnreadablePairs(ValueError):
    """Packed pairs whose bytes are damaged."""


def pack_pair(db: int, write: bool, request: bytes, reply: bytes, client: bytes) -> bytes:
    """Pack a pair. Several, one after the other, are what `unpack_pairs` takes."""
    head = _HEAD.pack(db, write, len(request), len(reply), len(client))
    return b"".join((head, request, reply, client))


def unpack_pairs(packed: bytes) -> list[Pair]:
    """Unpack pairs of `pack_pair`.

    Raises:
        UnreadablePairs: the bytes end within a pair.
    """
    pairs: list[Pair] = []
    at, end = 0, len(packed)
    while at < end:
        try:
            db, write, *sizes = _HEAD.unpack_from(packed, at)
        except struct.error as exc:
            raise UnreadablePairs(f"{end} bytes of packed pairs end within a head") from exc
        at += _HEAD.size
        if at + sum(sizes) > end:
            raise UnreadablePairs(f"{end} bytes of packed pairs end within a pair")
        words: list[bytes] = []
        for size in sizes:
            words.append(packed[at : at + size])
            at += size
        pairs.append(Pair(db, bool(write), *words))
    return pairs
