"""Begin and end a phase, record its decision, and find the next one."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from prefect.runtime import flow_run
from redis.exceptions import WatchError

from exodus.control import ledger, steps, turn
from exodus.control.approvers import decider, identify, why_not_allowed
from exodus.control.ledger import LedgerEntry
from exodus.control.phase_order import check_may_begin, due_phase
from exodus.control.phases import PhaseState, PhaseStatus
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.cutover.preconditions import plan_digest
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Phase
from tasks.context import (
    Json,
    Opened,
    in_place,
    live_task,
    opened,
    opens_migration,
    registered_plan,
    run,
)
from tasks.gates import prepare
from tasks.kept import kept_task
from tasks.registering import register_block
from tasks.runs import cancel, is_open


async def _claim(opened_: Opened, phase: Phase, run_id: str, state: PhaseState) -> None:
    """Mark the phase as running, if no other phase is. Two that begin at once cannot both succeed.

    Rollback replaces the phase that is running or waiting.
    """
    store = opened_.store
    while True:
        async with store.client.pipeline(transaction=True) as pipe:
            await pipe.watch(store.keys.phase, store.keys.turn(turn.SAMPLING))
            await _end_sampling(store, phase)
            replaced: dict[str, PhaseState] = {}
            for name, other in (await store.phases()).items():
                ours = other.flow_run_id == run_id
                if ours or not await asyncio.to_thread(is_open, other):
                    continue
                if phase is not Phase.ROLLBACK or name == Phase.ROLLBACK:
                    raise DecisionRefused(
                        f"{phase} may not begin: {name} is {other.state}",
                        why=f"its run {other.flow_run_id} has not ended, and phases run "
                        "one after the other",
                        next_step=f"decide {name} first; or cancel its run in the Prefect UI "
                        "if its host is gone",
                    )
                await asyncio.to_thread(cancel, other)
                replaced[name] = other.now(PhaseStatus.CANCELLED, why="replaced by a rollback")
            pipe.multi()
            for name, now in {**replaced, str(phase): state}.items():
                pipe.hset(store.keys.phase, name, orjson.dumps(now.as_json()).decode())
            try:
                await pipe.execute()
            except WatchError:
                continue
            return


async def _end_sampling(store: ControlStore, phase: Phase) -> None:
    """Refuse a phase while a schedule samples; a rollback ends that run."""
    sampler = await turn.held_by(store, turn.SAMPLING)
    if sampler is None:
        return
    if phase is not Phase.ROLLBACK:
        raise DecisionRefused(
            f"{phase} may not begin: a schedule compares a sample",
            why=f"run {sampler.run} of renew has copied keys to the target, which it removes when "
            "it ends",
            next_step="wait until it ends, or cancel that run in the Prefect UI",
        )
    state = PhaseState(state=PhaseStatus.RUNNING, flow_run_id=sampler.run)
    if await asyncio.to_thread(is_open, state):  # else its process died, and its turn ends soon
        await asyncio.to_thread(cancel, state)


async def _plan_now(opened_: Opened, phase: Phase) -> Plan:
    """Register a changed block. A rollback takes the registered plan as it is."""
    registered = await registered_plan(opened_.store)
    if phase is Phase.ROLLBACK and registered is not None:
        return in_place(registered, opened_.proposed)
    return await register_block(opened_.store, opened_.proposed, opened_.store.address)


@kept_task("Open the phase")
def open_phase(migration: str, phase: str) -> Json:
    """Check that the phase may begin, and record that it has.

    Raises:
        DecisionRefused: the phase before was not approved, or too long ago, or another run is open.
    """

    async def work() -> Json:
        async with opened(migration, beginning=True) as it:
            run_id = str(flow_run.get_id() or "")
            plan_now = await _plan_now(it, Phase(phase))
            await check_may_begin(it.store, plan_now, Phase(phase))
            # Their gates come after a decision, in another process
            if Phase(phase) not in (Phase.COMMIT, Phase.ROLLBACK):
                prepare()
            now_ms = await it.store.now_ms()
            state = PhaseState(state=PhaseStatus.RUNNING, started_ms=now_ms, flow_run_id=run_id)
            await _claim(it, Phase(phase), run_id, state)
            await ledger.record(
                it.store,
                LedgerEntry(at_ms=now_ms, phase=Phase(phase), event="started", flow_run_id=run_id),
            )
            await answered(it.store.client.delete(it.store.keys.abort))
            route = await read_route(it.store)
            plan, approved = plan_now.model_dump(mode="json"), await plan_digest(it.store)
            return {
                "started_ms": now_ms,
                "authority": str(route.authority),
                "epoch": route.epoch,
                "plan": plan,
                "plan_digest": approved,
            }

    return run(work())


async def _set_phase(it: Opened, phase: str, status: PhaseStatus, **changes: Any) -> PhaseState:
    """Change the state of a phase, and return it."""
    before = (await it.store.phases()).get(phase)
    base = PhaseState(state=status) if before is None else before
    state = base.now(status, **changes)
    await it.store.save_phase(phase, state)
    return state


@kept_task("Announce the decision", but=("summary",))
@opens_migration
async def announce(
    it: Opened,
    phase: str,
    gate: str,
    question: str,
    summary: list[str],
    evidence: str,
    attempt: int,
    asked_again: str | None,
) -> Json:
    """Keep the form's content as a report, and record the open decision for `exodus status`.

    Once for each form: a flow that runs from the top again may find other values than the person
    saw.

    Returns:
        `report`: name of the kept content, with the evidence's report; `digest`: its digest, for
        the form and the ledger.
    """
    name = shown_name(phase, gate)
    shown = {
        "question": question,
        "summary": summary,
        "evidence": evidence,
        "report": await it.store.report(evidence) or {},
    }
    await it.store.save_report(name, shown)
    await _set_phase(
        it,
        phase,
        PhaseStatus.WAITING,
        gate=gate,
        question=question,
        evidence=evidence,
        attempt=attempt,
        asked_again=asked_again,
        flow_run_id=str(flow_run.get_id() or ""),
        waiting_since_ms=await it.store.now_ms(),
    )
    return {"report": name, "digest": ledger.digest(shown)}


def shown_name(phase: str, gate: str) -> str:
    """Return the name of the report with the content of a decision's form."""
    return f"shown.{phase}.{gate}" if gate else f"shown.{phase}"


