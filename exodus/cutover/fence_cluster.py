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
from exodus.cutover.fence_methods import KEEP_US_OUT, Call, Command, FenceMethod, Kept
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
        await self._nodes.part_strangers()
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
            stale = "the guard there is another switch's"
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
        wanted = {
            name: commands(kept)
            for name in await self._servers()
            if (kept := record.kept_of(name)) is not None
        }
        done, failed = await self._change_all(wanted, record.switch.encode())
        if failed:
            raise failed[0]
        return done

    async def _change_all(
        self, wanted: dict[str, list[Command]], guard: bytes
    ) -> tuple[list[str], list[ExodusError]]:
        """Do commands by node, under the guard, masters first. Return where it was done, or is not
        ours to do any more; and the errors of the others.

        Where another switch took the right on a master, its replicas are left alone.
        """
        settled: list[str] = []
        failed: list[ExodusError] = []
        others: set[str] = set()  # masters whose guard is another's
        masters = self._nodes.masters
        for of_masters in (True, False):
            names = [
                name
                for name in wanted
                if (name in masters) is of_masters and self._nodes.master_of(name) not in others
            ]
            outcomes = await asyncio.gather(
                *[self._nodes.change(name, guard, wanted[name]) for name in names],
                return_exceptions=True,
            )
            for name, outcome in zip(names, outcomes, strict=True):
                if isinstance(outcome, ExodusError):
                    failed.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    settled.append(name)
                    if not outcome:
                        others.add(name)
        return settled, failed

    async def lower(self, record: Record) -> None:
        """Give back what was taken, for good: masters first, since applications wait for them.

        The right ends before anything is given back: otherwise a process that keeps the fence up
        could raise it again on a node that was done.

        Raises:
            SourceError, TargetError: a node does not answer; it is done again.
        """
        method, guard = self._method_of(record), record.switch.encode()
        now = list(await self._servers())
        failed: list[ExodusError] = []
        if record.kind not in KEEP_US_OUT:  # these refuse our own writes, to the guard too
            try:
                await self._end_right(record)
            except (SourceError, TargetError) as exc:
                failed.append(exc)  # the other nodes are done all the same
            guard = f"ended {record.switch}".encode()
        wanted = {
            name: method.down(kept)
            for name in now
            if (kept := record.kept_of(name)) is not None and name not in record.lowered
        }
        down, errors = await self._change_all(wanted, guard)
        if down:
            record = await self._note_lowered(record, *down)
        failed += errors
        if failed:
            raise failed[0]
        for name in record.servers:
            if name not in now and name not in record.lowered:
                await self._lower_absent(name, method.down(record.kept_of(name) or {}))
                record = await self._note_lowered(record, name)
        if record.kind in KEEP_US_OUT:
            await self._end_right(record)
        await self._forget(record)

    async def _end_right(self, record: Record) -> None:
        befores: dict[bytes, bytes | None]
        befores = dict.fromkeys(guard_keys(self._plan.name), record.switch.encode())
        await self._set_guard(befores, f"ended {record.switch}")

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
