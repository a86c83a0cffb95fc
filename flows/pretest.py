"""Pre-test: can Exodus observe representative traffic safely? Applications still use the source."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.checks import any_fatal, check, frames, open_findings, summary_lines, why_not_accepted
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target, fingerprint_source, unchanged
from tasks.profile import capture_traffic

PHASE = Phase.PRE_TEST


@phase_flow(PHASE)
def pre_test(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Watch a copy of the traffic for `seconds` and exercise the target. Change nothing."""
    open_phase(migration, PHASE)
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    before = fingerprint_source(migration)
    profile = capture_traffic(migration, seconds)
    exercises = exercise_target(migration)
    production = unchanged(migration, before)
    checks = [
        check(
            "the copy has requests of applications",
            profile["on_keys"] > 0,
            f"{profile['on_keys']} of {profile['requests']} requests name an application's key",
            why="Exodus's own requests do not count",
            next_step="watch for longer (--seconds), while the applications work",
        ),
        check(
            "every request could be parsed",
            profile["unreadable"] == 0,
            f"{profile['unreadable']} unreadable",
        ),
        *sides,
        *exercises,
        *production,
    ]
    summary = {
        key: profile[key] for key in ("seconds", "requests", "requests_per_s", "writes", "clients")
    }
    evaluate(migration, PHASE, frames(checks), summary)
    decision = ask(
        findings_form(findings=bool(open_findings(checks))),
        migration=migration,
        phase=PHASE,
        gate="observe",
        question="Can Exodus observe representative traffic safely?",
        summary=[
            f"{profile['requests']:,} requests of {profile['clients']} clients in "
            f"{profile['seconds']:.0f} s, all parsed",
            *summary_lines(checks),
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(checks, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
