"""A side of the migration as a set of nodes.

A standalone server is one node. A service behind Sentinel is one node too, which is another server
after a failover; its replicas are nodes for fences only. A cluster has a node a shard: the master
of now. Callers ask for the node of a key, for all nodes, or for a connection that finds them.
"""

from __future__ import annotations

from exodus.commands.slots import shard_named
from exodus.errors import OperatorError, SourceError, TargetError
from exodus.net.clusters import NoMaster, cluster_of, look
from exodus.net.leg import Leg, lost
from exodus.net.masters import master_of
from exodus.net.routed import RoutedLeg, together
from exodus.plan.address import Cluster, Place, Service
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node, NodeFacts, of_all


class Endpoint:
    """One side. Each method names what its caller needs: a key's node, every node, or a node that
    answers for all.
    """

    def __init__(self, side: Side, place: Place) -> None:
        self.side = side
        self.place = place

    async def each_node(self) -> list[Node]:
        """Return every node that holds keys: for scans, change feeds, fences, and guards.

        Raises:
            SourceError, TargetError: no node of a cluster says who has which slots.
        """
        place = self.place
        if not isinstance(place, Cluster):
            return [Node(self.side, place)]
        try:
            view = await look(place)
        except NoMaster as exc:
            raise lost(self.side, place, exc) from exc
        if not view.shards:
            raise lost(self.side, place, NoMaster("no node has slots"))
        return [Node(self.side, place.server(shard.master), shard=shard) for shard in view.shards]

    async def node(self, name: str) -> Node:
        """Return the node of that name; of a cluster, the shard that was named so (`shard_named`).

        Raises:
            SourceError, TargetError: no node of a cluster has its slots.
        """
        nodes = await self.each_node()
        if self.cluster is None:
            return next(node for node in nodes if node.name == name)
        shard = shard_named([node.shard for node in nodes if node.shard is not None], name)
        if shard is None:
            raise lost(self.side, self.place, NoMaster(f"no node has {name}"))
        return next(node for node in nodes if node.shard is shard)

    async def layout(self) -> str:
        """Return which node of a cluster has which slots now; nothing for another side. A scan of
        all nodes may miss a key whose slot moved meanwhile.

        Raises:
            SourceError, TargetError: no node says it.
        """
        if self.cluster is None:
            return ""
        cluster_of(self.cluster).doubt()
        nodes = await self.each_node()
        shards = [node.shard for node in nodes if node.shard is not None]
        return " ".join(f"{shard.node_id}:{shard.ranges}" for shard in shards)

    def replicas(self) -> list[Node]:
        """Return the replicas of a service or cluster that are known: each may be a master next. A
        standalone server's are not known, and nothing promotes them by itself.
        """
        if isinstance(self.place, Cluster):
            view = cluster_of(self.place).view
            shards = view.shards if view is not None else ()
            names = [name for shard in shards for name in shard.replicas]
            return [Node(self.side, self.place.server(name)) for name in names]
        if not isinstance(self.place, Service):
            return []
        believed = master_of(self.place).believed
        announced = believed.replicas if believed is not None else ()
        return [Node(self.side, self.place.server(name)) for name in announced]

    async def each_server(self) -> list[Node]:
        """Return the masters, and those replicas of a cluster that are reached. Users, certificates
        and settings are each server's own, and a replica may be a master next.

        A replica that is not reached is a finding of its own (`cluster_checks.py`).

        Raises:
            SourceError, TargetError: no node of a cluster says who has which slots.
        """
        nodes = await self.each_node()
        if self.cluster is None:
            return nodes
        replicas = self.replicas()
        reached = await together(_reached(replica) for replica in replicas)
        return [*nodes, *(each for each, there in zip(replicas, reached, strict=True) if there)]

    @property
    def cluster(self) -> Cluster | None:
        """Return the cluster that this side is, or None."""
        return self.place if isinstance(self.place, Cluster) else None

    async def any_node(self) -> Node:
        """Return one node, for what all nodes answer alike: commands, version, users."""
        return (await self.each_node())[0]

    async def facts(self) -> NodeFacts:
        """Return what the side can do: of a cluster, what all of its masters can.

        Raises:
            SourceError, TargetError, OperatorError: the side does not answer, or refuses INFO.
        """
        nodes = await self.each_node()
        if len(nodes) == 1 and self.cluster is None:
            return await nodes[0].facts()
        return of_all(await together(node.facts() for node in nodes))

    async def life(self) -> str:
        """Return what `NodeFacts.life` of the side is now.

        Raises:
            SourceError, TargetError, OperatorError: the side does not answer, or refuses INFO.
        """
        lives = await together(node.life() for node in await self.each_node())
        return " ".join(sorted(lives))

    async def leg_for(self, key: bytes, *, db: int = 0, name: str) -> Leg:
        """Connect to the node of one key.

        Raises:
            SourceError, TargetError, OperatorError: the node does not answer, or refuses the login.
        """
        del key  # a standalone server has every key, and a routed leg finds each key's node
        return await self.connect(db=db, name=name)

    async def connect(
        self, *, db: int = 0, name: str, node: str | None = None, slot: int | None = None
    ) -> Leg:
        """Connect to the side for requests of any keys. Of a cluster it is a `RoutedLeg`.

        Args:
            db: the database to be in.
            name: for CLIENT SETNAME.
            node: the name of the node to which SCAN goes.
            slot: of a cluster, the node with this slot is connected first. The others are
                connected when they are needed.

        Raises:
            SourceError, TargetError, OperatorError: the side does not answer, or refuses the login.
        """
        place = self.place
        if not isinstance(place, Cluster):
            return await Leg.connect(place, self.side, db=db, name=name)
        leg = await RoutedLeg.open(place, self.side, db=db, name=name, slot=slot)
        if node is not None:
            leg.pin(node)
        return leg


async def _reached(node: Node) -> bool:
    try:
        async with await node.connect(name="exodus-check"):
            return True
    except (OperatorError, SourceError, TargetError):
        return False
