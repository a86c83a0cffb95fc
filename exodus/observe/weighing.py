"""Weigh a workload model by what the gateways counted.

A copy of the traffic is watched for seconds or minutes, in full detail. Gateways count for hours,
by command. The model takes its shapes, keys, sizes, and skew from the copy. It takes the peaks and
the frequency of each command from the gateways, at the rate of their busiest hour. If the copy was
busier, its rate counts: gateways are idle until applications move to them. The target must be able
to do what the model plays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exodus.observe.workload import Operation, Pattern, Rates, Spread, Workload
from exodus.plan.bounds import TELEMETRY_WINDOW_S, WORKLOAD_REQUESTS_PER_S_MAX, WORKLOAD_SECONDS_MIN

if TYPE_CHECKING:
    import pandas as pd

# Of a connection, not of the data: a client sends them when it connects, or to look after itself
_OF_CONNECTIONS = frozenset(
    (
        *("AUTH", "HELLO", "CLIENT", "SELECT", "PING", "ECHO", "QUIT", "RESET", "COMMAND", "INFO"),
        *("READONLY", "READWRITE", "ASKING"),
    )
)


@dataclass(frozen=True)
class Weighed:
    """A model whose rates are the gateways'."""

    model: Workload
    seconds: float  # that the windows cover
    rows: list[dict[str, Any]]  # a row a command: its rate in the copy and at the gateways
    left_out: dict[str, int]  # commands that the copy did not show → requests at the gateways
    left_out_share: float  # of all requests at the gateways


def weigh(model: Workload, windows: Sequence[Mapping[str, Any]]) -> Weighed | str:
    """Return the model with the gateways' rates, or why there is none.

    Args:
        model: what a copy of the traffic showed.
        windows: of all gateways, as `telemetry/windows.py` keeps them.
    """
    counted, seconds = _frame_of(windows), _covered_s(windows)
    if not len(counted) or not seconds:
        return "the gateways have kept no window with requests yet"
    by_period = counted.groupby("period")["calls"].sum()
    by_command = counted.groupby("command")["calls"].sum()
    per_s = {str(name): int(calls) / seconds for name, calls in by_command.items()}
    copied = {name: calls for name, calls in model.calls().items() if calls}
    common = {name: rate for name, rate in per_s.items() if copied.get(name)}
    if not common:
        return "the gateways counted no command that the copy of the traffic has"
    mean = float(by_period.sum()) / seconds
    peak_minute, peak_hour = (max(_peak(by_period, span_s), mean) for span_s in (60, 3_600))
    busy = max(peak_hour / mean, sum(copied.values()) / model.seconds / sum(common.values()))
    per_s_busy = sum(common.values()) * busy
    if per_s_busy > WORKLOAD_REQUESTS_PER_S_MAX:
        return (
            f"{per_s_busy:,.0f} requests a second; a model has at most "
            f"{WORKLOAD_REQUESTS_PER_S_MAX:,}"
        )
    # The counts stay about as large as they were: their time is another one
    stands_for_s = max(sum(copied.values()) / per_s_busy, WORKLOAD_SECONDS_MIN)
    times = {
        name: common.get(name, min(calls / model.seconds, 1 / seconds))
        * busy
        * stands_for_s
        / calls
        for name, calls in copied.items()
    }
    weighed = _times(model, times, stands_for_s)
    left_out = {
        name: round(rate * seconds)
        for name, rate in sorted(per_s.items(), key=lambda item: -item[1])
        if name not in copied and name.partition("|")[0] not in _OF_CONNECTIONS
    }
    return Weighed(
        weighed.model_copy(
            update={
                "taken_at": datetime.now(UTC),
                "source": f"{model.source}, weighed by {seconds:,.0f} s of the gateways",
                "rates": Rates(
                    mean=round(mean, 3),
                    peak_second=round(max(model.rates.peak_second, peak_minute), 3),
                    peak_minute=round(peak_minute, 3),
                    peak_hour=round(peak_hour, 3),
                ),
            }
        ),
        seconds,
        [
            {
                "command": name,
                "copy_per_s": round(copied.get(name, 0) / model.seconds, 2),
                "gateways_per_s": round(per_s.get(name, 0.0), 2),
                "in_the_model": name in copied,
            }
            for name in sorted(copied.keys() | per_s.keys(), key=lambda each: -per_s.get(each, 0.0))
        ],
        left_out,
        sum(left_out.values()) / max(sum(per_s.values()) * seconds, 1),
    )


