"""What a person can do to a switch at any moment: postpone it, let it continue, abort it.

The state is in the control store, so the command line, the UI's flows, and a switch on another host
see the same.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from redis.exceptions import RedisError

from exodus.control.ledger import BACK, CUTOVER
from exodus.control.phases import PhaseStatus
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.cutover.fence import read_record
from exodus.cutover.settle import settle, unfinished
from exodus.errors import CutoverAborted
from exodus.net.client import answered
from exodus.plan.bounds import LEVERS_ABORT_S, LEVERS_KEEP_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Phase

FAILED = "switch.failed"
NOW = "switch.now"  # report: the step that a switch is at, and what it waits for


async def postpone(store: ControlStore, *, by: str, why: str) -> None:
    """Keep a switch ready, and do not let it hold writes."""
    said = {"by": by, "why": why, "at_ms": await store.now_ms()}
    await answered(store.client.set(store.keys.postponed, orjson.dumps(said)))


async def postponed(store: ControlStore) -> str | None:
    """Return who postpones the switch, and why; None where nobody does."""
    raw = await answered(store.client.get(store.keys.postponed))
    if raw is None:
        return None
    said = orjson.loads(raw)
    return f"postponed by {said['by']}: {said['why']}"


async def give_up(store: ControlStore, plan: Plan, why: str) -> Route:
    """End a switch at its present step: undo it before the authority changed, finish it after.
    Writes go on.
    """
    await answered(store.client.set(store.keys.abort, why, ex=LEVERS_ABORT_S))
    return await end_hold(store, plan, f"aborted: {why}")


async def end_hold(store: ControlStore, plan: Plan, why: str) -> Route:
    """Let writes go on where the route says, and put right what is left of a switch that ended
    early.

    Raises:
        DecisionRefused: the route was changed at this very moment; look at it and say it again.
    """
    route = await read_route(store)
    if route.hold is Hold.WRITES:
        route = await change_route(
            store,
            route,
            route.next(hold=Hold.NONE, writer_epoch=route.writer_epoch + int(route.sync), why=why),
        )
    await settle(store, plan)
    return await read_route(store)


async def release_hold(store: ControlStore, plan: Plan, why: str) -> Route:
    """Postpone no longer; where no switch is under way, also end a hold that was left."""
    was_postponed = bool(await answered(store.client.delete(store.keys.postponed)))
    route = await read_route(store)
    if was_postponed and not unfinished(route):
        return route
    return await end_hold(store, plan, f"released: {why}")


async def check_aborted(store: ControlStore) -> None:
    """Raise where a person gave the switch up.

    Raises:
        CutoverAborted: with what they said.
    """
    why = await answered(store.client.get(store.keys.abort))
    if why:
        raise CutoverAborted(
            "the switch was called off",
            why=f"exodus abort: {why.decode()}",
            next_step="start the phase again when ready",
        )


async def say(store: ControlStore, step: str, waits_for: str = "") -> None:
    """Tell `exodus status` where a switch is. Never what a switch fails for."""
    try:
        await store.save_report(
            NOW, {"step": step, "waits_for": waits_for, "at_ms": await store.now_ms()}
        )
    except (RedisError, OSError):
        return  # the next step that needs the store says so itself


async def over(store: ControlStore) -> None:
    """Say that no switch is under way any more. Never what a switch fails for; a word that stays is
    of one that died.
    """
    try:
        async with asyncio.timeout(LEVERS_KEEP_S):
            await answered(store.client.delete(store.keys.report(NOW)))
    except (RedisError, OSError):
        return  # `under_way` then takes it for one that is to be settled, and that does no harm


async def under_way(store: ControlStore) -> bool:
    """Return whether a switch was approved and has not ended, or one that died has left
    something.
    """
    route = await read_route(store)
    if route.hold is Hold.WRITES or unfinished(route) or await store.report(NOW) is not None:
        return True
    if await read_record(store, route.authority) is not None:
        return True
    phases = await store.phases()
    decided = {Phase.COMMIT: CUTOVER, Phase.ROLLBACK: BACK}
    return any(
        (state.state, state.gate, state.decision) == (PhaseStatus.RUNNING, gate, "approve")
        for phase, gate in decided.items()
        if (state := phases.get(phase)) is not None
    )


async def keep_failed(store: ControlStore, switch: str, found: dict[str, Any]) -> None:
    """Keep how far a switch came that was not done, as report `switch.failed.ID` and, the newest,
    `switch.failed`. Hides no failure.
    """
    try:
        async with asyncio.timeout(LEVERS_KEEP_S):
            for name in (f"{FAILED}.{switch}", FAILED):
                await store.save_report(name, {**found, "switch": switch})
    except (RedisError, OSError):
        return  # what it failed for is told in any case
