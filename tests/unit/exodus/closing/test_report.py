"""The page of a bundle is for people: no Python, no raw timestamps, no table without rows."""

from __future__ import annotations

import re

from exodus.closing.report import render

_AT_MS = 1_795_853_083_670
_ENTRY = {
    "at_ms": _AT_MS,
    "phase": "commit",
    "gate": "cutover",
    "verdict": "approve",
    "decided_by": "ada",
    "why": "it is time",
    "evidence": "shown.commit.cutover",
    "evidence_digest": "0" * 64,
}
_DOCUMENTS = {
    "plan": {
        "name": "orders",
        "source": {"host": "a", "port": 1},
        "approvers": [],
        "advance": "manual",
    },
    "ledger": {
        "entries": [
            {
                **_ENTRY,
                "event": "decided",
                "facts": {"when": "window", "opens": "02:00", "leave_behind": False},
            },
            {**_ENTRY, "event": "switched", "facts": {"epoch": 15, "hold_ms": 111.2}},
        ]
    },
    "phases": {
        "commit": {"state": "waiting", "started_ms": _AT_MS, "waiting_since_ms": _AT_MS},
        "test": {"state": "approved"},
    },
    "open-gaps": {"gaps": []},
    "comparers": {
        "processes": [
            {
                "process": "c-1",
                "at_ms": _AT_MS,
                "facts": {"rows": {"SET": {"compared": 3, "equal": 3}}, "behind": 1},
            }
        ]
    },
    "report.evidence.compare": {
        "passed": True,
        "frames": {"comparison": [{"command": "SET", "compared": 3}], "checks": []},
        "summary": {"findings": 0},
        "lists": {},
    },
    "report.rehearsal": {"errors": ["one", "two"], "stall_ms_max": 64.6, "at_ms": _AT_MS},
}


def test_the_page_is_for_people() -> None:
    page = render(_DOCUMENTS)
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"[{}]|&#x27;|True|False|None", text)
    assert not re.search(r"\d{13}", text)
    assert "2026-11-28" in text
    tables = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    assert tables
    assert all(table.count("<tr>") > 1 for table in tables)


def test_nothing_is_lost_of_it() -> None:
    page = render(_DOCUMENTS)
    for text in (
        "ada",
        "it is time",
        "hold_ms 111.2",
        "opens 02:00",
        "leave_behind no",
        "SET compared 3; equal 3",
        "64.6",
        "one",
        "two",
        "manual",
    ):
        assert text in page, text
    assert "<h2>open-gaps: none</h2>" in page


def test_a_bundle_of_nothing_is_a_page() -> None:
    page = render({"plan": {}, "ledger": {"entries": []}})
    assert "<h2>Decisions: none</h2>" in page
    assert "<table>" not in page
