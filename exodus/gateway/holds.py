"""Holds: writes wait in the gateway until a switch is done, or until the hold's time is over.

A hold is complete when every write has its answer and every mark is in the control store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from exodus.background import BackgroundTasks
from exodus.control.route import Route
from exodus.gateway.authority_probe import AuthorityProbe
from exodus.gateway.groups import SessionGroup, SessionGroups
from exodus.gateway.handover import drain_writes
from exodus.gateway.journaler import Journaler
from exodus.gateway.spare_legs import SpareLegs
from exodus.plan.bounds import HOLDS_FLUSH_LOOK_S, HOLDS_SPARE_LEGS_KEPT_S, SETTLEMENT_GRACE_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


class Holds:
    """The holds of one process."""

    def __init__(
        self,
        plan: Plan,
        groups: SessionGroups,
        journaler: Journaler,
        unflushed: Callable[[], int],
        spare_legs: SpareLegs,
        probe: AuthorityProbe,
        tasks: BackgroundTasks,
        beat_now: asyncio.Event,
    ) -> None:
        self._seconds_max = plan.hold_seconds_max
        self._groups = groups
        self._journaler = journaler
        self._unflushed = unflushed
        self._spare_legs = spare_legs
        self._probe = probe
        self._tasks = tasks
        self._beat_now = beat_now
        self.settled = asyncio.Event()  # a session may have its answers

    def begin(self, group: SessionGroup, authority: Side) -> None:
        """Hold a group's writes from now on."""
        group.orders.hold = True
        group.held_at = authority
        group.released_alone = False
        now = asyncio.get_running_loop().time()
        group.hold_deadline = now + self._seconds_max + SETTLEMENT_GRACE_S

    def complete_soon(self, group: SessionGroup) -> None:
        """Complete a hold in a task of its own.

        Not awaited: an order to end the hold must not queue behind an authority that is silent.
        """
        group.holding = self._tasks.spawn(self._complete(group))

    @staticmethod
    def stop_completing(group: SessionGroup) -> None:
        """End that task."""
        if group.holding is not None:
            group.holding.cancel()
            group.holding = None

    async def _complete(self, group: SessionGroup) -> None:
        self._tasks.spawn(self._probe.foresee(group.orders.authority.other))
        members = self._groups.members(group)
        busy = await drain_writes(members, self.settled, within_s=self._seconds_max)
        self._journaler.hurry.set()
        if self._groups.main.orders.scripts.waiting:
            self._beat_now.set()
        try:
            group.held = busy == 0 and await self.flushed(self._seconds_max)
        finally:
            self._journaler.hurry.clear()
        self._beat_now.set()
        if group.held:
            await self._prepare_legs(group)

    async def flushed(self, within_s: float) -> bool:
        """Wait until every mark is in the control store; tell whether it came to that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._unflushed():
            if loop.time() >= deadline:
                return False
            await self._journaler.next_flush(HOLDS_FLUSH_LOOK_S)
        return True

    async def _prepare_legs(self, group: SessionGroup) -> None:
        sessions = Counter(each.listener for each in self._groups.members(group))
        await self._spare_legs.prepare(group.orders.authority, sessions)

    async def prepare(self) -> None:
        """Do what takes time with every session before a hold: applications wait under it."""
        groups = self._groups
        group = groups.main if groups.rehearsal_name is None else groups.rehearsal
        await self._prepare_legs(group)
        self._beat_now.set()
        await asyncio.sleep(HOLDS_SPARE_LEGS_KEPT_S)
        if not groups.holding:
            self._spare_legs.drop()

    def release(self, group: SessionGroup) -> None:
        """End a hold: the sessions continue."""
        group.orders.hold = False
        group.held = group.released_alone = False
        self._spare_legs.drop()
        group.hold_deadline = None
        now = asyncio.get_running_loop().time()
        for connection in self._groups.members(group):
            connection.session.thaw(now)

    def release_alone(self, route: Route) -> None:
        """End overdue holds while the store is away: sessions continue where they are.

        The gateway does not know whether the authority has changed. If it has, the fence on the
        old side refuses these writes: the client gets an error, and no write is lost. The
        heartbeat says so, and the switch requires a fresh "held" of every gateway behind its
        fence.
        """
        now = asyncio.get_running_loop().time()
        for group in (self._groups.main, self._groups.rehearsal):
            if group is self._groups.main and route.hold_until_told:
                continue  # no server would refuse these writes
            deadline = group.hold_deadline
            if deadline is not None and now >= deadline and not group.released_alone:
                log.error(
                    "a hold was not ended in time and the control store is away: "
                    "writes continue at the %s",
                    group.orders.authority,
                )
                self.release(group)
                # The hold is ended for all gateways as soon as the store is back.
                group.released_alone, group.hold_deadline = True, deadline
