"""Windows of counters add up exactly to the totals."""

from __future__ import annotations

import json
import random
import zlib

import pytest

from exodus.commands.table import Command
from exodus.plan.bounds import TELEMETRY_WINDOW_BYTES_MAX
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from exodus.telemetry.histogram import Histogram
from exodus.telemetry.windows import (
    Windows,
    clients_of,
    merge,
    over_time,
    pack,
    prefix_latencies,
    unpack,
)

GET, SET = Command(b"GET", write=False, first=1, last=1, step=1), Command(b"SET", write=True)


def _count(
    telemetry: Telemetry, command: Command, micros: int, error: bytes = b"", key: bytes = b"user:1"
) -> None:
    telemetry.observe(command, key, micros / 1_000_000, 10, 20, error)


def test_windows_of_two_gateways_add_up_to_the_exact_percentile() -> None:
    draw = random.Random(7)
    whole = Histogram()
    kept = []
    for _ in range(2):
        telemetry = Telemetry(NoKeyStatistics())
        windows = Windows(telemetry)
        assert windows.due(0) is None
        for number in range(1, 4):
            for _ in range(500):
                micros = int(draw.expovariate(1 / 900))
                whole.record(micros)
                _count(telemetry, GET, micros)
            assert windows.due(number * 10_000 - 5_000) is None
            found = windows.due(number * 10_000)
            assert found is not None
            windows.kept()
            kept.append(unpack(pack(found)))
    (row,) = merge(kept)
    assert row["calls"] == 3_000
    for share in (50, 99):
        assert row[f"latency_us_p{share}"] == whole.quantile(share / 100)


def test_latencies_by_key_prefix_are_exact_over_gateways() -> None:
    draw = random.Random(8)
    whole = {"user:": Histogram(), "cart:": Histogram()}
    kept = []
    for _ in range(2):
        telemetry = Telemetry(NoKeyStatistics())
        windows = Windows(telemetry)
        windows.due(0)
        for number in range(1, 4):
            for _ in range(500):
                prefix = draw.choice(list(whole))
                micros = int(draw.expovariate(1 / (300 if prefix == "user:" else 5_000)))
                whole[prefix].record(micros)
                _count(telemetry, GET, micros, key=prefix.encode() + b"1")
            found = windows.due(number * 10_000)
            assert found is not None
            windows.kept()
            kept.append(unpack(pack(found)))
    found = prefix_latencies(kept)
    for prefix, histogram in whole.items():
        for share in (50, 99):
            assert found[prefix][f"latency_us_p{share}"] == histogram.quantile(share / 100)
    without = [{**kept[0], "prefixes": {"user:": {"calls": 1}}}]
    assert prefix_latencies(without) == {}


def test_a_window_that_was_not_kept_is_part_of_the_next() -> None:
    telemetry = Telemetry(NoKeyStatistics())
    windows = Windows(telemetry)
    _count(telemetry, GET, 100)
    windows.due(0)  # what was counted since the process began is of the first window
    assert windows.due(10_000) is not None  # and the store was away
    _count(telemetry, SET, 100, b"OOM")
    found = windows.due(20_000)
    assert found is not None
    window = unpack(pack(found))
    assert window["seconds"] == 20
    assert {name: row["calls"] for name, row in window["commands"].items()} == {"GET": 1, "SET": 1}
    assert merge([window])[1]["error_codes"] == {"OOM": 1}
    assert window["prefixes"]["user:"]["calls"] == 2


def test_a_clock_that_goes_back_begins_anew() -> None:
    telemetry = Telemetry(NoKeyStatistics())
    windows = Windows(telemetry)
    windows.due(100_000)
    _count(telemetry, GET, 100)
    assert windows.due(1_000) is None
    _count(telemetry, GET, 100)
    found = windows.due(11_000)
    assert found is not None
    assert unpack(pack(found))["commands"]["GET"]["calls"] == 1


