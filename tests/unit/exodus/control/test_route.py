"""The route: each change is a new epoch, and the follower is the other side."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from exodus.control.route import Route, announced, asked_at_ms
from exodus.plan.vocabulary import Hold, Side


def test_a_change_is_the_next_epoch_and_keeps_the_rest() -> None:
    before = Route(epoch=4, sync=True)
    after = before.next(why="hold", hold=Hold.WRITES)
    assert (after.epoch, after.sync, after.hold, after.why) == (5, True, Hold.WRITES, "hold")
    assert before.hold is Hold.NONE


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="holds"):
        Route().next(why="typo", holds="writes")


@pytest.mark.parametrize("side", list(Side))
def test_the_follower_is_the_other_side(side: Side) -> None:
    assert Route(authority=side).follower is side.other


def test_messages_of_the_channel_are_told_apart() -> None:
    route = Route(epoch=2)
    assert announced(route.model_dump_json().encode()) == route
    assert announced(b"say 17") is None
    assert asked_at_ms(b"say 17") == 17
    assert asked_at_ms(b"soon") is None
