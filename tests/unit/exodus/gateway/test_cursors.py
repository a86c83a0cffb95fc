"""Marked cursors: each names its authority, and a strange reply passes as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exodus.gateway.cursors import mark_reply, server_cursor, tag_of
from exodus.plan.bounds import CURSOR_BITS

_ELEMENTS = b"*1\r\n$3\r\nkey\r\n"


def _reply(cursor: bytes) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n%b" % (len(cursor), cursor, _ELEMENTS)


def _cursor(frame: bytes) -> bytes:
    return frame.split(b"\r\n")[2]


@given(st.integers(1, 2**CURSOR_BITS - 1), st.integers(1, 600))
def test_the_authority_that_gave_a_cursor_gets_it_back(value: int, generation: int) -> None:
    tag = tag_of(generation)
    marked = mark_reply(_reply(b"%d" % value), tag)
    assert marked is not None
    assert marked.endswith(_ELEMENTS)
    assert server_cursor(_cursor(marked), tag) == b"%d" % value
    assert server_cursor(_cursor(marked), tag_of(generation + 1)) == b"0"


def test_a_cursor_without_room_for_the_tag_is_told() -> None:
    assert mark_reply(_reply(b"%d" % 2**CURSOR_BITS), 1) is None


@pytest.mark.parametrize(
    "frame",
    [
        b"-NOPERM no\r\n",
        _reply(b"0"),
        _reply(b"abc"),
        _reply(b""),
        _reply(b"9" * 5_000),
        b"*2\r\n$-1\r\n*0\r\n",
        b"*2\r\n$-1\r\n$-1\r\n",
    ],
)
def test_a_reply_without_a_cursor_passes_as_it_is(frame: bytes) -> None:
    """Before, a `ValueError` here ended the client's session with a gap."""
    assert mark_reply(frame, 3) == frame
