"""The coverage table accounts for every call."""

from __future__ import annotations

from exodus.shadow.coverage import coverage


def test_every_call_is_compared_left_out_or_not_sampled() -> None:
    rows = coverage(
        {"GET": 100, "EVAL": 10, "PING": 5},
        [{"command": "GET", "compared": 30, "by_reply": 30, "too_slow": 2}],
        [
            {"EVAL": {"a script, and compare_scripts is off": 3}},
            {
                "EVAL": {"a script, and compare_scripts is off": 1},
                "GET": {"larger than is compared": 8},
            },
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
        "by_reply": 30,
        "by_error": 0,
        "not_sampled": 60,
        "left_out": 10,
        "why_by_error": "",
        "why_not": "larger than is compared: 8; it took longer than Compare waits: 2",
    }
    assert (rows[1]["left_out"], rows[1]["not_sampled"]) == (4, 6)
    for row in rows:
        assert row["calls"] == row["compared"] + row["left_out"] + row["not_sampled"]


def test_a_write_that_was_compared_by_its_error_says_why() -> None:
    """So does a request that was not tried, once for each reason."""
    (row,) = coverage(
        {"SPOP": 20},
        [{"command": "SPOP", "compared": 9, "by_reply": 4, "by_error": 5, "not_tried": 6}],
        [],
        [{"SPOP": {"written shortly before": 2}}, {"SPOP": {"written shortly before": 3}}],
        [{"SPOP": {"no unused database": 4}}],
    )
    assert (row["compared"], row["by_reply"], row["by_error"]) == (9, 4, 5)
    assert row["why_by_error"] == "written shortly before: 5"
    assert row["why_not"] == (
        "no unused database: 4; not among the commands that Compare may run: 2"
    )
    assert row["calls"] == row["compared"] + row["left_out"] + row["not_sampled"]
