"""Canary control: which share of reads goes to the follower too, and when that ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from exodus.background import BackgroundTasks
from exodus.control.heartbeats import CanaryFacts
from exodus.control.route import Route
from exodus.gateway.canary_connections import CanaryConnections
from exodus.gateway.canary_nodes import CanaryNodes
from exodus.gateway.canary_reads import Canary, CanaryRead
from exodus.gateway.orders import Orders
from exodus.gateway.route_changes import RouteChanges
from exodus.gateway.session import Session
from exodus.gateway.tls import TlsContexts
from exodus.net.masters import standing
from exodus.plan.address import Cluster
from exodus.plan.bounds import CANARY_LINGERS_S
from exodus.plan.plan import Plan
from exodus.plan.share import share_bound
from exodus.plan.vocabulary import Side, UserRole

log = logging.getLogger(__name__)


class CanaryControl:
    """The canary reads of one process."""

    def __init__(
        self,
        plan: Plan,
        tls: TlsContexts,
        orders: Orders,
        tasks: BackgroundTasks,
        changes: RouteChanges,
        beat_now: asyncio.Event,
        look_now: Callable[[Side], None],
    ) -> None:
        """`look_now` asks the nodes of a cluster who has which slots."""
        self._plan = plan
        self._tls = tls
        self._orders = orders
        self._tasks = tasks
        self._changes = changes
        self._beat_now = beat_now
        self._look_now = look_now
        self._changing = asyncio.Lock()
        self._follower: CanaryConnections | CanaryNodes | None = None
        self.ordered = 0.0  # the share that the route asks for
        self.share = 0.0  # the share that this process serves
        self.gave_up = ""  # why this process gave the canary up; the route may not say so yet
        self.canary = Canary(plan.canary.bad_max, self._give_up)
        orders.canary = self.canary

    def follow(self, route: Route) -> None:
        """Serve the share that a new route asks for."""
        if route.canary:
            # Not awaited: an order to hold must not queue behind a connection.
            self._tasks.spawn(self._begin(route.canary, route.follower))
        else:
            self._serve(0.0)
            asyncio.get_running_loop().call_later(CANARY_LINGERS_S, self._disconnect)

    def ask(self, session: Session, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Send a session's read to the follower."""
        if self._follower is None:
            read.left_out()
        else:
            self._follower.ask(session, read, request, protocol)

    def end(self) -> None:
        """End: the process stops."""
        self._serve(0.0)
        self._disconnect()

    def facts(self) -> CanaryFacts:
        """Return the outcomes of canary reads since the share was chosen, for the heartbeat."""
        canary = self.canary
        return CanaryFacts(
            share=self.share,
            gave_up=self.gave_up,
            answer_ms_p99=round(canary.answer_us.quantile(0.99) / 1000, 1),
            reads={str(outcome): count for outcome, count in canary.counts.items()},
        )

    def _serve(self, share: float) -> None:
        orders = self._orders
        self.share = share
        orders.pick(
            shadow_below=orders.shadow_below,
            shadow_salt=orders.shadow_salt,
            canary_below=share_bound(share),
        )

    async def _begin(self, share: float, side: Side) -> None:
        async with self._changing:
            self.gave_up = ""
            self.canary.restart()
            if self._follower is not None and self._follower.lost:
                self._follower.close()
                self._follower = None
            if self._follower is None:
                self._follower = await self._connected(side)
            if self._follower is not None and self.ordered == share:
                self._serve(share)
                self._beat_now.set()

    async def _connected(self, side: Side) -> CanaryConnections | CanaryNodes | None:
        place = self._plan.acting(UserRole.GATEWAY).address(side)
        wait_s, tls = self._plan.canary.wait_ms_max / 1000, self._tls.side(side)
        follower: CanaryConnections | CanaryNodes
        try:
            if isinstance(place, Cluster):
                follower = CanaryNodes(
                    self.canary, place, tls, self._tasks, self._look_now, side=side, wait_s=wait_s
                )
            else:
                follower = CanaryConnections(
                    self.canary, standing(place), tls, field=side, wait_s=wait_s
                )
            await follower.connect()
        except (OSError, TimeoutError) as exc:
            self._give_up(f"the {side} takes no connection: {str(exc) or type(exc).__name__}")
            return None
        return follower

    def _disconnect(self) -> None:
        if self._follower is not None and not self.share:
            self._follower.close()
            self._follower = None

    def _give_up(self, why: str) -> None:
        """Stop canary reads here at once, and take the order back for all gateways."""
        if self.gave_up or not self.ordered:
            return
        self.gave_up = why
        log.error("canary reads are given up: %s", why)
        self._serve(0.0)
        self._beat_now.set()
        self._tasks.spawn(self._take_back(why))

    async def _take_back(self, why: str) -> None:
        await self._changes.take_back(
            lambda route: bool(route.canary) and bool(self.gave_up),
            f"canary reads given up: {why}",
            canary=0.0,
        )
