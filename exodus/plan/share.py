"""Which keys are in a share of all keys, by their hash. The one rule for sampling, canary reads and
verification. No I/O.
"""

from __future__ import annotations

from zlib import crc32


def share_bound(share: float) -> int:
    """Return the bound of the hashes that are in a share of the keys."""
    return int(share * 2**32)


def in_share(key: bytes, below: int, salt: int) -> bool:
    """Return whether a key's hash is below a bound of `share_bound`.

    A larger share has all keys of a smaller one. Another salt picks other keys.
    """
    return crc32(key, salt) < below
