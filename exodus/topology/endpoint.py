"""A side of the migration as a set of nodes.

A standalone server is one node. A service behind Sentinel is one node too, which is another server
after a failover; its replicas are nodes for fences only. Callers ask for the node of a key or for
all nodes, so that Cluster needs no change in them.
"""

from __future__ import annotations

from exodus.net.leg import Leg
from exodus.net.masters import master_of
from exodus.plan.address import Address, Place, Service
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node, NodeFacts


class Endpoint:
    """One side. Each method names what its caller needs: a key's node, every node, or a node that
    answers for all.
    """

    def __init__(self, side: Side, place: Place) -> None:
        self.side = side
        self.place = place
        self._nodes = [Node(side, place)]

    async def each_node(self) -> list[Node]:
        """Return every node that holds keys: for scans, change feeds, fences, and guards."""
        return self._nodes

    def replicas(self) -> list[Node]:
        """Return the replicas of a service, as its Sentinels name them: each may be the master
        next. A standalone server's are not known, and nothing promotes them by itself.
        """
        if isinstance(self.place, Address):
            return []
        believed = master_of(self.place).believed
        announced = believed.replicas if believed is not None else ()
        return [Node(self.side, self.place.server(name)) for name in announced]

    @property
    def service(self) -> Service | None:
        """Return the service behind Sentinel that this side is, or None."""
        return self.place if isinstance(self.place, Service) else None

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
