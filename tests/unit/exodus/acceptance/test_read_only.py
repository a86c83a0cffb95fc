"""What a business check may send, and how the keys of a trial copy are named."""

from __future__ import annotations

import pytest

from exodus.acceptance.read_only import NotARead, Reads

_PREFIX = b"exodus:trial:1:"


def _row(name: bytes, first: int, last: int, step: int, *flags: bytes) -> list[object]:
    return [name, -2, list(flags), first, last, step]


_ROWS = [
    _row(b"get", 1, 1, 1, b"readonly"),
    _row(b"mget", 1, -1, 1, b"readonly"),
    _row(b"xread", 0, 0, 0, b"readonly", b"movablekeys"),
    _row(b"scan", 0, 0, 0, b"readonly"),
    _row(b"keys", 0, 0, 0, b"readonly"),
    _row(b"dbsize", 0, 0, 0, b"readonly"),
    _row(b"xinfo", 2, 2, 1, b"readonly"),
    _row(b"set", 1, 1, 1, b"write"),
]


def test_each_key_is_sent_under_its_name_in_the_copy() -> None:
    reads = Reads.of(_ROWS, _PREFIX)
    for given, sent in (
        (("GET", "k"), ("GET", _PREFIX + b"k")),
        (
            ("MGET", "GET", b"k", "GET"),
            ("MGET", *(_PREFIX + key for key in (b"GET", b"k", b"GET"))),
        ),
        (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), ("XREAD", "COUNT", 1, "STREAMS", b"s", "0")),
        (("XINFO GROUPS", "s"), ("XINFO GROUPS", _PREFIX + b"s")),
        (("SCAN", 0), ("SCAN", 0, "MATCH", _PREFIX + b"*")),
        (("SCAN", 0, "COUNT", 9, "match", "a*"), ("SCAN", 0, "COUNT", 9, "match", _PREFIX + b"a*")),
        (("KEYS", "a*"), ("KEYS", _PREFIX + b"a*")),
        (("PING",), ("PING",)),
    ):
        wanted = [_PREFIX + b"s" if word == b"s" else word for word in sent]
        assert list(reads.sent(given)) == wanted


def test_names_in_replies_are_the_keys_own() -> None:
    reads = Reads.of(_ROWS, _PREFIX)
    name = _PREFIX + b"k"
    assert reads.answered((0, [name, b"other"])) == (0, [b"k", b"other"])
    assert reads.answered({name: [{name: 1}]}) == {b"k": [{b"k": 1}]}
    assert reads.answered([None, 3, {name}]) == [None, 3, {b"k"}]
    assert Reads.of(_ROWS, b"").answered(name) == name


def test_what_is_no_read_or_sees_all_keys_is_refused() -> None:
    for prefix in (_PREFIX, b""):
        reads = Reads.of(_ROWS, prefix)
        for refused in (("SET", "k", 1), (b"set", "k", 1), ("FLUSHALL",), ("CONFIG SET", "a", "b")):
            with pytest.raises(NotARead, match="is not a read"):
                reads.sent(refused)
    with pytest.raises(NotARead, match="beside the trial copy"):
        Reads.of(_ROWS, _PREFIX).sent(("DBSIZE",))
    assert Reads.of(_ROWS, b"").sent(("DBSIZE",)) == ("DBSIZE",)
