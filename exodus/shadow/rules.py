"""When two replies mean the same, for each command and both protocol versions.

RESP2 and RESP3 express one thing in different shapes: a map as flat pairs, a set as an array, a
double as a bulk string. Two healthy servers may order a set differently. Errors are compared by
their first word, since texts differ between versions. Scores are compared as numbers: Redis 7.0
prints 443344.12345670001 where Valkey 9 prints 4.433441234567e+5.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import hiredis

from exodus.commands.semantics import NUMERIC, UNORDERED, UNORDERED_PAIRS

# The server's own trouble, which says nothing about the data.
INFRASTRUCTURE = frozenset(
    {
        "LOADING",
        "BUSY",
        "OOM",
        "READONLY",
        "MOVED",
        "ASK",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOAUTH",
    }
)


class ReplyRule(StrEnum):
    """How a command's replies are compared."""

    EXACT = "exact"
    UNORDERED = "unordered"
    NUMERIC = "numeric tolerance"
    SCORED = "members with scores as numbers"


_ALWAYS_SCORED = frozenset({b"ZPOPMIN", b"ZPOPMAX"})
_WITH_SCORES = (b"WITHSCORES", b"WITHSCORE")


def rule_of(command: bytes, args: Sequence[bytes] = ()) -> ReplyRule:
    """Return the rule for a command's name in upper case, and what its request asks for."""
    if command in _ALWAYS_SCORED or (
        command.startswith(b"Z") and any(arg.upper() in _WITH_SCORES for arg in args[2:])
    ):
        return ReplyRule.SCORED
    if command in UNORDERED or command in UNORDERED_PAIRS:
        return ReplyRule.UNORDERED
    return ReplyRule.NUMERIC if command in NUMERIC else ReplyRule.EXACT


def parse(raw: bytes) -> object:
    """One reply as Python values; errors as `hiredis.ReplyError`.

    Raises:
        ValueError: it is not one whole reply.
    """
    reader = hiredis.Reader()
    reader.feed(raw)
    value = reader.gets()
    if value is False:
        raise ValueError("not a whole reply")
    return value


def error_code(value: object) -> str | None:
    """Return the first word of an error, or None for any other reply."""
    return str(value).split(" ", 1)[0] if isinstance(value, hiredis.ReplyError) else None


def canonical(command: bytes, value: object, args: Sequence[bytes] = ()) -> object:
    """A reply in a shape in which equal means the same under the command's rule."""
    rule = rule_of(command, args)
    if isinstance(value, hiredis.ReplyError):
        return ("error", error_code(value))
    if rule is ReplyRule.SCORED and isinstance(value, list):
        return _pairs(value)
    if command in UNORDERED_PAIRS and isinstance(value, list) and len(value) % 2 == 0:
        return frozenset(zip(map(_atom, value[::2]), map(_atom, value[1::2]), strict=True))
    if isinstance(value, dict):
        pairs = [(_atom(key), canonical(command, inner)) for key, inner in value.items()]
        return (
            frozenset(pairs)
            if command in UNORDERED_PAIRS
            else tuple(part for pair in pairs for part in pair)
        )
    if isinstance(value, set | frozenset | list | tuple):
        parts = [canonical(command, inner) for inner in value]
        return tuple(sorted(parts, key=repr)) if rule is ReplyRule.UNORDERED else tuple(parts)
    if rule is ReplyRule.NUMERIC:
        return _rounded(value)
    return _atom(value)


def _pairs(value: list[object]) -> object:
    """Members or ranks with their scores, which RESP3 nests and RESP2 does not."""
    flat = [part for each in value for part in (each if isinstance(each, list) else [each])]
    return tuple(_number(part) if index % 2 else _atom(part) for index, part in enumerate(flat))


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, bytes | str | int | float) else value
    except ValueError:
        return _atom(value)


def _atom(value: object) -> object:
    if isinstance(value, bool):
        return b"%d" % value
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        return b"%.17g" % value
    if isinstance(value, str):
        return value.encode()
    return value


def _rounded(value: object) -> object:
    if isinstance(value, bytes | str | int | float):
        try:
            return float(f"{float(value):.12g}")
        except ValueError:
            return _atom(value)
    return value


def equivalent(
    command: bytes, authority: object, follower: object, args: Sequence[bytes] = ()
) -> bool:
    """Return whether two parsed replies to the same request mean the same."""
    return canonical(command, authority, args) == canonical(command, follower, args)