def _frame_of(windows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the requests of each window and command, with the window's period of time."""
    import pandas as pd  # here: see `workload.frame_of`

    rows = [
        (
            int((window["at_ms"] / 1000 - window["seconds"] / 2) / TELEMETRY_WINDOW_S),
            name.upper(),
            found["calls"],
        )
        for window in windows
        for name, found in window["commands"].items()
    ]
    return pd.DataFrame.from_records(rows, columns=["period", "command", "calls"])


def _covered_s(windows: Iterable[Mapping[str, Any]]) -> float:
    """Return how long at least one gateway counted, in s."""
    covered = until = 0.0
    spans = ((window["at_ms"] / 1000, window["seconds"]) for window in windows)
    for begins, ends in sorted((at - seconds, at) for at, seconds in spans):
        covered += max(0.0, ends - max(begins, until))
        until = max(until, ends)
    return covered


def _peak(by_period: pd.Series, seconds: float) -> float:
    """Return requests a second of the busiest time of that length; of all, if that is shorter."""
    first, last = int(by_period.index.min()), int(by_period.index.max())
    every = by_period.reindex(range(first, last + 1), fill_value=0)
    periods = min(max(1, round(seconds / TELEMETRY_WINDOW_S)), len(every))
    return float(every.rolling(periods).sum().max()) / (periods * TELEMETRY_WINDOW_S)


def _times(model: Workload, times: Mapping[str, float], seconds: float) -> Workload:
    """Return the model with each command that many times as often, over `seconds`."""
    operations = [_operation(each, times.get(each.name, 0.0)) for each in model.operations]
    calls, before = (sum(each.calls for each in found) for found in (operations, model.operations))
    batches = next((times[name] for name in ("EXEC", "MULTI") if name in times), calls / before)
    return model.model_copy(
        update={
            "seconds": seconds,
            "requests": calls,
            "operations": operations,
            "operations_left_out": 0,
            "patterns": _patterns(model, operations),
            "depths": _spread(model.depths, calls / before),
            "transactions": _spread(model.transactions, batches),
        }
    )


def _patterns(model: Workload, operations: Sequence[Operation]) -> list[Pattern]:
    """Return the patterns with as many more requests as their operations have now."""
    calls: dict[tuple[str, bool], list[int]] = {}
    for was, now in zip(model.operations, operations, strict=True):
        both = calls.setdefault((was.pattern, was.write), [0, 0])
        both[0] += was.calls
        both[1] += now.calls

    def more(count: int, pattern: str, *, write: bool) -> int:
        was, now = calls.get((pattern, write), (0, 0))
        return round(count * now / was) if was else count

    found = []
    for each in model.patterns:
        reads = more(each.reads, each.pattern, write=False)
        writes = more(each.writes, each.pattern, write=True)
        times = (reads + writes) / max(each.reads + each.writes, 1)
        found.append(
            each.model_copy(
                update={
                    "reads": reads,
                    "writes": writes,
                    "request_bytes": round(each.request_bytes * times),
                    "reply_bytes": round(each.reply_bytes * times),
                }
            )
        )
    return sorted(found, key=lambda each: -(each.reads + each.writes))


def _operation(each: Operation, times: float) -> Operation:
    calls = max(round(each.calls * times), min(each.calls, 1))
    counts = {
        name: min(round(getattr(each, name) * times), calls)
        for name in ("in_transactions", "answered")
    }
    spreads = {
        name: _spread(getattr(each, name), times)
        for name in ("request_bytes", "reply_bytes", "latency_us", "expiry_ms")
    }
    return each.model_copy(
        update={
            "calls": calls,
            **counts,
            "nils": min(round(each.nils * times), counts["answered"]),
            "keys": round(each.keys * times),
            "errors": {code: round(count * times) for code, count in each.errors.items()},
            **spreads,
        }
    )


def _spread(spread: Spread, times: float) -> Spread:
    return Spread(values=[(value, max(1, round(n * times))) for value, n in spread.values])
