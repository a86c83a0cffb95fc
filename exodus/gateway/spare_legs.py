"""Spare legs: connections to the side that the sessions are about to move to, made beforehand.

To connect takes time with every session, and under a hold the applications wait for it.
"""

from __future__ import annotations

import logging

from exodus.gateway.relay import Hub, LegProtocol, open_leg
from exodus.plan.bounds import SPARE_LEGS_LEGS_MAX
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


class SpareLegs:
    """The spare legs of one process, all to one side."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._legs: list[LegProtocol] = []
        self._side = Side.TARGET
        self.ready = False  # there is one for each session

    def take(self, side: Side) -> LegProtocol | None:
        """Return a leg to a side, or None."""
        while self._legs and self._side is side:
            leg = self._legs.pop()
            if not leg.lost and leg.address == self._hub.address(side):
                return leg
            if leg.transport is not None:
                leg.transport.abort()
        return None

    async def prepare(self, authority: Side, sessions: int) -> None:
        """Connect to the side that is not the authority, once a session."""
        if self._side is authority:
            self.drop()
            self._side = authority.other
        side = self._side
        for _ in range(min(sessions, SPARE_LEGS_LEGS_MAX) - len(self._legs)):
            try:
                leg = await open_leg(self._hub, side, owner=None)
            except (OSError, TimeoutError) as exc:
                log.info("no spare leg to the %s: %s", side, exc)
                return
            if side is not self._side:  # another group's sessions go the other way
                if leg.transport is not None:
                    leg.transport.abort()
                return
            self._legs.append(leg)
        self.ready = True

    def drop(self) -> None:
        """End all spare legs."""
        for leg in self._legs:
            if leg.transport is not None:
                leg.transport.abort()
        self._legs.clear()
        self.ready = False
