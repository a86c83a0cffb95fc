"""Phase states: a closed set, and a change keeps what the run recorded before."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from exodus.control.phases import PhaseState, PhaseStatus


def test_a_change_keeps_what_the_run_recorded() -> None:
    before = PhaseState(state=PhaseStatus.WAITING, flow_run_id="r", gate="cutover", attempt=0)
    after = before.now(PhaseStatus.RUNNING, decision="approve")
    assert (after.state, after.gate, after.decision) == ("running", "cutover", "approve")
    assert before.decision is None


def test_unset_fields_are_not_stored() -> None:
    assert PhaseState(state=PhaseStatus.RUNNING).as_json() == {"state": "running"}


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValidationError, match="state"):
        PhaseState.model_validate({"state": "almost done"})


@pytest.mark.parametrize(
    ("state", "is_open"), [("running", True), ("waiting", True), ("failed", False)]
)
def test_a_phase_is_open_until_it_ended(state: str, is_open: bool) -> None:
    assert PhaseState(state=PhaseStatus(state)).open is is_open
