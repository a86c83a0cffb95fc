"""What is known of a key's writes: the states around each, or why they are unknown."""

from __future__ import annotations

import pytest

from exodus.plan.bounds import (
    COMPARE_HISTORIES_MAX,
    COMPARE_HISTORY_WRITES_MAX,
    COMPARE_QUIET_MS,
    COMPARE_STATE_BYTES_MAX,
    COMPARE_STEPS_MAX,
)
from exodus.shadow import histories
from exodus.shadow.exchange import Exchange
from exodus.shadow.histories import Histories, Snapshot

K, OTHER = (0, b"k"), (0, b"other")
OLD, NEW = Snapshot(b"old"), Snapshot(b"new")
_AT_MS = 10_000
_QUIET_MS = _AT_MS + COMPARE_QUIET_MS


def _write(at_ms: int = _AT_MS, reply: bytes = b":1\r\n") -> Exchange:
    return Exchange(at_ms, 0, ([b"INCR", b"k"],), reply, write=True)


def _begun(*, before: Snapshot | None = OLD, marks: int = 1) -> Histories:
    found = Histories()
    found.begin(K, before, "" if before is not None else histories.UNSETTLED)
    found.marked(K, marks)
    found.copied(K, NEW, _AT_MS)
    return found


def _reasons(found: Histories) -> list[str]:
    return [why for _, why in found.given_up]


def test_a_write_between_two_quiet_moments_is_a_step() -> None:
    found = _begun()
    write = _write()
    found.wrote(write, {K: 1})
    found.end(_QUIET_MS - 1)
    assert not found.steps
    assert found.waiting == [write]
    found.end(_QUIET_MS)
    (step,) = found.steps
    assert [each.exchange for each in step.writes] == [write]
    assert (step.before, step.after) == ({K: OLD}, {K: NEW})
    assert found.given_up == []


def test_the_request_may_be_told_before_the_journal_names_its_key() -> None:
    found = Histories()
    found.wrote(_write(), {K: 1})
    assert found.wants(K)
    found.begin(K, OLD)
    assert not found.wants(K)
    found.marked(K, 1)
    found.copied(K, NEW, _AT_MS)
    found.end(_QUIET_MS)
    assert len(found.steps) == 1


def test_nothing_is_concluded_of_a_key_that_was_written_shortly_before() -> None:
    """Its copy may have the write already: INCR would count twice."""
    found = _begun(before=None)
    found.wrote(_write(), {K: 1})
    found.end(_QUIET_MS)
    assert not found.steps
    assert _reasons(found) == [histories.UNSETTLED]


@pytest.mark.parametrize("marks", [0, 2])
def test_nothing_is_concluded_where_the_journal_names_another_number_of_writes(marks: int) -> None:
    """A request was dropped, or blocks, or its connection was lost."""
    found = _begun(marks=marks)
    found.wrote(_write(), {K: 1})
    found.end(_QUIET_MS)
    assert not found.steps
    assert _reasons(found) == [histories.UNSEEN]


def test_a_request_that_is_told_late_does_not_stand_for_one_that_is_not_told_yet() -> None:
    """Its write is in the earlier state. The journal entry belongs to another write."""
    found = Histories()
    found.begin(K, OLD, first_ms=_AT_MS)
    found.marked(K, 1)
    found.copied(K, NEW, _AT_MS)
    found.wrote(_write(_AT_MS - COMPARE_QUIET_MS), {K: 1})
    found.end(_QUIET_MS)
    assert not found.steps
    assert _reasons(found) == [histories.UNSEEN]


def test_a_write_that_was_not_tried_spoils_those_around_it() -> None:
    found = _begun(marks=3)
    found.wrote(_write(), {K: 1})
    found.wrote(_write(), {K: 1}, why_not=histories.NOT_TRIED, told=True)
    found.wrote(_write(), {K: 1})
    found.end(_QUIET_MS)
    assert not found.steps
    assert _reasons(found) == [histories.NOT_TRIED] * 2  # the untried one is reported


