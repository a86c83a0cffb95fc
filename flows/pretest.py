"""Pre-test: can Exodus observe representative traffic safely? Applications still use the source."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.decision import ask, close_phase, phase_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target, fingerprint_source, unchanged
from tasks.profile import capture_traffic

PHASE = Phase.PRE_TEST


@phase_flow(PHASE)
def pre_test(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Watch a copy of the traffic for `seconds` and exercise the target. Change nothing."""
    open_phase(migration, PHASE)
    findings = check_sides(migration)
    before = fingerprint_source(migration)
    profile = capture_traffic(migration, seconds)
    exercises = exercise_target(migration)
    production = unchanged(migration, before)
    checks = [
        {
            "check": "the traffic copy works",
            "ok": profile["requests"] > 0,
            "detail": f"{profile['requests']} requests",
        },
        {
            "check": "every request could be parsed",
            "ok": profile["unreadable"] == 0,
            "detail": f"{profile['unreadable']} unreadable",
        },
        {
            "check": "observability received the events",
            "ok": bool(profile["commands"]),
            "detail": f"{len(profile['commands'])} commands",
        },
        *(
            {"check": row["check"], "ok": row["severity"] != "fatal", "detail": row["what"]}
            for row in findings
        ),
        *exercises,
        *production,
    ]
    summary = {
        key: profile[key] for key in ("seconds", "requests", "requests_per_s", "writes", "clients")
    }
    evaluate(migration, PHASE, {"checks": checks}, summary)
    decision = ask(
        phase_form(),
        migration=migration,
        phase=PHASE,
        gate="observe",
        question="Can Exodus observe representative traffic safely?",
        summary=[
            f"{profile['requests']:,} requests of {profile['clients']} clients in "
            f"{profile['seconds']:.0f} s, all parsed",
            f"{len(checks)} checks passed",
        ],
        evidence=f"evidence.{PHASE}",
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
