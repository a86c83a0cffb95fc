"""What must be on the authority: every acknowledged write, and for an unanswered one the state
before it or after it.

Preloaded values follow from the seed and a number, so the model holds only what was changed of
them.
"""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, field
from pathlib import Path

State = bytes | tuple[bytes, ...] | frozenset[bytes] | dict[bytes, bytes] | None
KINDS = ("string", "list", "set", "zset", "hash")
TTL_SHARE = 5  # one preloaded key in five expires, hours from now
TTL_BASE_MS = 6 * 3_600_000


@dataclass(frozen=True)
class Expiry:
    """When a key expires, in absolute ms: exactly, or within what a relative time leaves open."""

    earliest_ms: int
    latest_ms: int


@dataclass
class Model:
    """The whole expectation, fit to be pickled."""

    seed: int
    keys: int
    began_ms: int
    changed: dict[int, State] = field(default_factory=dict)  # preloaded keys that were written
    live: dict[bytes, State] = field(default_factory=dict)  # None: must not exist
    expiries: dict[bytes, Expiry] = field(default_factory=dict)
    # Before and after a write without an answer; None: or expired
    unknown: dict[bytes, tuple[State, ...]] = field(default_factory=dict)
    # Stream → entries delivered and not acknowledged
    pending: dict[bytes, int] = field(default_factory=dict)
    jobs_pushed: set[bytes] = field(default_factory=set)
    jobs_unknown: set[bytes] = field(default_factory=set)
    jobs_consumed: list[bytes] = field(default_factory=list)
    pops_unknown: int = 0

    def save(self, path: Path) -> None:
        """Write it down."""
        path.write_bytes(pickle.dumps(self, protocol=5))

    @staticmethod
    def load(path: Path) -> Model:
        """Read one that this program wrote."""
        found = pickle.loads(path.read_bytes())  # noqa: S301 - our own file
        if not isinstance(found, Model):
            raise TypeError(f"{path} holds no model")
        return found


def cold_key(index: int) -> bytes:
    """Name of a preloaded key."""
    return b"cold:%d" % index


def cold_kind(index: int) -> str:
    """Type of a preloaded key."""
    return KINDS[index % len(KINDS)]


def cold_expiry_ms(model: Model, index: int) -> int | None:
    """Absolute expiry of a preloaded key, or None."""
    return (
        model.began_ms + TTL_BASE_MS + index if index % TTL_SHARE == 2 or index % 25 == 0 else None
    )


def cold_state(seed: int, index: int) -> State:
    """Value of a preloaded key."""
    draw = random.Random(seed * 1_000_003 + index)  # noqa: S311 - reproducible, not secret
    words = [b"%x" % draw.getrandbits(48) for _ in range(4)]
    kind = cold_kind(index)
    if kind == "string":
        return b"-".join(words)
    if kind == "list":
        return tuple(words)
    if kind == "set":
        return frozenset(words)
    return {word: b"%d" % (number + 1) for number, word in enumerate(words)}
