"""The checker of histories finds every violation and passes every valid history: the proof of the
switch depends on it.
"""

from __future__ import annotations

import random

import pytest

from tests.support.linearizable import Operation, first_violation


def op(
    kind, called: int, returned: int | None, argument: bytes = b"", result: bytes | None = None
) -> Operation:
    return Operation(kind, called, returned, argument, result)


GOOD = {
    "one after another": [op("set", 1, 2, b"a"), op("get", 3, 4, result=b"a")],
    "a read beside a write sees the old value": [
        op("set", 1, 2, b"a"),
        op("set", 3, 9, b"b"),
        op("get", 4, 5, result=b"a"),
    ],
    "or the new one": [
        op("set", 1, 2, b"a"),
        op("set", 3, 9, b"b"),
        op("get", 4, 5, result=b"b"),
        op("get", 6, 7, result=b"b"),
    ],
    "a write without an answer is done late": [
        op("set", 1, None, b"a"),
        op("get", 2, 3),
        op("get", 4, 5, result=b"a"),
    ],
    "or never": [op("set", 1, None, b"a"), op("get", 2, 3), op("get", 9, 10)],
    "counts beside each other": [
        op("incr", 1, 9, result=b"2"),
        op("incr", 2, 8, result=b"1"),
        op("get", 10, 11, result=b"2"),
    ],
    "a count without an answer was done": [op("incr", 1, None), op("incr", 5, 6, result=b"2")],
    "or was not": [op("incr", 1, None), op("incr", 5, 6, result=b"1")],
}
BAD = {
    "a stale read": [op("set", 1, 2, b"a"), op("set", 3, 4, b"b"), op("get", 5, 6, result=b"a")],
    "a lost write": [op("set", 1, 2, b"a"), op("get", 3, 4)],
    "a value that comes back": [
        op("set", 1, 2, b"a"),
        op("set", 3, 9, b"b"),
        op("get", 4, 5, result=b"b"),
        op("get", 6, 7, result=b"a"),
    ],
    "a count done twice": [op("incr", 1, 2, result=b"1"), op("incr", 3, 4, result=b"3")],
    "a lost count": [op("incr", 1, 2, result=b"1"), op("incr", 3, 4, result=b"1")],
    "a value that nobody wrote": [op("set", 1, 2, b"a"), op("get", 3, 4, result=b"x")],
    "a write without an answer, seen before its call": [
        op("get", 1, 2, result=b"a"),
        op("set", 3, None, b"a"),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_an_order_explains_is_linearizable(name: str) -> None:
    assert first_violation(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_no_order_explains_is_found(name: str) -> None:
    assert first_violation(BAD[name]) is not None


@pytest.mark.property
def test_drawn_histories_of_a_real_counter_pass_and_spoiled_ones_do_not() -> None:
    """A history in which each operation gets its moment first is linearizable. One answer raised by
    one is not.
    """
    for seed in range(30):
        draw = random.Random(seed)
        history = []
        for value in range(1, 40):
            moment = value * 10
            history.append(
                op(
                    "incr",
                    moment - draw.randrange(1, 25),
                    moment + draw.randrange(1, 25),
                    result=b"%d" % value,
                )
            )
        assert first_violation(history) is None, seed
        spoiled = draw.randrange(len(history))
        before = history[spoiled]
        history[spoiled] = op(
            "incr", before.called, before.returned, result=b"%d" % (int(before.result or b"0") + 20)
        )
        assert first_violation(history) is not None, seed
