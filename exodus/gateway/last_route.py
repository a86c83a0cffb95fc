"""The last plan and route, kept on disk: a gateway starts with them while the store is away.

The masters of services are kept too, for where no Sentinel answers either; and of clusters, which
listener stands for which node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from exodus.control.listener_map import ListenerMap
from exodus.control.route import Route, read_route
from exodus.control.store import ControlStore
from exodus.gateway.store_state import STORE_ERRORS
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.private_files import write_private
from exodus.topology.watch import known_masters, seed_masters

log = logging.getLogger(__name__)


class LastRoute:
    """The file `last.json` of a state folder."""

    def __init__(
        self,
        state_dir: Path,
        listeners: Callable[[], Mapping[Side, ListenerMap]] = dict[Side, ListenerMap],
    ) -> None:
        """`listeners` returns the maps that are kept with a route."""
        self._path = state_dir / "last.json"
        self._listeners = listeners

    def write(self, plan: Plan, route: Route) -> None:
        """Replace the file. Only logs what fails."""
        last = {
            "plan": plan.model_dump(mode="json"),
            "route": route.model_dump(mode="json"),
            "masters": known_masters(plan),
            "listeners": {
                str(side): known.model_dump(mode="json")
                for side, known in self._listeners().items()
            },
        }
        try:
            write_private(self._path, orjson.dumps(last))
        except OSError as exc:
            log.warning("the last route could not be kept in %s: %s", self._path, exc)

    def read(self) -> tuple[Plan, Route] | None:
        """Return what the file holds, or None."""
        if not self._path.exists():
            return None
        last = orjson.loads(self._path.read_bytes())
        plan = Plan.model_validate(last["plan"])
        seed_masters(plan, last.get("masters", {}))
        return plan, Route.model_validate(last["route"])

    def listener_maps(self) -> dict[Side, ListenerMap]:
        """Return the maps that the file holds: which listener stands for which node."""
        if not self._path.exists():
            return {}
        kept = orjson.loads(self._path.read_bytes()).get("listeners", {})
        return {Side(side): ListenerMap.model_validate(each) for side, each in kept.items()}

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


async def start_state(store: ControlStore, state_dir: Path) -> tuple[Plan, Route]:
    """Return plan and route from the store, or the last ones while it is away.

    Raises:
        ExodusError: the store is away and there are none, or no such migration is registered.
    """
    try:
        return await store.plan(), await read_route(store)
    except STORE_ERRORS:
        last = LastRoute(state_dir).read()
        if last is None:
            raise
        log.warning("the control store is away: starting with the last known plan and route")
        return last
