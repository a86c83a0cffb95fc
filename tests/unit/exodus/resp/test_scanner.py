"""Framing at every byte split, against cases written by hand and against drawn ones."""

from __future__ import annotations

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exodus.plan.bounds import RETAINED_ARG_BYTES
from exodus.resp.encode import encode
from exodus.resp.inline import split_line
from exodus.resp.scanner import PAYLOAD, SKIPPED, ReplyScanner, RequestScanner

REQUESTS = [
    (b"*1\r\n$4\r\nPING\r\n", [[b"PING"]]),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", [[b"SET", b"k", b""]]),
    (b"*2\r\n$3\r\nGET\r\n$5\r\na\r\n*1\r\nPING\r\n", [[b"GET", b"a\r\n*1"], [b"PING"]]),
    (b"PING\r\nGET  a\n", [[b"PING"], [b"GET", b"a"]]),
    (b'SET k "a b\\x41\\n"\r\n', [[b"SET", b"k", b"a bA\n"]]),
    (b"*0\r\n*-1\r\n\r\n*1\r\n$4\r\nPING\r\n", [[], [], [], [b"PING"]]),
    (b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n", [[b"PING"], [b"PING"]]),
]
MALFORMED = [
    b"*a\r\n",
    b"*1\r\n+OK\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$01\r\n",
    b"*2147483648\r\n",
    b"*1\r\n$+4\r\nPING\r\n",
    b'SET "a\r\n',
]
MALFORMED_REPLIES = [
    b"\r\n",
    b"hello\r\n",
    b"$x\r\n",
    b"*\r\n",
    b"$-\r\n",
    b"*1\r\n\r\n",
    b"\x00\r\n",
]
REPLIES = [
    (b"+OK\r\n", ["+"]),
    (b"-ERR no\r\n:5\r\n", ["-", ":"]),
    (b"$-1\r\n*-1\r\n_\r\n", ["$", "*", "_"]),
    (b"$3\r\na\r\n\r\n+x\r\n", ["$", "+"]),
    (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n+OK\r\n", ["*", "+"]),
    (b"*0\r\n*3\r\n*0\r\n*-1\r\n$-1\r\n", ["*", "*"]),
    (b"%1\r\n+k\r\n~2\r\n:1\r\n:2\r\n#t\r\n,1.5\r\n(12\r\n", ["%", "#", ",", "("]),
    (b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n$1\r\nv\r\n", [">", "$"]),
    (b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n:1\r\n", ["|", ":"]),
    (b"!8\r\nERR oops\r\n=5\r\ntxt:a\r\n", ["!", "="]),
]


def _splits(data: bytes):
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


@pytest.mark.parametrize(("data", "wanted"), REQUESTS)
def test_requests_at_every_split(data: bytes, wanted: list[list[bytes]]) -> None:
    for parts in _splits(data):
        scanner = RequestScanner()
        found = [request for part in parts for request in scanner.feed(part)]
        assert [request.args for request in found] == wanted
        assert sum(request.size for request in found) == len(data)
        assert scanner.partial_bytes == 0
        assert scanner.broken is None


def test_a_value_that_nobody_asks_for_is_passed_over_at_every_split() -> None:
    value = b"*1\r\n$4\r\nPING\r\n" * 20
    asked = [
        (b"SET", b"k", value),
        (b"SET", value, b"v"),
        (b"MSET", b"k", value),
        (b"SET", b"k", b"short"),
    ]
    data = b"".join(encode(*args) for args in asked)
    for parts in _splits(data):
        scanner = RequestScanner({b"SET": 2})
        found = [request for part in parts for request in scanner.feed(part)]
        assert [request.args for request in found] == [
            [b"SET", b"k", PAYLOAD],
            *map(list, asked[1:]),
        ]
        assert [request.size for request in found] == [len(encode(*args)) for args in asked]
        assert not any(request.skipped for request in found)
        assert scanner.partial_bytes == 0


@pytest.mark.parametrize("data", MALFORMED)
def test_what_no_server_accepts_breaks_the_scanner_at_every_split(data: bytes) -> None:
    for parts in _splits(data):
        scanner = RequestScanner()
        for part in parts:
            assert scanner.feed(part) == []
        assert scanner.broken is not None
        assert scanner.feed(b"*1\r\n$4\r\nPING\r\n") == []


@pytest.mark.parametrize("data", MALFORMED_REPLIES)
def test_what_no_server_says_breaks_the_scanner_at_every_split(data: bytes) -> None:
    for parts in _splits(data):
        scanner = ReplyScanner()
        for part in parts:
            assert scanner.feed(part) == []
        assert scanner.broken is not None


@pytest.mark.parametrize(("data", "kinds"), REPLIES)
def test_replies_at_every_split(data: bytes, kinds: list[str]) -> None:
    for parts in _splits(data):
        scanner = ReplyScanner()
        found = [reply for part in parts for reply in scanner.feed(part)]
        assert [chr(reply.kind) for reply in found] == kinds
        assert sum(reply.size for reply in found) == len(data)
        assert scanner.broken is None


def test_the_first_element_tells_a_message_from_a_reply() -> None:
    data = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n*2\r\n:1\r\n$7\r\nmessage\r\n"
    for parts in _splits(data):
        scanner = ReplyScanner()
        found = [reply for part in parts for reply in scanner.feed(part)]
        assert [reply.first for reply in found] == [b"message", b""]


def test_a_long_argument_is_skipped_and_not_kept() -> None:
    value = b"x" * (RETAINED_ARG_BYTES + 1)
    data = encode("SET", "k", value) + encode("PING")
    for size in (1_000, 65_536, len(data)):
        scanner = RequestScanner()
        found = [
            request
            for at in range(0, len(data), size)
            for request in scanner.feed(data[at : at + size])
        ]
        assert found[0].args[:2] == [b"SET", b"k"]
        assert found[0].args[2] is SKIPPED
        assert found[0].skipped
        assert found[1].args == [b"PING"]


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=6), st.data())
def test_what_was_encoded_comes_back(commands: list[list[bytes]], data: st.DataObject) -> None:
    raw = b"".join(encode(*command) for command in commands)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    scanner = RequestScanner()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += scanner.feed(raw[start:end])
    assert [request.args for request in found] == commands


_scalars = st.one_of(
    st.binary(max_size=30).map(lambda value: b"$%d\r\n%b\r\n" % (len(value), value)),
    st.integers(-(2**40), 2**40).map(lambda value: b":%d\r\n" % value),
    st.sampled_from([b"+OK\r\n", b"$-1\r\n", b"*-1\r\n"]),
)
_replies = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4).map(
        lambda parts: b"*%d\r\n" % len(parts) + b"".join(parts)
    ),
    max_leaves=12,
)


@given(st.lists(_replies, max_size=6), st.data())
def test_replies_end_where_hiredis_says(replies: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(replies)
    reader = hiredis.Reader()
    reader.feed(raw)
    scanner = ReplyScanner()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += scanner.feed(raw[start:end])
    assert [reply.size for reply in found] == [len(reply) for reply in replies]
    for _ in found:
        assert reader.gets() is not False


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_no_bytes_make_a_scanner_raise(parts: list[bytes]) -> None:
    requests, replies = RequestScanner(), ReplyScanner()
    for part in parts:
        requests.feed(part)
        replies.feed(part)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b" a  b ", [b"a", b"b"]),
        (b"'a\\'b' c", [b"a'b", b"c"]),
        (b'"a"b', None),
        (b'"a', None),
        (b"", []),
        (b'"\\x4g"', [b"x4g"]),
        (b'""', [b""]),
    ],
)
def test_inline_words(line: bytes, words: list[bytes] | None) -> None:
    assert split_line(line) == words
