"""The servers of services and clusters, looked at when a switch begins and right before the route
changes.

A switch prepares for certain servers: it fences them, it has drained them. If another server is a
master by then, slots moved, or one appeared that is not fenced, the switch is given up. What is not
known for certain stops a switch too: no majority of the Sentinels answers, a master of a cluster is
silent, or masters contradict each other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exodus.commands.slots import Shard
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.net.clusters import ClusterState, NodeLookout, cluster_of
from exodus.net.leg import Leg, ReplyError
from exodus.net.masters import Believed, Lookout, master_of
from exodus.net.routed import RoutedLeg, together
from exodus.plan.address import Address, Cluster, Service
from exodus.plan.bounds import REPLICAS_HAVE_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


@dataclass(frozen=True)
class Servers:
    """The masters of a side, each in one life, and the replicas that may follow them."""

    masters: tuple[str, ...]  # host:port, as announced; of a cluster with their slots
    epoch: int  # the count of the Sentinels, or of the cluster
    run_ids: tuple[str, ...]
    names: frozenset[str] = frozenset()  # of all servers, as a fence names them

    @classmethod
    def of_service(cls, service: Service, believed: Believed) -> Servers:
        """Return what must stay as it is during a switch."""
        names = {service.server(name).place for name in believed.replicas}
        master = (believed.announced,)
        return cls(master, believed.config_epoch, (believed.role.run_id,), frozenset(names))

    @classmethod
    def of_cluster(cls, state: ClusterState) -> Servers:
        """Return the same of a cluster."""
        view = state.known
        names = {name for shard in view.shards for name in (shard.master, *shard.replicas)}
        return cls(
            tuple(_told(shard) for shard in view.shards),
            view.epoch,
            tuple(_run_id(state, shard.master) for shard in view.shards),
            frozenset(names),
        )

    def same_masters(self, other: Servers | None) -> bool:
        """Return whether the masters are the same, with the same slots, in the same lives."""
        return other is not None and (self.masters, self.epoch, self.run_ids) == (
            other.masters,
            other.epoch,
            other.run_ids,
        )


Standing = dict[Side, Servers]  # of the sides that are services or clusters


def _told(shard: Shard) -> str:
    return f"{shard.master} {shard.node_id} {shard.ranges}"


def _run_id(state: ClusterState, announced: str) -> str:
    report = state.reports.get(state.cluster.server(announced).place)
    return "" if report is None else report.run_id


async def _look_at_service(service: Service) -> Servers | str:
    async with Lookout(service) as lookout:
        await lookout.look()
    master = master_of(service)
    if master.why or master.believed is None:
        return master.why or "nothing is known"
    return Servers.of_service(service, master.believed)


async def _look_at_cluster(cluster: Cluster) -> Servers | str:
    async with NodeLookout(cluster) as lookout:
        await lookout.look()
    state = cluster_of(cluster)
    if state.why or state.view is None:
        return state.why or "nothing is known"
    places = {cluster.server(name).place for name in state.view.masters}
    silent = {place: why for place, why in state.silent.items() if place in places}
    if silent:
        return "; ".join(f"{place}: {why}" for place, why in silent.items())
    unasked = {name for name in state.view.masters if not _run_id(state, name)}
    if unasked:
        return f"{', '.join(sorted(unasked))} appeared just now"
    if state.disputed:
        return f"{state.disputed} says something else: slots are moving, or a node failed over"
    return Servers.of_cluster(state)


async def _look(plan: Plan) -> dict[Side, Servers | str]:
    """Ask about both sides; return what is known, or why it is not."""
    places = {side: place for side in Side if not isinstance(place := plan.address(side), Address)}
    found = await asyncio.gather(
        *[
            _look_at_cluster(place) if isinstance(place, Cluster) else _look_at_service(place)
            for place in places.values()
        ]
    )
    return dict(zip(places, found, strict=True))


async def look_at_servers(plan: Plan) -> Standing:
    """Return the masters that a switch begins with.

    Raises:
        DecisionRefused: one is not known.
    """
    standing: Standing = {}
    for side, found in (await _look(plan)).items():
        if isinstance(found, str):
            raise DecisionRefused(
                f"which server is the master of the {side} is not known for certain",
                why=found,
                next_step="start the Sentinels or nodes, or wait for the end of a failover or of a "
                "move of slots; then retry",
            )
        standing[side] = found
    return standing


async def check_unchanged(plan: Plan, before: Standing, old: Side, fenced: set[str] | None) -> None:
    """Check that the masters are the same, and that every server of the old side is fenced.

    Raises:
        CutoverAborted: they are not, or it is not known.
    """
    for side, found in (await _look(plan)).items():
        why = found if isinstance(found, str) else ""
        if not isinstance(found, str):
            if not found.same_masters(before.get(side)):
                why = (
                    "there was a failover, or slots moved, while the switch was under way: "
                    f"{', '.join(found.masters)}"
                )
            elif side is old and fenced is not None and not found.names <= fenced:
                why = f"{', '.join(sorted(found.names - fenced))} appeared and is not fenced"
        if why:
            raise CutoverAborted(
                f"the servers of the {side} are not what the switch prepared for",
                why=why,
                next_step="writes go on at the old side; wait until `exodus status` shows no open "
                "gap, then retry",
            )


async def check_replicas_have(plan: Plan, side: Side, leg: Leg, left_s: float) -> int | None:
    """Wait until a replica of each master of the new side has all that was copied there, so that a
    failover right after the switch does not lose it; return how many have, of the master with the
    fewest. None: the side has no replicas.

    `leg` has written last of all to the side, to each node (`close_epoch`).

    Raises:
        CutoverAborted: no replica has it in time.
    """
    legs: list[Leg] = []
    place = plan.address(side)
    if isinstance(place, Service):
        believed = master_of(place).believed
        legs = [leg] if believed is not None and believed.replicas else []
    elif isinstance(leg, RoutedLeg):
        followed = {shard.master for shard in leg.shards if shard.replicas}
        legs = [each for each in await leg.nodes() if leg.name_of(each) in followed]
    if not legs:
        return None
    within_ms = max(1, int(min(REPLICAS_HAVE_S, left_s) * 1000))
    found = await together(each.pipeline([("WAIT", 1, within_ms)]) for each in legs)
    for each, (have,) in zip(legs, found, strict=True):
        if isinstance(have, ReplyError) or not have:
            raise CutoverAborted(
                f"no replica of {each.address.place} of the {side} has all that was copied there",
                why=str(have) if isinstance(have, ReplyError) else f"none in {within_ms} ms",
                next_step=f"look at the replication of the {side}; writes go on at the old side",
            )
    return min(int(have) for (have,) in found)
