"""Following the route: each epoch is acted on in full, and then told in the heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from exodus.background import BackgroundTasks
from exodus.control import registry
from exodus.control.route import (
    SOON,
    Route,
    announced,
    asked_at_ms,
    change_route,
    latency_asked_ms,
    read_route,
    restore_route,
)
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.gateway.authority_probe import AuthorityProbe
from exodus.gateway.canary_control import CanaryControl
from exodus.gateway.cursors import tag_of
from exodus.gateway.groups import SessionGroup, SessionGroups
from exodus.gateway.handover import move_all
from exodus.gateway.heartbeats import HeartbeatWriter
from exodus.gateway.holds import Holds
from exodus.gateway.journaler import Journaler
from exodus.gateway.last_route import LastRoute
from exodus.gateway.orders import Orders
from exodus.gateway.redirect import RedirectControl
from exodus.gateway.relay import Hub
from exodus.gateway.settlement import Settlement
from exodus.gateway.store_state import STORE_ERRORS, StoreState
from exodus.plan.address import Cluster
from exodus.plan.bounds import (
    HEARTBEAT_S,
    HEARTBEAT_STALE_S,
    MOVE_SECONDS_MAX,
    ROUTE_FOLLOWING_REMEMBER_S,
)
from exodus.plan.plan import Plan
from exodus.plan.sample import name_test
from exodus.plan.vocabulary import Feed, Hold, JournalMode, Side

log = logging.getLogger(__name__)
_LOST_ROUTE = "the control store lost the newest route, and may have lost entries of the journal"


class RouteFollower:
    """Acts on the route's epochs, one after the other."""

    def __init__(
        self,
        hub: Hub,
        *,
        store: ControlStore,
        plan: Plan,
        process: str,
        groups: SessionGroups,
        holds: Holds,
        settlement: Settlement,
        canary: CanaryControl,
        redirects: RedirectControl,
        probe: AuthorityProbe,
        heartbeats: HeartbeatWriter,
        store_state: StoreState,
        tasks: BackgroundTasks,
        last_route: LastRoute,
        old_sides: frozenset[Side],
        stopping: asyncio.Event,
        journaler: Journaler,
    ) -> None:
        self._hub = hub
        self._store = store
        self._plan = plan
        self._process = process
        self._groups = groups
        self._holds = holds
        self._settlement = settlement
        self._canary = canary
        self._redirects = redirects
        self._probe = probe
        self._heartbeats = heartbeats
        self._store_state = store_state
        self._tasks = tasks
        self._last_route = last_route
        self._old_sides = old_sides  # CLIENT REPLY OFF keeps back messages too
        self._stopping = stopping
        self._journaler = journaler
        self._applying = asyncio.Lock()
        self._looked_at = 0.0
        self.route = Route(epoch=-1)
        self.applied = -1  # the last epoch that was acted on in full

    async def run(self) -> None:
        """Follow until cancelled. Survives the store's absence."""
        await registry.follow(self._look, self._store, poll_s=HEARTBEAT_S)

    async def _look(self, word: bytes | None) -> None:
        asked_ms = asked_at_ms(word)
        if asked_ms is not None:
            self._heartbeats.ask(asked_ms)
            return
        latency_ms = latency_asked_ms(word)
        if latency_ms is not None:
            self._tasks.spawn(self._measure_latency(latency_ms))
            return
        if word == SOON:
            self._tasks.spawn(self._holds.prepare())
            return
        told = announced(word)
        now = asyncio.get_running_loop().time()
        # A process that was frozen may find outdated words. While its heartbeat is not stale,
        # nobody switches past it.
        awake, self._looked_at = now - self._looked_at < HEARTBEAT_STALE_S / 2, now
        is_next = told is not None and told.epoch == self.applied + 1
        if told is not None and is_next and (awake or told.hold is Hold.WRITES):
            await self.apply(told)  # writes wait for this; to hold them is never wrong
            return
        try:
            route = await read_route(self._store)
        except STORE_ERRORS as exc:
            self._store_state.failed(exc)
            self._holds.release_alone(self.route)
            return
        self._store_state.answered()
        if route.epoch < self.applied:
            await self._restore(route)
        elif route.epoch != self.applied:
            await self.apply(route)
        elif self._groups.overdue:
            await self._end_hold(route)
        self._settlement.look(self.route)

    async def _measure_latency(self, asked_ms: int) -> None:
        await self._probe.measure(asked_ms)
        self._heartbeats.now.set()

    async def _restore(self, found: Route) -> None:
        """Put the newest route back: the store lost it after it had acknowledged it.

        Epochs only grow. An older route may name a fenced authority, or end a hold that a switch
        relies on.
        """
        log.error(
            "the control store fell back from route epoch %d to %d: epoch %d is put back",
            self.applied,
            found.epoch,
            self.applied,
        )
        self._journaler.gap(_LOST_ROUTE)
        if not await restore_route(self._store, found, self.route):
            log.info("another process has put a route back already")

    async def apply(self, route: Route) -> None:
        """Act on an epoch in full, then tell it in the heartbeat."""
        groups = self._groups
        async with self._applying:
            before, self.route = self.route, route
            self._journaler.sample(route.journal is JournalMode.SAMPLE)
            self._canary.ordered = route.canary
            if route.rehearsal_name is not None:
                groups.rehearsal_name = route.rehearsal_name.encode()
            await self._apply_to(groups.main, route, route.authority, route.hold)
            if groups.rehearsal_name is not None:
                authority, hold = route.rehearsal_authority, route.rehearsal_hold
                await self._apply_to(groups.rehearsal, route, authority, hold)
            if route.rehearsal_name is None and before.rehearsal_name is not None:
                groups.rehearsal_name = None
            if route.canary != before.canary:
                self._canary.follow(route)
            if route.redirect != before.redirect:
                self._redirects.follow(route)
            self.applied = route.epoch
            if groups.main.holding is None or groups.main.held:
                # Else when the hold is complete: a heartbeat before that would only be in its way.
                self._heartbeats.now.set()
        delay_s = 0 if route.hold_until_told else ROUTE_FOLLOWING_REMEMBER_S
        asyncio.get_running_loop().call_later(delay_s, self._remember, route)

    def remember(self) -> None:
        """Keep plan, route and masters on disk as they are now."""
        if self.applied >= 0:
            self._remember(self.route)

    def _remember(self, route: Route) -> None:
        if route.epoch == self.applied and not self._stopping.is_set():
            self._last_route.write(self._plan, route)  # else a later one is kept

    async def _apply_to(
        self, group: SessionGroup, route: Route, authority: Side, hold: Hold
    ) -> None:
        orders = group.orders
        first = orders.epoch < 0
        self._take_orders(group, route, authority)
        self._holds.stop_completing(group)
        if hold is Hold.WRITES and not orders.hold:
            self._holds.begin(group, authority)
        # After a switch that was done, nothing stands in the way of writes. Only after one that
        # was given up may the fence of the old side have to be lifted.
        given_up = orders.hold and hold is Hold.NONE and authority is group.held_at
        # A rehearsal goes to the other side and back by itself.
        generation = route.generation + int(authority is not route.authority)
        orders.scripts_unseen = route.feed is Feed.GATEWAY and not route.native
        if first:
            self._change_authority(orders, authority, generation)
        elif authority is not orders.authority:
            self._change_authority(orders, authority, generation)
            within_s = min(MOVE_SECONDS_MAX, self._plan.hold_seconds_max)
            await move_all(self._hub, self._groups.members(group), authority, within_s=within_s)
        if hold is Hold.WRITES and not group.held:
            self._holds.complete_soon(group)
        if hold is Hold.NONE:
            if given_up and group is self._groups.main:
                await self._settlement.before_release()
            self._holds.release(group)

    def _take_orders(self, group: SessionGroup, route: Route, authority: Side) -> None:
        """Take the route's orders for the journal and the shadow stream."""
        orders = group.orders
        # A rehearsal copies its keys by itself. Live sync would copy them from where they are not
        # written now, over the rehearsal's writes.
        journal = route.journal if authority is route.authority else JournalMode.OFF
        began = orders.journal is not journal
        orders.epoch = route.epoch
        orders.journal = journal
        orders.shadow_scripts = route.shadow_scripts
        if route.shadow_salt != orders.shadow_salt:
            orders.left_out.clear()  # another sampling begins
        orders.shadow_names = name_test(route.shadow_include, route.shadow_exclude)
        orders.pick(
            shadow_below=route.sample.below,
            shadow_salt=route.shadow_salt,
            canary_below=orders.canary_below,
        )
        if began:
            # Writes under way were forwarded without an intent. Their answers are journalled.
            for connection in self._groups.members(group):
                connection.session.log_pending()

    def _change_authority(self, orders: Orders, authority: Side, generation: int) -> None:
        orders.authority = authority
        orders.login_needed = self._probe.requires_login(authority)  # until the probe asks again
        orders.tag = tag_of(generation)
        orders.silence_covers_pushes = authority in self._old_sides
        to_cluster = isinstance(self._plan.address(authority.other), Cluster)
        from_cluster = isinstance(self._plan.address(authority), Cluster)
        orders.misfits = Counter() if to_cluster and not from_cluster else None

    async def _end_hold(self, route: Route) -> None:
        """End an overdue hold: a dead flow must not keep applications waiting.

        The route decides between this gateway and the switch. The first to change it is followed
        by the other.
        """
        log.error(
            "a hold was not ended within %.1f s: writes continue at the %s",
            self._plan.hold_seconds_max,
            route.authority,
        )
        # A new epoch for writers: the switch may have ended the old one's grant on the follower.
        ends_writers = route.hold is Hold.WRITES and route.sync
        after = route.next(
            hold=Hold.NONE,
            rehearsal_hold=Hold.NONE,
            writer_epoch=route.writer_epoch + int(ends_writers),
            why=f"{self._process}: a hold was not ended in time",
        )
        try:
            await change_route(self._store, route, after)
        except DecisionRefused as exc:
            log.info("the hold was ended elsewhere: %s", exc.what)
            await self.apply(await read_route(self._store))
        except STORE_ERRORS:
            self._holds.release_alone(self.route)
        else:
            await self.apply(after)
            # The switch is gone. If it changed the authority, settlement lets changes flow back.
            self._settlement.begin()
