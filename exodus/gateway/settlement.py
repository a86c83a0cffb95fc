"""Settlement: gateways repair what a switch left behind when its process died.

A fence that a server's restart took away is put up again. A switch whose process died after the
authority had changed is finished. How is not known here: `GatewayOptions.settle` does it.
"""

from __future__ import annotations

import asyncio
import logging

from exodus.background import BackgroundTasks
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.gateway.groups import SessionGroup
from exodus.gateway.options import Settle
from exodus.plan.bounds import (
    SETTLEMENT_AGAIN_S,
    SETTLEMENT_GRACE_S,
    SETTLEMENT_RELEASE_WAIT_S,
    SETTLEMENT_TEND_EVERY_S,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, JournalMode

log = logging.getLogger(__name__)


class Settlement:
    """Settles for one process. All processes may settle at once."""

    def __init__(
        self,
        store: ControlStore,
        plan: Plan,
        tasks: BackgroundTasks,
        main: SessionGroup,
        settle: Settle | None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._tasks = tasks
        self._main = main
        self._settle = settle
        self._settling: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None
        self._tended_at = 0.0
        self._unfinished_since: float | None = None

    def begin(self) -> None:
        """Settle, unless that is under way."""
        if self._settle is not None and (self._settling is None or self._settling.done()):
            self._settling = self._tasks.spawn(self._settle_until_done(self._settle))

    def tend_now(self) -> None:
        """Look at the fence at the next look at the route: a side has another server."""
        self._tended_at = -SETTLEMENT_TEND_EVERY_S

    async def before_release(self) -> None:
        """Lift the fence of a switch that was given up, or it would refuse the held writes."""
        self.begin()
        if self._settling is not None:
            await asyncio.wait([self._settling], timeout=SETTLEMENT_RELEASE_WAIT_S)

    async def _settle_until_done(self, settle: Settle) -> None:
        while left := await settle(self._store, self._plan):
            log.warning("still to be repaired after a switch: %s", "; ".join(left))
            if self._main.orders.hold and not self._main.released_alone:
                return  # another switch has begun, and repairs it
            await asyncio.sleep(SETTLEMENT_AGAIN_S)

    async def _tend(self, settle: Settle) -> None:
        """Settle once: put a lost fence up again, and close one that a dead switch left open."""
        left = await settle(self._store, self._plan)
        if left:
            log.debug("not in order: %s", "; ".join(left))

    def look(self, route: Route) -> None:
        """Settle where a switch looks unfinished; tend the fence from time to time."""
        now = asyncio.get_running_loop().time()
        if (
            route.switch
            and route.hold is Hold.NONE
            and now - self._tended_at > SETTLEMENT_TEND_EVERY_S
        ):
            self._tended_at = now
            if self._settle is not None and (self._tending is None or self._tending.done()):
                self._tending = self._tasks.spawn(self._tend(self._settle))
        finished = not route.switch or route.sync or route.journal is not JournalMode.ALL
        if finished or route.hold is Hold.WRITES:
            self._unfinished_since = None
        elif self._unfinished_since is None:
            self._unfinished_since = now
        elif now - self._unfinished_since > self._plan.hold_seconds_max + SETTLEMENT_GRACE_S:
            self.begin()
