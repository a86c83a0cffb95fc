"""Replies that mean the same are the same, and others are not."""

from __future__ import annotations

import pytest

from exodus.shadow.rules import equivalent

_OLD, _NEW = b"443344.12345670001", b"4.433441234567e+5"


@pytest.mark.parametrize(
    ("args", "here", "there"),
    [
        ([b"ZSCORE", b"z", b"m"], _OLD, _NEW),
        ([b"ZSCORE", b"z", b"m"], _OLD, 443344.1234567),
        ([b"ZMSCORE", b"z", b"m", b"n"], [_OLD, None], [_NEW, None]),
        (
            [b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"],
            [b"m", _OLD, b"n", b"1"],
            [b"m", _NEW, b"n", b"1.0"],
        ),
        ([b"ZRANGE", b"z", b"0", b"-1", b"withscores"], [[b"m", 443344.1234567]], [b"m", _NEW]),
        (
            [b"ZRANGEBYSCORE", b"z", b"-inf", b"+inf", b"WITHSCORES"],
            [b"m", b"inf"],
            [b"m", b"Infinity"],
        ),
        ([b"ZRANK", b"z", b"m", b"WITHSCORE"], [0, _OLD], [0, _NEW]),
        ([b"ZPOPMIN", b"z"], [b"m", _OLD], [b"m", _NEW]),
    ],
)
def test_scores_are_numbers(args: list[bytes], here: object, there: object) -> None:
    assert equivalent(args[0], here, there, args)


@pytest.mark.parametrize(
    ("args", "here", "there"),
    [
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"m", b"1"], [b"m", b"1.5"]),
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"1", b"1"], [b"1.0", b"1"]),
        ([b"ZRANGE", b"z", b"0", b"-1"], [_OLD], [_NEW]),
        ([b"GET", b"k"], _OLD, _NEW),
        ([b"ZSCORE", b"z", b"m"], _OLD, b"443344.2"),
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"m", b"1"], [b"m", b"1", b"n", b"2"]),
    ],
)
def test_members_and_values_are_not(args: list[bytes], here: object, there: object) -> None:
    assert not equivalent(args[0], here, there, args)
