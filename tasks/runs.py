"""The runs of phases in Prefect, and the record of a run that ends without its decision.

A phase's state is in the control store, where `exodus status` reads it without Prefect. A run that
fails, crashes or is cancelled records its end there with `note_end`. If even that could not run
(the host was lost), Prefect's record of the run decides.
"""

from __future__ import annotations

from uuid import UUID

from prefect import Flow, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from exodus.control import ledger, steps
from exodus.control.ledger import LedgerEntry
from exodus.control.phases import PhaseState, PhaseStatus
from exodus.cutover.levers import end_hold
from exodus.plan.bounds import TASKS_RUNS_RUNS_READ, TASKS_RUNS_WHY_MAX
from exodus.plan.vocabulary import Phase
from tasks.context import opened, run

_ENDED = {
    StateType.FAILED: "failed",
    StateType.CRASHED: "failed",
    StateType.CANCELLED: "cancelled",
    StateType.CANCELLING: "cancelled",
}
_DECIDED = (StateType.COMPLETED, StateType.CANCELLED, StateType.CANCELLING)


def is_open(state: PhaseState | None) -> bool:
    """Return whether a phase's run is running or waiting.

    `state` is the phase's state in the control store.
    """
    if state is None or not state.open:
        return False
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(state.flow_run_id))
        except ObjectNotFound:
            return False
    return found.state is not None and not found.state.is_final()


def cancel(state: PhaseState) -> None:
    """Cancel a phase's run, running or waiting."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(
            UUID(state.flow_run_id), Cancelling(message="replaced by a rollback"), force=False
        )


def why_rollback_is_open(migration: str, since_ms: int) -> str | None:
    """Return why a rollback that started since `since_ms` has no decision yet, or None.

    A rollback can die before it writes its state to the control store. Prefect always has its run.
    """
    with get_client(sync_client=True) as client:
        newest = next(
            (
                found
                for found in client.read_flow_runs(
                    flow_filter=FlowFilter(name=FlowFilterName(any_=[Phase.ROLLBACK])),
                    sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                    limit=TASKS_RUNS_RUNS_READ,
                )
                if found.parameters.get("migration") == migration
            ),
            None,
        )
    if newest is None or newest.state is None or newest.state.type in _DECIDED:
        return None
    if newest.state.timestamp.timestamp() * 1000 < since_ms:
        return None
    outcome = _ENDED.get(newest.state.type, "is not decided yet")
    return (
        f"a rollback was requested and {outcome} (run {newest.name}): exodus start "
        "rollback, then answer it"
    )


async def _note_end(migration: str, phase: str, run_id: str, outcome: str, why: str) -> None:
    async with opened(migration) as it:
        state = (await it.store.phases()).get(phase, PhaseState(state=PhaseStatus(outcome)))
        if state.flow_run_id not in (None, run_id):
            return  # a later run of the phase has begun
        now_ms = await it.store.now_ms()
        ended = state.now(PhaseStatus(outcome), why=why, finished_ms=now_ms, flow_run_id=run_id)
        await it.store.save_phase(phase, ended)
        await steps.end(it.store, run_id)
        await ledger.record(
            it.store,
            LedgerEntry(
                at_ms=now_ms,
                phase=Phase(phase),
                event="failed",
                verdict=outcome,
                why=why,
                flow_run_id=run_id,
            ),
        )
        if phase in (Phase.COMMIT, Phase.ROLLBACK):
            # It may have died while it held writes. The gateways end the hold too, but later.
            await end_hold(it.store, it.plan, f"the run of {phase} ended: {outcome}")


def note_end(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Record the end of a run: Prefect's hook on failure, crash and cancellation.

    Its parameters must have these names (docs/decisions/0009-prefect-suspend.md).
    """
    why = (state.message or state.name or "")[:TASKS_RUNS_WHY_MAX]
    run(
        _note_end(
            flow_run.parameters["migration"], flow.name, str(flow_run.id), _ENDED[state.type], why
        )
    )
