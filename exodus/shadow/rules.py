"""When two replies mean the same: rules as data, over both protocol versions.

RESP2 and RESP3 say one thing in different shapes: `$-1`, `*-1` and `_` are nothing, a map is flat
pairs, a double is a bulk string, `#t` is 1. Errors are compared by their first word, since texts
differ between versions. Scores are compared as doubles: Redis 7.0 prints 443344.12345670001 where
Valkey 9 prints 4.433441234567e+5.

`DEFAULTS` has Exodus's own rules. A migration file's `compare_rules` come before them, and may name
a function of a Python package (entry points `exodus.reply_rules`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from itertools import zip_longest

import hiredis

from exodus.errors import OperatorError
from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.plan.scope import glob

Words = Sequence[bytes]
Function = Callable[[Words, object, object], bool]  # request, authority's reply, follower's reply
GROUP = "exodus.reply_rules"
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
# Their replies are the time left, which runs on between two questions.
_SECONDS = {b"TTL": 1, b"EXPIRETIME": 0}  # told in seconds; the time left is rounded
TIME_LEFT = frozenset({b"TTL", b"PTTL"})


def _rule(commands: str, rule: ReplyRule, **more: float) -> CompareRule:
    return CompareRule(commands=tuple(commands.split()), rule=rule, **more)


DEFAULTS = (
    _rule("SMEMBERS HKEYS HVALS KEYS SINTER SUNION SDIFF PUBSUB", ReplyRule.MULTISET),
    _rule("HGETALL", ReplyRule.MAP),
    _rule("ZPOPMIN ZPOPMAX", ReplyRule.SCORED),
    _rule("ZUNION ZINTER ZDIFF", ReplyRule.TIES),
    _rule("INCRBYFLOAT HINCRBYFLOAT ZADD ZINCRBY ZSCORE ZMSCORE", ReplyRule.NUMERIC),
    _rule("ZMPOP", ReplyRule.MEMBERS),
    _rule("SPOP SRANDMEMBER HRANDFIELD ZRANDMEMBER", ReplyRule.DRAWN),
    _rule("GEODIST GEOPOS", ReplyRule.NUMERIC, relative=1e-11),
    _rule("PFCOUNT", ReplyRule.APPROXIMATE, relative=0.01),
    _rule("TTL PTTL EXPIRETIME PEXPIRETIME", ReplyRule.EXPIRY),
)
_GEO_SEARCH = frozenset(
    b"GEOSEARCH GEORADIUS GEORADIUS_RO GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO".split()
)
_WITH_SCORES = (b"WITHSCORES", b"WITHSCORE")
_SCORED = _rule("(with scores)", ReplyRule.SCORED)
_EXACT = _rule("(any)", ReplyRule.EXACT)
_UNSORTED = _rule("(unsorted)", ReplyRule.MULTISET)
_SORTED = _rule("(sorted)", ReplyRule.MEMBERS, relative=1e-11)


class Rules:
    """The rules of one migration."""

    def __init__(self, own: Iterable[CompareRule] = (), *, masked: bool = False) -> None:
        """Take the migration's own rules. With `masked` no value is in what `told` returns.

        Raises:
            OperatorError: one names a function that no package brings.
        """
        self._rules: dict[bytes, list[tuple[CompareRule, Callable[[bytes], object] | None]]] = {}
        self._functions: dict[str, Function] = {}
        self._masked = masked
        self._raised: dict[str, str] = {}  # function → what it raised last
        for rule in (*own, *DEFAULTS):
            fits = None if rule.pattern is None else glob(rule.pattern.encode()).fullmatch
            for name in rule.commands:
                self._rules.setdefault(name.encode(), []).append((rule, fits))
            if rule.function is not None:
                self._functions[rule.function] = _function(rule.function)

    def of(self, command: bytes, args: Words = ()) -> CompareRule:
        """The rule for a command's name in upper case, and what its request asks for."""
        key = args[1] if len(args) > 1 else b""
        for rule, fits in self._rules.get(command, ()):
            if fits is None or fits(key):
                return _EXACT if rule.rule is ReplyRule.TIES and not _scored(args) else rule
        if command in _GEO_SEARCH:
            words = {arg.upper() for arg in args}
            return _SORTED if words & {b"ASC", b"DESC"} else _UNSORTED
        return _SCORED if command.startswith(b"Z") and _scored(args) else _EXACT

    def told(self, command: bytes, args: Words) -> str:
        """Return the rule of a request in words, with what is wrong with its function."""
        rule = self.of(command, args)
        if rule.function is None:
            return str(rule.rule)
        raised = self._raised.get(rule.function)
        return f"{rule.rule} ({rule.function}{f', which raised {raised}' if raised else ''})"

    def never(self, command: bytes, args: Words = ()) -> bool:
        """Whether replies to a request are not compared."""
        return self.of(command, args).rule is ReplyRule.NEVER

    def equivalent(
        self, command: bytes, authority: object, follower: object, args: Words = ()
    ) -> bool:
        """Whether two parsed replies to the same request mean the same."""
        codes = error_code(authority), error_code(follower)
        if codes != (None, None):
            return codes[0] == codes[1]
        rule = self.of(command, args)
        if rule.rule is ReplyRule.EXPIRY and command in _SECONDS:
            rule = rule.model_copy(
                update={"expiry_ms": max(_SECONDS[command], rule.expiry_ms / 1000)}
            )
        if rule.function is not None:
            return self._asked(rule.function, args, authority, follower)
        return _EQUAL[rule.rule](rule, authority, follower)

    def _asked(self, name: str, args: Words, authority: object, follower: object) -> bool:
        """Ask a package's function. Replies that it cannot judge are different."""
        try:
            return bool(self._functions[name](args, authority, follower))
        except Exception as exc:  # noqa: BLE001 - it is not ours: it may raise anything
            # The text may hold what it was given.
            said = "" if self._masked else f": {exc}"
            self._raised[name] = type(exc).__name__ + said
            return False


