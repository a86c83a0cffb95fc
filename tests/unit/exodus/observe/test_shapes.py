"""Shapes, key patterns and expiries: what an event keeps of a request, and what it does not."""

from __future__ import annotations

from collections import Counter

import pytest

from exodus.observe.events import NO_EXPIRY, Event
from exodus.observe.known_commands import known_table
from exodus.observe.shapes import OTHER, Shapes, arity_class, pattern_of
from exodus.plan.bounds import KEY_PATTERNS_MAX, SHAPES_MAX

AT = 1_700_000_000.0


def event(*words: str, shapes: Shapes | None = None) -> Event:
    shapes = shapes or Shapes(known_table())
    args = [word.encode() for word in words]
    return shapes.event(AT, 1, "app", 0, shapes.table.of(args), args, 100)


@pytest.mark.parametrize(
    ("request_", "shape", "pattern"),
    [
        ("GET user:42", "GET /2", "user:*"),
        ("get user:42", "GET /2", "user:*"),
        ("SET user:42 NX ex 10 nx", "SET EX NX /5-8", "user:*"),
        ("SET k EX", "SET /3", "k"),
        ("ZADD board GT 1 a", "ZADD GT /5-8", "board"),
        ("CONFIG GET maxmemory", "CONFIG GET /3", ""),
        ("XREAD COUNT 1 BLOCK 10 STREAMS events $", "XREAD BLOCK COUNT STREAMS /5-8", "events"),
        ("MGET a:1 b:2 c:3 d:4 e:5 f:6 g:7 h:8", "MGET /9-16", "a:*"),
        ("NOSUCH secret", "(UNKNOWN) /2", ""),
        ("EVAL return 1 k", "EVAL /4", "k"),
    ],
)
def test_a_request_has_a_shape_and_a_pattern(request_: str, shape: str, pattern: str) -> None:
    found = event(*request_.split())
    assert (found.shape, found.pattern) == (shape, pattern)


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        (b"user:42:cart", "user:*:cart"),
        (b"session:9f86d081884c7d65", "session:*"),
        (b"u:550e8400-e29b-41d4-a716-446655440000:x", "u:*:x"),
        (b"{tenant7}:orders.2024-01-02", "{tenant*}:orders.*-*-*"),
        (b"plain", "plain"),
        (b"authentication_tokens", "authentication_tokens"),
        (b"bin:\xff\x00\x01", "bin:*"),
        (b"", ""),
    ],
)
def test_the_variable_parts_of_a_key_are_left_out(key: bytes, pattern: str) -> None:
    assert pattern_of(key) == pattern


@pytest.mark.parametrize(
    ("request_", "expiry_ms"),
    [
        ("SET k v EX 10", 10_000),
        ("SET k v px 1500 NX", 1_500),
        (f"SET k v EXAT {int(AT) + 60}", 60_000),
        ("SETEX k 7 v", 7_000),
        ("PEXPIRE k 250", 250),
        (f"PEXPIREAT k {int(AT) * 1000 + 99}", 99),
        ("GETEX k EX 5", 5_000),
        ("SET k v", NO_EXPIRY),
        ("SET k v EX ten", NO_EXPIRY),
        ("SET k v EX " + "9" * 400, NO_EXPIRY),
        ("EXPIRE k", NO_EXPIRY),
    ],
)
def test_the_expiry_that_a_write_gives_is_known(request_: str, expiry_ms: int) -> None:
    assert event(*request_.split()).expiry_ms == expiry_ms


def test_no_argument_is_kept_in_an_event() -> None:
    """No value, no password, and no whole key."""
    found = event("SET", "session:4711secret4711", "SECRETVALUE", "EX", "10")
    kept = " ".join(str(getattr(found, name)) for name in Event.__slots__)
    assert "4711" not in kept
    assert "SECRETVALUE" not in kept
    login = event("AUTH", "app", "SECRETPASSWORD")
    assert "SECRET" not in " ".join(str(getattr(login, name)) for name in Event.__slots__)


def test_arity_classes_have_a_bound_for_any_number() -> None:
    assert [arity_class(count) for count in (1, 4, 5, 8, 9, 16, 17, 1_000_000)] == [
        "1",
        "4",
        "5-8",
        "5-8",
        "9-16",
        "9-16",
        "17-32",
        "524289-1048576",
    ]


def test_patterns_and_shapes_are_bounded_and_counted() -> None:
    """An application whose key names have only letters makes a pattern of each."""
    shapes = Shapes(known_table())
    letters = str.maketrans("0123456789", "abcdefghij")
    found = Counter(
        event("GET", f"k{number}".translate(letters), shapes=shapes).pattern
        for number in range(KEY_PATTERNS_MAX + 50)
    )
    assert found[OTHER] == 50
    assert len(found) == KEY_PATTERNS_MAX + 1
    assert SHAPES_MAX > 1_000
