"""Test: is execution approved? Exercise the target and rehearse the switch there and back."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, MigrationName, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.beside import compare_beside
from tasks.checks import any_fatal, check, frames, open_findings, summary_lines, why_not_accepted
from tasks.cutover import rehearse_switch
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import artifact_key, evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target

PHASE = Phase.TEST


@phase_flow(PHASE)
def test(migration: MigrationName = MIGRATION) -> State[str]:
    """Exercise the target and rehearse the switch with keys of the rehearsal prefix."""
    open_phase(migration, PHASE)
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    beside = compare_beside(migration, PHASE)
    smoke = exercise_target(migration)
    rehearsal = rehearse_switch(migration)
    create_table_artifact(
        key=artifact_key(migration, PHASE, "rehearsal"),
        table=rehearsal["switches"],
        description="Switches of the rehearsal",
    )
    checks = [
        *sides,
        *smoke,
        check(
            "the rehearsal lost no write",
            rehearsal["lost_writes"] == 0,
            f"{rehearsal['lost_writes']} of {rehearsal['acknowledged_writes']} lost",
        ),
        check(
            "the rehearsal met no error",
            rehearsal["error_count"] == 0,
            "; ".join(rehearsal["errors"][:3]),
        ),
        check(
            "the rehearsal was under writes",
            rehearsal["acknowledged_writes"] > 0,
            f"{rehearsal['acknowledged_writes']} acknowledged",
        ),
    ]
    summary = {
        "checks": len(checks),
        "rehearsal_stall_ms_max": rehearsal["stall_ms_max"],
        "rehearsal_writes": rehearsal["acknowledged_writes"],
    }
    evaluate(migration, PHASE, frames(checks), summary)
    decision = ask(
        findings_form(findings=bool(open_findings(checks))),
        migration=migration,
        phase=PHASE,
        gate="execute",
        question="Is execution approved?",
        summary=[
            *summary_lines(checks),
            f"rehearsed there and back under writes: {rehearsal['lost_writes']} of "
            f"{rehearsal['acknowledged_writes']:,} lost, longest stall "
            f"{rehearsal['stall_ms_max']} ms",
            *beside,
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(checks, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
