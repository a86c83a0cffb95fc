"""What Prefect knows of the phases' runs, laid over what the phases wrote down.

A phase writes its state into the control store, and so does the hook at its end. A run that died while the
store was away, or before it could open its phase, left nothing there or an old state. Prefect has its end.
The same holds between an answer and the moment when a worker takes the run up: only Prefect knows of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

Json = dict[str, Any]
ANSWERED = "answered"  # a decision was answered, and its run has not gone on yet
STARTING = "starting"  # a run was started, and has not opened its phase yet
_ENDED = {
    "FAILED": "failed",
    "CRASHED": "failed",
    "CANCELLED": "cancelled",
    "CANCELLING": "cancelled",
}
_OPEN = ("running", "waiting")
OPEN = (*_OPEN, ANSWERED, STARTING)  # of a phase that has not ended, as `overlaid` says it


def run_ms(text: str | None) -> int:
    """Return a time of Prefect's in milliseconds; 0 where there is none."""
    return 0 if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)


def goes_on(run: Json) -> bool:
    """Whether a run is at work or waits."""
    return run["state"]["type"] not in (*_ENDED, "COMPLETED")


def _is_answered(state: Json, run: Json) -> bool:
    """Whether the question that a phase waits with has its answer.

    Prefect keeps the keys of all suspensions of a run. A run at work that was never suspended for this
    question is about to be.
    """
    asked = f"{state.get('gate')}-{state.get('attempt')}"
    suspended = (run.get("empirical_policy") or {}).get("pause_keys") or []
    return run["state"]["type"] != "PAUSED" and asked in suspended


def _failed(state: Json, run_id: str, why: str, ended_ms: int, outcome: str = "failed") -> Json:
    return {**state, "state": outcome, "why": why, "flow_run_id": run_id, "ended_ms": ended_ms, "by_prefect": True}


def overlaid(phases: dict[str, Json], newest: dict[str, Json], named: dict[str, Json]) -> dict[str, Json]:
    """Return the phases' states, each with what only its run in Prefect tells.

    Args:
        newest: the newest run of each phase, as Prefect has it.
        named: the run that each phase's state names, as Prefect has it.
    """
    found = dict(phases)
    for phase, state in phases.items():
        if state.get("state") in _OPEN and (own := named.get(phase)) is None:
            found[phase] = _failed(state, str(state.get("flow_run_id")), "Prefect does not know its run any more", 0)
        elif state.get("state") in _OPEN and own is not None and own["state"]["type"] == "COMPLETED":
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
                continue  # written down
        elif int(state.get("finished_ms", 0)) >= ended_ms:
            continue  # a second start that was refused because the first one went on
        why = str(run["state"].get("message") or run["state"]["name"])
        found[phase] = _failed(state, run["id"], why, ended_ms, outcome)
    return found


def unwritten(phases: dict[str, Json]) -> tuple[str, Json] | None:
    """Return the phase whose run failed last without the store knowing, and its state."""
    found = [(name, state) for name, state in phases.items() if state.get("by_prefect") and state["state"] == "failed"]
    return max(found, key=lambda pair: int(pair[1]["ended_ms"]), default=None)
