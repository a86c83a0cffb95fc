"""The nodes of clusters that a rehearsal has to reach, and the listeners that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from exodus.control.listener_map import read_listeners
from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import GUARD_SLOTS
from exodus.cutover.listeners_check import check_listeners, clusters_of
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint


@dataclass(frozen=True)
class RehearsalNodes:
    """What the sessions of a rehearsal need. The default is of two single servers."""

    listeners: tuple[int, ...] = (0,)  # by which sessions come
    slots: tuple[int, ...] = ()  # one of each master of each cluster
    masters: Mapping[Side, Mapping[str, int | None]] = field(default_factory=dict)  # → listener

    def count(self, side: Side) -> int:
        """Return how many masters a side has."""
        return len(self.masters.get(side, {})) or 1

    def silent(self, side: Side, answered_by: Set[int]) -> list[str]:
        """Return the masters of a side whose listener is not among those that answered."""
        masters = self.masters.get(side, {})
        return [place for place, listener in masters.items() if listener not in answered_by]


async def find_nodes(store: ControlStore, plan: Plan) -> RehearsalNodes:
    """Return the nodes of now.

    Raises:
        DecisionRefused: a gateway has no listener for one of them.
        SourceError, TargetError: no node of a cluster says who has which slots.
    """
    sides = clusters_of(plan)
    if not sides:
        return RehearsalNodes()
    await check_listeners(store, plan)
    published = await read_listeners(store)
    listeners, slots = {0}, set()
    masters: dict[Side, dict[str, int | None]] = {}
    for side in sides:
        listeners |= published[side].nodes.keys()
        nodes = await Endpoint(side, plan.address(side)).each_node()
        shards = [node.shard for node in nodes if node.shard is not None]
        slots |= {slot for shard in shards for slot in shard.multiples(GUARD_SLOTS.step)[:1]}
        masters[side] = {shard.master: published[side].by_place(shard.master) for shard in shards}
    return RehearsalNodes(tuple(sorted(listeners)), tuple(sorted(slots)), masters)
