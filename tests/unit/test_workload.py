"""What Analyze says of the workload concerns the window, not the time since the gateways began."""

from __future__ import annotations

import json

from exodus.commands.table import Command
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from tasks.compatibility import judge_workload, workload_line
from tasks.profile import _prefixes, difference, quantile

GET = Command(b"GET", write=False, first=1, last=1)
BRPOP = Command(b"BRPOP", write=True, first=1, last=-2)
WORKLOAD = {"requests": 9, "requests_per_s": 3.0, "connections": 1, "seconds": 3.0}


def _look(*telemetries: Telemetry) -> dict:
    """Return what the gateways would have stored, as it comes out of the control store."""
    return json.loads(
        json.dumps(
            {
                f"gw-{number}": {
                    "commands": telemetry.snapshot(),
                    "prefixes": telemetry.prefixes_snapshot(),
                }
                for number, telemetry in enumerate(telemetries)
            }
        )
    )


def _two_gateways() -> tuple[dict, dict]:
    one, other = Telemetry(NoKeyStatistics()), Telemetry(NoKeyStatistics())
    for _ in range(500):  # a slow preload, before anybody watched
        one.observe(GET, b"old:1", 0.5, 10, 10, b"")
    before = _look(one, other)
    for number in range(100):
        one.observe(GET, b"user:1", 0.001, 10, 10, b"")
        other.observe(GET, b"user:1", 0.002, 10, 10, b"OOM" if number == 7 else b"")
    other.observe(BRPOP, b"jobs", 1.9, 10, 10, b"")
    return before, _look(one, other)


def test_latencies_are_of_the_window_and_of_all_gateways_together() -> None:
    rows = {row["command"]: row for row in difference(*_two_gateways())}
    assert rows["GET"]["calls"] == 200
    assert 900 <= rows["GET"]["latency_us_p50"] <= 1_200
    assert 1_900 <= rows["GET"]["latency_us_p99"] <= 2_300
    assert rows["GET"]["error_codes"] == {"OOM": 1}


def test_a_command_that_waits_for_data_is_not_the_slowest() -> None:
    rows = difference(*_two_gateways())
    assert {row["command"]: row["waits"] for row in rows} == {"GET": False, "BRPOP": True}
    assert "GET" in workload_line(WORKLOAD, rows)
    assert "BRPOP" not in workload_line(WORKLOAD, rows)


def test_prefixes_are_of_the_window() -> None:
    found = {row["prefix"]: row["calls"] for row in _prefixes(*_two_gateways())}
    assert found["user:"] == 200
    assert "old:" not in found


def test_a_percentile_of_nothing_is_zero() -> None:
    assert quantile({}, 0.99) == 0


def test_each_check_of_the_workload_can_fail() -> None:
    rows = [
        {"command": "GET", "target_has_it": True},
        {"command": "HEXPIRE", "target_has_it": False},
    ]
    direct = [{"client": "billing", "from": ["a@h"], "connections": 2, "through_gateways": 0}]
    good = judge_workload(WORKLOAD, rows[:1], [])
    assert all(row["ok"] for row in good)
    silent = judge_workload(WORKLOAD, [], [])
    lacking = judge_workload(WORKLOAD, rows, [])
    bypassed = judge_workload(WORKLOAD, rows[:1], direct)
    assert [row["ok"] for row in silent] == [False, True, True]
    assert [row["ok"] for row in lacking] == [True, False, True]
    assert "HEXPIRE" in lacking[1]["detail"]
    assert [row["ok"] for row in bypassed] == [True, True, False]
    assert "billing from a@h: 2 connection(s)" in bypassed[2]["detail"]
