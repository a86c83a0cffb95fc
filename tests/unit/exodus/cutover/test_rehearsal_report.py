from __future__ import annotations

from exodus.cutover.rehearsal_report import changed

BEFORE = {
    "exodus": "0.1.0",
    "plan.fence": "aa",
    "source.version": "redis 6.2.5",
    "target.version": "valkey 9.1.2",
    "target.maxmemory": "bb",
    "target.timeout": "cc",
}


def test_each_change_is_named_and_versions_are_shown() -> None:
    now = {**BEFORE, "target.version": "valkey 9.1.3", "target.maxmemory": "dd"}
    assert changed(BEFORE, now) == [
        "target.maxmemory",
        "target.version: valkey 9.1.2, now valkey 9.1.3",
    ]


def test_a_side_that_is_not_asked_is_not_judged() -> None:
    """A fence may keep Exodus out of it."""
    now = {name: value for name, value in BEFORE.items() if not name.startswith("target.")}
    assert changed(BEFORE, now) == []
    assert changed(BEFORE, {**now, "plan.fence": "zz"}) == ["plan.fence"]


def test_a_setting_that_came_or_went_is_a_change() -> None:
    gone = {name: value for name, value in BEFORE.items() if name != "target.timeout"}
    assert changed(BEFORE, gone) == ["target.timeout"]
    assert changed(gone, BEFORE) == ["target.timeout"]


def test_a_rehearsal_without_a_fingerprint_is_of_something_else() -> None:
    assert changed({}, BEFORE)
