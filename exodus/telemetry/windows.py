"""Windows of a gateway's counters: what was counted between two looks, small enough to be kept.

Counters count since the process began. A window is the difference of two looks at them, with the
whole latency histograms, so windows of any time and of any gateways add up to exact percentiles
(of the histograms' own steps of 1/128).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import orjson

from exodus.plan.bounds import TELEMETRY_WINDOW_BYTES_MAX, TELEMETRY_WINDOW_S
from exodus.telemetry.counters import Telemetry

Json = dict[str, Any]
_COUNTS = ("calls", "request_bytes", "reply_bytes")
_PREFIX_COUNTS = (*_COUNTS, "writes", "errors")
_PARTS = ("commands", "prefixes")


class Windows:
    """Takes the windows of one process, each after the one before."""

    def __init__(self, telemetry: Telemetry, clients: Callable[[], list[Json]] = list) -> None:
        """With `clients`, which tells the connections of now by name and library."""
        self._telemetry = telemetry
        self._clients = clients
        self._before: Json | None = None
        self._next: Json | None = None

    def due(self, at_ms: int) -> Json | None:
        """Return the window that ends now, or None: it is not yet so long.

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
        return {**_between(self._before, self._next), "clients": self._clients()}

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
    """Return a window as it is kept, within `TELEMETRY_WINDOW_BYTES_MAX`. One that is too large is
    kept without the prefixes' latencies, where it still is, without its prefixes, and then without
    the latencies of the rarest commands.
    """
    data = _packed(window)
    if len(data) > TELEMETRY_WINDOW_BYTES_MAX:
        prefixes = {
            name: {field: row[field] for field in _PREFIX_COUNTS}
            for name, row in window["prefixes"].items()
        }
        data = _packed({**window, "prefixes": prefixes, "cut": True}, level=6)
    commands = sorted(window["commands"].items(), key=lambda item: -item[1]["calls"])
    told = len(commands)  # with their latencies
    while len(data) > TELEMETRY_WINDOW_BYTES_MAX:
        cut = {
            name: row if place < told else {**row, "latency_us": []}
            for place, (name, row) in enumerate(commands)
        }
        if not told:  # so many names that even their counts are too much
            commands = commands[: len(commands) // 2]
        data = _packed({**window, "commands": cut, "prefixes": {}, "cut": True}, level=6)
        told //= 2
    return data


def _packed(window: Json, *, level: int = 1) -> bytes:
    """Compress a window. Latencies are kept as differences, which are a third of the size."""
    small = {
        **window,
        **{
            part: {
                name: {**row, "latency_us": _differences(row["latency_us"])}
                if "latency_us" in row
                else row
                for name, row in window[part].items()
            }
            for part in _PARTS
        },
    }
    return zlib.compress(orjson.dumps(small), level=level)


def _differences(steps: Iterable[Sequence[int]]) -> list[int]:
    """Return for each step by how much its value is higher than the last one's, and its count."""
    found: list[int] = []
    last = 0
    for value, count in steps:
        found += (value - last, count)
        last = value
    return found


def _steps(kept: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the steps of `_differences`, or of a window of before, which has values."""
    if kept and not isinstance(kept[0], int):
        return [(value, count) for value, count in kept]
    return list(zip(accumulate(kept[::2]), kept[1::2], strict=True))


def unpack(data: bytes) -> Json:
    """Return a window.

    Raises:
        ValueError: the bytes are none.
    """
    try:
        window: Json = orjson.loads(zlib.decompress(data))
    except zlib.error as exc:
        raise ValueError(f"no window: {exc}") from exc
    for part in _PARTS:
        for row in window[part].values():
            if "latency_us" in row:
                row["latency_us"] = _steps(row["latency_us"])
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
    """Return a row a command over all windows, the most frequent first. Its percentiles are None
    where no window has its latencies.
    """
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
            steps = latencies[name]
            row[f"latency_us_p{share}"] = quantile(steps, share / 100) if steps else None
    return sorted(rows.values(), key=lambda row: -row["calls"])


def clients_of(windows: Iterable[Json]) -> list[Json]:
    """Return each client, by name and library: the most connections that it had in a window of one
    gateway, and when it was last there.
    """
    rows: dict[tuple[str, str], Json] = {}
    for window in windows:
        for row in window.get("clients", ()):  # a window of before has none
            name, library = row["name"], row["library"]
            found = rows.setdefault(
                (name, library),
                {"name": name, "library": library, "connections_max": 0, "last_s": 0},
            )
            found["connections_max"] = max(found["connections_max"], row["connections"])
            found["last_s"] = max(found["last_s"], window["at_ms"] // 1000)
    return sorted(rows.values(), key=lambda row: (-row["connections_max"], row["name"]))


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
    """Return the rate, errors, connections and latency over time, in at most `points` periods.

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
        connections: dict[str, int] = {}  # the most of each gateway
        for window in part:
            process = window.get("process", "")
            now = sum(row["connections"] for row in window.get("clients", ()))
            connections[process] = max(connections.get(process, 0), now)
            for found in window["commands"].values():
                calls += found["calls"]
                errors += sum(found["errors"].values())
                steps.update(dict(map(tuple, found["latency_us"])))
        rows.append(
            {
                "at_s": int(first + number * period),
                "requests_per_s": round(calls / period, 1),
                "errors": errors,
                "connections": sum(connections.values()),
                "latency_us_p50": quantile(steps, 0.5),
                "latency_us_p99": quantile(steps, 0.99),
            }
        )
    return rows
