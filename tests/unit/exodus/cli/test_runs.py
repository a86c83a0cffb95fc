"""The state of runs that only Prefect knows, merged with the phases' own records."""

from __future__ import annotations

from exodus.cli.runs import overlaid, unwritten


def _run(
    run_id: str, state: str, ended: str | None = None, message: str = "", **more: object
) -> dict:
    named = {"type": state, "name": state.title(), "message": message}
    return {"id": run_id, "state": named, "end_time": ended, **more}


_COMMIT_ASKS = {"state": "waiting", "gate": "finalise", "attempt": 1, "flow_run_id": "c1"}
_DIED = _run("r1", "FAILED", "2026-01-01T00:00:10Z", "the control store does not answer")
_SUSPENDED = {"empirical_policy": {"pause_keys": ["cutover-1", "finalise-1"]}}


def test_a_rollback_that_died_is_shown_beside_the_open_decision() -> None:
    paused = _run("c1", "PAUSED", **_SUSPENDED)
    found = overlaid(
        {"commit": _COMMIT_ASKS}, {"commit": paused, "rollback": _DIED}, {"commit": paused}
    )
    assert found["commit"] == _COMMIT_ASKS
    assert unwritten(found) == ("rollback", found["rollback"])
    assert (found["rollback"]["state"], found["rollback"]["why"]) == (
        "failed",
        "the control store does not answer",
    )


def test_a_phase_that_is_said_to_run_or_ask_while_its_run_has_ended_is_failed() -> None:
    for state in ("running", "waiting"):
        found = overlaid(
            {"rollback": {"state": state, "flow_run_id": "r1"}},
            {"rollback": _DIED},
            {"rollback": _DIED},
        )
        assert found["rollback"]["state"] == "failed"


def test_what_is_written_down_stands() -> None:
    written = {"rollback": {"state": "failed", "flow_run_id": "r1", "why": "its own words"}}
    assert overlaid(written, {"rollback": _DIED}, {"rollback": _DIED}) == written
    approved = {
        "rollback": {"state": "approved", "flow_run_id": "r0", "finished_ms": 1767225611000}
    }
    assert (
        overlaid(approved, {"rollback": _DIED}, {"rollback": _run("r0", "COMPLETED")}) == approved
    )


def test_a_second_start_that_was_refused_is_no_failure_of_the_first() -> None:
    running = {"rollback": {"state": "running", "flow_run_id": "r0"}}
    assert overlaid(running, {"rollback": _DIED}, {"rollback": _run("r0", "RUNNING")}) == running
    assert unwritten(running) is None


def test_a_run_that_has_not_opened_its_phase_is_starting() -> None:
    for state in ("SCHEDULED", "PENDING", "RUNNING"):
        found = overlaid({}, {"migrate": _run("m1", state)}, {})
        assert (found["migrate"]["state"], found["migrate"]["run_state"]) == (
            "starting",
            state.title(),
        )
    rejected = {"migrate": {"state": "rejected", "flow_run_id": "m0", "finished_ms": 1}}
    found = overlaid(
        rejected, {"migrate": _run("m1", "SCHEDULED")}, {"migrate": _run("m0", "COMPLETED")}
    )
    assert found["migrate"]["state"] == "starting"


def test_a_run_that_ended_well_holds_nothing_up() -> None:
    """The phase records its end before Prefect does. So this is a look in between, or a restored
    store.
    """
    run = _run("m1", "COMPLETED")
    running = {"migrate": {"state": "running", "flow_run_id": "m1"}}
    assert overlaid(running, {"migrate": run}, {"migrate": run})["migrate"]["state"] == "ended"
    approved = {"migrate": {"state": "approved", "flow_run_id": "m1"}}
    assert overlaid(approved, {"migrate": run}, {"migrate": run}) == approved


def test_a_phase_whose_run_was_removed_has_failed() -> None:
    found = overlaid({"migrate": {"state": "waiting", "flow_run_id": "m1"}}, {}, {})
    assert found["migrate"]["state"] == "failed"
    assert unwritten(found) == ("migrate", found["migrate"])


def test_an_answered_decision_is_not_asked_any_more() -> None:
    for state in ("SCHEDULED", "PENDING", "RUNNING"):
        run = _run("c1", state, **_SUSPENDED)
        found = overlaid({"commit": _COMMIT_ASKS}, {"commit": run}, {"commit": run})
        assert (found["commit"]["state"], found["commit"]["run_state"]) == (
            "answered",
            state.title(),
        )


def test_a_run_that_is_about_to_be_suspended_asks() -> None:
    run = _run("c1", "RUNNING", empirical_policy={"pause_keys": ["cutover-1"]})
    assert overlaid({"commit": _COMMIT_ASKS}, {"commit": run}, {"commit": run}) == {
        "commit": _COMMIT_ASKS
    }
