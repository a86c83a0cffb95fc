"""Looking at a part of all keys: those in slots of some nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from exodus.commands.key_slots import SLOTS, slot_of
from exodus.control.changes import Ranges
from exodus.engine import Engine
from exodus.plan.scope import Scope
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint


@dataclass(frozen=True)
class Only:
    """Slots of one side or both. A key is looked at if it is in one of them on either side."""

    scope: Scope
    authority: Side
    slots: Mapping[Side, bytes] = field(repr=False)  # a byte a slot: whether it is looked at

    @classmethod
    def of(cls, engine: Engine, ranges: Mapping[Side, Ranges | None]) -> Self | None:
        """Return what to look at, or None: at everything.

        Args:
            engine: of the two sides.
            ranges: slots by side; None stands for a whole side.
        """
        slots: dict[Side, bytes] = {}
        for side, of_side in ranges.items():
            if of_side is None:
                return None
            found = bytearray(SLOTS)
            for first, last in of_side:
                found[first : last + 1] = b"\1" * (last - first + 1)
            slots[side] = bytes(found)
        return cls(engine.scope, engine.route.authority, slots)

    def has(self, db: int, key: bytes) -> bool:
        """Return whether a key, by its name on the authority, is looked at."""
        there = self.slots.get(self.authority.other)
        if there is not None and there[slot_of(self.scope.target_key(db, key)[1])]:
            return True
        here = self.slots.get(self.authority)
        return here is not None and bool(here[slot_of(key)])

    def has_there(self, db: int, key: bytes) -> bool:
        """Return the same for a key by its name on the follower."""
        there = self.slots.get(self.authority.other)
        if there is not None and there[slot_of(key)]:
            return True
        here = self.slots.get(self.authority)
        origin = self.scope.source_key(db, key) if here is not None else None
        return here is not None and (origin is None or bool(here[slot_of(origin[1])]))

    async def nodes(self, endpoint: Endpoint) -> set[str]:
        """Return the names of the nodes of a side that may have such keys.

        Raises:
            SourceError, TargetError: the side does not answer.
        """
        slots = self.slots.get(endpoint.side)
        alone = slots is not None and len(self.slots) == 1
        return {
            node.name
            for node in await endpoint.each_node()
            if not alone
            or node.shard is None
            or any(slots and any(slots[first : last + 1]) for first, last in node.shard.ranges)
        }
