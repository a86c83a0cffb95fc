"""Keys that the migration's rules filter, by name or by their state on the source.

The state is read apart from the copy or comparison. A write in between is in the feed, so the key
is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence

from exodus.copy.chunked import expiry_of
from exodus.copy.value import COUNTS
from exodus.net.leg import Leg
from exodus.plan.scope import KeyState, Scope
from exodus.topology.node import NodeFacts


async def filtered_keys(
    leg: Leg, facts: NodeFacts, scope: Scope, db: int, keys: Sequence[bytes]
) -> dict[bytes, str]:
    """Return the filtered keys, each with its rule. `leg` is connected to the source's database
    `db`.

    Raises:
        SourceError: the source was lost.
    """
    found = {key: reason for key in keys if (reason := scope.filtered_by(db, key)) is not None}
    undecided = [key for key in keys if key not in found and scope.undecided(db, key)]
    if undecided:
        states = await _states(leg, facts, undecided)
        found.update(
            (key, reason)
            for key, state in states.items()
            if (reason := scope.filtered_by(db, key, state)) is not None
        )
    return found


async def _states(leg: Leg, facts: NodeFacts, keys: Sequence[bytes]) -> dict[bytes, KeyState]:
    """Return the states of those keys that exist."""
    kinds = await leg.pipeline([("TYPE", key) for key in keys])
    there = [(key, kind) for key, kind in zip(keys, kinds, strict=True) if kind != b"none"]
    modern = facts.capabilities.get("pexpiretime", False)
    replies = await leg.pipeline([(COUNTS.get(kind, "EXISTS"), key) for key, kind in there])
    if modern:
        expiries = [
            int(at_ms) for at_ms in await leg.pipeline([("PEXPIRETIME", key) for key, _ in there])
        ]
    else:
        left = await leg.pipeline([("PTTL", key) for key, _ in there])
        expiries = [
            await expiry_of(leg, facts, key) if ttl >= 0 else -1
            for (key, _), ttl in zip(there, left, strict=True)
        ]
    return {
        # A length that is an error is that of another type by now.
        key: KeyState(
            kind.decode(),
            length if kind in COUNTS and isinstance(length, int) else -1,
            max(expiry_ms, -1),
        )
        for (key, kind), length, expiry_ms in zip(there, replies, expiries, strict=True)
    }
