"""Compare: are divergence and compatibility findings resolved?

A sample of requests is tried on the target.
"""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from exodus.shadow.findings import FINDINGS_MAX, findings, why_not_accepted
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.comparison import list_divergences, no_row, remove_sample, shadow
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
    convergence = found["convergence"]
    open_findings = findings(found["rows"], convergence, divergences)
    rows = found["rows"] or [no_row()]
    compared = sum(row["compared"] for row in rows)
    checks = [
        {
            "check": "findings are few enough to review by name",
            "ok": len(open_findings) <= FINDINGS_MAX,
            "detail": f"{len(open_findings)} findings",
        },
    ]
    summary = {
        "replies_compared": compared,
        "sampled_keys": convergence["sampled_keys"],
        "replies_inconclusive": sum(row["inconclusive"] for row in rows),
        "samples_dropped": found["dropped"],
        "keys_inconclusive": len(convergence["inconclusive"]),
        "findings": len(open_findings),
        "sample_removed": removed,
    }
    lists = {
        "coverage": found["coverage"],
        "findings": open_findings,
        "inconclusive": convergence["inconclusive"],
    }
    evaluate(migration, PHASE, {"comparison": rows, "checks": checks}, summary, lists)
    lines = [
        f"{compared:,} replies of {len(found['rows'])} commands compared, {len(divergences)} "
        "divergences",
        f"{convergence['sampled_keys']:,} sampled keys: {len(convergence['differ'])} differ, "
        f"{len(convergence['inconclusive'])} inconclusive (written all the time)",
    ]
    if open_findings:
        lines.insert(
            0,
            f"{len(open_findings)} FINDING(S): resolve them, or accept each by name: "
            + ", ".join(row["name"] for row in open_findings[:10]),
        )
    decision = ask(
        compare_form(findings=bool(open_findings)),
        migration=migration,
        phase=PHASE,
        gate="divergence",
        question="Are divergence and compatibility findings resolved?",
        summary=lines,
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: (
            why_not_accepted(open_findings, answer.get("accept_findings", ""))
            if answer["decision"] == "approve"
            else None
        ),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
