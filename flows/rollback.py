"""Rollback: traffic returns to the source, from any phase; then, should the run be repaired and retried, or abandoned?"""

from __future__ import annotations

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State

from exodus.config import Phase, Side
from exodus.control.ledger import NEXT
from flows.lifecycle import go_on
from flows.phase import phase_flow
from tasks.cutover import abandon, explain_switch, stop_live_sync, switch_authority
from tasks.decision import NextDecision, PhaseDecision, ask, close_phase
from tasks.evidence import artifact_key, evaluate
from tasks.ledger import open_phase
from tasks.live_sync import verify_sides

PHASE = Phase.ROLLBACK


@phase_flow(PHASE)
def rollback(migration: str = "demo") -> State[str]:
    """After a cutover: switch back without loss. Before one: stop copying. Journal, ledger and reports are kept for investigation."""
    began = open_phase(migration, PHASE)
    switched = began["authority"] == Side.TARGET
    steps = explain_switch(migration, Side.SOURCE) if switched else ["1. stop live sync and the journal; the source is the authority as before"]
    decision = ask(
        PhaseDecision,
        migration=migration,
        phase=PHASE,
        gate="back",
        question="Should traffic return to the source?",
        summary=[
            f"the {began['authority']} is the authority; {len(steps)} step(s): " + " → ".join(step.split(":")[0].split(". ")[-1] for step in steps)
        ],
        evidence="verification.commit" if switched else "verification.migrate",
    )
    if decision["verdict"] != "approve":
        return close_phase(migration, PHASE, decision)
    if switched:
        outcome = switch_authority(migration, PHASE, Side.SOURCE)
        create_table_artifact(key=artifact_key(migration, PHASE, "timeline"), table=outcome["timeline"], description="the switch back, step by step")
        found = verify_sides(migration, PHASE)
        checks = [
            {"check": "the source is the authority", "ok": outcome["authority"] == Side.SOURCE, "detail": f"epoch {outcome['epoch']}"},
            {"check": "both sides are equal", "ok": found["divergences_total"] == 0, "detail": f"{found['keys_verified']} keys verified"},
        ]
    stopped = stop_live_sync(migration, "rollback: live sync is off")
    if not switched:
        checks = [{"check": "the source is the authority", "ok": stopped["authority"] == Side.SOURCE, "detail": f"epoch {stopped['epoch']}"}]
    evaluate(migration, PHASE, {"checks": checks}, {"switched_back": switched, "authority": stopped["authority"]})
    following = ask(
        NextDecision,
        migration=migration,
        phase=PHASE,
        gate=NEXT,
        question="Should the run be repaired and retried, or abandoned?",
        summary=["the source is the authority; journal, ledger and reports are kept"],
        evidence=f"evidence.{PHASE}",
    )
    if following["verdict"] == "abandon":
        abandon(migration, clean_target=bool(following["facts"]["clean_target"]))
    ended = close_phase(migration, PHASE, following, approved=following["verdict"])
    go_on(migration)
    return ended
