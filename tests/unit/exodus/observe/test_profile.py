"""The profile: distributions add up, skew is recovered, and nothing grows beyond its bound."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from exodus.observe import profile as module
from exodus.observe.distribution import Distribution
from exodus.observe.events import Answer, Event
from exodus.observe.profile import Profile
from exodus.observe.skew import KeyCounts, zipf_sum


def made(at: float, pattern: str = "user:*", key: int = 1, **more: object) -> Event:
    event = Event(at, 1, "app", 0, "GET", "GET /2", pattern=pattern, key=key, keys=1)
    for name, value in more.items():
        setattr(event, name, value)
    return event


@given(st.lists(st.integers(1, 2**25), min_size=1), st.floats(0.01, 1))
def test_quantiles_are_those_of_hdrhistogram(values: list[int], share: float) -> None:
    ours, theirs = Distribution(), HdrHistogram(1, 2**26, 2)
    for value in values:
        ours.record(value)
        theirs.record_value(value)
    assert ours.quantile(share) == theirs.get_value_at_percentile(share * 100)


@given(st.lists(st.integers(-5, 2**50)), st.lists(st.integers(-5, 2**50)))
def test_distributions_add_up_and_survive_json(one: list[int], other: list[int]) -> None:
    both, left, right = Distribution(), Distribution(), Distribution()
    for value in one:
        left.record(value)
        both.record(value)
    for value in other:
        right.record(value)
        both.record(value)
    left.add(right)
    assert left.pairs() == both.pairs() == Distribution(both.pairs()).pairs()
    assert left.total == len(one) + len(other)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 0.9, 1.1, 1.5])
@pytest.mark.parametrize("keys", [15, 500, 20_000])
def test_the_skew_of_known_keys_is_recovered(exponent: float, keys: int) -> None:
    draw = random.Random(7)
    weights = list(accumulate(rank**-exponent for rank in range(1, keys + 1)))
    counts = KeyCounts()
    drawn = draw.choices(range(keys), cum_weights=weights, k=60_000)
    for key in drawn:
        counts.record(hash(("key", key)))
    skew = counts.skew()
    assert skew.exponent == pytest.approx(exponent, abs=0.12)
    hottest = 1 / zipf_sum(exponent, keys)
    assert skew.top_shares[0] == pytest.approx(hottest, rel=0.15, abs=0.002)
    assert skew.distinct == pytest.approx(len(set(drawn)), rel=0.06)


def test_a_report_has_what_was_put_in() -> None:
    profile = Profile()
    for number in range(100):
        profile.add(
            made(
                1_000 + number / 10,
                key=number % 4,
                answer=Answer.ERROR if number < 10 else Answer.VALUE,
                error="WRONGTYPE" if number < 10 else "",
                latency_us=100,
                reply_bytes=50,
                request_bytes=30,
            )
        )
    report = profile.report()
    assert report["requests"] == 100
    assert report["requests_per_s_peak"]["second"] == 10
    (row,) = report["commands"]
    assert row["errors"] == {"WRONGTYPE": 10}
    assert row["latency_us_p99"] == 100
    (pattern,) = report["patterns"]
    assert pattern["keys_distinct"] == 4
    assert pattern["hottest_share"] == 0.25


def test_waiting_for_another_client_is_no_latency() -> None:
    profile = Profile()
    profile.add(made(1, answer=Answer.NIL, latency_us=5_000_000, blocking=True))
    assert profile.report()["commands"][0]["latency_us_max"] == 0


def test_nothing_grows_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE_ROWS_MAX", "PROFILE_PATTERNS_MAX", "PROFILE_CLIENTS_MAX"):
        monkeypatch.setattr(module, name, 10)
    monkeypatch.setattr(module, "PROFILE_SECONDS_MAX", 10)
    profile = Profile()
    for number in range(100):
        profile.add(made(number, pattern=f"p{number}", client=f"c{number}", connection=number))
    assert len(profile.rows) == len(profile.keys) == len(profile.clients) == 11
    assert len(profile.connections) == len(profile.by_second) == 10
    assert profile.dropped == {"rows": 90, "patterns": 90, "clients": 90, "seconds": 90}
    assert sum(row.calls for row in profile.rows.values()) == profile.requests == 100