def _function(name: str) -> Function:
    found = [each for each in entry_points(group=GROUP) if each.name == name]
    if not found:
        there = ", ".join(sorted(each.name for each in entry_points(group=GROUP))) or "none"
        raise OperatorError(
            f"compare_rules: no package brings the function {name!r}",
            why=f"entry points {GROUP}: {there}",
            next_step="install the package where the comparer runs, or correct function",
        )
    loaded: Function = found[0].load()
    return loaded


def _scored(args: Words) -> bool:
    return any(arg.upper() in _WITH_SCORES for arg in args[2:])


def parse(raw: bytes) -> object:
    """One reply as Python values; errors as `hiredis.ReplyError`.

    Raises:
        ValueError: it is not one whole reply.
    """
    reader = hiredis.Reader()
    reader.feed(raw)
    value = reader.gets()
    if value is False and not raw.startswith(b"#"):
        raise ValueError("not a whole reply")
    return value


def error_code(value: object) -> str | None:
    """The first word of an error, or None for any other reply."""
    return str(value).split(" ", 1)[0] if isinstance(value, hiredis.ReplyError) else None


def codes_of(reply: object) -> list[str | None]:
    """Return the error codes of a reply, of a transaction command by command."""
    return [error_code(each) for each in reply] if isinstance(reply, list) else [error_code(reply)]


def canonical(value: object) -> object:
    """A reply as RESP2 would say it: lists of bytes and nothing."""
    if isinstance(value, hiredis.ReplyError):
        return ("error", error_code(value))
    if isinstance(value, dict):
        return [canonical(part) for pair in value.items() for part in pair]
    if isinstance(value, set | frozenset):
        return sorted((canonical(part) for part in value), key=repr)
    if isinstance(value, list | tuple):
        return [canonical(part) for part in value]
    return _atom(value)


def _atom(value: object) -> object:
    if isinstance(value, bool | int):
        return b"%d" % value
    if isinstance(value, float):
        return b"%.17g" % value
    if isinstance(value, str):
        return value.encode()
    return value


def _flat(value: object) -> list[object]:
    """Members or ranks with their scores, which RESP3 nests and RESP2 does not."""
    found = canonical(value)
    if not isinstance(found, list):
        return [found]
    return [part for each in found for part in (each if isinstance(each, list) else [each])]


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, bytes) else None
    except ValueError:
        return None


