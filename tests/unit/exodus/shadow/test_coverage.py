"""The coverage table accounts for every call."""

from __future__ import annotations

from exodus.shadow.coverage import coverage


def test_every_call_is_compared_left_out_or_not_sampled() -> None:
    rows = coverage(
        {"GET": 100, "EVAL": 10, "PING": 5},
        [{"command": "GET", "compared": 30, "too_slow": 2}],
        [
            {"EVAL": {"a script that may write": 3}},
            {"EVAL": {"a script that may write": 1}, "GET": {"larger than is compared": 8}},
        ],
    )
    assert [(row["command"], row["calls"]) for row in rows] == [
        ("GET", 100),
        ("EVAL", 10),
        ("PING", 5),
    ]
    assert rows[0] == {
        "command": "GET",
        "calls": 100,
        "compared": 30,
        "not_sampled": 60,
        "left_out": 10,
        "why_not": "larger than is compared: 8; it took longer than Compare waits: 2",
    }
    assert (rows[1]["left_out"], rows[1]["not_sampled"]) == (4, 6)
    for row in rows:
        assert row["calls"] == row["compared"] + row["left_out"] + row["not_sampled"]
