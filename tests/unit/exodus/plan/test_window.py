"""When a switch may begin by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from exodus.plan.window import QuietWatch, Window


def at(text: str) -> int:
    return int(datetime.fromisoformat(f"2026-11-25T{text}").replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("opens", "closes", "now", "is_open"),
    [
        ("02:00", "04:00", "01:59:59", False),
        ("02:00", "04:00", "02:00:00", True),
        ("02:00", "04:00", "03:59:59", True),
        ("02:00", "04:00", "04:00:00", False),
        ("23:00", "01:00", "23:30:00", True),
        ("23:00", "01:00", "00:59:00", True),
        ("23:00", "01:00", "12:00:00", False),
        ("00:00", "00:00", "12:00:00", True),
    ],
)
def test_the_hours_count(opens: str, closes: str, now: str, is_open: bool) -> None:
    assert Window(opens=opens, closes=closes).is_open(at(now)) is is_open


def test_it_must_have_been_quiet_for_as_long_as_was_approved() -> None:
    """Quiet before the window opens counts. One late moment starts the time anew."""
    lookout = QuietWatch(Window(opens="02:00", closes="04:00", lag_ms_max=100, quiet_seconds=300))
    assert "opens at 02:00 UTC, in 1 min" in str(lookout.look(at("01:59:00"), 50))
    assert "60 s, 300 s are asked" in str(lookout.look(at("02:00:00"), 100))
    assert "101 ms behind" in str(lookout.look(at("02:03:00"), 101))
    assert lookout.look(at("02:03:01"), 0) is not None
    assert lookout.look(at("02:08:00"), 0) is not None
    assert lookout.look(at("02:08:01"), 0) is None


@pytest.mark.parametrize("wrong", ["24:00", "2:00", "02:60", "now", ""])
def test_hours_that_are_none_are_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Window(opens=wrong)
