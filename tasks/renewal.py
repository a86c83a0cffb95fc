"""Renew evidence between decisions, if the migration allows it."""

from __future__ import annotations

from typing import Literal, get_args

from prefect.runtime import flow_run

from exodus.control import ledger
from exodus.control.phases import PhaseStatus
from exodus.control.route import read_route
from exodus.errors import EvidenceFailed
from exodus.plan.vocabulary import Side
from tasks.artifacts import create_table_artifact
from tasks.context import Json, Opened, live_task, opens_migration
from tasks.cutover import rehearse_switch
from tasks.evidence import artifact_key
from tasks.live_sync import verify_all
from tasks.profile import learn_workload
from tasks.sizing import remember_size

Kind = Literal["workload", "comparison", "rehearsal", "drift"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RENEW = "renew"


@live_task(name="Check that evidence may be renewed")
@opens_migration
async def why_not_now(it: Opened, kind: Kind) -> str | None:
    """Return why this kind cannot be renewed now, or None."""
    if ledger.ending(await ledger.read(it.store)) is not None:
        return "the migration is done"
    running = [
        name
        for name, state in (await it.store.phases()).items()
        if state.state is PhaseStatus.RUNNING
    ]
    if running:
        return f"{running[0]} is running"
    route = await read_route(it.store)
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
