"""Watching a cluster: which node has which slots, kept current in this process.

The nodes are asked every `TOPOLOGY_LOOK_S`; a MOVED that a request meets is known at once
(`exodus/net/routed.py`). Other shards are noted in the control store with a new topology epoch. A
failover is a shard whose master was its replica before. It is told with the window in which
acknowledged writes may be lost (`lost_since`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Protocol

from exodus.cancellation import end_all, wait_at_most
from exodus.commands.slots import Shard, View
from exodus.control.topology import Failover, Topology
from exodus.errors import OperatorError
from exodus.net.clusters import NodeLookout, cluster_of
from exodus.net.role import RoleReport
from exodus.plan.address import Cluster
from exodus.plan.bounds import TOPOLOGY_LOOK_S, TOPOLOGY_SIGHTS_KEPT
from exodus.plan.vocabulary import Side
from exodus.topology.lost_writes import Sight, lost_since


class Owner(Protocol):
    """What a watch tells its process."""

    def tell(self, side: Side, why: str) -> None:
        """Log what is not known."""

    def failed_over(self, side: Side) -> None:
        """Hear of a failover."""

    def appeared(self, side: Side) -> None:
        """Hear of a node that was not there before."""

    def looked(self, side: Side) -> None:
        """Hear of a look after which the shards are known."""

    def now_ms(self) -> Awaitable[int | None]:
        """Return the store's time; None while the store is away."""

    def note_shards(
        self, side: Side, topology: Topology, failovers: Sequence[Failover]
    ) -> Awaitable[bool]:
        """Note the shards in the control store; return whether the store took them."""


class ClusterWatch:
    """The watch over one cluster."""

    def __init__(self, side: Side, cluster: Cluster, owner: Owner) -> None:
        self._side = side
        self._cluster = cluster
        self._owner = owner
        self._seen: View | None = None
        self._noted: tuple[str, int] | None = None
        self._sights: dict[str, deque[Sight]] = {}  # by node
        self._nodes: set[str] = set()
        self._failovers: list[tuple[float, Failover]] = []  # that the store has not taken yet
        self._noting: asyncio.Task[None] | None = None
        self.woken = asyncio.Event()  # set to look at once

    async def run(self) -> None:
        """Watch until cancelled."""
        state = cluster_of(self._cluster)
        state.watches += 1
        try:
            async with NodeLookout(self._cluster) as lookout:
                while True:
                    await self.look(lookout)
                    await wait_at_most(self.woken, TOPOLOGY_LOOK_S)
                    self.woken.clear()
        finally:
            state.watches -= 1
            await end_all([self._noting])

    async def look(self, lookout: NodeLookout) -> None:
        """Look once, and tell what is new."""
        state = cluster_of(self._cluster)
        try:
            await lookout.look()
        except OperatorError as exc:  # a password file that is not there now
            state.why = f"{exc.what}: {exc.why}"
        self._owner.tell(self._side, state.why)
        view = state.view
        if view is None:
            return
        self._owner.looked(self._side)
        before, self._seen = self._seen, view
        if before is not None and before is not view:
            found = [each for shard in view.shards if (each := self._failover(before, shard))]
            self._failovers += [(time.monotonic(), each) for each in found]
            if found:
                self._owner.failed_over(self._side)
        nodes = {name for shard in view.shards for name in (shard.master, *shard.replicas)}
        if not nodes <= self._nodes:
            self._owner.appeared(self._side)
        self._nodes = nodes
        for master in view.masters:
            if (report := self._report(master)) is not None:
                kept = self._sights.setdefault(master, deque(maxlen=TOPOLOGY_SIGHTS_KEPT))
                kept.append(Sight(time.monotonic(), report.replid, report.offset))
        if self._noting is not None and self._noting.done():
            self._noting.result()  # a bug in it ends this watch, and is logged
        # Beside the looks: a store that does not answer must not delay the next one.
        if self._noted != (view.text, view.epoch) and (self._noting is None or self._noting.done()):
            self._noting = asyncio.create_task(self._note_once(view))

    async def _note_once(self, view: View) -> None:
        told = list(self._failovers)
        if await self._note(view, told):
            self._noted = (view.text, view.epoch)
            self._failovers = self._failovers[len(told) :]

    def _report(self, announced: str) -> RoleReport | None:
        reachable = self._cluster.server(announced).place
        return cluster_of(self._cluster).reports.get(reachable)

    def _failover(self, before: View, shard: Shard) -> Failover | None:
        """Return the failover of a shard since the look before, or None where there was none."""
        old = before.owner(shard.ranges[0][0])
        if old is None or old.node_id == shard.node_id or shard.master not in old.replicas:
            return None
        report = self._report(shard.master)
        since, lost = (
            lost_since(self._sights.get(old.master, ()), report) if report else (None, None)
        )
        window_ms = None if since is None else int((time.monotonic() - since) * 1000)
        return Failover(
            side=self._side,
            before=old.master,
            master=shard.master,
            at_ms=0,
            witnessed=True,
            # From the store's clock when it is noted.
            safe_until_ms=None if window_ms is None else -window_ms,
            lost_bytes_min=lost,
        )

    async def _note(self, view: View, told: Sequence[tuple[float, Failover]]) -> bool:
        at_ms = await self._owner.now_ms()
        if at_ms is None:
            return False
        failovers = []
        for noticed, each in told:
            when_ms = at_ms - int((time.monotonic() - noticed) * 1000)
            window_ms = each.safe_until_ms
            safe_ms = None if window_ms is None else when_ms + window_ms
            failovers.append(each.model_copy(update={"at_ms": when_ms, "safe_until_ms": safe_ms}))
        topology = Topology(
            master=view.text,
            config_epoch=view.epoch,
            run_id="",
            replicas=",".join(name for shard in view.shards for name in shard.replicas),
            at_ms=at_ms,
        )
        return await self._owner.note_shards(self._side, topology, failovers)
