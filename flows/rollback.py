"""Rollback: traffic returns to the source, from any phase. Then: retry, or abandon?"""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.control.ledger import BACK, NEXT
from exodus.cutover.forced_rollback import STEPS
from exodus.plan.vocabulary import Phase, Side
from flows.lifecycle import go_on
from flows.phase import BY, MIGRATION, WHY, MigrationName, Words, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.checks import check, frames
from tasks.context import Json
from tasks.cutover import (
    abandon,
    confirm_fence,
    explain_switch,
    force_back,
    keep_evidence,
    look_at_target,
    read_authority,
    stop_live_sync,
    switch_authority,
)
from tasks.decision import (
    ask,
    back_form,
    close_phase,
    next_form,
    provider_instruction,
    why_not_closed,
)
from tasks.evidence import artifact_key, evaluate
from tasks.functions import carry_libraries
from tasks.ledger import open_phase
from tasks.live_sync import verify_sides, wait_compared

PHASE = Phase.ROLLBACK


def _switch_back(migration: str, *, dead: bool) -> list[Json]:
    if dead:
        done = force_back(migration)
        now = read_authority(migration, f"the forced switch at epoch {done['epoch']}")
        return [
            check(
                "the source is the authority, by force",
                now["authority"] == Side.SOURCE,
                f"epoch {now['epoch']}",
            )
        ]
    outcome = switch_authority(migration, PHASE, Side.SOURCE)
    create_table_artifact(
        key=artifact_key(migration, PHASE, "timeline"),
        table=outcome["timeline"],
        description="Timeline of the switch back",
    )
    now = read_authority(migration, f"the switch back at epoch {outcome['epoch']}")
    back = check(
        "the source is the authority", now["authority"] == Side.SOURCE, f"epoch {now['epoch']}"
    )
    if not outcome["flows_back"]:
        return [back]  # the target's fence blocks Exodus too, until Migrate starts again
    compared = wait_compared(migration)  # a rollback does not wait for a pass over all keys
    if compared["equal"]:
        return [back, check("both sides are equal", compared["equal"], compared["text"])]
    found = verify_sides(migration, PHASE)
    detail = f"{found['keys_verified']} keys verified, {found['divergences_total']} divergences"
    return [
        back,
        check("both sides are equal", found["divergences_total"] == 0, detail),
    ]


@phase_flow(PHASE)
def rollback(
    migration: MigrationName = MIGRATION, decided_by: Words = BY, why: Words = WHY
) -> State[str]:
    """After a cutover: switch back without loss, or by force if the target is dead.

    Before one: stop copying.

    A start with name and reason is the first decision. Exodus still asks if a person must look
    first.
    """
    began = open_phase(migration, PHASE)
    switched = began["authority"] == Side.TARGET
    target = look_at_target(migration) if switched else {"dead": None, "keys_total": 0, "keys": []}
    dead = target["dead"] is not None
    steps = ["1. stop live sync and the journal; the source stays the authority"]
    if switched:
        steps = STEPS if dead else explain_switch(migration, Side.SOURCE)
    summary = []
    if dead:
        summary.append(
            f"THE TARGET IS DEAD: {target['keys_total']:,} keys have not flowed back and "
            "stay there (artifact left, report rollback.left)"
        )
        rows = target["keys"] or [{"db": "", "key": "none: everything flowed back"}]
        create_table_artifact(
            key=artifact_key(migration, PHASE, "left"),
            table=rows,
            description="Keys written on the target that did not flow back",
        )
    to_close = provider_instruction(began["plan"], Side.TARGET) if switched and not dead else None
    if to_close is not None:
        summary.append(
            f"Block direct access to the target FIRST, then tick Fence confirmed: {to_close}"
        )
    if switched and not dead:
        summary += carry_libraries(migration, PHASE)
    names = " → ".join(step.split(":")[0].split(". ")[-1] for step in steps)
    summary.append(f"the {began['authority']} is the authority; {len(steps)} step(s): {names}")
    decision = ask(
        back_form(dead=dead, provider=to_close is not None),
        migration=migration,
        phase=PHASE,
        gate=BACK,
        question="Should traffic return to the source?",
        summary=summary,
        evidence="rollback.left"
        if dead
        else "verification.commit"
        if switched
        else "verification.migrate",
        refuse=lambda answer, _: (
            "the target is dead: review the keys that stay there, then tick Accept the loss "
            "(accept_loss)"
            if dead and answer["decision"] == "approve" and not answer.get("accept_loss")
            else why_not_closed(answer, to_close)
        ),
        beforehand={"decision": "approve", "decided_by": decided_by, "why": why}
        if decided_by and why
        else None,
    )
    if decision["verdict"] != "approve":
        return close_phase(migration, PHASE, decision)
    if to_close is not None:
        confirm_fence(migration, Side.TARGET, decision["decided_by"])
    if switched:
        checks = _switch_back(migration, dead=dead)
    if not switched or dead:
        stopped = stop_live_sync(migration, "rollback: live sync is off")
        detail = (
            f"epoch {stopped['epoch']}{', ' if stopped['not_told'] else ''}{stopped['not_told']}"
        )
        checks = [check("the source is the authority", stopped["authority"] == Side.SOURCE, detail)]
    evaluate(
        migration,
        PHASE,
        frames(checks),
        {"switched_back": switched, "forced": dead, "authority": Side.SOURCE},
    )
    kept = keep_evidence(migration, PHASE)
    following = ask(
        next_form(),
        migration=migration,
        phase=PHASE,
        gate=NEXT,
        question="Should the run be repaired and retried, or abandoned?",
        summary=[
            "the source is the authority; "
            + (
                "live sync goes on, so a retry copies nothing again"
                if switched and not dead
                else "live sync is off; a retry keeps the copy and compares it"
            ),
            f"evidence for the investigation: {kept['folder']} on {kept['host']}",
        ],
        evidence=f"evidence.{PHASE}",
    )
    if following["verdict"] == "abandon":
        abandon(migration, clean_target=bool(following["facts"]["clean_target"]))
    ended = close_phase(migration, PHASE, following, approved=following["verdict"])
    go_on(migration)
    return ended
