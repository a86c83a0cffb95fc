"""What is played of a workload model: units of requests with the times at which they are due.

A unit is a burst (requests that a client sends without waiting in between) or a transaction. Units
come at random times with the model's mean rate (a Poisson process), whatever the server does, so a
slow server cannot slow the load down. Operations, keys, sizes, and expiries are drawn from the
model's distributions. No I/O, no clock; all chance is the `Random` that it is given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from exodus.errors import OperatorError
from exodus.observe.distribution import Distribution
from exodus.observe.templates import (
    KEYLESS,
    OPTIONS,
    OPTIONS_BEFORE,
    REPEATED,
    STRING,
    TEMPLATES,
    VALUE,
    Arg,
    Template,
    preparation,
)
from exodus.observe.workload import Operation, Pattern, Workload
from exodus.plan.bounds import (
    COMPOSER_DEFAULT_EXPIRY_MS,
    COMPOSER_KEY_BYTES,
    PLAYED_KEYS_MAX,
    PLAYED_PREPARED_BYTES_MAX,
    PLAYED_UNIT_REQUESTS_MAX,
    PLAYED_VALUE_BYTES_MAX,
)
from exodus.resp.encode import encode

_TRANSACTION = ("MULTI", "EXEC", "DISCARD")
_SET_UP = ("AUTH", "HELLO", "CLIENT", "SELECT", "QUIT", "RESET")  # of a connection
_APART = (*_TRANSACTION, *_SET_UP)  # are played in another way, or with each connection


class ComposedRequest(NamedTuple):
    """One request to be sent."""

    shape: str
    data: bytes


class Unit(NamedTuple):
    """Requests that are sent together on one connection, `due_s` after the beginning."""

    due_s: float
    requests: list[ComposedRequest]
    waits: bool = False  # one blocking request, for a connection of its own


class Weighted:
    """Draws an index with given weights."""

    __slots__ = ("_sums", "_total")

    def __init__(self, weights: Sequence[float]) -> None:
        self._sums = list(accumulate(weights))
        self._total = self._sums[-1] if self._sums else 0.0

    def __bool__(self) -> bool:
        return self._total > 0

    def draw(self, draw: Random) -> int:
        """Return an index."""
        return min(bisect_right(self._sums, draw.random() * self._total), len(self._sums) - 1)


class Values:
    """Draws a value of a distribution."""

    __slots__ = ("_values", "_weighted")

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._values = [value for value, _ in pairs]
        self._weighted = Weighted([count for _, count in pairs])

    def __bool__(self) -> bool:
        return bool(self._weighted)

    def draw(self, draw: Random) -> int:
        """Return a value."""
        return self._values[self._weighted.draw(draw)]


class _Keys:
    """The scratch keys of one pattern."""

    def __init__(self, pattern: Pattern, prefix: bytes) -> None:
        self.distinct = max(1, min(pattern.keys_distinct, PLAYED_KEYS_MAX))
        self._prefix = prefix
        self._name = pattern.pattern.encode("utf-8", "backslashreplace")
        self._ranks = Weighted(shares_of(pattern, self.distinct))

    def draw(self, family: str, draw: Random) -> bytes:
        return self.of(family, self._ranks.draw(draw))

    def of(self, family: str, rank: int) -> bytes:
        """Return the key of a rank: the first variable part is its number."""
        name = self._name.replace(b"*", b"%d" % rank, 1).replace(b"*", b"0")
        return b"%s%s:%s" % (self._prefix, family.encode(), name)


def shares_of(pattern: Pattern, distinct: int) -> list[float]:
    """Return each rank's share: the hottest as they were seen, the others by the Zipf fit."""
    top = pattern.top_shares[:distinct]
    rest = max(0.0, 1 - sum(top))
    tail = [rank**-pattern.zipf_exponent for rank in range(len(top) + 1, distinct + 1)]
    whole = sum(tail)
    return [*top, *(share / whole * rest for share in tail)] if whole else top or [1.0]


class _Playable:
    """An operation that can be played."""

    def __init__(self, operation: Operation, template: Template | None, family: str) -> None:
        self.operation = operation
        self.template = template
        self.family = family
        words = [operation.command, *operation.options]
        self.shape = " ".join(words) + f" /{operation.arity}"
        self.request_bytes = Values(operation.request_bytes.values)
        self.expiry_ms = Values(operation.expiry_ms.values)
        self.keys_each = max(1, round(operation.keys / operation.calls)) if operation.calls else 1


