"""When both sides are asked again for a difference."""

from __future__ import annotations

import inspect
from pathlib import Path

from exodus.plan.bounds import COMPARE_LOOKS_S
from exodus.shadow.comparer import Comparer

_PAGE = Path(__file__).resolve().parents[4] / "docs/phases/compare.md"


def test_both_sides_are_asked_again_when_the_page_says_so() -> None:
    """Tests of the comparer give shorter pauses."""
    assert inspect.signature(Comparer).parameters["looks_s"].default is COMPARE_LOOKS_S
    first, *others = COMPARE_LOOKS_S
    told = f"again after {first * 1000:g} ms, {others[0]:g} s, and {others[1]:g} s."
    assert told in _PAGE.read_text()
    assert len(COMPARE_LOOKS_S) == 3
