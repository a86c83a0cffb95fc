"""Each gate has a sentence, passes a frame as a phase makes it, and fails a wrong one."""

from __future__ import annotations

import pandas as pd
import pytest

from tasks.context import Json
from tasks.gates import SAYS, judge

# What Great Expectations itself imports
pytestmark = pytest.mark.filterwarnings("ignore")
_SAMPLE = {"pattern": "cart:*", "sampled": 5, "keys_low": 90, "keys": 100, "keys_high": 110}
_RATE = {"at_s": 1, "requests_per_s": 5.0, "latency_us_p50": 10, "latency_us_p99": 20}
_CHECK = {"check": "memory", "ok": True}
GOOD: dict[str, Json] = {
    "checks": {**_CHECK, "level": "must"},
    "gate": {**_CHECK, "level": "must"},
    "advice": {**_CHECK, "level": "should"},
    "observed": {"shape": "GET", "calls": 1},
    "keyspace": _SAMPLE,
    "rates": _RATE,
    "commands": {"command": "GET", "calls": 1, "target_has_it": True},
    "shapes": {"shape": "GET", "calls": 1, "verdict": "same"},
    "sizing": {"type": "hash", "keys_sampled": 1, "ratio": 1.1},
    "comparison": {"compared": 10, "divergences": 0},
    "reconciliation": {
        "keys_authority": 5,
        "divergences": 0,
        "dead_letters": 0,
        "open_gaps": 0,
        "caught_up": True,
        "keys_accounted": 5,
        "keys_seen": 5,
    },
}
BAD: dict[str, list[Json]] = {
    "checks": [{"ok": False}, {"ok": None}, {"check": None}],
    "gate": [{"level": "never"}, {"ok": None}],
    "advice": [{"level": "must"}],
    "observed": [{"calls": 0}, {"shape": None}],
    "keyspace": [{"keys_low": 101}, {"keys_high": 99}, {"sampled": 0}],
    "rates": [{"latency_us_p50": 21}, {"requests_per_s": -1.0}, {"at_s": None}],
    "commands": [{"target_has_it": False}, {"calls": 0}],
    "shapes": [{"verdict": "missing"}, {"calls": 0}],
    "sizing": [{"ratio": 30.0}, {"keys_sampled": 0}],
    "comparison": [{"compared": None}, {"divergences": None}],
    "reconciliation": [
        {"divergences": 1},
        {"open_gaps": 1},
        {"caught_up": False},
        {"keys_accounted": 4},
    ],
}


def _red(name: str, *rows: Json) -> list[str]:
    """Return the outcomes that are not a pass."""
    judged = judge({name: pd.DataFrame(list(rows))})
    assert {each["says"] for each in judged.rows} == {SAYS[name]}
    return [each["outcome"] for each in judged.rows if each["outcome"] != "pass"]


def test_every_gate_is_tried_here() -> None:
    assert set(SAYS) == set(GOOD) == set(BAD)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_a_gate_passes_what_is_right_and_fails_what_is_wrong(name: str) -> None:
    assert _red(name, GOOD[name]) == []
    assert _red(name) == ["FAIL"]  # no row
    for wrong in BAD[name]:
        assert set(_red(name, {**GOOD[name], **wrong})) == {"FAIL"}, wrong
