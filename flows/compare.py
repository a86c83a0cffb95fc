"""Compare: are divergence and compatibility findings resolved?

A sample of requests is tried on the target.
"""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from exodus.shadow.findings import findings, kept, of_checks, setup_lines, summary_lines
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.capacity import check_setup
from tasks.comparison import (
    accept_findings,
    list_divergences,
    no_row,
    remove_sample,
    shadow,
    why_findings_stand,
)
from tasks.decision import ask, close_phase, compare_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase

PHASE = Phase.COMPARE


@phase_flow(PHASE)
def compare(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Try requests of sampled keys on the target for `seconds`; compare replies and states."""
    open_phase(migration, PHASE)
    found = shadow(migration, seconds)
    divergences = list_divergences(migration)
    removed = remove_sample(migration)
    convergence, figures = found["convergence"], found["figures"]
    setup = check_setup(migration)
    open_findings = [
        *findings(found["rows"], divergences, found["other_states"]),
        *of_checks(setup),
    ]
    rows = found["rows"] or [no_row()]
    summary = {
        "replies_compared": sum(row["compared"] for row in rows),
        "replies_inconclusive": sum(row["inconclusive"] for row in rows),
        "samples_dropped": found["dropped"],
        "sampled_keys": convergence["sampled_keys"],
        "keys_inconclusive": len(convergence["inconclusive"]),
        "equivalence": found["bound"],
        "findings": len(open_findings),
        "sample_removed": removed,
        **{name: value for name, value in figures.items() if not isinstance(value, dict)},
    }
    lists = {
        "coverage": found["coverage"],
        **kept(open_findings, divergences),
        "inconclusive": convergence["inconclusive"],
        "dirty": found["series"],
        "comparisons": found["runs"],
    }
    frames = {"comparison": rows, **({"advice": setup} if setup else {})}
    evaluate(migration, PHASE, frames, summary, lists)
    decision = ask(
        compare_form(findings=bool(open_findings)),
        migration=migration,
        phase=PHASE,
        gate="divergence",
        question="Are divergence and compatibility findings resolved?",
        summary=[*summary_lines(found, summary, open_findings), *setup_lines(setup)],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, attempt: (
            why_findings_stand(migration, open_findings, answer.get("accept_findings", ""), attempt)
            if answer["decision"] == "approve" and open_findings
            else None
        ),
    )
    if decision["verdict"] == "approve" and open_findings:
        accept_findings(
            migration, decision["facts"].get("accept_findings", ""), decision["decided_by"]
        )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
