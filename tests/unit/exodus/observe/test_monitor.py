"""MONITOR's lines become events, at any split."""

from __future__ import annotations

import pytest

from exodus.observe.known_commands import known_table
from exodus.observe.monitor import MonitorReader
from exodus.observe.monitor_cost import Look, MonitorCost
from exodus.plan.bounds import MONITOR_BUFFER_BYTES_MAX

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


# What it costs.


def cost(
    *, cpu_during: float, requests: int = 1_000, before: int = 1_000, buffers: int = 0
) -> MonitorCost:
    """One second before and one with MONITOR; before, the server used a tenth of a core."""
    return MonitorCost(
        Look(0.0, 5.0, 0, 1_000),
        Look(1.0, 5.1, before, 1_000),
        Look(2.0, 5.1 + cpu_during, before + requests, 1_000 + buffers),
    )


def test_the_cost_is_what_the_same_requests_did_not_cost_before() -> None:
    assert cost(cpu_during=0.25).cpu_share_added == pytest.approx(0.15)
    assert cost(cpu_during=0.25, requests=2_500).cpu_share_added == pytest.approx(0)
    assert cost(cpu_during=0.25, before=10).cpu_share_added == pytest.approx(0.15)
    assert cost(cpu_during=0.0).cpu_share_added == 0


def test_too_much_is_said_with_both_figures() -> None:
    assert cost(cpu_during=0.3).too_much == ""
    assert "40.0% of a core" in cost(cpu_during=0.5).too_much
    waiting = cost(cpu_during=0.1, buffers=MONITOR_BUFFER_BYTES_MAX + 1)
    assert f"{MONITOR_BUFFER_BYTES_MAX + 1:,} bytes" in waiting.too_much


def test_figures_are_read_from_info_of_any_version() -> None:
    old = {"used_cpu_user": "2.5", "used_cpu_sys": "1.5", "total_commands_processed": "7"}
    assert Look.of(1.0, old) == Look(1.0, 4.0, 7, 0)
    new = old | {
        "used_cpu_user_main_thread": "1.0",
        "used_cpu_sys_main_thread": "0.5",
        "mem_clients_normal": "99",
    }
    assert Look.of(1.0, new) == Look(1.0, 1.5, 7, 99)
