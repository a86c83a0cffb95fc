"""Combine the recorded states of phases with the states of their runs in Prefect.

A phase writes its state into the control store, and so does the hook at its end. A run that died
while the store was away, or before it opened its phase, left no state or an old one there. Prefect
knows its end. Only Prefect knows of a run between an answer and the moment when a worker takes the
run.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

Json = dict[str, Any]
ANSWERED = "answered"  # a decision was answered, and its run has not continued yet
STARTING = "starting"  # a run was started and has not opened its phase yet
_ENDED = {
    "FAILED": "failed",
    "CRASHED": "failed",
    "CANCELLED": "cancelled",
    "CANCELLING": "cancelled",
}
_OPEN = ("running", "waiting")
# States of a phase that has not ended, as `overlaid` returns them
OPEN = (
    *_OPEN,
    ANSWERED,
    STARTING,
)


def run_ms(text: str | None) -> int:
    """Return a time of Prefect in milliseconds; 0 for none."""
    return 0 if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)


def goes_on(run: Json) -> bool:
    """Return whether a run is working or waiting."""
    return run["state"]["type"] not in (*_ENDED, "COMPLETED")


def _is_answered(state: Json, run: Json) -> bool:
    """Return whether the open question of a phase has its answer.

    Prefect keeps the keys of all suspensions of a run. A working run that was never suspended for
    this question is about to be.
    """
    asked = f"{state.get('gate')}-{state.get('attempt')}"
    suspended = (run.get("empirical_policy") or {}).get("pause_keys") or []
    return run["state"]["type"] != "PAUSED" and asked in suspended


def _failed(state: Json, run_id: str, why: str, ended_ms: int, outcome: str = "failed") -> Json:
    return {
        **state,
        "state": outcome,
        "why": why,
        "flow_run_id": run_id,
        "ended_ms": ended_ms,
        "by_prefect": True,
    }


def overlaid(
    phases: dict[str, Json], newest: dict[str, Json], named: dict[str, Json]
) -> dict[str, Json]:
    """Return the phases' states, with what only Prefect knows of their runs.

    Args:
        phases: the recorded state of each phase.
        newest: the newest run of each phase in Prefect.
        named: the run in Prefect that each phase's state names.
    """
    found = dict(phases)
    for phase, state in phases.items():
        if state.get("state") in _OPEN and (own := named.get(phase)) is None:
            found[phase] = _failed(
                state, str(state.get("flow_run_id")), "Prefect does not know its run any more", 0
            )
        elif (
            state.get("state") in _OPEN and own is not None and own["state"]["type"] == "COMPLETED"
        ):
            found[phase] = {**state, "state": "ended"}
    for phase, run in newest.items():
        state, own = phases.get(phase, {}), named.get(phase)
        if own is not None and state.get("state") in _OPEN and goes_on(own):
            if state["state"] == "waiting" and _is_answered(state, own):
                found[phase] = {**state, "state": ANSWERED, "run_state": own["state"]["name"]}
            continue
        outcome = _ENDED.get(run["state"]["type"])
        if outcome is None:
            if run["id"] != state.get("flow_run_id") and goes_on(run):
                found[phase] = {
                    **state,
                    "state": STARTING,
                    "flow_run_id": run["id"],
                    "run_state": run["state"]["name"],
                }
            continue
        ended_ms = run_ms(run.get("end_time"))
        if state.get("flow_run_id") == run["id"]:
            if state.get("state") not in _OPEN:
                continue  # recorded
        elif int(state.get("finished_ms", 0)) >= ended_ms:
            continue  # a second start that was refused because the first one ran
        why = str(run["state"].get("message") or run["state"]["name"])
        found[phase] = _failed(state, run["id"], why, ended_ms, outcome)
    return found


def unwritten(phases: dict[str, Json]) -> tuple[str, Json] | None:
    """Return the phase whose run failed last without a record in the store, and its state."""
    found = [
        (name, state)
        for name, state in phases.items()
        if state.get("by_prefect") and state["state"] == "failed"
    ]
    return max(found, key=lambda pair: int(pair[1]["ended_ms"]), default=None)