def test_writes_of_one_key_are_one_step_in_their_order() -> None:
    found = _begun(marks=2)
    writes = [_write(reply=b":%d\r\n" % number) for number in range(2)]
    for each in writes:
        found.wrote(each, {K: 1})
    found.end(_QUIET_MS)
    assert [each.exchange for each in found.steps[0].writes] == writes


def test_a_key_that_is_written_without_a_pause_keeps_a_bounded_number_of_writes() -> None:
    found = _begun(marks=COMPARE_HISTORY_WRITES_MAX + 5)
    for _ in range(COMPARE_HISTORY_WRITES_MAX + 5):
        found.wrote(_write(), {K: 1})
    assert _reasons(found) == [histories.MANY] * (COMPARE_HISTORY_WRITES_MAX + 5)
    assert found.waiting == []
    found.end(_QUIET_MS)
    assert not found


def test_a_write_of_several_keys_is_a_step_where_it_is_alone() -> None:
    found = _begun()
    found.begin(OTHER, OLD)
    found.marked(OTHER, 1)
    found.copied(OTHER, NEW, _AT_MS)
    found.wrote(_write(), {K: 1, OTHER: 1})
    found.end(_QUIET_MS)
    (step,) = found.steps
    assert step.before.keys() == {K, OTHER}


def test_a_write_of_several_keys_is_none_beside_another_write() -> None:
    """The order is known for each key alone."""
    found = _begun()
    found.begin(OTHER, OLD)
    found.marked(OTHER, 2)
    found.copied(OTHER, NEW, _AT_MS)
    found.wrote(_write(), {K: 1, OTHER: 1})
    found.wrote(_write(), {OTHER: 1})
    found.end(_QUIET_MS)
    assert not found.steps
    assert _reasons(found) == [histories.TOGETHER] * 2


def test_a_key_that_is_only_read_need_not_be_in_the_journal() -> None:
    found = _begun()
    found.begin(OTHER, OLD)
    found.wrote(_write(), {K: 1, OTHER: 0})
    found.end(_QUIET_MS)
    (step,) = found.steps
    assert step.after == {K: NEW, OTHER: OLD}


def test_a_key_that_expires_about_then_is_left_alone() -> None:
    found = _begun(before=Snapshot(b"old", _QUIET_MS + 1))
    found.wrote(_write(), {K: 1})
    found.end(_QUIET_MS)
    assert _reasons(found) == [histories.EXPIRES]


def test_what_is_kept_is_bounded() -> None:
    large = Snapshot(b"x" * (COMPARE_STATE_BYTES_MAX + 1))
    for before, after in ((large, NEW), (OLD, large)):
        found = Histories()
        found.begin(K, before)
        found.marked(K, 1)
        found.copied(K, after, _AT_MS)
        found.wrote(_write(), {K: 1})
        assert _reasons(found) == [histories.LARGE]
    found = _begun()
    found.wrote(_write(reply=b"x" * COMPARE_STATE_BYTES_MAX), {K: 1})
    assert _reasons(found) == [histories.LARGE]
    found = Histories()
    for number in range(COMPARE_HISTORIES_MAX):
        found.wrote(_write(), {(0, b"%d" % number): 1})
    found.wrote(_write(), {K: 1})
    assert _reasons(found) == [histories.CROWDED]
    found = _begun()
    found.wrote(_write(), {K: 1})
    found.end(_QUIET_MS)
    found.steps.extend(list(found.steps) * COMPARE_STEPS_MAX)
    found.begin(OTHER, OLD)
    found.marked(OTHER, 1)
    found.copied(OTHER, NEW, _AT_MS)
    found.wrote(_write(), {OTHER: 1})
    found.end(_QUIET_MS)
    assert _reasons(found) == [histories.LATE]


def test_a_key_that_is_not_sampled_any_more_is_dropped() -> None:
    found = _begun()
    found.wrote(_write(), {K: 1})
    found.forget([K])
    assert not found
    assert _reasons(found) == [histories.OUTSIDE]
