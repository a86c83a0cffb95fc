"""Which listener of the gateways stands for which node of a cluster.

Every gateway process has the same listeners, by number, so all of them have to agree on this map.
It is published in the control store, one map a side, and each change gives it a new version.
`assign` derives the next map from the last one and from what the nodes say. It reads no clock and
draws nothing: gateways that see the same cluster find the same map while the store is away.

A listener stays with its node. Where a master's slots go to a node that has no listener, as in a
failover to a hidden replica, the listener goes with the slots, so clients find the new master
where the old one was. A node that has lost its slots keeps its listener until it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from pydantic import BaseModel, ConfigDict

from exodus.commands.slots import View
from exodus.control.store import ControlStore
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.vocabulary import Side

_PUBLISH = lua("exodus.control", "publish_listeners")
Ranges = tuple[tuple[int, int], ...]


class ListenerNode(BaseModel):
    """A node that a listener stands for."""

    model_config = ConfigDict(frozen=True)

    place: str  # host:port, as announced
    node_id: str = ""  # empty: not known yet
    slots: Ranges = ()  # its present slots, or its last ones as a master; first and last of each


class ListenerMap(BaseModel):
    """Listener → node, of one side. Listeners are numbered from 0, by their ports."""

    model_config = ConfigDict(frozen=True)

    version: int = 0  # 0: never published
    epoch: int = -1  # of the cluster, when this was what the nodes said
    nodes: dict[int, ListenerNode] = {}

    def by_id(self, node_id: str) -> int | None:
        """Return the listener of a node, by its id."""
        return next((at for at, node in self.nodes.items() if node.node_id == node_id), None)

    def by_place(self, place: str) -> int | None:
        """Return the listener of a node, by its announced address."""
        return next((at for at, node in self.nodes.items() if node.place == place), None)


def assign(
    before: ListenerMap, view: View, count: int, *, replicas: bool
) -> tuple[ListenerMap, int]:
    """Return the map that follows `before`, and how many nodes have no listener in it.

    Args:
        before: the map so far. Its version is kept: `publish_listeners` counts it up.
        view: what the nodes say.
        count: how many listeners there are.
        replicas: give listeners to replicas, too.
    """
    within = {at: node for at, node in before.nodes.items() if at < count}
    before = before.model_copy(update={"nodes": within})
    if _outdated(before, view):
        return before, 0
    wanted = [
        ListenerNode(place=shard.master, node_id=shard.node_id, slots=shard.ranges)
        for shard in view.shards
    ]
    if replicas:
        wanted += [ListenerNode(place=place) for shard in view.shards for place in shard.replicas]
    nodes, taken = dict(within), set[int]()
    ways: tuple[Callable[[ListenerNode], int | None], ...] = (
        lambda node: before.by_id(node.node_id) if node.node_id else None,
        lambda node: before.by_place(node.place),
        lambda node: _heir(nodes, taken, node),
        lambda _: _free(nodes, taken, count),
    )
    for listener_of in ways:
        left = []
        for node in wanted:
            at = listener_of(node)
            if at is None or at in taken:
                left.append(node)
                continue
            taken.add(at)
            known = nodes.get(at, node)
            is_replica = not node.node_id and known.place == node.place
            nodes[at] = node.model_copy(update={"node_id": known.node_id}) if is_replica else node
        wanted = left
    return ListenerMap(version=before.version, epoch=view.epoch, nodes=nodes), len(wanted)


def learn(
    before: ListenerMap, place: str, slot: int, view: View | None, count: int, *, replicas: bool
) -> ListenerMap | None:
    """Return the map with a node that a MOVED or ASK named before a look found it; None: no
    listener is left for it.

    A hidden replica that serves a slot has taken its master's place, and so its listener.
    """
    owner = view.owner(slot) if view is not None else None
    if owner is not None and not replicas and place in owner.replicas:
        at = before.by_id(owner.node_id)
        at = before.by_place(owner.master) if at is None else at
        if at is not None:
            return _with(before, at, ListenerNode(place=place, slots=owner.ranges))
    at = _free(before.nodes, _in_use(before, view), count)
    return None if at is None else _with(before, at, ListenerNode(place=place))


def _outdated(before: ListenerMap, view: View) -> bool:
    """Tell whether a map knows more of a cluster than a view does: that is of an older epoch, or of
    the epoch in which a redirect named a node that has become a master since.
    """
    ids = {node.node_id for node in before.nodes.values()}
    if not any(shard.node_id in ids for shard in view.shards):
        return False  # another cluster
    promoted = {node.place for node in before.nodes.values() if node.slots and not node.node_id}
    replicas = {place for shard in view.shards for place in shard.replicas}
    return view.epoch < before.epoch or (
        view.epoch == before.epoch and not promoted.isdisjoint(replicas)
    )


def _with(before: ListenerMap, at: int, node: ListenerNode) -> ListenerMap:
    return before.model_copy(update={"nodes": {**before.nodes, at: node}})


def _in_use(before: ListenerMap, view: View | None) -> set[int]:
    """Return the listeners whose nodes are part of the cluster; all of them where nothing is known
    of it.
    """
    if view is None:
        return set(before.nodes)
    ids = {shard.node_id for shard in view.shards}
    places = {place for shard in view.shards for place in (shard.master, *shard.replicas)}
    return {at for at, node in before.nodes.items() if node.node_id in ids or node.place in places}


def _heir(nodes: Mapping[int, ListenerNode], taken: Set[int], node: ListenerNode) -> int | None:
    """Return the listener of a node that is none any more and had most of this node's slots."""
    shares = {
        at: _common(known.slots, node.slots) for at, known in nodes.items() if at not in taken
    }
    best = max(shares, key=lambda at: (shares[at], -at), default=None)
    return best if best is not None and shares[best] else None


def _free(nodes: Mapping[int, ListenerNode], taken: Set[int], count: int) -> int | None:
    """Return a listener that never stood for a node, else one whose node is none any more."""
    never = (at for at in range(count) if at not in nodes and at not in taken)
    left = (at for at in range(count) if at not in taken)
    return next(never, next(left, None))


def _common(ours: Ranges, theirs: Ranges) -> int:
    """Return how many slots two lists of ranges have in common."""
    return sum(
        max(0, min(last, end) - max(first, begin) + 1)
        for first, last in ours
        for begin, end in theirs
    )


async def read_listeners(store: ControlStore) -> dict[Side, ListenerMap]:
    """Return the published maps."""
    raw = await answered(store.client.hgetall(store.keys.listeners))
    return {
        Side(side.decode()): ListenerMap.model_validate_json(each) for side, each in raw.items()
    }


async def publish_listeners(store: ControlStore, side: Side, after: ListenerMap) -> bool:
    """Publish the map that follows the published one; return False where another was faster.

    `after.version` is one more than that of the map that it was derived from.
    """
    told = (str(side), str(after.version - 1), after.model_dump_json())
    return bool(await answered(store.client.eval(_PUBLISH, 1, store.keys.listeners, *told)))
