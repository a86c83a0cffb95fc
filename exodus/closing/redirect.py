"""Sending clients away from the gateways, one by one, once the way back is closed. They reconnect
to the place that their names resolve to.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson

from exodus.control import registry
from exodus.control.route import Redirect, Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused, OperatorError
from exodus.net.client import answered
from exodus.plan.bounds import REDIRECT_FOLLOW_S, REDIRECT_PER_S_MAX
from exodus.plan.vocabulary import Hold, JournalMode, Side

Json = dict[str, Any]


def finalised(route: Route) -> bool:
    """Return whether nothing needs the gateways any more: the target is the authority, and nothing
    flows back.
    """
    return (
        route.authority is Side.TARGET
        and not route.sync
        and route.journal is JournalMode.OFF
        and route.hold is Hold.NONE
    )


async def redirect(
    store: ControlStore, per_s: float, *, refuse_new: bool, busy: bool, why: str
) -> Route:
    """Let every gateway process end `per_s` connections a second, idle ones only unless `busy`; 0
    stops it. Waits until every gateway follows.

    Raises:
        OperatorError: it is no such pace.
        DecisionRefused: the gateways are needed still, or the route was changed at this very
            moment; nothing was changed.
        CutoverAborted: a gateway did not follow.
    """
    if not 0 <= per_s <= REDIRECT_PER_S_MAX:
        raise OperatorError(
            f"redirect: {per_s:g} connections a second cannot be",
            why=f"0 (stop) to {REDIRECT_PER_S_MAX} can",
            next_step="exodus redirect 2 --why …",
        )
    route = await read_route(store)
    if per_s and not finalised(route):
        raise DecisionRefused(
            "clients may not be sent away from the gateways",
            why="they are what the way back, or the migration itself, relies on until it is "
            "finalised",
            next_step="approve the second decision of Commit first: exodus start commit",
        )
    wanted = Redirect(per_s=per_s, refuse_new=refuse_new, busy=busy) if per_s else None
    if wanted != route.redirect:
        route = await change_route(
            store,
            route,
            route.next(redirect=wanted, why=f"redirect of clients at {per_s:g}/s: {why}"),
        )
    await registry.wait_for_gateways(
        store,
        lambda beat: beat.epoch >= route.epoch,
        within_s=REDIRECT_FOLLOW_S,
        otherwise="a gateway does not follow the route",
    )
    return route


async def who_is_connected(store: ControlStore) -> list[Json]:
    """Clients of all gateways by name, host and kind, most connections first; as of their last
    telemetry, half a second ago.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    for beat in await registry.heartbeats(store, "gateway"):
        raw = await answered(store.client.get(store.keys.telemetry(beat.process)))
        for row in orjson.loads(raw).get("clients", ()) if raw is not None else ():
            found[(row["name"], row["host"], row["kind"])] += row["connections"]
    return [
        {"name": name, "host": host, "kind": kind, "connections": count}
        for (name, host, kind), count in found.most_common()
    ]


async def read_redirect(store: ControlStore) -> Json:
    """Return how far it has come, over all gateways, and why it stopped by itself, where it did."""
    route = await read_route(store)
    closed: Counter[str] = Counter()
    came_back = left = 0
    stopped: list[str] = []
    for beat in await registry.heartbeats(store, "gateway"):
        said = beat.facts.redirect
        closed.update(said.closed)
        came_back += said.came_back
        left += beat.facts.connections
        if said.stopped:
            stopped.append(f"{beat.process}: {said.stopped}")
    orders = None if route.redirect is None else route.redirect.model_dump()
    return {
        "orders": orders,
        "closed": dict(closed),
        "came_back": came_back,
        "left": left,
        "stopped": stopped,
    }
