"""Rows of Pre-test that no server makes red in a test: each with its defect."""

from __future__ import annotations

import json

import pytest

from tasks import trials
from tasks.checks import Level
from tasks.context import Json
from tasks.proofs import judge_copy, judge_followed, judge_mix
from tasks.watching import events_of

WATCHED: Json = {
    "on_keys": 1,
    "requests": 9,
    "probes_sent": 20,
    "probes_seen": 20,
    "nodes": [{"node": "s:1", "probes_sent": 20, "probes_seen": 20}],
    "seen_share": 1.0,
    "reconciled": [],
    "unreadable": 0,
    "unseen_clients": None,
    "coverage": None,
}
TRIED: Json = {
    "why": "",
    "errors": {},
    "sent": 9,
    "refused": {},
    "played_share": 1.0,
    "not_played": {},
    "left": 0,
    "latency_us": {"p50": 1, "p99": 2},
    "requests_per_s": 9.0,
}


def red(checks: list[Json]) -> dict[str, Json]:
    return {row["check"]: row for row in checks if not row["ok"]}


def test_one_unreadable_line_is_a_required_check_that_fails() -> None:
    assert red(judge_copy(WATCHED)) == {}
    ((name, row),) = red(judge_copy({**WATCHED, "unreadable": 1})).items()
    assert (name, row["level"]) == ("every request could be parsed", Level.MUST)


def test_a_copy_of_other_addresses_cannot_name_clients() -> None:
    ((_, row),) = red(judge_copy({**WATCHED, "unseen_clients": "other addresses"})).items()
    assert (row["level"], row["detail"]) == (Level.INFO, "not known: other addresses")


def test_one_scratch_key_that_is_left_is_a_required_check_that_fails() -> None:
    assert red(judge_mix(TRIED)) == {}
    ((name, row),) = red(judge_mix({**TRIED, "left": 1})).items()
    assert (name, row["level"]) == ("the scratch keys of the trial are gone", Level.MUST)
    assert "1 left" in row["detail"]


def test_a_mix_that_is_little_like_the_traffic_is_a_finding() -> None:
    little = {**TRIED, "played_share": 0.79, "not_played": {"JSON.SET /4": 5}}
    ((name, row),) = red(judge_mix(little)).items()
    assert (name, row["level"]) == ("the trial is like the observed traffic", Level.SHOULD)
    assert "JSON.SET /4" in row["detail"]


def test_candidates_are_ranked_by_errors_then_refusals_then_latency() -> None:
    found = {"why": "", "errors": {}, "refused": {}, "latency_us": {"p50": 1, "p99": 50}}
    tried: Json = {
        "fast": {**found, "memory_bytes": 7, "requests_per_s": 9.0},
        "slow": {**found, "latency_us": {"p50": 1, "p99": 60}},
        "refuses": {**found, "refused": {"KEYS": 1}, "latency_us": {"p50": 1, "p99": 5}},
        "wrong": {**found, "errors": {"GET /2": {"ERR": 2}}, "latency_us": {"p50": 1, "p99": 5}},
        "away": {"why": "it does not answer"},
    }
    ranked = [trials._ranked(url, row) for url, row in reversed(tried.items())]
    rows = sorted(ranked, key=trials._order)
    assert [row["server"] for row in rows] == list(tried)
    assert (rows[0]["memory_bytes"], rows[0]["p99_us"], rows[0]["requests_per_s"]) == (7, 50, 9.0)
    assert (rows[3]["errors"], rows[3]["shapes_with_errors"]) == (2, "GET /2")


@pytest.mark.parametrize(
    ("copy", "store", "artifact", "holds"),
    [(20, 20, 20, True), (20, 20, 0, False), (20, 0, 20, False), (0, 0, 0, False)],
    ids=["everywhere", "no artifact", "no report", "nowhere"],
)
def test_an_event_that_is_lost_on_its_way_is_told(
    copy: int, store: int, artifact: int, holds: bool
) -> None:
    counts = {"copy": copy, "control store": store, "artifact": artifact}
    (row,) = judge_followed([{"where": where, "events": n} for where, n in counts.items()])
    assert (row["ok"], row["level"]) == (holds, Level.MUST)
    assert f"artifact: {artifact} of Exodus's own reads" in row["detail"]


def test_events_are_counted_in_what_the_artifact_shows() -> None:
    """Prefect keeps a table as JSON, in which names are escaped for Markdown."""
    rows = [{"pattern": "exodus:{watched}", "calls": 20}, {"pattern": "order:*", "calls": 7}]
    assert events_of(rows) == events_of(json.dumps(rows)) == 20
    assert events_of(None) == events_of([rows[1]]) == 0
