"""The replicas of a fenced service behind Sentinel. Any of them may be the master next.

ACL rules and settings are not replicated, so the fence goes to each replica too. The guard is a
key and is: a replica takes its fence only under the guard of the same switch, as the master does.
A standalone server has no replicas here.

A replica that answers no Sentinel is not fenced. It cannot be promoted before it answers, and the
gateways fence it then (`Fence.keep_raised`).
"""

from __future__ import annotations

import asyncio
import time

from exodus.cutover.fence_methods import Command
from exodus.cutover.fence_servers import FencedServers
from exodus.net.leg import Leg, Reply, close_all, error_of
from exodus.net.masters import Lookout, master_of
from exodus.plan.address import Place, Service
from exodus.plan.bounds import FENCE_POLL_S, FENCE_REPLICA_S
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint


class Replicas(FencedServers):
    """Connections to the replicas of one side, kept until `close`."""

    _what = "replica"
    _page = "docs/operating/sentinel.md"

    def __init__(self, side: Side, place: Place, guard: bytes) -> None:
        super().__init__(side)
        self._place = place
        self._guard = guard
        self._legs: dict[str, Leg] = {}

    async def close(self) -> None:
        """End the connections."""
        legs, self._legs = self._legs, {}
        await close_all(legs.values())

    async def current(self) -> list[str]:
        """Return the replicas that answer a Sentinel now, as host:port that Exodus reaches.

        Raises:
            SourceError, TargetError: the Sentinels do not tell.
        """
        if not isinstance(self._place, Service):
            return []
        async with Lookout(self._place) as lookout:
            await lookout.look()
        why = master_of(self._place).why
        if why:
            raise error_of(self._side)(
                f"the servers of the {self._side} are not known",
                why=why,
                next_step="start the Sentinels, or wait for the end of a failover; then retry",
            )
        return [node.name for node in Endpoint(self._side, self._place).replicas()]

    def down(self) -> list[str]:
        """Return the replicas that answer no Sentinel, as of the last look."""
        if not isinstance(self._place, Service):
            return []
        believed = master_of(self._place).believed
        announced = believed.down if believed is not None else ()
        return [self._place.server(each).place for each in announced]

    async def call(self, name: str, *commands: Command) -> list[Reply]:
        """Return replies of commands sent together to one replica, errors as values.

        Raises:
            SourceError, TargetError: it does not answer.
        """
        leg = self._legs.get(name)
        if leg is None:
            node = next(
                (
                    each
                    for each in Endpoint(self._side, self._place).replicas()
                    if each.name == name
                ),
                None,
            )
            if node is None:
                raise error_of(self._side)(
                    f"{name} is no replica of the {self._side} any more",
                    why="the Sentinels do not name it, or it is the master now",
                    next_step="retry",
                )
            leg = self._legs[name] = await node.connect(name="exodus-fence")
        try:
            return await leg.pipeline(commands)
        except BaseException:
            self._legs.pop(name, None)
            await leg.close()
            raise

    async def change(self, name: str, guard: bytes, commands: list[Command]) -> bool:
        """Do `commands` on one replica if the guard has this value there; return whether it had.

        The guard comes by replication, so it is waited for.

        Raises:
            SourceError, TargetError: the replica does not answer, or refuses.
        """
        deadline = time.monotonic() + FENCE_REPLICA_S
        while True:
            _, found = await self.sure(name, ("WATCH", self._guard), ("GET", self._guard))
            if found == guard:
                break
            await self.sure(name, ("UNWATCH",))
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(FENCE_POLL_S)
        return await self.transaction(name, commands)
