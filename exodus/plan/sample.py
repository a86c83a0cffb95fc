"""The sampled keys: a share of key hashes, narrowed by patterns of names. No I/O.

Gateways and comparers ask the same rule, so all of a key's requests are sampled, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exodus.plan.scope import glob
from exodus.plan.share import in_share, salt_of, share_bound

NameTest = Callable[[bytes], bool]
KeyTest = Callable[[int, bytes], bool]  # of a database and a name


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

    def test(self) -> KeyTest:
        """Return what tells whether a key is sampled."""
        below, salt, passes = self.below, self.salt, name_test(self.include, self.exclude)

        def sampled(db: int, name: bytes) -> bool:
            return in_share(name, below, salt_of(salt, db)) and (passes is None or passes(name))

        return sampled
