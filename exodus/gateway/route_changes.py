"""Changes of the route that a gateway makes by itself, for all gateways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.gateway.store_state import STORE_ERRORS
from exodus.plan.bounds import HEARTBEAT_S

log = logging.getLogger(__name__)


class RouteChanges:
    """Changes the route in the name of one process."""

    def __init__(self, store: ControlStore, process: str) -> None:
        self._store = store
        self._process = process

    async def take_back(self, stands: Callable[[Route], bool], why: str, **changes: object) -> None:
        """Take an order back.

        Args:
            stands: whether the order is still in a route.
            why: the reason that the route's history shows.
            changes: fields of the next route.
        """
        while True:
            try:
                route = await read_route(self._store)
                if stands(route):
                    after = route.next(why=f"{self._process}: {why}", **changes)
                    await change_route(self._store, route, after)
                return
            except DecisionRefused as exc:
                log.info("the route was changed meanwhile: %s", exc.what)
            except STORE_ERRORS as exc:
                log.warning("the other gateways were not told yet (%s): %s", why, exc)
                await asyncio.sleep(HEARTBEAT_S)
