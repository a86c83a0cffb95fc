"""Compare: are divergence and compatibility findings resolved? The source answers applications; a sample is asked of the target too."""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.config import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.comparison import list_divergences, remove_sample, shadow
from tasks.decision import PhaseDecision, ask, close_phase
from tasks.evidence import artifact_key, evaluate
from tasks.ledger import open_phase

PHASE = Phase.COMPARE


@phase_flow(PHASE)
def compare(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Shadow the plan's sample of keys for `seconds` and compare replies and states."""
    open_phase(migration, PHASE)
    found = shadow(migration, seconds)
    divergences = list_divergences(migration)
    removed = remove_sample(migration)
    if divergences:
        create_table_artifact(key=artifact_key(migration, PHASE, "divergences"), table=divergences, description="what differs, and why")
    convergence = found["convergence"]
    checks = [
        {"check": "sampled writes converge on the target", "ok": not convergence["differ"], "detail": f"{convergence['sampled_keys']} keys"},
        {"check": "no divergence is open", "ok": not divergences, "detail": ", ".join(row["key"] for row in divergences[:5])},
    ]
    compared = sum(row["compared"] for row in found["rows"])
    summary = {"replies_compared": compared, "sampled_keys": convergence["sampled_keys"], "divergences": len(divergences), "sample_removed": removed}
    evaluate(migration, PHASE, {"comparison": found["rows"], "checks": checks}, summary)
    decision = ask(
        PhaseDecision,
        migration=migration,
        phase=PHASE,
        gate="divergence",
        question="Are divergence and compatibility findings resolved?",
        summary=[
            f"{compared:,} replies of {len(found['rows'])} commands compared, {len(divergences)} divergences",
            f"{convergence['sampled_keys']:,} sampled keys converge",
        ],
        evidence=f"evidence.{PHASE}",
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