def _close(rule: CompareRule, here: object, there: object) -> bool:
    """Whether two canonical replies are equal where numbers may differ by the tolerance."""
    if isinstance(here, list) and isinstance(there, list):
        return len(here) == len(there) and all(
            _close(rule, one, other) for one, other in zip(here, there, strict=True)
        )
    one, other = _number(here), _number(there)
    if one is None or other is None:
        return here == there
    return math.isclose(one, other, rel_tol=rule.relative, abs_tol=rule.absolute)


def _exact(_: CompareRule, here: object, there: object) -> bool:
    return canonical(here) == canonical(there)


def _multiset(_: CompareRule, here: object, there: object) -> bool:
    one, other = canonical(here), canonical(there)
    if not isinstance(one, list) or not isinstance(other, list):
        return one == other
    return Counter(map(repr, one)) == Counter(map(repr, other))


def _map(_: CompareRule, here: object, there: object) -> bool:
    one, other = _flat(here), _flat(there)
    if len(one) != len(other):
        return False
    pairs = [
        Counter(zip_longest(map(repr, each[::2]), map(repr, each[1::2]))) for each in (one, other)
    ]
    return pairs[0] == pairs[1]


def _pairs(value: object) -> list[tuple[object, object]]:
    flat = _flat(value)
    members, scores = flat[::2], flat[1::2]
    numbers = [number if (number := _number(each)) is not None else each for each in scores]
    return list(zip_longest(members, numbers))


def _scores(_: CompareRule, here: object, there: object) -> bool:
    return _pairs(here) == _pairs(there)


def _ties(_: CompareRule, here: object, there: object) -> bool:
    one, other = _pairs(here), _pairs(there)
    return [score for _, score in one] == [score for _, score in other] and Counter(one) == Counter(
        other
    )


def _numeric(rule: CompareRule, here: object, there: object) -> bool:
    return _close(rule, canonical(here), canonical(there))


def _members(rule: CompareRule, here: object, there: object) -> bool:
    return _same_items(rule, canonical(here), canonical(there))


def _same_items(rule: CompareRule, here: object, there: object) -> bool:
    """Compare members byte for byte, and their numbers within the tolerance. An item is a member
    alone, or a list: the member, then its numbers. Member "10" is not member "1e1".
    """
    if not isinstance(here, list) or not isinstance(there, list) or len(here) != len(there):
        return here == there
    return all(
        one[:1] == other[:1] and _close(rule, one[1:], other[1:])
        if _is_member(one) and _is_member(other)
        else _same_items(rule, one, other)
        for one, other in zip(here, there, strict=True)
    )


def _is_member(item: object) -> bool:
    return isinstance(item, list) and bool(item) and not isinstance(item[0], list)


def _expiry(rule: CompareRule, here: object, there: object) -> bool:
    """Negative numbers say that there is no key or no expiry. Seconds are told as they are."""
    one, other = _number(canonical(here)), _number(canonical(there))
    if one is None or other is None or min(one, other) < 0:
        return canonical(here) == canonical(there)
    return abs(one - other) <= rule.expiry_ms


def _drawn(_: CompareRule, here: object, there: object) -> bool:
    """The servers draw by themselves. Nothing of a key that is not there; else as many elements."""
    one, other = _flat(here), _flat(there)
    return len(one) == len(other) and (one == [None]) == (other == [None])


def _codes(*_: object) -> bool:
    return True  # neither is an error


_EQUAL: dict[ReplyRule, Callable[[CompareRule, object, object], bool]] = {
    ReplyRule.EXACT: _exact,
    ReplyRule.MULTISET: _multiset,
    ReplyRule.MAP: _map,
    ReplyRule.SCORED: _scores,
    ReplyRule.TIES: _ties,
    ReplyRule.NUMERIC: _numeric,
    ReplyRule.MEMBERS: _members,
    ReplyRule.APPROXIMATE: _numeric,
    ReplyRule.EXPIRY: _expiry,
    ReplyRule.DRAWN: _drawn,
    ReplyRule.ERROR_CODE: _codes,
    ReplyRule.NEVER: _codes,
}
