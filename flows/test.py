"""Test: is execution approved? The gate before Migrate: checks of the target, and a rehearsal."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, MigrationName, phase_flow
from tasks.acceptance import (
    check_business,
    check_commands,
    check_data,
    check_delivery,
    check_failures,
    check_latency,
    check_load,
    check_logins,
    check_replicas,
    check_settings,
    read_tables,
    rehearse_rounds,
    remove_trial_copy,
)
from tasks.beside import compare_beside
from tasks.checks import any_fatal, frames, open_findings, summary_lines, why_not_accepted
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target

PHASE = Phase.TEST


@phase_flow(PHASE)
def test(migration: MigrationName = MIGRATION) -> State[str]:
    """Try on the target what applications will do there, and rehearse the switch."""
    open_phase(migration, PHASE)
    remove_trial_copy(migration, "before")
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    beside = compare_beside(migration, PHASE)
    rows = [
        *sides,
        *exercise_target(migration),
        *check_logins(migration),
        *check_commands(migration),
        *check_delivery(migration),
        *check_settings(migration),
        *check_replicas(migration),
        *check_latency(migration),
        *check_load(migration),
        *check_data(migration),
        *check_business(migration),
        *check_failures(migration),
        *rehearse_rounds(migration),
    ]
    remove_trial_copy(migration, "after")
    tables = read_tables(migration)
    summary = {
        "checks": len(rows),
        "required_failing": sum(not row["ok"] and row["level"] == "must" for row in rows),
        "findings": len(open_findings(rows)),
    }
    evaluate(migration, PHASE, {"gate": rows}, summary, tables)
    decision = ask(
        findings_form(findings=bool(open_findings(rows))),
        migration=migration,
        phase=PHASE,
        gate="execute",
        question="Is execution approved?",
        summary=[*summary_lines(rows), *beside],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(rows, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
