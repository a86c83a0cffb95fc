"""Three job queues through every phase with the default plan: cutover, rollback, a second cutover,
and the end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from exodus.errors import DecisionRefused
from exodus.stack.home import Home
from exodus.stack.up import StackOptions, down, up
from tests.support.jobs import PROGRAM_NAMES, Jobs
from tests.support.operator import Operator
from tests.support.shop import shopping

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def _more_jobs(queues: list[Jobs], count: int) -> None:
    async def work() -> None:
        await asyncio.gather(*(queue.more(count) for queue in queues))

    asyncio.run(work())


def _approve(operator: Operator, phase: str, *gates: str) -> None:
    operator.start(phase)
    for gate in gates or (None,):
        operator.waiting(phase, gate, within_s=150)
        operator.answer("approve")


def _crash_a_rollback(operator: Operator) -> None:
    """A rollback whose host is lost before its run could write anything to the control store."""
    flow = operator.api._call("GET", "/flows/name/rollback").json()
    run = {
        "flow_id": flow["id"],
        "parameters": {"migration": operator.file.plan.name},
        "state": {"type": "PENDING"},
    }
    made = operator.api._call("POST", "/flow_runs/", json=run).json()
    crashed = {"state": {"type": "CRASHED", "message": "the host was lost"}, "force": True}
    operator.api._call("POST", f"/flow_runs/{made['id']}/set_state", json=crashed)


def _is_not_finalised_beside_a_failed_rollback(operator: Operator) -> None:
    """Neither the command line nor the form in the UI finalises: an approval would close the way
    back that somebody asked for.
    """
    asked = operator.waiting("commit", "finalise", within_s=150)
    _crash_a_rollback(operator)
    with pytest.raises(DecisionRefused, match="a rollback was requested and failed"):
        operator.answer("approve")
    operator.api.resume(
        asked["flow_run_id"],
        {"decision": "approve", "decided_by": "the test", "why": "because it is tested"},
    )
    words, _ = operator.form(asked, 2)
    assert "a rollback was requested and failed" in words
    assert operator.status()["authority"] == "target"


def test_jobs_are_done_once_through_a_whole_migration(tmp_path: Path) -> None:
    home = Home(tmp_path / "stack")
    up(home, StackOptions(), print)
    operator = Operator(home)
    queues: list[Jobs] = []
    try:
        with shopping(tmp_path, operator.file.plan.gateway, keys=2_000, writes=100):
            for phase in ("pre-test", "analyze", "compare"):
                _approve(operator, phase)
                operator.ended(phase, "approved")
            queues += [
                Jobs(name, operator.file.plan.gateway.port, tmp_path / name)
                for name in PROGRAM_NAMES
            ]
            _more_jobs(queues, 20)
            for phase in ("test", "migrate"):
                _approve(operator, phase)
                operator.ended(phase, "approved")
            _approve(operator, "commit", "cutover")
            _is_not_finalised_beside_a_failed_rollback(operator)
            _more_jobs(queues, 40)
            _approve(operator, "rollback", "back", "next")
            operator.ended("rollback", "approved")
            assert operator.status()["authority"] == "source"
            _more_jobs(queues, 40)
            _approve(operator, "migrate")
            operator.ended("migrate", "approved")
            _approve(operator, "commit", "cutover", "finalise")
            operator.ended("commit", "approved")
            assert operator.status()["authority"] == "target"
            _more_jobs(queues, 40)
    finally:
        for queue in queues:
            asyncio.run(queue.stop())
        operator.api.close()
        down(home)
    for queue in queues:
        assert len(queue.read("made")) > 200
        assert queue.lost() == set()
        assert queue.twice() == []
