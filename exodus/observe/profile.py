"""What was seen of the traffic, summed up: events in, counts by shape and key pattern out.

Bounded in memory whatever the traffic is: shapes and patterns are bounded where events are made
(`shapes.py`), and their pairs, clients, and seconds here. What is over a bound is counted as
`(other)`, and `dropped` says how much that was.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from exodus.observe.distribution import Distribution
from exodus.observe.events import LATENCY_UNKNOWN, NO_EXPIRY, Answer, Event
from exodus.observe.skew import KeyCounts
from exodus.plan.bounds import (
    PROFILE_CLIENTS_MAX,
    PROFILE_CLIENTS_SHOWN,
    PROFILE_ERRORS_MAX,
    PROFILE_PATTERNS_MAX,
    PROFILE_PATTERNS_SHOWN,
    PROFILE_ROWS_MAX,
    PROFILE_SECONDS_MAX,
    PROFILE_SHAPES_SHOWN,
    RATES_SHOWN_MAX,
)
from exodus.telemetry.counters import OTHER

OWN_CLIENTS = "exodus-"  # how the names of Exodus's own connections begin
TRANSACTION = frozenset({"MULTI", "EXEC", "DISCARD"})


class ProfileRow:
    """The requests of one shape on one pattern. Latencies in µs, sizes in bytes.

    `own` of the calls are Exodus's own.
    """

    __slots__ = (
        "answered",
        "blocking",
        "calls",
        "command",
        "errors",
        "expiries_ms",
        "keys",
        "latency_us",
        "nils",
        "own",
        "queued",
        "reply_sizes",
        "request_sizes",
        "write",
    )

    def __init__(self, event: Event) -> None:
        self.command = event.command
        self.write = event.write
        self.blocking = event.blocking
        self.own = 0
        self.calls = 0
        self.answered = 0
        self.nils = 0
        self.keys = 0
        self.queued = 0
        self.errors: dict[str, int] = {}
        self.request_sizes = Distribution()
        self.reply_sizes = Distribution()
        self.latency_us = Distribution()
        self.expiries_ms = Distribution()


class Profile:
    """Counts of one observation."""

    def __init__(self) -> None:
        self.seconds = 0.0  # that were watched; 0: the time between the first and the last request
        self.requests = 0
        self.writes = 0
        self.on_keys = 0  # requests that name a key of an application: Exodus's own name none
        self.unreadable = 0  # lines of MONITOR that are none
        self.from_scripts = 0  # executed by a script; counted apart, since the script was counted
        self.rows: dict[tuple[str, str], ProfileRow] = {}
        self.commands: Counter[str] = Counter()
        self.keys: dict[str, KeyCounts] = {}
        self.databases: Counter[int] = Counter()
        self.clients: Counter[str] = Counter()
        self.connections: set[int] = set()
        self.by_second: dict[int, int] = {}
        # Requests under way of a connection, at each request outside of transactions
        self.depths = Distribution()
        self.batches = Distribution()  # requests of each transaction that was run
        self.dropped: Counter[str] = Counter()
        self.cost: dict[str, Any] = {}  # of watching, for the server
        self.first_at = 0.0
        self.last_at = 0.0

    def add(self, event: Event) -> None:
        """Count one request."""
        self.requests += 1
        self.writes += event.write
        own = event.own or event.client.startswith(OWN_CLIENTS)
        self.on_keys += event.keys > 0 and not own
        self.commands[event.command] += 1
        self.databases[event.db] += 1
        at = event.at
        second = int(at)
        if second in self.by_second or len(self.by_second) < PROFILE_SECONDS_MAX:
            self.by_second[second] = self.by_second.get(second, 0) + 1
        else:
            self.dropped["seconds"] += 1
        self.last_at = max(self.last_at, at)
        self.first_at = min(self.first_at or at, at)
        if not own:
            self._who(event)
        row = self.rows.get((event.shape, event.pattern)) or self._row(event)
        row.calls += 1
        row.own += own
        row.keys += event.keys
        row.queued += event.queued
        row.request_sizes.record(event.request_bytes)
        if event.expiry_ms != NO_EXPIRY:
            row.expiries_ms.record(event.expiry_ms)
        if event.answer is not Answer.UNKNOWN:
            self._answer(row, event)
        if not event.queued and event.command not in TRANSACTION:
            self.depths.record(event.depth)
        if event.batch:
            self.batches.record(event.batch)
        if event.keys:
            keys = self.keys.get(event.pattern) or self._keys(event.pattern)
            keys.record(event.key)

    @property
    def watched_s(self) -> float:
        """The time that was watched, in s."""
        return self.seconds or self.last_at - self.first_at

    @staticmethod
    def _answer(row: ProfileRow, event: Event) -> None:
        row.answered += 1
        row.reply_sizes.record(event.reply_bytes)
        row.nils += event.answer is Answer.NIL
        if event.latency_us != LATENCY_UNKNOWN and not event.blocking:
            row.latency_us.record(event.latency_us)
        if event.error:
            known = event.error in row.errors or len(row.errors) < PROFILE_ERRORS_MAX
            code = event.error if known else OTHER
            row.errors[code] = row.errors.get(code, 0) + 1

    def _who(self, event: Event) -> None:
        if event.client in self.clients or len(self.clients) < PROFILE_CLIENTS_MAX:
            self.clients[event.client] += 1
        else:
            self.clients[OTHER] += 1
            self.dropped["clients"] += 1
        if len(self.connections) < PROFILE_CLIENTS_MAX:
            self.connections.add(event.connection)

    def _row(self, event: Event) -> ProfileRow:
        if len(self.rows) >= PROFILE_ROWS_MAX:
            self.dropped["rows"] += 1
            return self.rows.setdefault((OTHER, OTHER), ProfileRow(event))
        row = self.rows[event.shape, event.pattern] = ProfileRow(event)
        return row

    def _keys(self, pattern: str) -> KeyCounts:
        if len(self.keys) >= PROFILE_PATTERNS_MAX:
            self.dropped["patterns"] += 1
            pattern = OTHER
        return self.keys.setdefault(pattern, KeyCounts())

    def peak(self, seconds: int) -> float:
        """Return the highest rate of requests a second over whole periods of so many seconds."""
        periods: Counter[int] = Counter()
        for second, count in self.by_second.items():
            periods[second // seconds] += count
        span = min(seconds, max(1.0, self.watched_s))
        return max(periods.values(), default=0) / span

    def rates(self) -> list[dict[str, float]]:
        """Return the rate over time, in at most `RATES_SHOWN_MAX` periods of equal length."""
        if not self.by_second:
            return []
        first, last = min(self.by_second), max(self.by_second)
        period = -(-(last - first + 1) // RATES_SHOWN_MAX)
        counts: Counter[int] = Counter()
        for second, count in self.by_second.items():
            counts[(second - first) // period] += count
        return [
            {"at_s": first + number * period, "requests_per_s": round(counts[number] / period, 1)}
            for number in range((last - first) // period + 1)
        ]

    def report(self) -> dict[str, Any]:
        """Return what a person or a program asks of it, as JSON."""
        seconds = self.watched_s
        return {
            "seconds": round(seconds, 3),
            "requests": self.requests,
            "requests_per_s": round(self.requests / seconds, 1) if seconds else 0.0,
            "requests_per_s_peak": {
                name: round(self.peak(period), 1)
                for name, period in (("second", 1), ("minute", 60), ("hour", 3_600))
            },
            "rates": self.rates(),
            "writes": self.writes,
            "on_keys": self.on_keys,
            "unreadable": self.unreadable,
            "from_scripts": self.from_scripts,
            "clients": len(self.clients),
            "connections": len(self.connections),
            "clients_by_requests": dict(self.clients.most_common(PROFILE_CLIENTS_SHOWN)),
            "databases": {str(db): count for db, count in self.databases.items()},
            "depth_p99": self.depths.quantile(0.99),
            "transactions": self.batches.total,
            "argument_bytes": sum(
                value * count
                for row in self.rows.values()
                for value, count in row.request_sizes.pairs()
            ),
            "commands": self._commands(),
            "patterns": self._patterns(),
            "dropped": dict(self.dropped),
            "cost": self.cost,
        }

    def _commands(self) -> list[dict[str, Any]]:
        shapes: dict[str, list[ProfileRow]] = {}
        for (shape, _), row in self.rows.items():
            shapes.setdefault(shape, []).append(row)
        found = [_shape_report(shape, rows) for shape, rows in shapes.items()]
        return sorted(found, key=lambda row: -row["calls"])[:PROFILE_SHAPES_SHOWN]

    def _patterns(self) -> list[dict[str, Any]]:
        patterns: dict[str, list[ProfileRow]] = {}
        for (_, pattern), row in self.rows.items():
            if row.keys:
                patterns.setdefault(pattern, []).append(row)
        found: list[dict[str, Any]] = [
            {
                "pattern": pattern,
                "calls": sum(row.calls for row in rows),
                "writes": sum(row.calls for row in rows if row.write),
                "keys_distinct": (skew := self.keys[pattern].skew()).distinct
                if pattern in self.keys
                else 0,
                "hottest_share": skew.top_shares[0] if pattern in self.keys else 0.0,
                "zipf_exponent": skew.exponent if pattern in self.keys else 0.0,
            }
            for pattern, rows in patterns.items()
        ]
        return sorted(found, key=lambda row: -row["calls"])[:PROFILE_PATTERNS_SHOWN]


def _shape_report(shape: str, rows: list[ProfileRow]) -> dict[str, Any]:
    latency, requests, replies = Distribution(), Distribution(), Distribution()
    errors: Counter[str] = Counter()
    for row in rows:
        latency.add(row.latency_us)
        requests.add(row.request_sizes)
        replies.add(row.reply_sizes)
        errors.update(row.errors)
    return {
        "command": rows[0].command,
        "shape": shape,
        "calls": sum(row.calls for row in rows),
        "answered": sum(row.answered for row in rows),
        "write": rows[0].write,
        "errors": dict(errors),
        "request_bytes_p50": requests.quantile(0.5),
        "request_bytes_p99": requests.quantile(0.99),
        "reply_bytes_p50": replies.quantile(0.5),
        "reply_bytes_p99": replies.quantile(0.99),
        "latency_us_p50": latency.quantile(0.5),
        "latency_us_p99": latency.quantile(0.99),
        "latency_us_max": latency.value_max,
    }
