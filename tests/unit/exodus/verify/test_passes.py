"""Slices of a pass overlap by one call. Whenever each ends and is resumed, each key belongs to one
slice.
"""

from __future__ import annotations

import pytest

from exodus.control.checkpoint import DirectionProgress
from exodus.copy.scan import Slice, reverse64
from exodus.verify.passes import _Direction

FIRST, SECOND = Slice("n", 0, 0, 2), Slice("n", 0, 1, 2)
PAST = reverse64((1 << 63) + (1 << 60))  # a cursor in the second half


def _way(kept: DirectionProgress | None = None) -> _Direction:
    return _Direction(
        kept or DirectionProgress(cursors={FIRST.slice_id: 0, SECOND.slice_id: SECOND.start})
    )


def _call(
    way: _Direction, piece: Slice, after: int, keys: list[bytes]
) -> tuple[list[str], list[bytes]]:
    borders = way.borders(piece, way.cursor(piece), after)
    theirs = way.seen(borders, keys)
    return borders, [key for key in keys if key not in theirs]


def _kept(way: _Direction) -> DirectionProgress:
    return DirectionProgress.model_validate_json(way.walk.model_dump_json())


ENDS, BEGINS = (FIRST, PAST, [b"a", b"x", b"y"]), (SECOND, PAST, [b"x", b"y", b"z"])


@pytest.mark.parametrize("order", [(ENDS, BEGINS), (BEGINS, ENDS)])
def test_a_key_at_a_border_is_counted_once(
    order: tuple[tuple[Slice, int, list[bytes]], ...],
) -> None:
    way, counted = _way(), []
    for piece, after, keys in order:
        borders, mine = _call(way, piece, after, keys)
        counted += mine
        way.count(piece, after, borders, mine)
    assert sorted(counted) == [b"a", b"x", b"y", b"z"]
    assert way.walk.borders == {}
    assert way.walk.cursors == {SECOND.slice_id: PAST}


@pytest.mark.parametrize("order", [(ENDS, BEGINS), (BEGINS, ENDS)])
@pytest.mark.parametrize("counted_first", [0, 1])
def test_what_was_seen_and_not_counted_is_seen_again(
    order: tuple[tuple[Slice, int, list[bytes]], ...], counted_first: int
) -> None:
    """Two calls are in flight. One is counted and stored, then the process ends, and the other call
    is made again.
    """
    way, calls = _way(), []
    for piece, after, keys in order:
        calls.append((piece, after, keys, *_call(way, piece, after, keys)))
    piece, after, _, borders, mine = calls[counted_first]
    counted = list(mine)
    way.count(piece, after, borders, mine)
    again = _way(_kept(way))
    piece, after, keys, *_ = calls[1 - counted_first]
    borders, mine = _call(again, piece, after, keys)
    counted += mine
    again.count(piece, after, borders, mine)
    assert sorted(counted) == [b"a", b"x", b"y", b"z"]
    assert again.walk.borders == {}
