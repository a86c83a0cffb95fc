"""The shards of clusters, as this process knows them.

    look        asks the nodes, unless that was done of late
    any_master  one master, for what all of them answer alike
    cluster_of  what this process knows of a cluster; one object, whatever user connects

All nodes that are known are asked at once. Each failover and each move of slots raises the
cluster's current epoch, so the highest epoch is the newest word. A wrong word costs a redirect and
nothing else: a node refuses a key whose slot it does not have.

When a node is a master no more, all connections to it end. What was bound to one of them starts
again by its own means.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis

from exodus.commands.slots import Shard, View, view_of
from exodus.net.ends import Ends
from exodus.net.info import info_of
from exodus.net.inquiry import Inquiry
from exodus.net.role import RoleReport, role_report
from exodus.plan.address import Address, Cluster, place_of
from exodus.plan.bounds import CLUSTER_ANSWER_S, TOPOLOGY_FRESH_S, TOPOLOGY_UNWATCHED_S

_ASK = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"), ("INFO", "server"), ("INFO", "replication"))


class NoMaster(OSError):
    """Which server is the master is not known."""


class ClusterState:
    """What this process knows of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.view: View | None = None
        self.reports: dict[str, RoleReport] = {}  # of nodes, by their reachable address
        self.why = "the nodes were not asked yet"  # what is not known; empty: all is
        self.silent: dict[str, str] = {}  # nodes that did not answer the last look → why
        self.disputed = ""  # masters that said something else than `view` then
        self.watches = 0  # that look every second
        self._looked_at = -TOPOLOGY_FRESH_S
        self._ends = Ends()

    @property
    def fresh(self) -> bool:
        """Return whether the nodes were asked of late, and nobody doubts what they said."""
        within_s = TOPOLOGY_FRESH_S if self.watches else TOPOLOGY_UNWATCHED_S
        return time.monotonic() - self._looked_at < within_s

    def doubt(self, since: float | None = None) -> None:
        """Ask the nodes before the next connection, unless they were asked after `since`
        (monotonic).
        """
        if since is None or self._looked_at < since:
            self._looked_at = -TOPOLOGY_FRESH_S

    @property
    def known(self) -> View:
        """Return which shard has which slots.

        Raises:
            NoMaster: nothing is known.
        """
        if self.view is None:
            raise NoMaster(f"no node of {self.cluster.url} says who has which slots: {self.why}")
        return self.view

    def take(self, views: Sequence[View], asked: int, why: str) -> bool:
        """Believe the newest of several views; return whether a master is another one."""
        before, best = self.view, _newest(views)
        seen = before.epoch if before is not None else -1
        if best is None or (best.epoch < seen and len(views) * 2 <= asked):
            self.why = why or "the nodes that answer know only an older state of the cluster"
            return False
        self.view = best
        missing = best.uncovered
        self.why = f"{missing} slots have no master" if missing else ""
        self._looked_at = time.monotonic()
        self._ends.all_but(set(best.masters))
        return before is not None and _ids(before) != _ids(best)

    def end_by(self, announced: str, end: Callable[[], None]) -> None:
        """Call `end` (a method; kept weakly) when a node is a master no more."""
        self._ends.add(announced, end)


def _ids(view: View) -> set[str]:
    return {shard.node_id for shard in view.shards}


def _newest(views: Sequence[View]) -> View | None:
    """Return the view of the highest epoch; among equals, what most nodes say, and of these the one
    that covers most slots.
    """
    if not views:
        return None
    epoch = max(view.epoch for view in views)
    newest = [view for view in views if view.epoch == epoch]
    said = Counter(view.shards for view in newest)
    return max(newest, key=lambda view: (said[view.shards], -view.uncovered, view.masters))


_clusters: dict[tuple[str, ...], ClusterState] = {}
_clusters_turn = threading.Lock()


