"""Counts, sizes, and latencies for each command and key prefix, cheap enough for every request.

Nothing here grows with what clients send. Commands and prefixes above their bounds are counted
together as `(other)`. Single keys are in sketches only. No argument is kept but the beginnings of
keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypedDict

from exodus.commands.table import Command
from exodus.plan.bounds import (
    COUNTERS_CODE_BYTES_MAX,
    COUNTERS_COMMANDS_MAX,
    COUNTERS_ERRORS_MAX,
    COUNTERS_HOT_KEYS_SHOWN,
    COUNTERS_PREFIX_BYTES_MAX,
    COUNTERS_PREFIXES_MAX,
    COUNTERS_WAITING_KEYS_MAX,
    DISTINCT_SAMPLE,
    HOT_SAMPLE,
    KEY_BYTES_MAX,
)
from exodus.telemetry.histogram import Histogram
from exodus.telemetry.sample import Sample

_PREFIX_BYTES_MAX = COUNTERS_PREFIX_BYTES_MAX
_KEY_BYTES_MAX = KEY_BYTES_MAX
_WAITING_MAX = COUNTERS_WAITING_KEYS_MAX
_HOT_MASK = HOT_SAMPLE - 1
_DISTINCT_MASK = DISTINCT_SAMPLE - 1
OTHER = "(other)"
NO_PREFIX = "(none)"


class CommandSnapshot(TypedDict):
    """One command's counters since the process began. Latencies in µs, sizes in bytes."""

    calls: int
    errors: int
    errors_by_code: dict[str, int]
    write: bool
    known: bool
    request_bytes: int
    reply_bytes: int
    request_bytes_p99: int
    request_bytes_max: int
    reply_bytes_p99: int
    reply_bytes_max: int
    latency_us_p50: int
    latency_us_p99: int
    latency_us_max: int
    latency_us_steps: list[tuple[int, int]]  # value and count; two snapshots give a window


class PrefixSnapshot(TypedDict):
    """One key prefix's counters since the process began. Sizes in bytes."""

    calls: int
    writes: int
    errors: int
    request_bytes: int
    reply_bytes: int


class CommandCounters:
    """The counters of one command."""

    __slots__ = (
        "calls",
        "errors",
        "known",
        "latency_us",
        "reply_bytes",
        "reply_sizes",
        "request_bytes",
        "request_sizes",
        "write",
    )

    def __init__(self, *, write: bool, known: bool) -> None:
        self.calls = 0
        self.errors: dict[str, int] = {}
        self.request_bytes = 0
        self.reply_bytes = 0
        self.write = write
        self.known = known
        self.latency_us = Histogram()
        self.request_sizes = Histogram()
        self.reply_sizes = Histogram()

    def snapshot(self) -> CommandSnapshot:
        """Return it as JSON."""
        latency = self.latency_us
        return {
            "calls": self.calls,
            "errors": sum(self.errors.values()),
            "errors_by_code": dict(self.errors),
            "write": self.write,
            "known": self.known,
            "request_bytes": self.request_bytes,
            "reply_bytes": self.reply_bytes,
            "request_bytes_p99": self.request_sizes.quantile(0.99),
            "request_bytes_max": self.request_sizes.value_max,
            "reply_bytes_p99": self.reply_sizes.quantile(0.99),
            "reply_bytes_max": self.reply_sizes.value_max,
            "latency_us_p50": latency.quantile(0.50),
            "latency_us_p99": latency.quantile(0.99),
            "latency_us_max": latency.value_max,
            "latency_us_steps": latency.eighths(),
        }


class PrefixCounters:
    """The counters of the keys that begin alike."""

    __slots__ = ("calls", "errors", "latency_us", "reply_bytes", "request_bytes", "writes")

    def __init__(self) -> None:
        self.calls = 0
        self.writes = 0
        self.errors = 0
        self.request_bytes = 0
        self.reply_bytes = 0
        self.latency_us = Histogram()

    def snapshot(self) -> PrefixSnapshot:
        """Return it as JSON."""
        return {
            "calls": self.calls,
            "writes": self.writes,
            "errors": self.errors,
            "request_bytes": self.request_bytes,
            "reply_bytes": self.reply_bytes,
        }


