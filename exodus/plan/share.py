"""Which keys are in a share of all keys, by their hash. The one rule for sampling, canary reads and
verification. No I/O.

A gateway asks it for every request while keys are sampled. zlib's `crc32` takes more time for its
call than for a key's bytes, so the compiled form computes the same checksum by itself, from the
table of the polynomial, one byte column a constant.
"""

from __future__ import annotations

from zlib import crc32

_AS_SOURCE = __file__.endswith(".py")
_ALL = 0xFFFFFFFF  # a name, which the compiled form reads as a number of C
_POLYNOMIAL = 0xEDB88320  # of CRC-32, reversed, as zlib has it


def _row(byte: int) -> int:
    value = byte
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_ROWS = [_row(byte) for byte in range(256)]
_COLUMN_0, _COLUMN_1, _COLUMN_2, _COLUMN_3 = (
    bytes(row >> shift & 0xFF for row in _ROWS) for shift in (0, 8, 16, 24)
)


def share_bound(share: float) -> int:
    """Return the bound of the hashes that are in a share of the keys."""
    return int(share * 2**32)


def in_share(key: bytes, below: int, salt: int) -> bool:
    """Return whether a key's hash is below a bound of `share_bound`.

    A larger share has all keys of a smaller one. Another salt picks other keys.
    """
    if _AS_SOURCE:
        return crc32(key, salt) < below
    view, size = key, len(key)  # the compiled form reads these as arrays of bytes
    zero, one, two, three = _COLUMN_0, _COLUMN_1, _COLUMN_2, _COLUMN_3
    value = salt
    value = (value & _ALL) ^ _ALL
    for at in range(size):
        index = (value ^ view[at]) & 0xFF
        low, high = zero[index], three[index]
        low |= one[index] << 8 | two[index] << 16
        value = (value >> 8) ^ (low | high << 24)
    value ^= _ALL
    return value < below
