"""Test: is execution approved? Exercise the target and rehearse the switch there and back."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, MigrationName, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.beside import compare_beside
from tasks.cutover import rehearse_switch
from tasks.decision import ask, close_phase, phase_form
from tasks.evidence import artifact_key, evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target

PHASE = Phase.TEST


@phase_flow(PHASE)
def test(migration: MigrationName = MIGRATION) -> State[str]:
    """Exercise the target and rehearse the switch with keys of the rehearsal prefix."""
    open_phase(migration, PHASE)
    findings = check_sides(migration)
    beside = compare_beside(migration, PHASE)
    smoke = exercise_target(migration)
    rehearsal = rehearse_switch(migration)
    create_table_artifact(
        key=artifact_key(migration, PHASE, "rehearsal"),
        table=rehearsal["switches"],
        description="Switches of the rehearsal",
    )
    checks = [
        *(
            {"check": row["check"], "ok": row["severity"] != "fatal", "detail": row["what"]}
            for row in findings
        ),
        *smoke,
        {
            "check": "the rehearsal lost no write",
            "ok": rehearsal["lost_writes"] == 0,
            "detail": f"{rehearsal['acknowledged_writes']} acknowledged",
        },
        {
            "check": "the rehearsal met no error",
            "ok": rehearsal["error_count"] == 0,
            "detail": "; ".join(rehearsal["errors"][:3]),
        },
        {
            "check": "the rehearsal went there and back",
            "ok": len(rehearsal["switches"]) == 2,
            "detail": "",
        },
        {
            "check": "the rehearsal was under writes",
            "ok": rehearsal["acknowledged_writes"] > 0,
            "detail": "",
        },
    ]
    summary = {
        "checks": len(checks),
        "rehearsal_stall_ms_max": rehearsal["stall_ms_max"],
        "rehearsal_writes": rehearsal["acknowledged_writes"],
    }
    evaluate(migration, PHASE, {"checks": checks}, summary)
    decision = ask(
        phase_form(),
        migration=migration,
        phase=PHASE,
        gate="execute",
        question="Is execution approved?",
        summary=[
            f"{len(checks)} checks passed",
            "rehearsed there and back under writes: 0 of "
            f"{rehearsal['acknowledged_writes']:,} lost, longest stall "
            f"{rehearsal['stall_ms_max']} ms",
            *beside,
        ],
        evidence=f"evidence.{PHASE}",
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
