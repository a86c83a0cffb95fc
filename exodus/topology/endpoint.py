"""A side of the migration as a set of nodes.

A standalone server is one node. Callers ask for the node of a key or for all nodes, so that
Sentinel and Cluster need no change in them.
"""

from __future__ import annotations

from exodus.net.leg import Leg
from exodus.plan.address import Address
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node, NodeFacts


class Endpoint:
    """One side. Each method names what its caller needs: a key's node, every node, or a node that
    answers for all.
    """

    def __init__(self, side: Side, address: Address) -> None:
        self.side = side
        self.address = address
        self._nodes = [Node(side, address)]

    async def each_node(self) -> list[Node]:
        """Return every node that holds keys: for scans, change feeds, fences, and guards."""
        return self._nodes

    async def any_node(self) -> Node:
        """Return one node, for what all nodes answer alike: commands, version, users."""
        return self._nodes[0]

    async def facts(self) -> NodeFacts:
        """Return what the side can do.

        Raises:
            SourceError, TargetError, OperatorError: the side does not answer, or refuses INFO.
        """
        return await (await self.any_node()).facts()

    async def leg_for(self, key: bytes, *, db: int = 0, name: str) -> Leg:
        """Connect to the node of one key.

        Raises:
            SourceError, TargetError, OperatorError: the node does not answer, or refuses the login.
        """
        del key  # a standalone server has every key
        return await self.connect(db=db, name=name)

    async def connect(self, *, db: int = 0, name: str) -> Leg:
        """Connect to the side for requests of any keys.

        Raises:
            SourceError, TargetError, OperatorError: the side does not answer, or refuses the login.
        """
        (node,) = self._nodes
        return await node.connect(db, name=name)