class Composer:
    """Draws units of a workload."""

    def __init__(
        self,
        workload: Workload,
        *,
        prefix: bytes,
        speed: float,
        draw: Random,
        prepared_bytes_max: int = PLAYED_PREPARED_BYTES_MAX,
    ) -> None:
        self.workload = workload
        self.prepared_bytes_max = prepared_bytes_max
        self.not_played: dict[str, int] = {}  # requests of the model, by shape
        self._prefix = prefix
        self._draw = draw
        self._parts: list[_Playable] = []
        patterns = {each.pattern: each for each in workload.patterns}
        self._keys = {name: _Keys(each, prefix) for name, each in patterns.items()}
        families = _families(workload.operations)
        for operation in workload.operations:
            self._add(operation, families)
        alone = [part.operation.calls - part.operation.in_transactions for part in self._parts]
        waiting = [
            calls * part.operation.blocking for part, calls in zip(self._parts, alone, strict=True)
        ]
        self._singles = Weighted([all_ - waits for all_, waits in zip(alone, waiting, strict=True)])
        self._waits = Weighted(waiting)
        waits = sum(waiting)
        self._inside = Weighted([part.operation.in_transactions for part in self._parts])
        # A client sends nothing behind a request that blocks
        bursts = less_singles(bursts_of(workload.depths.distribution()), waits)
        self._bursts = Values(bursts)
        self._batches = Values(workload.transactions.values)
        count = sum(count for _, count in bursts) if self._singles else 0
        transactions = workload.transactions.total if self._inside else 0
        self._kind = Weighted([count, transactions, waits])
        units = count + transactions + waits
        # What is not played leaves its time free: the rates of the others stay as they were
        played = self._played_share()
        self.units_per_s = units * played / workload.seconds * speed
        self._at_s = 0.0

    def check(self) -> None:
        """Refuse what cannot be played.

        Raises:
            OperatorError: nothing of the model can be.
        """
        if not self.units_per_s:
            names = ", ".join(list(self.not_played)[:8])
            raise OperatorError(
                "--model: nothing of this workload can be played",
                why=f"its operations are {names}" if names else "it has no operation",
                next_step="capture the traffic of an application that uses keys",
            )

    @property
    def blocks(self) -> bool:
        """Return whether units may wait for another client."""
        return bool(self._waits)

    def _add(self, operation: Operation, families: dict[str, str]) -> None:
        template = TEMPLATES.get(operation.command)
        why_not = (
            operation.command in _APART
            or bool(operation.subcommand)
            or (template is None and operation.command not in KEYLESS)
            or (template is not None and operation.pattern not in self._keys)
            or not _options_known(operation)
        )
        if not why_not:
            family = template.family if template else ""
            family = family or families.get(operation.pattern, STRING)
            self._parts.append(_Playable(operation, template, family))
        elif operation.command not in _APART:
            name = " ".join(
                word
                for word in (operation.command, operation.subcommand, *operation.options)
                if word
            )
            self.not_played[name] = self.not_played.get(name, 0) + operation.calls

    def _played_share(self) -> float:
        """The share of the requests outside of transactions that is played."""
        singles = [each for each in self.workload.operations if each.command not in _APART]
        total = sum(each.calls - each.in_transactions for each in singles)
        played = sum(part.operation.calls - part.operation.in_transactions for part in self._parts)
        return played / total if total else 1.0

    def preparation(self) -> Iterator[tuple[str, bytes]]:
        """Requests that make what the reads found, as (shape, request)."""
        seen: set[tuple[str, str]] = set()
        room = self.prepared_bytes_max
        for part in self._parts:
            name = part.operation.pattern
            if part.template is None or (name, part.family) in seen:
                continue
            seen.add((name, part.family))
            sizes, found_share = self._found(name, part.family)
            keys = self._keys[name]
            for rank in range(keys.distinct):
                size = min(sizes.draw(self._draw) if sizes else 1, PLAYED_VALUE_BYTES_MAX)
                room -= size + COMPOSER_KEY_BYTES
                if room < 0:
                    return
                if self._draw.random() < found_share:
                    key = keys.of(part.family, rank)
                    made = preparation(part.family, key, size - 8, self._draw)
                    yield "prepare", encode(*made)

    def _found(self, pattern: str, family: str) -> tuple[Values, float]:
        """Return what reads of a pattern found: the sizes, and the share of them with a value."""
        sizes, written = Distribution(), Distribution()
        answered = nils = unseen = 0
        for part in self._parts:
            operation = part.operation
            if operation.pattern != pattern or part.family != family:
                continue
            if operation.write:
                written.add(operation.request_bytes.distribution())
            else:
                answered += operation.answered
                unseen += operation.calls - operation.answered
                nils += operation.nils
                sizes.add(operation.reply_bytes.distribution())
        # The answers that were nil are among the sizes, as the smallest of all
        pairs = sizes.pairs()
        left = nils
        while pairs and left > 0:
            value, count = pairs[0]
            pairs = [(value, count - left), *pairs[1:]] if count > left else pairs[1:]
            left -= count
        # MONITOR shows no answers: then each read is taken to have found something
        share = 1 - nils / answered if answered else float(unseen > 0)
        return Values(pairs or written.pairs()), share

    def unit(self) -> Unit:
        """Return the next unit."""
        draw = self._draw
        self._at_s += draw.expovariate(self.units_per_s)
        kind = self._kind.draw(draw)
        if kind == 2:
            return Unit(
                self._at_s, [self._request(self._parts[self._waits.draw(draw)])], waits=True
            )
        if kind == 0:
            size = min(self._bursts.draw(draw), PLAYED_UNIT_REQUESTS_MAX)
            made = [self._request(self._parts[self._singles.draw(draw)]) for _ in range(size)]
            return Unit(self._at_s, made)
        size = min(self._batches.draw(draw), PLAYED_UNIT_REQUESTS_MAX)
        inside = [self._request(self._parts[self._inside.draw(draw)]) for _ in range(size)]
        return Unit(
            self._at_s,
            [
                ComposedRequest("MULTI /1", encode("MULTI")),
                *inside,
                ComposedRequest("EXEC /1", encode("EXEC")),
            ],
        )

    def _request(self, part: _Playable) -> ComposedRequest:
        operation, draw = part.operation, self._draw
        words: list[Arg] = [operation.command]
        if part.template is None:
            words += [
                self._prefix + b"channel" if word == "CHANNEL" else word
                for word in KEYLESS[operation.command]
            ]
        else:
            keys = self._keys[operation.pattern]
            before = OPTIONS_BEFORE.get(operation.command, frozenset())
            for _ in range(part.keys_each if part.template.many_keys else 1):
                words.append(keys.draw(part.family, draw))
                words += [word for word in operation.options if word in before]
                if part.template.each_value:
                    words.append(VALUE)
            if not part.template.each_value:
                words += self._arguments(part)
            for option in operation.options:
                if option not in before:
                    words += [option, *OPTIONS[operation.command][option]]
        words = [self._expiry(word, part) for word in words]
        return ComposedRequest(part.shape, _filled(words, part.request_bytes.draw(draw)))

    def _arguments(self, part: _Playable) -> list[Arg]:
        """Return the arguments behind the key, repeated where the model's request has more."""
        assert part.template is not None
        once = list(part.template.arguments(self._draw))
        if part.operation.command not in REPEATED:
            return once
        low, _, high = part.operation.arity.partition("-")
        wanted = (int(low) + int(high or low)) // 2 - len(part.operation.options) - 2
        while len(once) + len(part.template.arguments(self._draw)) <= wanted:
            once += part.template.arguments(self._draw)
        return once

    def _expiry(self, word: Arg, part: _Playable) -> Arg:
        if not isinstance(word, str) or not word.startswith("EXPIRY_"):
            return word
        millis = part.expiry_ms.draw(self._draw) if part.expiry_ms else COMPOSER_DEFAULT_EXPIRY_MS
        if word == "EXPIRY_MS":
            return max(1, millis)
        return max(1, round(millis / 1000))


