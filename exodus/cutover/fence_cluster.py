"""The fence of a cluster: on every node, under one switch's right.

Each master is fenced and proved by a write to a key of a slot of its own; each replica is fenced,
since a failover makes it a master within milliseconds and ACL rules are not replicated. The nodes
are looked at again right before the fence goes up, and right before the route changes
(`topology_check.py`). A node that appears until the migration ends is fenced by the gateways
(`Fence.keep_raised`).

The right to fence is field `fence` of all guard keys of the cluster (`fence_nodes.py`). It ends
everywhere when the fence is lowered, so a process that slept finds its right gone on each node.

A node that was fenced and has no slot any more is given its rules back without a guard: it takes no
writes, and has no key to guard it. It may be a master again one day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import FENCE, guard_keys, read_fields, replace_fields
from exodus.cutover.fence import Fence, Record
from exodus.cutover.fence_methods import Call, Command, FenceMethod, Kept
from exodus.cutover.fence_nodes import ClusterNodes
from exodus.errors import CutoverAborted, ExodusError, SourceError, TargetError
from exodus.net.leg import Leg, ReplyError, error_of
from exodus.net.routed import together
from exodus.plan.address import Cluster
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole
from exodus.topology.endpoint import Endpoint


class ClusterFence(Fence):
    """The fence of a side that is a cluster."""

    _other = "node"
    _page = "docs/operating/cluster.md"

    def __init__(self, store: ControlStore, side: Side, plan: Plan, cluster: Cluster) -> None:
        super().__init__(store, side, plan)
        self._nodes = ClusterNodes(side, cluster, plan.name)
        self._routed: Leg | None = None
        self._seen_everywhere: dict[bytes, bytes | None] = {}

    async def close(self) -> None:
        """Give the connections back."""
        routed, self._routed = self._routed, None
        if routed is not None:
            await routed.close()
        await self._nodes.close()
        await super().close()

    async def connect(self) -> None:
        """Connect now: where `open` comes, writes wait for each round trip."""
        await together(self._nodes.leg(name) for name in await self._servers())

    async def _any(self) -> Leg:
        if self._routed is None or self._routed.ended:
            self._routed = await Endpoint(self._side, self._address).connect(name="exodus-fence")
        return self._routed

    async def _servers(self) -> dict[str, Call]:
        await self._nodes.look()
        return {name: partial(self._nodes.call, name) for name in self._nodes.names}

    async def _ours(self) -> Leg:
        await self._nodes.look()
        return await self._nodes.leg(self._nodes.masters[0])

    async def _see_guard(self) -> None:
        await self._nodes.look(certain=True)
        for name in self._nodes.masters:
            self._nodes.check_guarded(name)
        try:
            self._seen_everywhere = await read_fields(await self._any(), self._plan.name, FENCE)
        except ReplyError as exc:
            raise self._refused(exc) from exc

    async def _take_guard(self, switch: str) -> bool:
        return await self._set_guard(self._seen_everywhere, switch)

    async def _set_guard(self, befores: dict[bytes, bytes | None], value: str) -> bool:
        try:
            return await replace_fields(await self._any(), FENCE, befores, value.encode())
        except ReplyError as exc:
            raise self._refused(exc) from exc

    async def _meet_strangers(self) -> None:
        await self._nodes.meet_strangers()

    async def _raise(self, record: Record, method: FenceMethod) -> dict[str, str]:
        await together((self._write_down(record), self._nodes.look(certain=True)))
        now, prepared = set(self._nodes.names), set(record.servers)
        if now != prepared:
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why=f"its nodes changed meanwhile: {', '.join(sorted(now ^ prepared))}",
                next_step="nothing was switched; start it again",
            )
        proofs = await together(self._raise_on_node(name, record, method) for name in now)
        found: dict[str, str] = {}
        for of_one in proofs:
            found.update(of_one)
        masters, others = len(self._nodes.masters), len(now) - len(self._nodes.masters)
        where = f"on each of {masters} masters" + (f" and {others} replicas" if others else "")
        return {user: f"{how}, {where}" for user, how in found.items()}

    async def _raise_on_node(
        self, name: str, record: Record, method: FenceMethod
    ) -> dict[str, str]:
        """Raise the fence on one node, and prove it. Return nothing for a replica.

        Raises:
            CutoverAborted: the node does not have this switch's guard.
            DoesNotHold: it lets writes pass.
        """
        kept = record.kept_of(name) or {}
        asked = method.recheck()
        stale = method.stale(await self._nodes.call(name, *asked) if asked else [], kept)
        if stale is None and not await self._nodes.change(
            name, record.switch.encode(), method.up(kept)
        ):
            stale = (
                "the guard there is not this switch's: another switch took the right, or the "
                "replica is behind its master"
            )
        if stale is not None:
            raise CutoverAborted(
                f"{name} of the {self._side} was not fenced",
                why=stale,
                next_step="nothing was switched; start it again",
            )
        call = partial(self._nodes.call, name)
        if name not in self._nodes.masters:
            await self._by_method(method.prove_on_replica(call, kept))
            return {}
        return await self._by_method(
            method.prove(call, self._nodes.stranger(name), kept, self._nodes.probe_key(name))
        )

    async def _everywhere(
        self, record: Record, commands: Callable[[Kept], list[Command]]
    ) -> list[str]:
        """Do commands on every node that was fenced, under the guard; return those where it was
        done. A node that fails does not keep the others from it.
        """
        names = [name for name in await self._servers() if record.kept_of(name) is not None]
        guard = record.switch.encode()
        done = await together(
            self._nodes.change(name, guard, commands(record.kept_of(name) or {})) for name in names
        )
        return [name for name, did in zip(names, done, strict=True) if did]

    async def lower(self, record: Record) -> None:
        """Give back what was taken, for good: masters first, since applications wait for them.

        Raises:
            SourceError, TargetError: a node does not answer; it is done again.
        """
        method, guard = self._method_of(record), record.switch.encode()
        now = list(await self._servers())
        masters = self._nodes.masters
        failed: list[ExodusError] = []
        for names in (masters, [name for name in now if name not in masters]):
            left = [
                name
                for name in names
                if record.kept_of(name) is not None and name not in record.lowered
            ]
            outcomes = await asyncio.gather(
                *[
                    self._nodes.change(name, guard, method.down(record.kept_of(name) or {}))
                    for name in left
                ],
                return_exceptions=True,
            )
            failed += [each for each in outcomes if isinstance(each, ExodusError)]
            for each in outcomes:
                if isinstance(each, BaseException) and not isinstance(each, ExodusError):
                    raise each
            down = [
                name
                for name, each in zip(left, outcomes, strict=True)
                if not isinstance(each, BaseException)
            ]
            if down:
                record = await self._note_lowered(record, *down)
        if failed:
            raise failed[0]
        for name in record.servers:
            if name not in now and name not in record.lowered:
                await self._lower_absent(name, method.down(record.kept_of(name) or {}))
                record = await self._note_lowered(record, name)
        befores: dict[bytes, bytes | None] = dict.fromkeys(guard_keys(self._plan.name), guard)
        await self._set_guard(befores, f"ended {record.switch}")
        await self._forget(record)

    async def _lower_absent(self, name: str, commands: list[Command]) -> None:
        """Give a node its rules back that is down, or has no slot any more. One that left the
        cluster is not Exodus's any more.

        Raises:
            SourceError, TargetError: it is down, and may come back as a fenced master.
        """
        try:
            await self._nodes.run_unguarded(name, commands)
        except (SourceError, TargetError) as exc:
            if not await self._nodes.knows(name):
                return
            raise error_of(self._side)(
                f"the fence on {name} could not be lifted",
                why=f"it may still refuse writes if it is a master later; {exc.why}",
                next_step="start it; or remove it with CLUSTER FORGET on every node",
            ) from exc


def fence_for(store: ControlStore, side: Side, plan: Plan) -> Fence:
    """Return the fence of a side, whatever the side is."""
    place = plan.acting(UserRole.SWITCH).address(side)
    if isinstance(place, Cluster):
        return ClusterFence(store, side, plan, place)
    return Fence(store, side, plan)
