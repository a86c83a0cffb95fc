"""Pre-test: can Exodus observe representative traffic safely? Applications still use the source."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.checks import any_fatal, frames, open_findings, summary_lines, why_not_accepted
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, exercise_target, fingerprint_source, unchanged
from tasks.proofs import judge_candidates, judge_copy, judge_followed, judge_mix
from tasks.trials import rank_candidates, try_mix
from tasks.watching import expire_captures, follow_event, watch_copy

PHASE = Phase.PRE_TEST


@phase_flow(PHASE)
def pre_test(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Watch a copy of the traffic for `seconds` and exercise the target. Change nothing."""
    began = open_phase(migration, PHASE)
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    expired = expire_captures(migration)
    before = fingerprint_source(migration)
    watched = watch_copy(migration, seconds, began["plan"])
    followed = follow_event(migration, watched)
    exercises = exercise_target(migration)
    tried = try_mix(migration)
    candidates = rank_candidates(migration, tried)
    production = unchanged(migration, before, watched["cost"])
    checks = [
        *judge_copy(watched),
        *judge_followed(followed),
        *sides,
        *exercises,
        *judge_mix(tried),
        *judge_candidates(candidates),
        *production,
    ]
    summary = {
        key: watched[key]
        for key in ("source", "seconds", "requests", "requests_per_s", "writes", "clients")
    }
    lists = {
        "patterns": watched["patterns"],
        "rates": watched["rates"],
        "seen-of-executed": watched["reconciled"],
        "followed": followed,
        "clients-not-in-the-copy": (
            watched["unseen_clients"] if isinstance(watched["unseen_clients"], list) else []
        ),
        "monitor-cost": [watched["cost"]] if watched["cost"] else [],
        "trial": tried.get("steps", []),
        "candidates": candidates,
        "remarks": [{"remark": text} for text in watched["remarks"]],
        "deleted-captures": [{"file": name} for name in expired],
    }
    seen = {"observed": watched["commands"], "keyspace": watched["keyspace"]}
    shown = {**frames(checks), **{name: rows for name, rows in seen.items() if rows}}
    evaluate(migration, PHASE, shown, summary, lists)
    decision = ask(
        findings_form(findings=bool(open_findings(checks))),
        migration=migration,
        phase=PHASE,
        gate="observe",
        question="Can Exodus observe representative traffic safely?",
        summary=[
            f"{watched['requests']:,} requests of {watched['clients']} clients in "
            f"{watched['seconds']:.0f} s, by {watched['source']}",
            *summary_lines(checks),
            *watched["remarks"],
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(checks, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
