"""The fence of a rehearsal on a cluster: on every node, under the rehearsal's own guard keys, by
the requests of a real one (`exodus/cutover/fence_cluster.py`).

On each master a write of the rehearsal's user proves it. A replica takes no writes, so there the
user's rules are asked for: after a failover they count.
"""

from __future__ import annotations

from exodus.copy.cluster_grants import FENCE, read_fields, replace_fields
from exodus.cutover.fence_methods import Command, DoesNotHold
from exodus.cutover.fence_nodes import ClusterNodes
from exodus.errors import CutoverAborted, SourceError, TargetError
from exodus.net.leg import Leg, close_all
from exodus.net.routed import together
from exodus.plan.address import Cluster
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import UserRole
from exodus.rehearsal.fence import RehearsedFence


class RehearsedClusterFence(RehearsedFence):
    """A fence on every node of a cluster that refuses nobody but a user of its own."""

    def __init__(self, leg: Leg, guard_name: str, cluster: Cluster) -> None:
        super().__init__(leg, guard_name)
        self._routed = leg
        self._nodes = ClusterNodes(leg.side, cluster, guard_name)
        self._switch = ""

    async def find(self, switch: str) -> list[str]:
        """Return the nodes, masters first, and give `switch` the right to fence them.

        Raises:
            SourceError, TargetError: they are not known, or one has no guard key.
            CutoverAborted: another rehearsal took the right meanwhile.
        """
        await self._nodes.look(certain=True)
        self._switch = switch
        befores = await read_fields(self._routed, self.guard_name, FENCE)
        if not await replace_fields(self._routed, FENCE, befores, switch.encode()):
            raise CutoverAborted(
                f"the {self.side} was not fenced",
                why="another rehearsal took the right to it",
                next_step="let one rehearsal end before the next",
            )
        return self._nodes.names

    async def leg_of(self, server: str) -> Leg:
        """Return the connection to a node, as Exodus."""
        return await self._nodes.leg(server)

    def meets(self, server: str) -> bool:
        """Return whether a node is a master: replicas take no writes, and redirect them."""
        return server in self._nodes.masters

    def probe(self, server: str) -> bytes:
        """Return a key of a slot that the node, or its master, has."""
        return self._nodes.probe_key(server)

    async def change(self, server: str, commands: list[Command]) -> bool:
        """Do commands on a node if it has this switch's guard; return whether it had."""
        if asked := self.method.recheck():
            await self._nodes.call(server, *asked)
        return await self._nodes.change(server, self._switch.encode(), commands)

    async def raise_(self) -> str:
        """Refuse the user's writes on every node, masters first, and prove it; how, in words.

        Raises:
            CutoverAborted: a write of the user passed, or would after a failover.
            SourceError, TargetError: a node does not answer, or refuses.
        """
        how = await super().raise_()
        replicas = [name for name in self._nodes.names if not self.meets(name)]
        if self.why_not or not replicas:
            return how
        await together(map(self._raise_on_replica, replicas))
        return f"{how} and {len(replicas)} replicas"

    async def _raise_on_replica(self, server: str) -> None:
        why = "the guard there is another switch's"
        if await self.change(server, self._commands):
            try:
                await self.method.prove(
                    self._call(server), None, {self.user: {}}, self.probe(server)
                )
            except DoesNotHold as exc:
                why = str(exc)
            else:
                return
        raise CutoverAborted(
            f"the fence on the {self.side} does not hold",
            why=f"{why}, on the replica {server}",
            next_step="see docs/operating/fences.md",
        )

    async def close(self) -> None:
        """Remove the user from every node. One that does not answer keeps it until the next
        rehearsal, and does not keep the others from losing it.

        Raises:
            SourceError, TargetError: a node did not answer.
        """
        await close_all(self.strangers.values())
        failed: SourceError | TargetError | None = None
        for server in self._nodes.names if self.user else []:
            try:
                await self._nodes.sure(server, ("ACL", "DELUSER", self.user))
            except (SourceError, TargetError) as exc:
                failed = exc
        await self._nodes.close()
        if failed is not None:
            raise failed


def fence_for_rehearsal(plan: Plan, leg: Leg, guard_name: str) -> RehearsedFence:
    """Return the rehearsal's fence of the side that `leg` leads to, whatever the side is."""
    place = plan.acting(UserRole.SWITCH).address(leg.side)
    if isinstance(place, Cluster):
        return RehearsedClusterFence(leg, guard_name, place)
    return RehearsedFence(leg, guard_name)
