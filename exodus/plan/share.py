"""Which keys are in a share of all keys, by their hash. The one rule for sampling, canary reads and
verification. No I/O.

A gateway asks it for every request while keys are sampled. zlib's `crc32` takes more time for its
call than for a key's bytes. So the compiled form computes the same checksum itself, four bytes a
step ("slicing by four", Kounavis and Berry 2005).
"""

from __future__ import annotations

from array import array
from zlib import crc32

_AS_SOURCE = __file__.endswith(".py")
_ALL = 0xFFFFFFFF  # a name, which the compiled form reads as a number of C
_SPREAD = 0x9E3779B1  # 2**32 by the golden ratio: neighbouring numbers come far apart
_POLYNOMIAL = 0xEDB88320  # of CRC-32, reversed, as zlib has it


def _row(byte: int) -> int:
    value = byte
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


def _table() -> array[int]:
    """Return what each byte value does to the checksum: as the last of four bytes, the third, the
    second, the first.
    """
    last = [_row(byte) for byte in range(256)]
    rows = list(last)
    for at in range(3 * 256):
        rows.append(rows[at] >> 8 ^ last[rows[at] & 0xFF])
    return array("I", rows)


_TABLE = _table()


def salt_of(salt: int, db: int) -> int:
    """Return the salt for one database: the same name in another one is another key. Database 0
    has the salt itself.
    """
    return (salt ^ db * _SPREAD) & _ALL


def share_bound(share: float) -> int:
    """Return the bound of the hashes that are in a share of the keys."""
    return int(share * 2**32)


def in_share(key: bytes, below: int, salt: int) -> bool:
    """Return whether a key's hash is below a bound of `share_bound`.

    A larger share has all keys of a smaller one. Another salt picks other keys.
    """
    if _AS_SOURCE:
        return crc32(key, salt) < below
    view, size = key, len(key)  # the compiled form reads it as an array of bytes
    value = (salt & _ALL) ^ _ALL
    at = 0
    while at + 4 <= size:
        value ^= view[at] | view[at + 1] << 8 | view[at + 2] << 16 | view[at + 3] << 24
        value = (
            _TABLE[768 + (value & 0xFF)]
            ^ _TABLE[512 + (value >> 8 & 0xFF)]
            ^ _TABLE[256 + (value >> 16 & 0xFF)]
            ^ _TABLE[value >> 24]
        )
        at += 4
    while at < size:
        value = value >> 8 ^ _TABLE[(value ^ view[at]) & 0xFF]
        at += 1
    return (value ^ _ALL) < below
