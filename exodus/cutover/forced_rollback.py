"""The way back to the source while the target is dead. Nothing can be drained.

Writes at the target that had not flowed back stay there. A person sees them key by key before they
decide (`collect.dirty_keys`). Afterwards the journal and live sync are off, so nothing overwrites
what only the target has.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import read_write_grants, regain_write_grants
from exodus.cutover.fence_cluster import fence_for
from exodus.cutover.settle import closed, settle
from exodus.errors import DecisionRefused, ExodusError
from exodus.plan.bounds import CONNECT_TIMEOUT_S, FORCED_ROLLBACK_BETWEEN_S, FORCED_ROLLBACK_TRIES
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, JournalMode, Side
from exodus.topology.endpoint import Endpoint

STEPS = [
    "1. end every syncer's right to write to the source",
    "2. lift the fence on the source",
    "3. make the source the authority; gateways take their sessions there, without what had not "
    "flowed back",
    "4. journal and live sync off; what stayed at the target is listed key by key",
]


async def why_dead(plan: Plan, side: Side) -> str | None:
    """Return why a side must be taken for dead, or None where it answers at one of several
    tries.
    """
    why = ""
    for attempt in range(FORCED_ROLLBACK_TRIES):
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                async with await Endpoint(side, plan.address(side)).connect(
                    name="exodus-alive"
                ) as leg:
                    await leg.call("PING")
                    return None
        except (ExodusError, OSError, TimeoutError) as exc:
            why = exc.why if isinstance(exc, ExodusError) else str(exc) or "no answer"
        if attempt < FORCED_ROLLBACK_TRIES - 1:
            await asyncio.sleep(FORCED_ROLLBACK_BETWEEN_S)
    return f"{plan.address(side).url} did not answer {FORCED_ROLLBACK_TRIES} times: {why}"


async def force_back(store: ControlStore, plan: Plan) -> dict[str, Any]:
    """Make the source the authority although the target cannot be asked.

    Raises:
        DecisionRefused: the target answers, or the source is the authority already; nothing was
            changed.
    """
    route = await read_route(store)
    if route.authority is Side.SOURCE:
        raise DecisionRefused(
            "the source is the authority already",
            why=f"epoch {route.epoch}",
            next_step="exodus status",
        )
    dead = await why_dead(plan, Side.TARGET)
    if dead is None:
        raise DecisionRefused(
            "the target answers",
            why="a rollback that drains loses nothing",
            next_step="start the rollback again: it takes the ordinary way",
        )
    switch = secrets.token_hex(6)
    source = Endpoint(Side.SOURCE, plan.source)
    rights = await read_write_grants(source, plan.name)
    async with fence_for(store, Side.SOURCE, plan) as fence:
        await fence.suspend()
        # First, so that no syncer that still carries an old state of the target overwrites a write
        # that is about to be made.
        if not await regain_write_grants(source, plan.name, rights, closed(switch)):
            raise DecisionRefused(
                "the writers' epoch on the source was changed",
                why="another switch is under way",
                next_step="exodus status",
            )
        record = await fence.record()
        if record is not None:
            await fence.open(record)
    route = await change_route(
        store,
        route,
        route.next(
            authority=Side.SOURCE,
            hold=Hold.NONE,
            sync=False,
            canary=0.0,
            journal=JournalMode.OFF,
            writer_epoch=route.writer_epoch + 1,
            switch=switch,
            why="forced back: the target is dead",
        ),
    )
    # The dead side is left as it is
    left = [what for what in await settle(store, plan) if Side.TARGET not in what]
    return {"epoch": route.epoch, "target": dead, "not_settled": left}
