"""Whether the ledger allows a phase to begin. The phase's run asks it, and `exodus start` before it
makes a run.
"""

from __future__ import annotations

from exodus.control import ledger
from exodus.control.ledger import LedgerEntry, PhaseEnd
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.plan.bounds import HOUR_MS
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover, Phase
from exodus.safe_text import when

_NEEDS = {
    Phase.ANALYZE: Phase.PRE_TEST,
    Phase.COMPARE: Phase.ANALYZE,
    Phase.TEST: Phase.COMPARE,
    Phase.MIGRATE: Phase.TEST,
    Phase.COMMIT: Phase.MIGRATE,
}
_LEARNS = frozenset({Phase.ANALYZE, Phase.COMPARE})  # from what passes a gateway


def text_of_end(how: PhaseEnd, decision: LedgerEntry) -> str:
    """Return how a migration ended, by whom and when, in words."""
    return f"it was {how} by {decision.decided_by} at {when(decision.at_ms)}"


def due_phase(entries: list[LedgerEntry], plan: Plan) -> Phase | None:
    """Return the phase that the decisions call for (`ledger.next_due`), less the phases that are
    left out.
    """
    due, left_out = ledger.next_due(entries), phases_left_out(plan)
    while due in left_out:
        due = ledger.FORWARD[ledger.FORWARD.index(due) + 1]
    return due


def phases_left_out(plan: Plan) -> frozenset[Phase]:
    """Return the phases that a plan leaves out. Without gateways nothing can be learned there."""
    return frozenset() if plan.has_gateways else _LEARNS


async def check_may_begin(store: ControlStore, plan: Plan, phase: Phase) -> None:
    """See that the decisions so far allow a phase.

    Raises:
        DecisionRefused: the migration has ended, the ledger was edited, or what the phase builds on
            was not approved.
    """
    if phase is Phase.COMMIT and plan.cutover is Cutover.OWN:
        raise DecisionRefused(
            "commit may not begin: the cutover of this migration is its operator's own",
            why="the plan says cutover: own, so the gateways are not what takes the applications "
            "to the target",
            next_step="stop the writers, wait for lag 0 in `exodus status`, run `exodus verify`, "
            "move the applications; "
            "`exodus start rollback` with abandon then ends live sync and leaves the target as "
            "it is",
        )
    if problems := ledger.broken(await ledger.read_stored(store)):
        raise DecisionRefused(
            f"{phase} may not begin: the ledger was edited",
            why="; ".join(problems[:3]),
            next_step="find out who wrote to the control store; the evidence bundles show what "
            "the ledger said",
        )
    entries = await ledger.read(store)
    if (end := ledger.ending(entries)) is not None:
        raise DecisionRefused(
            f"{phase} may not begin: the migration is done",
            why=text_of_end(*end),
            next_step="exodus archive, which keeps its evidence and frees its name; then exodus "
            "apply for another one",
        )
    left_out = phases_left_out(plan)
    if phase in left_out:
        raise DecisionRefused(
            f"{phase} may not begin: the applications of this migration pass no gateway",
            why="a side is a cluster, and the plan says cutover: own",
            next_step=f"exodus start {due_phase(entries, plan)}; see docs/operating/cluster.md",
        )
    needed = _NEEDS.get(phase)
    while needed in left_out:
        needed = _NEEDS.get(needed)
    if needed is None:
        return
    retry = ledger.last_decision(entries, Phase.ROLLBACK, ledger.NEXT)
    voided_ms = ledger.voided_ms(entries, Phase.TEST) or 0
    if (
        phase is Phase.MIGRATE
        and retry is not None
        and retry.verdict == "retry"
        and retry.at_ms > voided_ms
    ):
        return
    decision = ledger.approved_since(entries, needed)
    if decision is None:
        last = ledger.last_decision(entries, needed)
        voided = last is not None and last.verdict == "approve"
        raise DecisionRefused(
            f"{phase} may not begin: {needed} was not approved"
            + (" under this plan" if voided else ""),
            why="the plan was changed after its approval"
            if voided
            else "each phase builds on the decision before it",
            next_step=f"exodus start {needed}, and approve it",
        )
    age_h = (await store.now_ms() - decision.at_ms) / HOUR_MS
    if age_h > plan.evidence_hours_max:
        raise DecisionRefused(
            f"{phase} may not begin: the approval of {needed} is {age_h:.1f} h old",
            why=f"evidence counts for {plan.evidence_hours_max:.0f} h (evidence_hours_max), since "
            "data and traffic go on",
            next_step=f"exodus start {needed}, and approve it again",
        )
