"""MONITOR's lines become events, at any split."""

from __future__ import annotations

import pytest

from exodus.observe.known_commands import known_table
from exodus.observe.monitor import MonitorReader

LINES = (
    b"+OK\r\n"
    b'+1700000000.000001 [0 10.0.0.1:5000] "set" "user:1" "a\\"b\\xff" "EX" "10"\r\n'
    b'+1700000000.100000 [3 10.0.0.2:5000] "get" "user:2"\r\n'
    b'+1700000001.000000 [0 lua] "incr" "count"\r\n'
    b"+nonsense\r\n"
)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_lines_become_events_at_any_split(size: int) -> None:
    reader = MonitorReader(known_table())
    for at in range(0, len(LINES), size):
        reader.feed(LINES[at : at + size])
    report = reader.profile.report()
    assert report["requests"] == 2
    assert report["writes"] == report["from_scripts"] == report["unreadable"] == 1
    assert report["databases"] == {"0": 1, "3": 1}
    assert report["connections"] == 2
    assert {row["shape"] for row in report["commands"]} == {"SET EX /5-8", "GET /2"}
    assert [row["pattern"] for row in report["patterns"]] == ["user:*"]
