"""What Prefect knows of the phases' runs, laid over what the phases wrote down.

A phase writes its state into the control store, and so does the hook at its end. A run that died while the
store was away, or before it could open its phase, left nothing there or an old state. Prefect has its end.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

Json = dict[str, Any]
_ENDED = {"FAILED": "failed", "CRASHED": "failed", "CANCELLED": "cancelled", "CANCELLING": "cancelled"}
_OPEN = ("running", "waiting")


def _ms(text: str | None) -> int:
    return 0 if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)


def overlaid(phases: dict[str, Json], newest: dict[str, Json], alive: dict[str, bool]) -> dict[str, Json]:
    """The phases' states, each with the end of its run where the store does not have it.

    Args:
        newest: the newest run of each phase, as Prefect has it.
        alive: whether the run that a phase's state names goes on; not asked where that is the newest one.
    """
    found = dict(phases)
    for phase, run in newest.items():
        state = phases.get(phase, {})
        outcome = _ENDED.get(run["state"]["type"])
        if outcome is None:
            continue
        if state.get("flow_run_id") == run["id"]:
            if state.get("state") not in _OPEN:
                continue  # written down
        elif alive.get(phase, False) or int(state.get("finished_ms", 0)) >= _ms(run.get("end_time")):
            continue  # a second start that was refused because the first one goes on, or went on
        why = str(run["state"].get("message") or run["state"]["name"])
        found[phase] = {
            **state, "state": outcome, "why": why, "flow_run_id": run["id"], "ended_ms": _ms(run.get("end_time")), "by_prefect": True,
        }  # fmt: skip
    return found


def unwritten(phases: dict[str, Json]) -> tuple[str, Json] | None:
    """The phase whose run failed last without the store knowing, and its state."""
    found = [(name, state) for name, state in phases.items() if state.get("by_prefect") and state["state"] == "failed"]
    return max(found, key=lambda pair: int(pair[1]["ended_ms"]), default=None)
