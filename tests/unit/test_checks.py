"""Checks of a phase: each level can be false, and each false one has its consequence."""

from __future__ import annotations

import pandas as pd
import pytest

from tasks.checks import (
    Level,
    any_fatal,
    check,
    frames,
    of_findings,
    open_findings,
    summary_lines,
    why_not_accepted,
)
from tasks.gates import judge

# What Great Expectations itself imports
pytestmark = pytest.mark.filterwarnings("ignore")
FINDINGS = [
    {"check": "servers", "severity": "ok", "what": "two", "why": "", "next_step": ""},
    {
        "check": "eviction",
        "severity": "warning",
        "what": "the target evicts keys",
        "why": "they count as missing",
        "next_step": "set noeviction",
    },
]
FATAL = {
    "check": "memory",
    "severity": "fatal",
    "what": "too small",
    "why": "the copy does not fit",
    "next_step": "set maxmemory",
}


def _failed(name: str, rows: list[dict]) -> list[str]:
    found = judge({name: pd.DataFrame(rows)}).rows
    return [row["on"] for row in found if row["outcome"] != "pass"]


def test_a_fatal_finding_fails_the_gate_of_required_checks() -> None:
    good, bad = of_findings(FINDINGS), of_findings([*FINDINGS, FATAL])
    assert (any_fatal(good), any_fatal(bad)) == (False, True)
    assert _failed("checks", frames(good)["checks"]) == []
    assert _failed("checks", frames(bad)["checks"]) == ["column=ok, value_set=True"]


def test_a_warning_keeps_its_reason_and_fails_no_gate() -> None:
    checks = of_findings(FINDINGS)
    (found,) = open_findings(checks)
    assert (found["why"], found["next_step"]) == ("they count as missing", "set noeviction")
    assert _failed("advice", frames(checks)["advice"]) == []
    lines = summary_lines(checks)
    assert lines[0].startswith("1 FINDING(S)")
    assert "they count as missing" in lines[1]
    assert lines[-1] == "1 of 2 checks hold"


@pytest.mark.parametrize(
    ("verdict", "accepted", "refused"),
    [
        ("approve", "", True),
        ("approve", "eviction", False),
        ("approve", "eviction\nmemory", True),
        ("reject", "", False),
    ],
)
def test_a_warning_is_accepted_by_name(verdict: str, accepted: str, refused: bool) -> None:
    answer = {"decision": verdict, "accept_findings": accepted}
    assert (why_not_accepted(of_findings(FINDINGS), answer) is not None) is refused


def test_information_is_neither_required_nor_a_finding() -> None:
    checks = [check("known", False, level=Level.INFO)]
    assert not any_fatal(checks)
    assert open_findings(checks) == []
    assert summary_lines([*checks, check("memory", True)]) == [
        "1 of 1 checks hold; not required, and not so: known"
    ]
    assert frames(checks) == {"checks": [], "advice": checks}


def test_a_required_check_that_fails_cannot_be_approved_whatever_is_accepted() -> None:
    checks = [check("rights", False, "-set"), check("replicas", False, level=Level.SHOULD)]
    assert "this cannot be approved" in summary_lines(checks)[0]
    answer = {"decision": "approve", "accept_findings": "rights\nreplicas"}
    assert "1 required check(s) fail: rights" in (why_not_accepted(checks, answer) or "")
    assert why_not_accepted(checks, {"decision": "reject"}) is None
    assert _failed("gate", checks) == []


def test_figures_of_a_check_are_lines_of_the_form() -> None:
    checks = [{**check("stall", True), "line": "stall p99 12 ms"}, check("other", True)]
    assert summary_lines(checks) == ["2 of 2 checks hold", "stall p99 12 ms"]
