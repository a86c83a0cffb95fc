"""Setting the share of canary reads, and collecting their outcomes from all gateways.
`exodus/gateway/canary_reads.py` has the rule.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from exodus.control import registry
from exodus.control.freshness import last_pass
from exodus.control.heartbeats import GatewayHeartbeat
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.errors import CutoverAborted, DecisionRefused, OperatorError
from exodus.plan.bounds import CANARY_FOLLOW_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side

REPORT = "canary"  # report: the last steps and what became of them
Json = dict[str, Any]


async def set_canary(store: ControlStore, plan: Plan, percent: float, *, why: str) -> Route:
    """Ask the follower for the reads of `percent` of the key hashes, in every gateway; 0 ends it.
    Waits until every gateway does so.

    Raises:
        OperatorError: it is no percentage.
        DecisionRefused: there is nothing that could be read there, or the route was changed at this
            very moment; nothing was changed.
        CutoverAborted: a gateway did not follow, or gave the canary up at once.
    """
    if not 0 <= percent <= 100:
        raise OperatorError(
            f"canary: {percent} is no percentage",
            why="a share of the keys is from 0 to 100 %",
            next_step="exodus canary 5 --why …",
        )
    route, share = await read_route(store), percent / 100
    if percent:
        await _check(store, plan, route)
    elif not route.canary:
        return route
    route = await change_route(
        store,
        route,
        route.next(canary=share, why=f"canary reads of {percent:g} % of the keys: {why}"),
    )

    def follows(beat: GatewayHeartbeat) -> bool:
        return beat.epoch > route.epoch or (
            beat.epoch == route.epoch and (beat.facts.canary.share == share)
        )

    await registry.wait_for_gateways(
        store,
        follows,
        within_s=CANARY_FOLLOW_S,
        otherwise="a gateway does not follow the canary's share",
    )
    now = await read_route(store)
    if now.canary != share:
        raise CutoverAborted(
            "canary reads were given up at once",
            why=now.why,
            next_step="see that the target answers the gateways, then try again",
        )
    return route


async def _check(store: ControlStore, plan: Plan, route: Route) -> None:
    """Return whether the target can be read at all; that each single read is no older than the
    authority's is the gateways' part.
    """
    problem = None
    if route.authority is not Side.SOURCE:
        problem = "the target is the authority already", "exodus status"
    elif not route.sync or await last_pass(store) is None:
        problem = (
            "live sync is not on, or nothing was verified on the target yet",
            "run the migrate phase first: exodus start migrate",
        )
    elif route.hold is not Hold.NONE:
        problem = "a switch holds writes", "wait for it: exodus status"
    elif plan.filters or plan.renames:
        problem = (
            "filters and renames: what is left out or has another name on the target would differ "
            "each time",
            "leave the canary away",
        )
    if problem is not None:
        raise DecisionRefused("canary reads may not begin", why=problem[0], next_step=problem[1])


async def end_canary(store: ControlStore, route: Route, why: str) -> Route:
    """Return the share is 0 from now on; gateways follow. The route as it is then.

    Raises:
        DecisionRefused: somebody else changed the route meanwhile, and not to end it.
    """
    if not route.canary:
        return route
    try:
        return await change_route(store, route, route.next(canary=0.0, why=why))
    except DecisionRefused:
        now = await read_route(store)
        if now.canary:
            raise
        return now  # a gateway gave it up at this moment


async def read_canary(store: ControlStore) -> Json:
    """Return the outcomes of canary reads in all gateways since the share was chosen."""
    route = await read_route(store)
    counts: Counter[str] = Counter()
    gave_up: list[str] = []
    slowest = 0.0
    for beat in await registry.heartbeats(store, "gateway"):
        said = beat.facts.canary
        counts.update(said.reads)
        slowest = max(slowest, said.answer_ms_p99)
        if said.gave_up:
            gave_up.append(f"{beat.process}: {said.gave_up}")
    return {
        "percent": round(route.canary * 100, 3),
        "reads": dict(counts),
        "answer_ms_p99": slowest,
        "gave_up": gave_up,
    }


def text_of(found: Json) -> str:
    """Return the outcomes in one line."""
    total = sum(found["reads"].values())
    parts = [
        f"{name} {count / total * 100:.2f} %"
        for name, count in sorted(found["reads"].items(), key=lambda item: -item[1])
    ]
    said = (
        f"{total:,} reads ({', '.join(parts)}), the target's answer within "
        f"{found['answer_ms_p99']} ms (p99)"
        if total
        else "no reads"
    )
    return f"{said}; GIVEN UP: {'; '.join(found['gave_up'])}" if found["gave_up"] else said
