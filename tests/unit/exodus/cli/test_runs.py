"""Ends of runs that only Prefect knows, laid over what the phases wrote down."""

from __future__ import annotations

from exodus.cli.runs import overlaid, unwritten


def _run(run_id: str, state: str, ended: str | None = None, message: str = "") -> dict:
    return {"id": run_id, "state": {"type": state, "name": state.title(), "message": message}, "end_time": ended}


_COMMIT_ASKS = {"state": "waiting", "gate": "finalise", "flow_run_id": "c1"}
_DIED = _run("r1", "FAILED", "2026-01-01T00:00:10Z", "the control store does not answer")


def test_a_rollback_that_died_while_it_opened_is_shown_beside_the_decision_that_would_close_the_way_back() -> None:
    found = overlaid({"commit": _COMMIT_ASKS}, {"commit": _run("c1", "PAUSED"), "rollback": _DIED}, {})
    assert found["commit"] == _COMMIT_ASKS
    assert unwritten(found) == ("rollback", found["rollback"])
    assert (found["rollback"]["state"], found["rollback"]["why"]) == ("failed", "the control store does not answer")


def test_a_phase_that_is_said_to_run_or_ask_while_its_run_has_ended_is_failed() -> None:
    for state in ("running", "waiting"):
        found = overlaid({"rollback": {"state": state, "flow_run_id": "r1"}}, {"rollback": _DIED}, {})
        assert found["rollback"]["state"] == "failed"


def test_what_is_written_down_stands() -> None:
    written = {"rollback": {"state": "failed", "flow_run_id": "r1", "why": "its own words"}}
    assert overlaid(written, {"rollback": _DIED}, {}) == written
    approved = {"rollback": {"state": "approved", "flow_run_id": "r0", "finished_ms": 1767225611000}}
    assert overlaid(approved, {"rollback": _DIED}, {"rollback": False}) == approved


def test_a_second_start_that_was_refused_is_no_failure_of_the_first() -> None:
    running = {"rollback": {"state": "running", "flow_run_id": "r0"}}
    assert overlaid(running, {"rollback": _DIED}, {"rollback": True}) == running
    assert unwritten(running) is None


def test_a_run_that_goes_on_changes_nothing() -> None:
    assert overlaid({}, {"migrate": _run("m1", "RUNNING")}, {}) == {}