@kept_task("Identify who answered")
@opens_migration
async def who_answered(it: Opened, gate: str, answer: Json, attempt: int) -> Json:
    """Return who gave an answer, how that is known, and why the person may not decide."""
    found = await identify(it.store, str(flow_run.get_id() or ""), gate, attempt, answer)
    return {
        "identity": found.model_dump(mode="json"),
        "refused": why_not_allowed(it.plan, answer["decision"], found),
    }


def identity_of(decision: Json) -> Json:
    """Return who took a decision, from the ledger's entry."""
    return decider(LedgerEntry.model_validate(decision)).model_dump(mode="json")


@kept_task("Record the decision")
@opens_migration
async def record_decision(
    it: Opened, phase: str, gate: str, answer: Json, evidence: str, evidence_digest: str
) -> Json:
    """Append a decision to the ledger once, and set the phase's state."""
    now_ms = await it.store.now_ms()
    entry = LedgerEntry(
        at_ms=now_ms,
        phase=Phase(phase),
        event="decided",
        gate=gate,
        verdict=answer["decision"],
        decided_by=answer["decided_by"],
        person=answer["identity"]["person"],
        known_by=answer["identity"]["known_by"],
        identity=answer["identity"]["detail"],
        why=answer["why"],
        evidence=evidence,
        evidence_digest=evidence_digest,
        flow_run_id=str(flow_run.get_id() or ""),
        facts={
            key: value
            for key, value in answer.items()
            if key not in ("decision", "decided_by", "why", "identity")
        },
    )
    await ledger.record(it.store, entry)
    await _set_phase(
        it,
        phase,
        PhaseStatus.RUNNING,
        decision=entry.verdict,
        decided_by=entry.decided_by,
        decided_ms=now_ms,
    )
    return entry.model_dump(mode="json")


@kept_task("End the phase")
@opens_migration
async def finish_phase(it: Opened, phase: str, outcome: str) -> Json:
    """Record how the phase ended."""
    now_ms = await it.store.now_ms()
    state = await _set_phase(it, phase, PhaseStatus(outcome), finished_ms=now_ms)
    await ledger.record(
        it.store,
        LedgerEntry(
            at_ms=now_ms,
            phase=Phase(phase),
            event="finished",
            verdict=outcome,
            flow_run_id=str(flow_run.get_id() or ""),
        ),
    )
    await steps.end(it.store, str(flow_run.get_id() or ""))
    return state.as_json()


@live_task(name="Find the phase that is due")
@opens_migration
async def find_due(it: Opened, *, by_itself: bool) -> str | None:
    """Return the phase that is due by the ledger.

    With `by_itself` only if the plan says `advance: auto`.
    """
    if by_itself and it.plan.advance != "auto":
        return None
    due = due_phase(await ledger.read(it.store), it.plan)
    if due is None:
        return None
    state = (await it.store.phases()).get(due)
    return None if await asyncio.to_thread(is_open, state) else str(due)
