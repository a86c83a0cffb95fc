"""Slices of a keyspace: SCAN from a start cursor to an end, so that several run at once and each
can resume.

A cursor counts with its bits reversed. Slice i of 2^k begins at i with its k bits reversed, and
ends when the reversed cursor passes its share. Eight concurrent slices lost nothing during resizing
on seven servers (docs/decisions/0001-slices-by-cursor.md). A cursor is valid only together with the
node's run id and the database (race rule 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from exodus.net.leg import Leg
from exodus.plan.bounds import SCAN_KEYS_PER_SLICE
from exodus.topology.endpoint import Endpoint


def reverse64(value: int) -> int:
    """Return the 64 bits of a number in reverse."""
    return int(f"{value:064b}"[::-1], 2)


@dataclass(frozen=True)
class Slice:
    """One part of one database of one node."""

    node: str
    db: int
    index: int
    count: int  # a power of two

    @property
    def slice_id(self) -> str:
        """Return the slice's name in checkpoints."""
        return f"{self.node}/{self.db}/{self.index} of {self.count}"

    @property
    def start(self) -> int:
        """Return the cursor to begin with."""
        bits = self.count.bit_length() - 1
        return reverse64(self.index << (64 - bits)) if bits else 0

    def ended(self, cursor: int) -> bool:
        """Return whether a cursor that SCAN returned is past this slice."""
        if cursor == 0:
            return True
        bits = self.count.bit_length() - 1
        return bool(bits) and reverse64(cursor) >= (self.index + 1) << (64 - bits)

    @classmethod
    def parse(cls, slice_id: str) -> Slice:
        """Reverse `slice_id`."""
        node, db, part = slice_id.rsplit("/", 2)
        index, _, count = part.partition(" of ")
        return cls(node, int(db), int(index), int(count))


async def scan_once(leg: Leg, cursor: int, count: int) -> tuple[int, list[bytes]]:
    """Do one SCAN call in the leg's database; return the next cursor and the keys."""
    following, keys = await leg.call("SCAN", cursor, "COUNT", count)
    return int(following), keys


async def plan_slices(endpoint: Endpoint, slices: int) -> list[Slice]:
    """Return the slices of every database of every node; few keys make one slice."""
    found: list[Slice] = []
    for node in await endpoint.each_node():
        facts = await node.facts()
        for db, keys in sorted(facts.databases.items()):
            count = slices
            while count > 1 and keys < SCAN_KEYS_PER_SLICE * count:
                count //= 2
            found.extend(Slice(node.name, db, index, count) for index in range(count))
    return found
