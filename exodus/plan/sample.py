"""The sampled keys: a share of key hashes, narrowed by patterns of names. No I/O.

Gateways and comparers ask the same rule, so all of a key's requests are sampled, or none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exodus.plan.scope import glob

NameTest = Callable[[bytes], bool]


def share_bound(share: float) -> int:
    """Return the bound of the hashes that are in a share of the keys."""
    return int(share * 2**32)


def in_share(key: bytes, below: int, salt: int = 0) -> bool:
    """Return whether a key's hash is below a bound of `share_bound`.

    A larger share has all keys of a smaller one. Another salt picks other keys.
    """
    return zlib.crc32(key, salt) < below


def name_test(include: Sequence[str], exclude: Sequence[str]) -> NameTest | None:
    """Return what tells whether a name passes the patterns; None where every name does."""
    if not include and not exclude:
        return None
    wanted = [glob(pattern.encode()).fullmatch for pattern in include]
    unwanted = [glob(pattern.encode()).fullmatch for pattern in exclude]

    def passes(name: bytes) -> bool:
        return (not wanted or any(test(name) for test in wanted)) and not any(
            test(name) for test in unwanted
        )

    return passes


@dataclass(frozen=True)
class KeySample:
    """The rule of one moment."""

    rate: float = 0.0  # share of key hashes
    salt: int = 0
    include: tuple[str, ...] = ()  # patterns as in KEYS; (): every name
    exclude: tuple[str, ...] = ()

    @property
    def below(self) -> int:
        """Return the bound of the hashes that are sampled."""
        return share_bound(self.rate)

    def test(self) -> NameTest:
        """Return what tells whether a key is sampled."""
        below, salt, passes = self.below, self.salt, name_test(self.include, self.exclude)

        def sampled(key: bytes) -> bool:
            return in_share(key, below, salt) and (passes is None or passes(key))

        return sampled
