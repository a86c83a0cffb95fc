"""Sampled pairs come out of an entry as they were put in."""

from __future__ import annotations

import pytest

from exodus.control.shadow_pairs import Pair, UnreadablePairs, pack_pair, unpack_pairs

PAIRS = [
    Pair(0, False, b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", b"127.0.0.1 shop"),
    Pair(15, True, b"", b"", b""),
    Pair(2**31, True, b"\0" * 70_000, b"\xff\r\n", b"a"),
]


def test_pairs_come_out_as_they_were_put_in() -> None:
    assert unpack_pairs(b"".join(pack_pair(*pair) for pair in PAIRS)) == PAIRS
    assert unpack_pairs(b"") == []


@pytest.mark.parametrize("cut", [1, 10, 16, 20, 70_000])
def test_damaged_pairs_are_unreadable(cut: int) -> None:
    packed = b"".join(pack_pair(*pair) for pair in PAIRS)
    with pytest.raises(UnreadablePairs):
        unpack_pairs(packed[:-cut])
