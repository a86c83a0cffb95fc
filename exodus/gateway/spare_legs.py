"""Spare legs: connections to the side that the sessions are about to move to, made beforehand.

To connect takes time with every session, and under a hold the applications wait for it.
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import chain

from exodus.gateway.relay import Hub, LegProtocol, open_leg
from exodus.plan.bounds import SPARE_LEGS_LEGS_MAX
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


class SpareLegs:
    """The spare legs of one process, all to one side."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._legs: dict[int, list[LegProtocol]] = {}  # by listener
        self._side = Side.TARGET
        self.ready = False  # there is one for each session

    def take(self, side: Side, listener: int) -> LegProtocol | None:
        """Return a leg to a side for a session of a listener, or None."""
        legs = self._legs.get(listener, [])
        while legs and self._side is side:
            leg = legs.pop()
            if not leg.lost and leg.address == self._hub.address(side, listener):
                return leg
            if leg.transport is not None:
                leg.transport.abort()
        return None

    async def prepare(self, authority: Side, sessions: Counter[int]) -> None:
        """Connect to the side that is not the authority, once a session.

        Args:
            authority: the side to which the sessions connect now.
            sessions: how many there are, by listener.
        """
        if self._side is authority:
            self.drop()
            self._side = authority.other
        side = self._side
        wanted = list((sessions - Counter(self._count())).elements())
        room = SPARE_LEGS_LEGS_MAX - sum(self._count().values())
        for listener in wanted[: max(room, 0)]:
            try:
                leg = await open_leg(self._hub, side, listener, owner=None)
            except (OSError, TimeoutError) as exc:
                log.info("no spare leg to the %s: %s", side, exc)
                return
            if side is not self._side:  # another group's sessions go the other way
                if leg.transport is not None:
                    leg.transport.abort()
                return
            self._legs.setdefault(listener, []).append(leg)
        self.ready = True

    def _count(self) -> dict[int, int]:
        return {listener: len(legs) for listener, legs in self._legs.items()}

    def drop(self) -> None:
        """End all spare legs."""
        for leg in chain.from_iterable(self._legs.values()):
            if leg.transport is not None:
                leg.transport.abort()
        self._legs.clear()
        self.ready = False
