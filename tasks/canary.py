"""Canary reads before a cutover: each step is a decision, or follows within the limits."""

from __future__ import annotations

import asyncio
import time

from exodus.control.ledger import CANARY
from exodus.control.route import read_route
from exodus.cutover import canary_share
from exodus.errors import CutoverAborted
from exodus.plan.bounds import TASKS_CANARY_LOOK_S
from exodus.plan.settings import CanaryPlan
from tasks.artifacts import create_table_artifact
from tasks.context import Json, Opened, opens_migration
from tasks.decision import ask, phase_form
from tasks.evidence import artifact_key
from tasks.kept import kept_task


@kept_task("Canary reads", run_name="Canary reads of {percent} % of the keys")
@opens_migration
async def observe_canary(it: Opened, phase: str, percent: int, why: str) -> Json:
    """Set a share, watch it for the plan's time, and return its counts.

    `returned` is the reason for its end, or None.
    """
    returned = None
    try:
        route = await canary_share.set_canary(it.store, it.plan, percent, why=why)
    except CutoverAborted as exc:
        returned = f"{exc.what}: {exc.why}"
    else:
        until = time.monotonic() + it.plan.canary.seconds
        while time.monotonic() < until and returned is None:
            await asyncio.sleep(TASKS_CANARY_LOOK_S)
            now = await read_route(it.store)
            if now.canary != route.canary:
                returned = now.why
    found = await canary_share.read_canary(it.store)
    row = {
        "percent": percent,
        "returned": returned,
        "text": canary_share.text_of(found),
        **found["reads"],
        "answer_ms_p99": found["answer_ms_p99"],
    }
    kept = await it.store.report(canary_share.REPORT) or {"steps": []}
    await it.store.save_report(
        canary_share.REPORT,
        {
            "steps": [
                *kept["steps"],
                {**row, "phase": phase, "at_ms": await it.store.now_ms()},
            ]
        },
    )
    return row


@kept_task("End canary reads")
@opens_migration
async def end_canary(it: Opened, why: str) -> None:
    """Send reads to the authority only."""
    await canary_share.set_canary(it.store, it.plan, 0, why=why)


def try_canary(migration: str, phase: str, limits: CanaryPlan) -> list[str]:
    """Run the plan's steps, end the canary, and return lines for the next decision.

    Call it from a flow, because it asks decisions. A rejection ends the canary, not the phase: the
    decision whether to cut over follows.
    """
    rows: list[Json] = []
    for percent in limits.steps:
        gate = f"{CANARY}{percent}"
        if not rows or limits.advance == "manual":
            decision = ask(
                phase_form(
                    "approve: start these canary reads; reject: end them, and the cutover "
                    "is asked for"
                ),
                migration=migration,
                phase=phase,
                gate=gate,
                question=f"Should reads of {percent} % of the keys also go to the target?",
                summary=[
                    f"{rows[-1]['percent']} %: {rows[-1]['text']}"
                    if rows
                    else "clients always get a correct answer, and wait for the target at "
                    f"most {limits.wait_ms_max:g} ms",
                    "reject ends the canary; the decision whether to cut over follows",
                ],
                evidence=canary_share.REPORT,
            )
            if decision["verdict"] != "approve":
                break
        rows.append(observe_canary(migration, phase, percent, gate))
        if rows[-1]["returned"] is not None:
            break
    if rows:
        end_canary(migration, "the canary's steps have ended")
        create_table_artifact(
            key=artifact_key(migration, phase, "canary"),
            table=rows,
            description="Canary reads by step",
        )
    last = rows[-1] if rows else None
    return (
        []
        if last is None
        else [
            f"canary reads, {last['percent']} %: {last['text']}"
            + (f"; RETURNED: {last['returned']}" if last["returned"] else "")
        ]
    )
