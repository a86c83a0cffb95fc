"""Forms: they leave room for their summary, refuse impossible answers, and demand a person's
confirmation for a manual fence and for keys that stay behind.
"""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks import decision
from tasks.decision import (
    completed,
    cutover_form,
    provider_instruction,
    why_not_closed,
    why_not_left,
    window_of,
)

_PLAN = {"fence": {"source": "provider", "source_instruction": "close the firewall"}}


def test_only_a_provider_s_fence_asks_for_a_word() -> None:
    assert provider_instruction(_PLAN, Side.SOURCE) == "close the firewall"
    assert provider_instruction(_PLAN, Side.TARGET) is None


def test_an_approval_without_the_word_is_asked_again() -> None:
    said = {"decision": "approve", "fence_confirmed": False}
    assert "close the firewall, then tick Fence confirmed" in str(
        why_not_closed(said, "close the firewall")
    )
    assert why_not_closed({**said, "fence_confirmed": True}, "close the firewall") is None
    assert why_not_closed({**said, "decision": "reject"}, "close the firewall") is None
    assert why_not_closed(said, None) is None


def test_keys_do_not_stay_behind_unless_somebody_says_so() -> None:
    said = {"decision": "approve", "leave_behind": False}
    assert "tick Leave keys behind" in str(why_not_left(said, filtered=True))
    assert why_not_left({**said, "leave_behind": True}, filtered=True) is None
    assert why_not_left({**said, "decision": "reject"}, filtered=True) is None
    assert why_not_left(said, filtered=False) is None


_SAID = {"decided_by": "ada", "why": "it is time"}
_WINDOW = {"opens": "02:00", "closes": "04:00", "lag_ms_max": 100, "quiet_seconds": 300.0}


def _forms() -> dict[str, type]:
    yes_no = (False, True)
    forms = {"phase": decision.phase_form(), "next": decision.next_form()}
    forms |= {f"migrate {dead}": decision.migrate_form(dead_letters=dead) for dead in yes_no}
    forms |= {f"compare {found}": decision.compare_form(findings=found) for found in yes_no}
    forms |= {
        f"back {dead} {provider}": decision.back_form(dead=dead, provider=provider)
        for dead, provider in itertools.product(yes_no, repeat=2)
    }
    for window, filtered, provider in itertools.product((None, _WINDOW), yes_no, yes_no):
        name = f"cutover {window is not None} {filtered} {provider}"
        forms[name] = cutover_form({"window": window}, filtered=filtered, provider=provider)
    return forms


@pytest.mark.parametrize("name", sorted(_forms()))
def test_no_form_has_more_fields_than_leave_room_for_its_summary(name: str) -> None:
    """Nine fields left the cutover's question and evidence 0 of 253 pixels."""
    fields = _forms()[name].model_fields
    assert list(fields)[:3] == ["decision", "decided_by", "why"]
    assert len(fields) <= 4


def test_a_field_that_the_form_does_not_have_is_refused() -> None:
    """An operator who answers `when: window` to a plan without a window must not get a cutover at
    once.
    """
    form = cutover_form({"window": None}, filtered=False, provider=False)
    form(decision="approve", **_SAID)
    for more in ({"when": "window"}, {"decision": "approve in window"}):
        with pytest.raises(ValidationError):
            form(**{"decision": "approve", **_SAID, **more})


def test_an_approval_in_the_window_is_an_approval_with_that_window() -> None:
    plan = Plan.model_validate(
        {
            "name": "orders",
            "source": {"host": "a", "port": 1},
            "target": {"host": "b", "port": 1},
            "window": {"opens": "02:00", "closes": "04:00"},
        }
    ).model_dump(mode="json")
    assert plan["window"] == _WINDOW
    answer = completed({"decision": "approve in window", **_SAID}, plan)
    assert answer["decision"] == "approve"
    assert window_of(answer) == _WINDOW
    assert window_of(completed({"decision": "approve", **_SAID}, plan)) is None


def test_one_tick_confirms_the_fence_and_the_keys_that_stay() -> None:
    form = cutover_form({"window": None}, filtered=True, provider=True)
    assert "Filtered keys may stay" in str(form.model_fields["fence_confirmed"].description)
    said = completed(
        {"decision": "approve", **_SAID, "fence_confirmed": True}, {"window": None}, filtered=True
    )
    assert why_not_left(said, filtered=True) is None
    not_said = completed(
        {"decision": "approve", **_SAID, "fence_confirmed": False}, {"window": None}, filtered=True
    )
    assert why_not_left(not_said, filtered=True) is not None


def test_reject_means_one_thing_in_each_form() -> None:
    """Before, the form said that reject holds the migration, and its summary that it asks for a
    rollback.
    """
    for form in _forms().values():
        means = str(form.model_fields["decision"].description)
        assert means.count("reject:") == (0 if "retry" in means else 1)
