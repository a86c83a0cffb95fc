"""The governor of the impact budget: slower at once, faster by and by, and never slower without a
reason.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exodus.copy.impact import Governor, parse_budget
from exodus.errors import OperatorError
from exodus.plan.bounds import IMPACT_PAUSE_S_MAX, IMPACT_PAUSE_S_MIN
from exodus.plan.settings import Budget


def test_without_a_budget_nothing_is_slowed() -> None:
    governor = Governor(0.1)
    governor.look(Budget(), 1_000.0, 1.0)
    assert (governor.pause_s, governor.why) == (0.0, "")


def test_over_the_budget_the_pause_doubles_and_under_it_shrinks_to_nothing() -> None:
    governor = Governor(0.1)
    budget = Budget(probe_ms_added_max=0.3, cpu_share_max=0.2)
    pauses = []
    for _ in range(4):
        governor.look(budget, 0.5, 0.1)
        pauses.append(governor.pause_s)
    assert pauses == [IMPACT_PAUSE_S_MIN * factor for factor in (1, 2, 4, 8)]
    assert "0.40 ms above what it was, 0.3 ms are allowed" in governor.why
    governor.look(budget, 0.3, 0.5)
    assert "Exodus adds 50 % of a core, 20 % are allowed" in governor.why
    before = governor.pause_s
    governor.look(budget, 0.3, 0.9, applications_share=0.8)
    assert governor.pause_s < before, "what the applications use is none of its budget"
    looks = 0
    while governor.pause_s:
        governor.look(budget, 0.2, 0.1)
        looks += 1
    assert looks < 20
    assert governor.why == ""


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1))))
def test_a_pause_is_bounded_and_has_a_reason(looks: list[tuple[float, float]]) -> None:
    governor = Governor(0.1)
    for probe_ms, share in looks:
        governor.look(Budget(probe_ms_added_max=1.0, cpu_share_max=0.5), probe_ms, share)
        assert 0 <= governor.pause_s <= IMPACT_PAUSE_S_MAX
        assert bool(governor.pause_s) == bool(governor.why)


@pytest.mark.parametrize(
    "raw", ['{"cpu_share_max": 2}', '{"cpu": 0.2}', "fast", '{"probe_ms_added_max": 0}']
)
def test_what_is_no_budget_is_refused_by_name(raw: str) -> None:
    with pytest.raises(OperatorError, match=r"cpu|probe|budget"):
        parse_budget(raw)
