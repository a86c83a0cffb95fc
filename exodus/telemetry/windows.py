"""Windows of a gateway's counters: what was counted between two looks, small enough to be kept.

Counters count since the process began. A window is the difference of two looks at them, with the
whole latency histograms, so windows of any time and of any gateways add up to exact percentiles
(of the histograms' own steps of 1/128).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from exodus.plan.bounds import TELEMETRY_WINDOW_BYTES_MAX, TELEMETRY_WINDOW_S
from exodus.telemetry.counters import Telemetry

Json = dict[str, Any]
_COUNTS = ("calls", "request_bytes", "reply_bytes")
_PREFIX_COUNTS = (*_COUNTS, "writes", "errors")


class Windows:
    """Takes the windows of one process, each after the one before."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._before: Json | None = None
        self._next: Json | None = None

    def due(self, at_ms: int) -> bytes | None:
        """Return the window that ends now, packed, or None: it is not yet so long.

        Until `kept` is called the same counts are part of the next one.
        """
        if self._before is None:
            # The process has just begun: all that it counted is of the first window
            self._before = {"at_ms": at_ms, "commands": {}, "prefixes": {}}
            return None
        seconds = (at_ms - self._before["at_ms"]) / 1000
        if 0 <= seconds < TELEMETRY_WINDOW_S:
            return None
        self._next = _look(self._telemetry, at_ms)
        if seconds < 0:
            self.kept()  # the store's clock went back
            return None
        return pack(_between(self._before, self._next))

    def kept(self) -> None:
        """The last window is in the control store."""
        self._before = self._next


def _look(telemetry: Telemetry, at_ms: int) -> Json:
    return {
        "at_ms": at_ms,
        "commands": {
            name: {
                **{field: getattr(counters, field) for field in _COUNTS},
                "write": counters.write,
                "errors": dict(counters.errors),
                "latency_us": dict(counters.latency_us.steps()),
            }
            for name, counters in list(telemetry.commands.items())
        },
        "prefixes": {
            name: {**counters.snapshot(), "latency_us": dict(counters.latency_us.steps())}
            for name, counters in list(telemetry.prefixes.items())
        },
    }


def _between(before: Json, after: Json) -> Json:
    commands: Json = {}
    for name, now in after["commands"].items():
        was = before["commands"].get(name, {})
        calls = now["calls"] - was.get("calls", 0)
        if calls:
            commands[name] = {
                **{field: now[field] - was.get(field, 0) for field in _COUNTS},
                "write": now["write"],
                "errors": _more(was.get("errors", {}), now["errors"]),
                "latency_us": sorted(_more(was.get("latency_us", {}), now["latency_us"]).items()),
            }
    prefixes: Json = {}
    for name, now in after["prefixes"].items():
        was = before["prefixes"].get(name, {})
        found = {field: now[field] - was.get(field, 0) for field in _PREFIX_COUNTS}
        if found["calls"]:
            steps = _more(was.get("latency_us", {}), now["latency_us"])
            prefixes[name] = {**found, "latency_us": sorted(steps.items())}
    return {
        "at_ms": after["at_ms"],
        "seconds": (after["at_ms"] - before["at_ms"]) / 1000,
        "commands": commands,
        "prefixes": prefixes,
    }


def _more(was: Mapping[Any, int], now: Mapping[Any, int]) -> dict[Any, int]:
    return {key: more for key, count in now.items() if (more := count - was.get(key, 0))}


def pack(window: Json) -> bytes:
    """Return a window as it is kept. One that is too large is kept without the prefixes'
    latencies, and where it still is, without its prefixes.
    """
    data = zlib.compress(orjson.dumps(window), level=1)
    if len(data) > TELEMETRY_WINDOW_BYTES_MAX:
        counts = {
            name: {field: row[field] for field in _PREFIX_COUNTS}
            for name, row in window["prefixes"].items()
        }
        data = zlib.compress(orjson.dumps({**window, "prefixes": counts, "cut": True}), level=6)
    if len(data) > TELEMETRY_WINDOW_BYTES_MAX:
        data = zlib.compress(orjson.dumps({**window, "prefixes": {}, "cut": True}), level=6)
    return data


def unpack(data: bytes) -> Json:
    """Return a window.

    Raises:
        ValueError: the bytes are none.
    """
    try:
        window: Json = orjson.loads(zlib.decompress(data))
    except zlib.error as exc:
        raise ValueError(f"no window: {exc}") from exc
    return window


def quantile(steps: Mapping[int, int], share: float) -> int:
    """Return the smallest value that this share of all does not exceed; 0 without any.

    The share is rounded to a whole number, as `Histogram.quantile` does.
    """
    wanted = max(1, int(share * sum(steps.values()) + 0.5))
    seen = 0
    for value in sorted(steps):
        seen += steps[value]
        if seen >= wanted:
            return value
    return 0


def merge(windows: Iterable[Json]) -> list[Json]:
    """Return a row a command over all windows, the most frequent first."""
    rows: dict[str, Json] = {}
    latencies: dict[str, Counter[int]] = {}
    for window in windows:
        for name, found in window["commands"].items():
            row = rows.setdefault(
                name,
                {"command": name, "write": found["write"], "error_codes": Counter()}
                | dict.fromkeys(_COUNTS, 0),
            )
            for field in _COUNTS:
                row[field] += found[field]
            row["error_codes"].update(found["errors"])
            latencies.setdefault(name, Counter()).update(dict(map(tuple, found["latency_us"])))
    for name, row in rows.items():
        row["error_codes"] = dict(row["error_codes"])
        row["errors"] = sum(row["error_codes"].values())
        for share in (50, 99):
            row[f"latency_us_p{share}"] = quantile(latencies[name], share / 100)
    return sorted(rows.values(), key=lambda row: -row["calls"])


def prefix_latencies(windows: Iterable[Json]) -> dict[str, Json]:
    """Return p50 and p99 in µs of each key prefix over all windows; without a prefix whose
    latencies did not fit into a window.
    """
    latencies: dict[str, Counter[int]] = {}
    for window in windows:
        for name, found in window["prefixes"].items():
            steps = latencies.setdefault(name, Counter())
            steps.update(dict(map(tuple, found.get("latency_us", ()))))
    return {
        name: {f"latency_us_p{share}": quantile(steps, share / 100) for share in (50, 99)}
        for name, steps in latencies.items()
        if steps
    }


def over_time(windows: Sequence[Json], points: int) -> list[Json]:
    """Return the rate, the errors and the latency over time, in at most `points` periods.

    Windows of several gateways at the same time add up. `at_s` is a period's beginning.
    """
    if not windows:
        return []
    first = min(window["at_ms"] - window["seconds"] * 1000 for window in windows) / 1000
    last = max(window["at_ms"] for window in windows) / 1000
    period = max((last - first) / points, TELEMETRY_WINDOW_S)
    parts: dict[int, list[Json]] = {}
    for window in windows:
        middle = window["at_ms"] / 1000 - window["seconds"] / 2
        parts.setdefault(int((middle - first) / period), []).append(window)
    rows = []
    for number, part in sorted(parts.items()):
        steps: Counter[int] = Counter()
        calls = errors = 0
        for window in part:
            for found in window["commands"].values():
                calls += found["calls"]
                errors += sum(found["errors"].values())
                steps.update(dict(map(tuple, found["latency_us"])))
        rows.append(
            {
                "at_s": int(first + number * period),
                "requests_per_s": round(calls / period, 1),
                "errors": errors,
                "latency_us_p50": quantile(steps, 0.5),
                "latency_us_p99": quantile(steps, 0.99),
            }
        )
    return rows
