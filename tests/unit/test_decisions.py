"""What a form may not be answered with, where a fence or keys that stay behind need a person's word."""

from __future__ import annotations

from exodus.config import Side
from tasks.decision import provider_instruction, why_not_closed, why_not_left

_PLAN = {"fence": {"source": "provider", "source_instruction": "close the firewall"}}


def test_only_a_provider_s_fence_asks_for_a_word() -> None:
    assert provider_instruction(_PLAN, Side.SOURCE) == "close the firewall"
    assert provider_instruction(_PLAN, Side.TARGET) is None


def test_an_approval_without_the_word_is_asked_again() -> None:
    said = {"decision": "approve", "fence_confirmed": False}
    assert "close the firewall, and say fence_confirmed" in str(why_not_closed(said, "close the firewall"))
    assert why_not_closed({**said, "fence_confirmed": True}, "close the firewall") is None
    assert why_not_closed({**said, "decision": "reject"}, "close the firewall") is None
    assert why_not_closed(said, None) is None


def test_keys_do_not_stay_behind_unless_somebody_says_so() -> None:
    said = {"decision": "approve", "leave_behind": False}
    assert "say leave_behind" in str(why_not_left(said, filtered=True))
    assert why_not_left({**said, "leave_behind": True}, filtered=True) is None
    assert why_not_left({**said, "decision": "reject"}, filtered=True) is None
    assert why_not_left(said, filtered=False) is None
