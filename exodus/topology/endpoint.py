"""A side of the migration as a set of nodes.

A standalone server is one node. Callers ask for the node of a key or for all nodes, so that Sentinel and Cluster need
no change in them.
"""

from __future__ import annotations

from exodus.plan.address import Address
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node


class Endpoint:
    """One side."""

    def __init__(self, side: Side, address: Address) -> None:
        self.side = side
        self._nodes = [Node(side, address)]

    async def nodes(self) -> list[Node]:
        """All nodes that hold keys."""
        return self._nodes

    async def node_for(self, key: bytes) -> Node:
        """The node of a key."""
        del key  # standalone: there is one
        return self._nodes[0]