def cluster_of(cluster: Cluster) -> ClusterState:
    """Return what this process knows of a cluster; one object, whatever user connects."""
    found = _clusters.get(cluster.cluster)
    if found is not None:
        return found  # by far the most frequent, and for each batch
    with _clusters_turn:
        return _clusters.setdefault(cluster.cluster, ClusterState(cluster))


def any_master(cluster: Cluster) -> Address:
    """Return one master, with the login of `cluster`.

    Raises:
        NoMaster: nothing is known.
    """
    view = cluster_of(cluster).known
    if not view.shards:
        raise NoMaster(f"no node of {cluster.url} has slots")
    return cluster.server(view.shards[0].master)


async def look(cluster: Cluster) -> View:
    """Ask the nodes, unless that was done of late; return who has which slots.

    Raises:
        NoMaster: it is not known, and no node says it.
        OperatorError: the password cannot be read.
    """
    state = cluster_of(cluster)
    if not state.fresh:
        async with NodeLookout(cluster) as lookout:
            await lookout.look()
    return state.known


class NodeLookout:
    """Asks the nodes of a cluster, over connections that it keeps."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._inquiry = Inquiry("cluster")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """End the connections."""
        self._inquiry.hang_up()

    async def look(self) -> bool:
        """Ask, and return whether a master is another one than at the last look of this process.

        Raises:
            OperatorError: the password cannot be read.
        """
        state = cluster_of(self._cluster)
        known = state.view.masters if state.view is not None else ()
        told = await self._ask_all([*self._cluster.seeds, *map(self._cluster.server, known)])
        why = "; ".join(f"{place}: {said}" for place, said in told.items() if isinstance(said, str))
        views = [each for each in told.values() if isinstance(each, View)]
        changed = state.take(views, len(told), why)
        if state.view is not None:
            shards, masters = state.view.shards, list(map(self._cluster.server, state.view.masters))
            # New ones too: what a master lost is in what its successor says (`lost_since`).
            told |= await self._ask_all([each for each in masters if each.place not in told])
            said = {address.place: told[address.place] for address in masters}
            state.disputed = ", ".join(
                sorted(
                    place
                    for place, view in said.items()
                    if isinstance(view, View) and view.shards != shards
                )
            )
        state.silent = {place: said for place, said in told.items() if isinstance(said, str)}
        return changed

    async def _ask_all(self, addresses: Sequence[Address]) -> dict[str, View | str]:
        """Return what nodes say, or why they do not, by their reachable address."""
        asked = list(dict.fromkeys(addresses))
        found = await asyncio.gather(*[self._ask(address) for address in asked])
        return dict(zip((address.place for address in asked), found, strict=True))

    async def _ask(self, address: Address) -> View | str:
        try:
            async with asyncio.timeout(CLUSTER_ANSWER_S):
                slots, info, *role = await self._inquiry.ask(address, _ASK)
            cluster_of(self._cluster).reports[address.place] = role_report(None, *role)
            return _view(slots, info, address)
        except (OSError, TimeoutError, ValueError) as exc:
            self._inquiry.hang_up(address)
            return str(exc) or type(exc).__name__


def _view(slots: Any, info: Any, address: Address) -> View:
    """Read a node's replies.

    Raises:
        ValueError: it refuses to tell, or has no cluster.
    """
    refused = next(
        (str(said) for said in (slots, info) if isinstance(said, hiredis.ReplyError)), ""
    )
    if refused:
        raise ValueError(refused)
    epoch = int(info_of(info).get("cluster_current_epoch", 0))
    return view_of(slots, epoch, address.host, place_of)


def shard_of(cluster: Cluster, slot: int) -> Shard:
    """Return the shard that has a slot, by what is known.

    Raises:
        NoMaster: nothing is known, or no shard has it.
    """
    shard = cluster_of(cluster).known.owner(slot)
    if shard is None:
        raise NoMaster(f"no master of {cluster.url} has slot {slot}")
    return shard
