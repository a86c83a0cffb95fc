"""Commit: the target becomes the authority.

Later people close the way back, and the source can be retired.

Later people close the way back, and the source can be retired.
"""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.control.ledger import CUTOVER, FINALISE
from exodus.plan.settings import CanaryPlan
from exodus.plan.vocabulary import Phase, Side
from flows.lifecycle import go_on
from flows.phase import MIGRATION, MigrationName, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.beside import compare_beside
from tasks.canary import try_canary
from tasks.checks import Level, check, frames
from tasks.context import Json
from tasks.cutover import (
    confirm_fence,
    explain_switch,
    finalise,
    keep_evidence,
    read_authority,
    switch_authority,
    why_not_finalise,
)
from tasks.decision import (
    ask,
    close_phase,
    completed,
    cutover_form,
    phase_form,
    provider_instruction,
    why_not_closed,
    why_not_left,
    window_of,
)
from tasks.evidence import artifact_key, evaluate
from tasks.functions import carry_libraries, say_scripts
from tasks.ledger import identity_of, open_phase
from tasks.live_sync import (
    check_rehearsed,
    count_left_behind,
    measure_freshness,
    prove_way_back,
    verify_sides,
    wait_caught_up,
)
from tasks.predictions import score_predictions

PHASE = Phase.COMMIT


def _after(migration: str, outcome: Json) -> tuple[list[Json], int]:
    """Return the checks of a completed switch, and the number of verified keys."""
    now = read_authority(migration, f"the switch at epoch {outcome['epoch']}")
    switched = check(
        "the target is the authority", now["authority"] == Side.TARGET, f"epoch {now['epoch']}"
    )
    if not outcome["flows_back"]:
        # The source's fence blocks Exodus too. The source stays as it was at the switch, and the
        # journal keeps every write for a rollback.
        spot = outcome["facts"].get("spot_checked_keys", 0)
        return [
            switched,
            check(
                "keys that changed last were equal at the switch",
                spot > 0,
                f"{spot} keys; the source stays as it was",
                level=Level.INFO,
            ),
        ], 0
    flowing = wait_caught_up(migration)
    found = verify_sides(migration, PHASE)
    checks = [
        switched,
        check(
            "writes flow back to the source",
            flowing["caught_up"],
            f"{flowing['lag_entries']} entries behind",
        ),
        check(
            "both sides are equal",
            found["divergences_total"] == 0,
            f"{found['divergences_total']} divergences, {found['keys_verified']} keys verified",
        ),
        check(
            "no key was left behind",
            not found["dead_letters"],
            f"{len(found['dead_letters'])} dead letters",
        ),
    ]
    return checks, found["keys_verified"]


@phase_flow(PHASE)
def commit(migration: MigrationName = MIGRATION) -> State[str]:
    """Ask two decisions: cut over, later finalise. Between them writes flow back."""
    began = open_phase(migration, PHASE)
    to_close = provider_instruction(began["plan"], Side.SOURCE)
    steps = explain_switch(migration, Side.TARGET)
    create_table_artifact(
        key=artifact_key(migration, PHASE, "steps"),
        table=[{"step": step} for step in steps],
        description="Steps of the cutover",
    )
    rehearsed = check_rehearsed(migration)
    fresh = measure_freshness(migration)
    behind = count_left_behind(migration)
    # What a person must do comes first: a dialog shows only the first lines until it is scrolled.
    summary = []
    if to_close is not None:
        summary.append(
            f"Block direct access to the source FIRST, then tick Fence confirmed: {to_close}"
        )
    if behind["filtered"]:
        summary.append(
            f"{behind['keys']:,} KEYS STAY BEHIND on the source by the plan's filters: "
            "applications will not find them (artifact behind)"
        )
        create_table_artifact(
            key=artifact_key(migration, PHASE, "behind"),
            table=behind["rows"],
            description="Filtered keys that stay on the source",
        )
    summary.append(
        f"{fresh['text']}; {rehearsed}; reads go on; writes flow back, so a rollback loses nothing"
    )
    summary.append(prove_way_back(migration))
    summary += carry_libraries(migration, PHASE)
    summary += say_scripts(migration)
    summary += compare_beside(migration, PHASE)
    summary += try_canary(migration, PHASE, CanaryPlan.model_validate(began["plan"]["canary"]))
    summary.append(
        f"{len(steps)} steps: " + " → ".join(step.split(":")[0].split(". ")[1] for step in steps)
    )
    decision = ask(
        cutover_form(began["plan"], filtered=behind["filtered"], provider=to_close is not None),
        migration=migration,
        phase=PHASE,
        gate=CUTOVER,
        question="Should the target become the authority now?",
        summary=summary,
        evidence="evidence.migrate",
        complete=lambda answer: completed(answer, began["plan"], filtered=behind["filtered"]),
        refuse=lambda answer, _: (
            why_not_left(answer, filtered=behind["filtered"]) or why_not_closed(answer, to_close)
        ),
    )
    if decision["verdict"] != "approve":
        return close_phase(migration, PHASE, decision)
    if to_close is not None:
        confirm_fence(migration, Side.SOURCE, decision["decided_by"])
    outcome = switch_authority(
        migration, PHASE, Side.TARGET, window_of(decision["facts"]), began["plan_digest"]
    )
    create_table_artifact(
        key=artifact_key(migration, PHASE, "timeline"),
        table=outcome["timeline"],
        description="Timeline of the cutover",
    )
    checks, verified = _after(migration, outcome)
    predicted = score_predictions(migration)
    hold = outcome["facts"].get("hold_ms")
    evaluate(
        migration,
        PHASE,
        frames(checks),
        {"hold_ms": hold, "keys_verified": verified, "authority": outcome["authority"]},
        {"predictions": predicted},
    )
    business = ask(
        phase_form(
            "approve: close the way back for good; reject: keep it open, and a rollback is due"
        ),
        migration=migration,
        phase=PHASE,
        gate=FINALISE,
        question="Is the business ready to decommission the source?",
        summary=[
            "WARNING: an approval closes the way back to the source for good",
            f"writes were held for {hold} ms; "
            + (
                f"{verified:,} keys verified in both directions"
                if outcome["flows_back"]
                else "the journal keeps writes for a way back"
            ),
            *(f"{row['what']}: {row['came']}, {row['verdict']}" for row in predicted),
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, attempt: (
            why_not_finalise(migration, answer["identity"], attempt)
            if answer["decision"] == "approve"
            else None
        ),
    )
    if business["verdict"] == "approve":
        done = finalise(migration, identity_of(business))
        create_table_artifact(
            key=artifact_key(migration, PHASE, "checklist"),
            table=done["checklist"],
            description="To do before the source is switched off",
        )
        through = done["through_gateways"] or [
            {"name": "none", "host": "", "kind": "", "connections": 0}
        ]
        create_table_artifact(
            key=artifact_key(migration, PHASE, "through"),
            table=through,
            description="Clients of the gateways",
        )
    keep_evidence(migration, PHASE)
    ended = close_phase(migration, PHASE, business)
    go_on(migration)
    return ended