def _options_known(operation: Operation) -> bool:
    known = OPTIONS.get(operation.command, {}).keys() | OPTIONS_BEFORE.get(
        operation.command, frozenset()
    )
    return set(operation.options) <= known


def _families(operations: Sequence[Operation]) -> dict[str, str]:
    """Return the family of each pattern's keys, as most of its requests have it."""
    counts: dict[str, dict[str, int]] = {}
    for operation in operations:
        template = TEMPLATES.get(operation.command)
        if template is not None and template.family:
            of = counts.setdefault(operation.pattern, {})
            of[template.family] = of.get(template.family, 0) + operation.calls
    return {pattern: max(of, key=lambda each: of[each]) for pattern, of in counts.items()}


def bursts_of(depths: Distribution) -> list[tuple[int, int]]:
    """Return how many bursts had which size: a burst of three has requests at depth 1, 2, and 3."""
    found: list[tuple[int, int]] = []
    deeper = 0
    for depth, count in reversed(depths.pairs()):
        if count > deeper:
            found.append((depth, count - deeper))
            deeper = count
    return found[::-1]


def less_singles(bursts: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return the bursts without so many of one request."""
    return [
        (size, max(0, number - count) if size == 1 else number)
        for size, number in bursts
        if size != 1 or number > count
    ]


def _filled(words: Sequence[Arg], size: int) -> bytes:
    """Encode a request with values that give it the size, as far as its other arguments allow."""
    places = [place for place, word in enumerate(words) if word is VALUE]
    if not places:
        return encode(*words)
    filled = [b"" if word is VALUE else word for word in words]
    left = size - len(encode(*filled))
    for number, place in enumerate(places):
        each = left // (len(places) - number)
        left -= each
        digits = len(str(max(each, 1))) - 1  # its length takes more of them than that of nothing
        filled[place] = b"v" * min(max(1, each - digits), PLAYED_VALUE_BYTES_MAX)
    return encode(*filled)