@pytest.mark.parametrize(("number", "kept"), [(400, True), (3_000, False)])
def test_a_large_window_is_kept_without_latencies_then_without_its_prefixes(
    number: int, kept: bool
) -> None:
    draw = random.Random(1)
    counts = ("calls", "request_bytes", "reply_bytes", "writes", "errors")
    prefixes = {
        draw.randbytes(30).hex(): dict.fromkeys(counts, draw.randrange(10**6))
        | {"latency_us": [[draw.randrange(10**6), draw.randrange(10**6)] for _ in range(50)]}
        for _ in range(number)
    }
    window = {"at_ms": 1, "seconds": 10.0, "commands": {}, "prefixes": prefixes}
    packed = pack(window)
    assert len(packed) < TELEMETRY_WINDOW_BYTES_MAX
    assert unpack(packed)["cut"]
    left = unpack(packed)["prefixes"]
    assert len(left) == (number if kept else 0)
    assert "latency_us" not in str(left)
    with pytest.raises(ValueError, match="no window"):
        unpack(b"something else")


def test_no_window_is_larger_than_its_bound() -> None:
    """Of 1,000 commands, the most that are counted, with latencies that nobody else has."""
    draw = random.Random(2)
    commands = {
        f"C{number}": {
            "calls": 1_000 - number,
            "request_bytes": draw.randrange(10**6),
            "reply_bytes": draw.randrange(10**6),
            "write": False,
            "errors": {},
            "latency_us": sorted((draw.randrange(10**7), draw.randrange(99)) for _ in range(90)),
        }
        for number in range(1_000)
    }
    window = {"at_ms": 1, "seconds": 10.0, "commands": commands, "prefixes": {}}
    packed = pack(window)
    assert len(packed) <= TELEMETRY_WINDOW_BYTES_MAX
    rows = merge([unpack(packed)])
    assert len(rows) == 1_000  # each is counted
    assert rows[0]["latency_us_p99"] is not None  # the most frequent ones with their latencies
    assert rows[-1]["latency_us_p99"] is None
    few = dict(list(commands.items())[:3])
    assert unpack(pack({**window, "commands": few}))["commands"] == few


def test_a_window_of_an_older_gateway_is_read() -> None:
    row = {"calls": 3, "latency_us": [[10, 1], [20, 2]]}
    window = {"at_ms": 1, "commands": {"GET": row}, "prefixes": {"a:": row, "b:": {"calls": 1}}}
    found = unpack(zlib.compress(json.dumps(window).encode()))
    assert found["commands"]["GET"]["latency_us"] == [(10, 1), (20, 2)]
    assert prefix_latencies([found]) == {"a:": {"latency_us_p50": 20, "latency_us_p99": 20}}
    assert clients_of([found]) == []


def test_a_client_that_was_there_once_is_told() -> None:
    """One that comes each hour is in no snapshot of a minute."""
    telemetry, there = (
        Telemetry(NoKeyStatistics()),
        [{"name": "report", "library": "jedis 5", "connections": 2}],
    )
    windows = Windows(telemetry, lambda: there)
    windows.due(0)
    kept = []
    for number in range(1, 4):
        found = windows.due(number * 10_000)
        assert found is not None
        windows.kept()
        kept.append({"process": "gw-1", **unpack(pack(found))})
        there = [{"name": "shop", "library": "", "connections": 5 + number}]
    assert clients_of(kept) == [
        {"name": "shop", "library": "", "connections_max": 7, "last_s": 30},
        {"name": "report", "library": "jedis 5", "connections_max": 2, "last_s": 10},
    ]
    other = [{**window, "process": "gw-2"} for window in kept]
    assert [row["connections"] for row in over_time([*kept, *other], 300)] == [4, 12, 14]


def test_the_rate_over_time_adds_gateways_up_and_shows_a_gap() -> None:
    def window(at_s: int, calls: int) -> dict:
        row = {
            "calls": calls,
            "request_bytes": 0,
            "reply_bytes": 0,
            "write": False,
            "errors": {"ERR": 1},
            "latency_us": [[calls, 1]],
        }
        return {"at_ms": at_s * 1000, "seconds": 10.0, "commands": {"GET": row}, "prefixes": {}}

    rows = over_time([window(10, 100), window(10, 300), window(40, 50)], 300)
    assert [(row["at_s"], row["requests_per_s"], row["errors"]) for row in rows] == [
        (0, 40.0, 2),
        (30, 5.0, 1),
    ]
    assert rows[0]["latency_us_p99"] == 300
    assert len(over_time([window(10 * n, 1) for n in range(1, 1_000)], 50)) <= 51
    assert over_time([], 10) == []
