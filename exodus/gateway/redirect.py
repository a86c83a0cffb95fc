"""Redirect: end sessions one by one, so that clients connect where their names point now.

`exodus/closing/redirect.py` gives the order. A session is ended between two of its requests.
Nothing is under way then, and what arrives later is not forwarded. So a request without an answer
was not executed. Sessions that are in a transaction, watching, blocked or subscribed are ended
only if the order says so.

A redirect stops by itself in two cases: the clients come back, since their names still point here;
or the authority does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection

from exodus.background import BackgroundTasks
from exodus.control.heartbeats import RedirectFacts
from exodus.control.route import Redirect, Route
from exodus.gateway.relay import Connection
from exodus.gateway.route_changes import RouteChanges
from exodus.gateway.session import Session
from exodus.plan.bounds import REDIRECT_RETURNS_MIN, REDIRECT_RETURNS_SHARE_MAX

log = logging.getLogger(__name__)
IDLE = "idle"


def kind_of(session: Session) -> str:
    """Return what a session is in the middle of."""
    if session.state.channels:
        return "subscribed"
    if session.opaque is not None:
        return "unread"
    if session.parts.predicted.transaction is not None or session.state.watching:
        return "in a transaction"
    if session.blocked() is not None:
        return "blocked"
    return IDLE if session.idle else "under way"


class RedirectRun:
    """One order to redirect clients, as one process carries it out."""

    def __init__(
        self,
        orders: Redirect,
        connections: Collection[Connection],
        arrived: Callable[[], int],
        trouble: Callable[[], str],
    ) -> None:
        self.orders = orders
        self.closed: Counter[str] = Counter()  # sessions by what they were in the middle of
        self.stopped = ""  # why it stopped by itself
        self._connections = connections
        self._arrived = arrived  # connections ever accepted
        self._arrived_before = arrived()
        self._trouble = trouble

    @property
    def came_back(self) -> int:
        """Return the connections since the start.

        New clients count too, so the redirect may stop too early but not too late.
        """
        return self._arrived() - self._arrived_before

    async def run(self) -> None:
        """End sessions at the order's pace until cancelled, or until it stops by itself."""
        while not (why := self._why_stop()):
            await asyncio.sleep(1 / self.orders.per_s)
            self._end_one()
        self.stopped = why
        log.error("clients are not sent away any more: %s", why)

    def _why_stop(self) -> str:
        closed, came_back = self.closed.total(), self.came_back
        share_max = closed * REDIRECT_RETURNS_SHARE_MAX
        if came_back >= REDIRECT_RETURNS_MIN and came_back > share_max:
            return (
                f"{came_back} connections came while {closed} were ended: "
                "see that names and configuration point to the target"
            )
        return self._trouble()

    def _end_one(self) -> None:
        for connection in list(self._connections):
            session = connection.session
            kind = kind_of(session)
            if connection.leg is None or connection.client_gone or session.requests.frozen:
                continue
            # A request under way is answered first, even if the order covers busy sessions.
            if kind == IDLE or (self.orders.busy and kind != "under way"):
                session.freeze()
                connection.end()
                self.closed[kind] += 1
                return


class RedirectControl:
    """Carries out the orders of the route, one at a time."""

    def __init__(
        self,
        connections: Collection[Connection],
        arrived: Callable[[], int],
        trouble: Callable[[], str],
        tasks: BackgroundTasks,
        changes: RouteChanges,
        beat_now: asyncio.Event,
    ) -> None:
        self._connections = connections
        self._arrived = arrived
        self._trouble = trouble
        self._tasks = tasks
        self._changes = changes
        self._beat_now = beat_now
        self._task: asyncio.Task[None] | None = None
        self.last: RedirectRun | None = None

    def follow(self, route: Route) -> None:
        """End the last order and begin the one of a new route."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if route.redirect is not None:
            run = RedirectRun(route.redirect, self._connections, self._arrived, self._trouble)
            self.last = run
            self._task = self._tasks.spawn(self._carry_out(run))

    async def _carry_out(self, run: RedirectRun) -> None:
        await run.run()
        self._beat_now.set()
        why = f"clients are not sent away any more: {run.stopped}"
        await self._changes.take_back(
            lambda route: route.redirect == run.orders, why, redirect=None
        )

    def refuses(self, route: Route) -> bool:
        """Tell whether new connections are refused."""
        orders = route.redirect
        if orders is None or not orders.refuse_new:
            return False
        return self.last is not None and not self.last.stopped

    def facts(self) -> RedirectFacts:
        """Return how far the last order has come, for the heartbeat."""
        last = self.last
        if last is None:
            return RedirectFacts()
        return RedirectFacts(
            closed=dict(last.closed), came_back=last.came_back, stopped=last.stopped
        )
