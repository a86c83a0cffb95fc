"""What a form may not be answered with, where a fence needs a person's word."""

from __future__ import annotations

from exodus.config import Side
from tasks.decision import provider_instruction, why_not_closed

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
