"""A model's shapes are of the copy, its rates are of the gateways."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from exodus.observe.composer import Composer
from exodus.observe.weighing import Weighed, weigh
from exodus.observe.workload import Workload, workload_of
from tasks.weighing import judge_weighed
from tests.unit.exodus.observe.test_workload import profile_of


def _model() -> Workload:
    """Ten seconds with 60 GET, 30 SET and 10 HGET a second, in a copy of the traffic."""
    one = [[b"GET", b"user:1"]] * 6 + [[b"SET", b"user:1", b"v" * 50, b"EX", b"60"]] * 3
    return workload_of(profile_of(*[*one, [b"HGET", b"cart:1", b"f"]] * 100), source="packets")


def _window(at_s: int, seconds: float = 10.0, **calls: int) -> dict[str, Any]:
    return {
        "at_ms": 1_000_000_000_000 + at_s * 1000,
        "seconds": seconds,
        "commands": {name: {"calls": count} for name, count in calls.items()},
    }


def _weighed(*windows: dict[str, Any]) -> Weighed:
    found = weigh(_model(), windows)
    assert isinstance(found, Weighed), found
    return found


def _per_s(model: Workload, command: str) -> float:
    return sum(each.calls for each in model.operations if each.command == command) / model.seconds


def test_each_command_is_as_frequent_as_the_gateways_say() -> None:
    found = _weighed(*(_window(n, GET=1_000, SET=2_000) for n in range(10, 210, 10)))
    model = found.model
    assert found.seconds == pytest.approx(200)
    assert _per_s(model, "GET") == pytest.approx(100, rel=0.02)
    assert _per_s(model, "SET") == pytest.approx(200, rel=0.02)
    # The gateways did not see it once: at most once in their time
    assert _per_s(model, "HGET") <= 1 / 200 + 1 / model.seconds
    assert model.rates.mean == pytest.approx(300, rel=0.02)
    (sets,) = (each for each in model.operations if each.command == "SET")
    assert (sets.options, sets.arity) == (["EX"], "5-8")
    assert sets.expiry_ms.total == pytest.approx(sets.calls, rel=0.01)
    assert model.depths.total == pytest.approx(model.requests, rel=0.05)
    assert "weighed by 200 s" in model.source
    assert Workload.model_validate_json(model.model_dump_json()) == model


def test_what_is_played_comes_at_the_gateways_rate() -> None:
    model = _weighed(*(_window(n, GET=1_000, SET=2_000) for n in range(10, 210, 10))).model
    composer = Composer(model, prefix=b"p:", speed=1.0, draw=Random(3))
    requests, at_s = 0, 0.0
    while at_s < 20:
        unit = composer.unit()
        at_s = unit.due_s
        requests += len(unit.requests)
    assert requests / at_s == pytest.approx(300, rel=0.06)


def test_the_busiest_hour_is_what_is_played() -> None:
    """Two hours, the second ten times as busy: a target for the mean would be too small."""
    windows = [_window(n, GET=1_000 if n > 3_600 else 100, SET=1) for n in range(10, 7_210, 10)]
    model = _weighed(*windows).model
    assert model.rates.mean == pytest.approx(55, rel=0.05)
    assert model.rates.peak_hour == pytest.approx(100, rel=0.05)
    assert _per_s(model, "GET") == pytest.approx(100, rel=0.05)


def test_idle_gateways_make_no_target_large_enough() -> None:
    """Applications move to the gateways at Analyze: before, these counted nothing for a while."""
    idle = [_window(n) for n in range(10, 310, 10)]
    model = _weighed(*idle, _window(310, GET=600, SET=300)).model
    assert model.rates.mean < 5
    assert model.requests / model.seconds == pytest.approx(100, rel=0.1)  # as in the copy
    assert _per_s(model, "GET") == pytest.approx(67, rel=0.1)  # two of three, as at the gateways


def test_windows_of_several_gateways_at_one_time_add_up() -> None:
    both = [_window(n, GET=500) for n in range(10, 110, 10)]
    again = [_window(n + 3, GET=500) for n in range(10, 110, 10)]
    found = _weighed(*both, *again)
    assert found.seconds == pytest.approx(103)
    assert found.model.rates.mean == pytest.approx(97, rel=0.02)


def test_idle_time_counts_and_time_without_a_gateway_does_not() -> None:
    idle = [_window(n) for n in range(110, 210, 10)]
    after_a_day = [_window(86_400 + n, GET=1_000) for n in range(10, 110, 10)]
    found = _weighed(*(_window(n, GET=1_000) for n in range(10, 110, 10)), *idle, *after_a_day)
    assert found.seconds == pytest.approx(300)
    assert found.model.rates.mean == pytest.approx(67, rel=0.02)


def test_commands_that_the_copy_did_not_show_are_a_finding() -> None:
    found = _weighed(_window(10, GET=900, LPUSH=60, **{"XGROUP|CREATE": 40}, HELLO=500))
    assert found.left_out == {"LPUSH": 60, "XGROUP|CREATE": 40}  # HELLO is of connections
    assert found.left_out_share == pytest.approx(100 / 1_500)
    (row,) = judge_weighed(found)
    assert (row["ok"], row["level"]) == (False, "info")
    assert "LPUSH 60, XGROUP|CREATE 40" in row["detail"]
    assert row["line"].endswith(row["detail"])  # the form tells it
    (row,) = judge_weighed(_weighed(_window(10, GET=9_900, LPUSH=60)))
    assert row["ok"]


@pytest.mark.parametrize(
    ("windows", "why"),
    [
        ([], "no window"),
        ([_window(10)], "no window"),
        ([_window(10, LPUSH=5)], "no command that the copy"),
        ([_window(10, GET=10**9)], "a model has at most"),
        # Its busiest hour alone is too much, and its mean is not
        ([_window(10, GET=4 * 10**10), _window(14_410, 14_400, GET=1)], "a model has at most"),
    ],
)
def test_why_a_model_is_not_weighed(windows: list[dict[str, Any]], why: str) -> None:
    found = weigh(_model(), windows)
    assert isinstance(found, str)
    assert why in found


def test_a_model_that_cannot_be_scaled_further_stays_one_that_can_be_loaded() -> None:
    """A hundred thousand times as fast: the counts grow, and the time has its bound."""
    model = _weighed(_window(10, GET=50_000_000, SET=25_000_000)).model
    assert Workload.model_validate_json(model.model_dump_json()) == model
    assert _per_s(model, "GET") == pytest.approx(5_000_000, rel=0.05)