class KeyStatistics(Protocol):
    """What is kept of single keys (`sketches.py`)."""

    def take_in(self, hot: list[bytes], distinct: list[bytes]) -> None:
        """Take in the keys of one request in `HOT_SAMPLE`, and every key whose `hash` is divisible
        by `DISTINCT_SAMPLE`.
        """

    def hot(self, at_most: int) -> list[tuple[bytes, int]]:
        """Return the keys that were named most often, with about how often."""

    def distinct(self) -> int:
        """About how many different keys were named."""


class NoKeyStatistics:
    """Keeps nothing of single keys: a process that ends, and tests of other things."""

    def take_in(self, hot: list[bytes], distinct: list[bytes]) -> None:
        """See `KeyStatistics`."""

    def hot(self, at_most: int) -> list[tuple[bytes, int]]:
        """See `KeyStatistics`."""
        del at_most
        return []

    def distinct(self) -> int:
        """See `KeyStatistics`."""
        return 0


class Telemetry:
    """Per command, per key prefix and per key, for one process."""

    def __init__(self, keys: KeyStatistics) -> None:
        self.commands: dict[str, CommandCounters] = {}
        self.prefixes: dict[str, PrefixCounters] = {}
        self.keys = keys
        self.calls = 0
        self.errors = 0
        self._of_command: dict[Command, CommandCounters] = {}
        self._of_prefix: dict[bytes, PrefixCounters] = {}
        self._hot: list[bytes] = []  # every HOT_SAMPLE-th request's key, not yet in the sketch
        # Keys of the hashes that are counted, not yet in the sketch
        self._distinct: list[bytes] = []
        self._turn = 0

    def observe(
        self,
        command: Command,
        key: bytes | None,
        seconds: float,
        request_bytes: int,
        reply_bytes: int,
        error: bytes,
    ) -> None:
        """Count one answered request: its command, its first key, how long the answer took, and the
        error's first word or nothing.
        """
        counters = self._of_command.get(command)
        if counters is None:
            counters = self._counters(command)
        self.calls += 1
        counters.calls += 1
        counters.request_bytes += request_bytes
        counters.reply_bytes += reply_bytes
        micros = int(seconds * 1_000_000)
        counters.latency_us.record(micros)
        counters.request_sizes.record(request_bytes)
        counters.reply_sizes.record(reply_bytes)
        if error:
            self.errors += 1
            self._error(counters, error)
        if key is None:
            return
        # The one that the dictionaries need anyway, and that is kept in the key
        if hash(key) & _DISTINCT_MASK == 0:
            self._distinct.append(key[:_KEY_BYTES_MAX])
            if len(self._distinct) >= _WAITING_MAX:  # a client may name one such key only
                self._take_in()
        # Drawn, not every eighth: traffic has rhythms of its own. (The linear congruential
        # generator of the C standard's example.)
        self._turn = (self._turn * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        if (self._turn >> 16) & _HOT_MASK == 0:
            self._hot.append(key[:_KEY_BYTES_MAX])
            if len(self._hot) >= _WAITING_MAX:
                self._take_in()
        view = key  # the compiled form reads it as an array of bytes
        stop = min(len(key), _PREFIX_BYTES_MAX)
        end = 0
        while end < stop and view[end] != 0x3A:
            end += 1
        head = view[: end + 1] if end < stop else key[: key.find(b":") + 1]
        prefix = self._of_prefix.get(head)
        if prefix is None:
            prefix = self._prefix(head)
        prefix.calls += 1
        prefix.request_bytes += request_bytes
        prefix.reply_bytes += reply_bytes
        prefix.latency_us.record(micros)
        if command.write:
            prefix.writes += 1
        if error:
            prefix.errors += 1

    def _take_in(self) -> None:
        hot, self._hot = self._hot, []
        distinct, self._distinct = self._distinct, []
        self.keys.take_in(hot, distinct)

    def _counters(self, command: Command) -> CommandCounters:
        text = command.name.decode("ascii", "replace")
        room = len(self._of_command) < COUNTERS_COMMANDS_MAX
        if not room or len(text) > COUNTERS_CODE_BYTES_MAX:
            text = OTHER
        counters = self.commands.get(text)
        if counters is None:
            counters = self.commands[text] = CommandCounters(
                write=command.write, known=command.known
            )
        if room:
            self._of_command[command] = counters
        return counters

    @staticmethod
    def _error(counters: CommandCounters, error: bytes) -> None:
        code = error.decode("ascii", "replace")[:COUNTERS_CODE_BYTES_MAX]
        if code not in counters.errors and len(counters.errors) >= COUNTERS_ERRORS_MAX:
            code = OTHER
        counters.errors[code] = counters.errors.get(code, 0) + 1

    def _prefix(self, raw: bytes) -> PrefixCounters:
        room = len(self.prefixes) < COUNTERS_PREFIXES_MAX and len(raw) <= _PREFIX_BYTES_MAX
        text = (raw.decode("utf-8", "backslashreplace") if raw else NO_PREFIX) if room else OTHER
        counters = self.prefixes.get(text)
        if counters is None:
            counters = self.prefixes[text] = PrefixCounters()
        if room:
            self._of_prefix[raw] = counters
        return counters

    def snapshot(self) -> dict[str, CommandSnapshot]:
        """Return all commands as JSON."""
        return {name: counters.snapshot() for name, counters in list(self.commands.items())}

    def samples(self, shown: Callable[[str], str] = str) -> Iterator[Sample]:
        """Yield the samples for Prometheus, with key prefixes as `shown` returns them."""
        for name, counters in list(self.commands.items()):
            labels = {"command": name}
            yield "exodus_gateway_requests_total", "answered requests", labels, counters.calls
            yield (
                "exodus_gateway_request_bytes_total",
                "bytes of requests",
                labels,
                counters.request_bytes,
            )
            yield (
                "exodus_gateway_reply_bytes_total",
                "bytes of replies",
                labels,
                counters.reply_bytes,
            )
            yield (
                "exodus_gateway_latency_us_p50",
                "median time to the reply since the start",
                labels,
                counters.latency_us.quantile(0.50),
            )
            yield (
                "exodus_gateway_latency_us_p99",
                "99th percentile of it",
                labels,
                counters.latency_us.quantile(0.99),
            )
            yield (
                "exodus_gateway_latency_us_max",
                "the longest",
                labels,
                counters.latency_us.value_max,
            )
            for code, count in list(counters.errors.items()):
                yield (
                    "exodus_gateway_errors_total",
                    "error replies, by the error's first word",
                    {**labels, "code": code},
                    count,
                )
        for prefix, seen in list(self.prefixes.items()):
            labels = {"prefix": shown(prefix)}
            yield (
                "exodus_gateway_prefix_requests_total",
                "requests by the beginning of their first key",
                labels,
                seen.calls,
            )
            yield "exodus_gateway_prefix_writes_total", "writes among them", labels, seen.writes
            yield (
                "exodus_gateway_prefix_errors_total",
                "error replies among them",
                labels,
                seen.errors,
            )
            yield (
                "exodus_gateway_prefix_bytes_total",
                "bytes of these requests and their replies",
                labels,
                seen.request_bytes + seen.reply_bytes,
            )
        yield (
            "exodus_gateway_distinct_keys",
            "about how many different keys were named since the start",
            {},
            self.distinct_keys(),
        )

    def prefixes_snapshot(self) -> dict[str, PrefixSnapshot]:
        """Return all key prefixes as JSON."""
        return {name: counters.snapshot() for name, counters in list(self.prefixes.items())}

    def hot_keys(self) -> list[tuple[str, int]]:
        """Return the keys that were named most often, with about how often, as JSON."""
        self._take_in()
        return [
            (key.decode("utf-8", "backslashreplace"), count)
            for key, count in self.keys.hot(COUNTERS_HOT_KEYS_SHOWN)
        ]

    def distinct_keys(self) -> int:
        """About how many different keys were named."""
        self._take_in()
        return self.keys.distinct()
