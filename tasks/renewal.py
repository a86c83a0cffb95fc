"""Renew evidence between decisions, if the migration allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

from prefect.runtime import flow_run

from exodus.acceptance import trial_copy
from exodus.backfill import runs
from exodus.control import ledger, steps
from exodus.control.phase_order import check_may_begin
from exodus.control.phases import PhaseState, PhaseStatus
from exodus.control.route import Route, read_route
from exodus.control.turn import SAMPLING
from exodus.errors import DecisionRefused, EvidenceFailed
from exodus.plan.bounds import TASKS_COMPARISON_SAMPLE_S_MAX
from exodus.plan.vocabulary import Phase, Side
from tasks.artifacts import create_table_artifact
from tasks.comparison import no_row, remove_sample, shadow
from tasks.context import Json, Opened, live_task, opens_migration, plan_of
from tasks.cutover import rehearse_switch
from tasks.evidence import artifact_key
from tasks.live_sync import verify_all
from tasks.profile import learn_workload
from tasks.runs import is_open
from tasks.sizing import remember_size
from tasks.turn import phase_turn

Kind = Literal["workload", "sample", "comparison", "rehearsal", "drift"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RENEW = "renew"


@contextmanager
def renewal_turn(migration: str, kind: Kind) -> Iterator[None]:
    """Keep phases from beginning while a sample is compared; other kinds do not disturb them.

    At the end the kept results of the run expire: nobody resumes it.
    """
    try:
        with phase_turn(migration, SAMPLING) if kind == "sample" else nullcontext():
            yield
    finally:
        end_steps(migration, flow_run.get_id() or "")


@live_task(name="Let the results of steps expire")
@opens_migration
async def end_steps(it: Opened, run_id: str) -> None:
    """Let the kept results of a run expire."""
    await steps.end(it.store, run_id)


@live_task(name="Check that evidence may be renewed")
@opens_migration
async def why_not_now(it: Opened, kind: Kind) -> str | None:
    """Return why this kind cannot be renewed now, or None."""
    if ledger.ending(await ledger.read(it.store)) is not None:
        return "the migration is done"
    phases, route = await it.store.phases(), await read_route(it.store)
    if kind == "sample":
        return await _why_no_sample(it, phases)
    running = [name for name, state in phases.items() if state.state is PhaseStatus.RUNNING]
    return f"{running[0]} is running" if running else _why_not_by_route(kind, route)


async def _why_no_sample(it: Opened, phases: dict[str, PhaseState]) -> str | None:
    """Return why no sample may be compared now, or None: Compare may begin, was decided before, and
    the target has no keys of the migration yet.
    """
    for name, state in phases.items():
        if await asyncio.to_thread(is_open, state):
            return f"{name} is {state.state}"
    try:
        await check_may_begin(it.store, it.plan, Phase.COMPARE)
    except DecisionRefused as exc:
        return exc.what
    if ledger.last_decision(await ledger.read(it.store), Phase.COMPARE) is None:
        return "compare was not decided yet, and takes the first sample"
    if await runs.current(it.store) is not None:
        return "migrate has begun: renew comparison"
    return await trial_copy.why_not_now(it.store)


def _why_not_by_route(kind: Kind, route: Route) -> str | None:
    if kind == "rehearsal" and route.native:
        return "the target is the source's replica"
    if kind == "rehearsal" and route.authority is not Side.SOURCE:
        return "the target is the authority"
    if kind in ("comparison", "drift") and not route.sync:
        return "live sync is off, so the sides need not be equal"
    if kind == "comparison" and route.authority is not Side.SOURCE:
        return "the target is the authority: renew drift"
    if kind == "drift" and route.authority is not Side.TARGET:
        return "the source is the authority: renew comparison"
    return None


def renew_one(migration: str, kind: Kind, seconds: float | None) -> str:
    """Renew the evidence of one kind and return the result in words. Call it from a flow.

    Raises:
        EvidenceFailed: the result is bad.
    """
    run_id = flow_run.get_id()
    if kind == "sample":
        return _sampled(migration, seconds)
    if kind == "workload":
        found = learn_workload(migration, seconds)
        rows = [{"command": row["command"], "calls": row["calls"]} for row in found["commands"]]
        _show(migration, kind, rows or [{"command": "none", "calls": 0}])
        if found["changes"]:
            _show(migration, "changes", found["changes"])
        return renewed_line(found, remember_size(migration))
    if kind == "rehearsal":
        found = rehearse_switch(migration)
        _show(migration, kind, found["switches"])
        if not found["ok"]:
            raise EvidenceFailed(
                "the rehearsal failed",
                why=found["why"],
                next_step="read the gateways' logs; a cutover is refused until a rehearsal "
                "succeeds",
            )
        text = f"{found['acknowledged_writes']:,} writes, 0 lost"
        return f"{text}, longest stall {found['stall_ms_max']} ms"
    found = verify_all(migration, kind)
    text = f"{found['keys_verified']:,} keys verified, {found['divergences_total']} divergences"
    _show(migration, kind, found["divergences"] or [{"found": text}])
    if found["divergences_total"]:
        raise EvidenceFailed(
            f"{kind}: the sides differ in {found['divergences_total']} keys",
            why=f"{text} (run {run_id})",
            next_step="exodus verify lists them; exodus repair copies them again",
        )
    return text


def _sampled(migration: str, seconds: float | None) -> str:
    """Compare a sample, as Compare does, and remove it. Its keys count for the next bound."""
    wanted = seconds or plan_of(migration).observe_seconds
    try:
        found = shadow(migration, min(wanted, TASKS_COMPARISON_SAMPLE_S_MAX))
    finally:
        remove_sample(migration)
    _show(migration, "sample", found["rows"] or [no_row()])
    return (
        f"{found['bound']} ({len(found['runs'])} runs); "
        f"{found['figures']['divergences_open']:,} open divergences"
    )


def renewed_line(found: Json, size: Json) -> str:
    """Return in words what a look at the workload found, and what changed since the last one."""
    day = size["growth_bytes_a_day"]
    return (
        f"{found['requests_per_s']:,} requests/s, {len(found['commands'])} commands, "
        # The first change is the rate's
        f"changes since the last look: {max(0, len(found['changes']) - 1)}"
        + ("" if day is None else f"; the source grows by {day:,} bytes a day")
    )


def _show(migration: str, kind: str, rows: list[dict[str, object]]) -> None:
    create_table_artifact(
        key=artifact_key(migration, RENEW, kind), table=rows, description=f"Renewed: {kind}"
    )
