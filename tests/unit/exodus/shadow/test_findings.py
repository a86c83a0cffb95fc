"""A finding of Compare is accepted by name, as a whole and alone."""

from __future__ import annotations

from exodus.plan.bounds import FINDINGS_MAX
from exodus.shadow.causes import Cause
from exodus.shadow.findings import (
    NOTHING_COMPARED,
    findings,
    setup_lines,
    summary_lines,
    why_not_accepted,
)

_ROW = {"command": "GET", "compared": 3}
_DIVERGENCE = {
    "db": 0,
    "key": "k",
    "command": "GET",
    "kind": "replies differ",
    "cause": Cause.STALE,
    "state": "confirmed",
}
_STATE = {
    "db": 1,
    "key": "odd\nname",
    "command": "state",
    "kind": "the state differs: value",
    "cause": Cause.UNKNOWN,
    "state": "pending",
}
_NAMES = {"0:k GET", "1:odd\\nname state"}


def test_each_finding_has_a_name_of_one_line() -> None:
    found = findings([_ROW], [_DIVERGENCE, _STATE])
    assert {row["name"] for row in found} == _NAMES
    assert found[0]["cause"] == "stale restore"


def test_what_is_healed_or_accepted_is_no_finding() -> None:
    for state in ("healed", "accepted"):
        assert findings([_ROW], [{**_DIVERGENCE, "state": state}]) == []


def test_a_comparison_of_nothing_is_a_finding() -> None:
    """Before, an empty table gave three rows with ERROR, and the phase could not be passed."""
    for rows in ([], [{"command": "TTL", "compared": 0}]):
        (found,) = findings(rows, [])
        assert found["name"] == NOTHING_COMPARED
    assert findings([_ROW], []) == []


def test_all_findings_are_accepted_by_name_or_none() -> None:
    found = findings([_ROW], [_DIVERGENCE, _STATE])

    def why(text: str, still_open: set[str] = _NAMES) -> str | None:
        return why_not_accepted(found, text, still_open=still_open)

    assert why_not_accepted([], "", still_open=set()) is None
    assert "2 finding(s) are neither resolved nor accepted" in str(why(""))
    assert "0:k GET" not in str(why("0:k GET"))
    assert "'0:other GET' is no finding" in str(why("0:other GET"))
    assert why(" 0:k GET\n\n1:odd\\nname state ") is None
    # One was healed while the form waited: it needs no name, and may have one.
    left = {"1:odd\\nname state"}
    assert why("1:odd\\nname state", left) is None
    assert why("0:k GET\n1:odd\\nname state", left) is None
    assert "1 finding(s)" in str(why("0:k GET", left))


def test_a_command_whose_writes_all_lead_elsewhere_is_a_finding() -> None:
    """Writes past the gateway cause that for some of them only."""
    rows = [{"command": "LPOP", "compared": 5}, {"command": "INCR", "compared": 9, "by_reply": 1}]
    (found,) = findings(rows, [], {"LPOP": 3, "INCR": 8, "SADD": 2})
    assert found["name"] == "LPOP effect"
    why = why_not_accepted([found], "", still_open={"LPOP effect"})
    assert "1 finding(s) are neither resolved nor accepted" in str(why)
    assert why_not_accepted([found], "LPOP effect", still_open={"LPOP effect"}) is None


def _found(**figures: object) -> dict[str, object]:
    """Return what a comparison tells."""
    return {
        "bound": "0 of 300 keys differ: at most 1 % of all, at 95 %",
        "rows": [
            {"command": "GET", "compared": 150, "by_reply": 150},
            {"command": "SET", "compared": 50, "by_reply": 20, "by_error": 30},
        ],
        "coverage": [
            {"command": "GET", "calls": 900, "compared": 150},
            {"command": "DUMP", "calls": 7, "compared": 0},
            {"command": "TTL", "calls": 0, "compared": 0},
        ],
        "figures": {
            "inconclusive_why": {"the source's reply moved": 9, "expired": 1},
            "rows_lost": 2,
            "away_ms": 1_500,
            "lag_ms_p99": 41,
            "dirty_max": 1_200,
            "dirty_slope_per_s": -0.5,
            "half_life_s": 0.25,
            **figures,
        },
    }


_SUMMARY = {
    "replies_compared": 200,
    "replies_inconclusive": 10,
    "samples_dropped": 1_234,
    "sampled_keys": 300,
    "keys_inconclusive": 4,
}


def test_the_form_shows_the_figures_that_a_person_decides_by() -> None:
    """A share of what was lost, late or undecided may hide a difference."""
    assert summary_lines(_found(), _SUMMARY, []) == [
        "0 of 300 keys differ: at most 1 % of all, at 95 %",
        "accepted: 200 requests of 2 commands were tried; 1 observed commands were not compared "
        "(artifact coverage)",
        "inconclusive: 10 replies (5.0 %), the source's reply moved",
        "judged: 170 by their reply, 30 writes by their error only",
        "dropped: 1,234 sampled requests, 2 rows; no comparer ran for 1.5 s",
        "converging: lag p99 41 ms, at most 1,200 keys dirty, -0.5 a second, half of a burst gone "
        "after 0.25 s",
        "300 sampled keys, 4 of them written all the time",
    ]


def test_the_form_says_what_is_not_known() -> None:
    nothing = {**_SUMMARY, "replies_compared": 0, "replies_inconclusive": 0}
    found = _found(half_life_s=None, inconclusive_why={}, keys_copied_again=17)
    lines = summary_lines(found, nothing, [])
    assert "inconclusive: 0 replies (0.0 %)" in lines
    assert "half of a burst gone after more than the run" in lines[5]
    assert lines[-1] == "17 keys were copied again: a server restarted, or another one took over"


def test_the_form_begins_with_the_findings() -> None:
    found = findings([_ROW], [_DIVERGENCE, _STATE])
    first, *others = summary_lines(_found(), _SUMMARY, found)
    assert first == (
        "2 FINDING(S): resolve them, or accept each by name: 0:k GET (stale restore), "
        "1:odd\\nname state (unknown)"
    )
    assert others == summary_lines(_found(), _SUMMARY, [])
    many = [{**found[0], "name": f"0:{number} GET"} for number in range(FINDINGS_MAX + 1)]
    first, second, *others = summary_lines(_found(), _SUMMARY, many)
    assert first.startswith("1,001 FINDING(S)")
    assert first.count("stale restore") == 10
    assert second.startswith("TOO MANY TO REVIEW: one answer accepts at most 1,000 findings")
    assert "exodus repair" in second
    names = "\n".join(row["name"] for row in many)
    why = why_not_accepted(many, names, still_open={row["name"] for row in many})
    assert "1,001 findings are open, and one answer accepts at most 1,000 by name" in str(why)
    left = {row["name"] for row in many[1:]}
    assert why_not_accepted(many, names, still_open=left) is None


def test_the_form_counts_the_checks_beside_the_keys() -> None:
    rows = [
        {"check": "maxmemory of the target", "ok": False, "level": "should"},
        {"check": "setting timeout", "ok": True, "level": "should"},
        {"check": "users", "ok": False, "level": "info"},
    ]
    what = "settings, modules, logins and function libraries of the target"
    assert setup_lines(rows) == [f"{what}: 1 of 2 checks hold"]
    assert setup_lines([]) == [f"{what} were not checked: test_checks has them off"]
