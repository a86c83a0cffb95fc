"""What sessions report to the journaler: marks, each once, and intents that find no room."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio as redis

from exodus.control.changes import Barrier
from exodus.control.store import ControlStore
from exodus.gateway import intents
from exodus.gateway.intents import IntentLog
from exodus.gateway.journaler import Journaler
from exodus.gateway.marks import Marks
from exodus.plan.address import Address


def test_marks_are_kept_once_and_taken_once() -> None:
    woken: list[bool] = []
    marks = Marks(lambda: woken.append(True))
    assert not marks
    marks.add([(0, b"a"), (0, b"b")], None)
    marks.add([(0, b"a"), (1, b"a")], Barrier("FLUSHDB", (0,)))
    assert (len(marks), marks.coalesced, len(woken)) == (4, 1, 1)
    assert marks.take() == ([(0, b"a"), (0, b"b"), (1, b"a")], [Barrier("FLUSHDB", (0,))])
    assert not marks
    marks.add([(0, b"a")], None)
    assert len(woken) == 1  # nobody slept
    marks.sleep()
    marks.add([(0, b"c")], None)
    assert len(woken) == 2


def test_each_write_is_a_mark_while_only_sampled_keys_are_journalled() -> None:
    """Compare counts the marks, and so notices a write that it did not see."""
    marks = Marks(lambda: None)
    marks.each = True
    marks.add([(0, b"a"), (0, b"b")], None)
    marks.add([(0, b"a")], None)
    assert len(marks) == 3
    assert marks.take()[0] == [(0, b"a"), (0, b"b"), (0, b"a")]
    assert not marks


def test_an_intent_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed: list[object] = []
    log = IntentLog(tmp_path, missed.append)
    log.append([(0, b"a")], None)
    log.append([], Barrier("FLUSHALL"))
    assert missed == []
    monkeypatch.setattr(intents, "INTENT_SEGMENTS_MAX", 1)
    log.append([(0, b"k" * intents.INTENT_SEGMENT_BYTES)], None)
    log.append([], Barrier("FLUSHALL" * intents.INTENT_SEGMENT_BYTES))
    assert [None if keys is None else len(keys) for keys in missed] == [1, None]
    log.close()


def test_a_barrier_without_room_is_a_gap_over_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "INTENT_SEGMENTS_MAX", 0)
    # Never connected to
    store = ControlStore(redis.Redis(), "m", Address(host="127.0.0.1", port=1))
    journaler = Journaler(store, 16, tmp_path)
    journaler.intend([], Barrier("FLUSHALL"))
    (gap,) = journaler.gaps.values()
    assert (gap.count, gap.hash_from, gap.hash_to) == (1, 0, 2**32 - 1)
    journaler.close()
