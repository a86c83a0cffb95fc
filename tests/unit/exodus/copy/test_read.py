"""What a reader asks for, by what it found before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from exodus.copy.read import BY_VALUE, Batch, Reader, ReadMode

FACTS = SimpleNamespace(
    script_ms=5_000, capabilities={"scripts": True, "pexpiretime": True, "memory usage": True}
)
STRING, LIST = b"\x00\x01a payload", b"\x12\x01a payload"
Columns = tuple[list[bytes], list[int], list[Any]]  # types, expiries, values


def payloads(*values: Any) -> Columns:
    return [], [-1] * len(values), list(values)


def told(*kinds: bytes) -> Columns:
    return list(kinds), [-1], [b"value"]


class Script:
    """A leg whose server answers with these columns, one call after the other."""

    def __init__(self, answers: list[Columns]) -> None:
        self._answers = answers
        self.expected: list[bool] = []  # whether a call expects strings

    async def call(self, *args: Any) -> list[Any]:
        self.expected.append(args[-1] == "strings")
        kinds, expiries_ms, values = self._answers.pop(0)
        keys = [b"k%d" % number for number in range(len(values))]
        return [b"1", keys, kinds, expiries_ms, values]


async def expected(what: ReadMode, *answers: Columns) -> list[bool]:
    """Whether the calls after these answers expect strings."""
    script = Script([*answers, payloads(STRING)])
    reader = Reader(script, FACTS, what)  # type: ignore[arg-type]
    for _ in range(len(answers) + 1):
        await reader.scan(0, 256)
    return script.expected[1:]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([payloads(STRING, STRING)], [True]),
        ([payloads(STRING, [b"a long one, as its value"])], [True]),
        ([payloads(STRING, 0)], [True]),
        ([payloads(STRING, LIST)], [False]),
        ([payloads(0)], [False]),
        ([payloads()], [False]),
        ([payloads(STRING), told(BY_VALUE), told(BY_VALUE)], [True, True, True]),
        ([payloads(STRING), payloads(), told(BY_VALUE)], [True, True, True]),
        ([payloads(STRING), ([BY_VALUE, b""], [-1, -1], [b"v", LIST])], [True, False]),
    ],
)
async def test_strings_are_expected_after_a_batch_with_nothing_else(
    answers: list[Columns], wanted: list[bool]
) -> None:
    assert await expected(ReadMode.EITHER, *answers) == wanted


@pytest.mark.parametrize("what", [ReadMode.OUTLINE, ReadMode.NAME, ReadMode.SIZE, ReadMode.PAYLOAD])
async def test_no_string_is_read_where_no_value_is_wanted(what: ReadMode) -> None:
    kinds = [] if what in (ReadMode.SIZE, ReadMode.PAYLOAD) else [b"string"]
    assert await expected(what, (kinds, [-1], [STRING])) == [False]


def test_a_batch_is_packed_only_where_all_keys_came_in_one_way() -> None:
    keys, expiries_ms = [b"a", b"b"], [-1, 5]
    both = Batch.told(keys, [BY_VALUE], expiries_ms, [b"1", b"2"])
    assert (both.strings, both.payloads) == (True, False)
    neither = Batch.told(keys, [b""], expiries_ms, [STRING, LIST])
    assert (neither.strings, neither.payloads) == (False, True)
    mixed = Batch.told(keys, [BY_VALUE, b""], expiries_ms, [b"1", LIST])
    assert (mixed.strings, mixed.payloads) == (False, False)
    large = Batch.told(keys, [BY_VALUE], expiries_ms, [b"1", 0])
    assert (large.strings, large.payloads) == (False, False)
    gone = Batch.told(keys, [BY_VALUE, b"none"], [-1, -2], [b"1", b""])
    assert (gone.strings, gone.payloads) == (False, False)
