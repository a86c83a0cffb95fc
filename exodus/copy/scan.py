"""Slices of a keyspace: SCAN from a start cursor to an end, so that several run at once and each
can resume.

A cursor counts with its bits reversed. Slice i of 2^k begins at i with its k bits reversed, and
ends when the reversed cursor passes its share. Eight concurrent slices lost nothing during resizing
on seven servers (docs/decisions/0001-slices-by-cursor.md). A cursor is valid only together with the
node's run id and the database (race rule 5).

From Redis 7.4 and Valkey 8.0 on, a node of a cluster keeps a table for each slot. Its cursor has
the slot in the low 14 bits, and a scan goes through the slots in their order. There a slice is a
range of slots. The first slice begins at slot 0 and the last ends with the scan, whatever slots
come to the node meanwhile. By reversed bits, the slices of such a node would overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exodus.commands.key_slots import SLOTS
from exodus.net.leg import Leg
from exodus.plan.bounds import SCAN_KEYS_PER_SLICE
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node, NodeFacts


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
    slots: tuple[int, int] | None = None  # first, and the one behind the last; None: by bits

    @property
    def slice_id(self) -> str:
        """Return the slice's name in checkpoints."""
        where = "" if self.slots is None else " at {}-{}".format(*self.slots)
        return f"{self.node}/{self.db}/{self.index} of {self.count}{where}"

    @property
    def start(self) -> int:
        """Return the cursor to begin with."""
        if self.slots is not None:
            return self.slots[0] if self.index else 0
        bits = self.count.bit_length() - 1
        return reverse64(self.index << (64 - bits)) if bits else 0

    def ended(self, cursor: int) -> bool:
        """Return whether a cursor that SCAN returned is past this slice."""
        if cursor == 0:
            return True
        if self.slots is not None:
            return self.index + 1 < self.count and cursor % SLOTS >= self.slots[1]
        bits = self.count.bit_length() - 1
        return bool(bits) and reverse64(cursor) >= (self.index + 1) << (64 - bits)

    @classmethod
    def parse(cls, slice_id: str) -> Slice:
        """Reverse `slice_id`."""
        node, db, part = slice_id.rsplit("/", 2)
        index, _, more = part.partition(" of ")
        count, _, slots = more.partition(" at ")
        first, _, behind = slots.partition("-")
        where = (int(first), int(behind)) if slots else None
        return cls(node, int(db), int(index), int(count), where)


async def scan_once(leg: Leg, cursor: int, count: int) -> tuple[int, list[bytes]]:
    """Do one SCAN call in the leg's database; return the next cursor and the keys."""
    following, keys = await leg.call("SCAN", cursor, "COUNT", count)
    return int(following), keys


async def plan_slices(endpoint: Endpoint, slices: int) -> list[Slice]:
    """Return the slices of every database of every node; few keys make one slice.

    Args:
        endpoint: the side that is scanned.
        slices: of a database, a power of two. The nodes of a cluster share them, each with a power
            of two.
    """
    found: list[Slice] = []
    nodes = await endpoint.each_node()
    share = 1
    while share * len(nodes) < slices:
        share *= 2
    for node in nodes:
        facts = await node.facts()
        for db, keys in sorted(facts.databases.items()):
            count = share
            while count > 1 and keys < SCAN_KEYS_PER_SLICE * count:
                count //= 2
            found.extend(
                Slice(node.name, db, index, count, _slots_of(node, facts, index, count))
                for index in range(count)
            )
    return found


def nodes_in_turn(slices: Sequence[Slice]) -> list[Slice]:
    """Order slices so that neighbours are of different nodes: they are copied at the same time."""
    return sorted(slices, key=lambda piece: (piece.db, piece.index))  # stable: by node in each


_TABLE_A_SLOT = {"redis": (7, 4), "valkey": (8, 0)}  # the first versions that have one


def _slots_of(node: Node, facts: NodeFacts, index: int, count: int) -> tuple[int, int] | None:
    """Return the slots of one slice of a node; None where its cursor has no slot in it."""
    if node.shard is None or facts.version < _TABLE_A_SLOT[facts.engine]:
        return None
    first, last = node.shard.ranges[0][0], node.shard.ranges[-1][1]
    width = last + 1 - first
    return first + width * index // count, first + width * (index + 1) // count
