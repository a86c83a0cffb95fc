"""Ending sessions one by one, so that each client connects to where its names point now (`exodus/closing/redirect.py` gives the order).

A session is ended between two of its requests: nothing is under way, and what arrives afterwards is not forwarded. So whatever its client
had no answer for was not executed. Sessions in a transaction, watching, blocked or subscribed are left alone, unless asked for.

It stops by itself when those who were sent away come back, since then their names still point here and each of them was disturbed for
nothing, and when the authority does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection

from exodus.control.route import Redirect
from exodus.gateway.relay import Connection
from exodus.gateway.session import Session
from exodus.plan.bounds import REDIRECT_RETURNS_MIN, REDIRECT_RETURNS_SHARE_MAX

log = logging.getLogger(__name__)
IDLE = "idle"


def kind_of(session: Session) -> str:
    """What a session is in the middle of."""
    if session.channels:
        return "subscribed"
    if session.opaque is not None:
        return "unread"
    if session.transaction is not None or session.watching:
        return "in a transaction"
    if session.blocked() is not None:
        return "blocked"
    return IDLE if session.idle else "under way"


class Redirecting:
    """One order to send clients away, as one process does it."""

    def __init__(self, orders: Redirect, connections: Collection[Connection], arrived: Callable[[], int], trouble: Callable[[], str]) -> None:
        self.orders = orders
        self.closed: Counter[str] = Counter()  # by what they were in the middle of
        self.stopped = ""  # why it stopped by itself
        self._connections = connections
        self._arrived = arrived  # connections ever accepted
        self._arrived_before = arrived()
        self._trouble = trouble

    @property
    def came_back(self) -> int:
        """Connections since it began. Those of other clients count too: this errs on the side of stopping."""
        return self._arrived() - self._arrived_before

    async def run(self) -> None:
        """End sessions at the pace until cancelled, or until it stops by itself."""
        while not (why := self._why_stop()):
            await asyncio.sleep(1 / self.orders.per_s)
            self._end_one()
        self.stopped = why
        log.error("clients are not sent away any more: %s", why)

    def _why_stop(self) -> str:
        closed, came_back = self.closed.total(), self.came_back
        if came_back >= REDIRECT_RETURNS_MIN and came_back > closed * REDIRECT_RETURNS_SHARE_MAX:
            return f"{came_back} connections came while {closed} were ended: see that names and configuration point to the target"
        return self._trouble()

    def _end_one(self) -> None:
        for connection in list(self._connections):
            kind = kind_of(connection.session)
            if connection.leg is None or connection.client_gone or connection.session.frozen:
                continue
            # With a request under way not even when asked: its answer comes first.
            if kind == IDLE or (self.orders.busy and kind != "under way"):
                connection.session.freeze()
                connection.end()
                self.closed[kind] += 1
                return
