"""Counts, sizes and latencies per command, cheap enough to be kept for every request."""

from __future__ import annotations

from typing import TypedDict

from hdrh.histogram import HdrHistogram

LATENCY_US_MAX = 60_000_000
_COMMANDS_MAX = 1_000  # a client may send any bytes as a name: what comes above is counted as one


class CommandSnapshot(TypedDict):
    """One command's counters since the process began. Latencies in µs, sizes in bytes."""

    calls: int
    errors: int
    write: bool
    known: bool
    request_bytes: int
    reply_bytes: int
    latency_us_p50: int
    latency_us_p99: int
    latency_us_max: int


class CommandCounters:
    """The counters of one command."""

    __slots__ = ("calls", "errors", "histogram", "known", "reply_bytes", "request_bytes", "write")

    def __init__(self, *, write: bool, known: bool) -> None:
        self.calls = 0
        self.errors: dict[str, int] = {}
        self.request_bytes = 0
        self.reply_bytes = 0
        self.write = write
        self.known = known
        self.histogram = HdrHistogram(1, LATENCY_US_MAX, 2)

    def snapshot(self) -> CommandSnapshot:
        """As JSON."""
        histogram = self.histogram
        return {
            "calls": self.calls,
            "errors": sum(self.errors.values()),
            "write": self.write,
            "known": self.known,
            "request_bytes": self.request_bytes,
            "reply_bytes": self.reply_bytes,
            "latency_us_p50": int(histogram.get_value_at_percentile(50)),
            "latency_us_p99": int(histogram.get_value_at_percentile(99)),
            "latency_us_max": int(histogram.get_max_value()),
        }


class Telemetry:
    """Per command, for one process."""

    def __init__(self) -> None:
        self.commands: dict[str, CommandCounters] = {}
        self.calls = 0
        self.errors = 0

    def observe(self, name: bytes, seconds: float, request_bytes: int, reply_bytes: int, error: bytes, *, write: bool, known: bool) -> None:
        """Count one answered request."""
        text = name.decode("ascii", "replace")
        counters = self.commands.get(text)
        if counters is None:
            if len(self.commands) >= _COMMANDS_MAX:
                text = "(other)"
            counters = self.commands.setdefault(text, CommandCounters(write=write, known=known))
        counters.calls += 1
        counters.request_bytes += request_bytes
        counters.reply_bytes += reply_bytes
        self.calls += 1
        micros = int(seconds * 1_000_000)
        counters.histogram.record_value(micros if 1 <= micros <= LATENCY_US_MAX else 1 if micros < 1 else LATENCY_US_MAX)
        if error:
            code = error.decode("ascii", "replace")[:32]
            counters.errors[code] = counters.errors.get(code, 0) + 1
            self.errors += 1

    def snapshot(self) -> dict[str, CommandSnapshot]:
        """All commands, as JSON."""
        return {name: counters.snapshot() for name, counters in self.commands.items()}
