"""Traffic counters: right, bounded, and without secrets."""

from __future__ import annotations

import json
import tracemalloc

import hypothesis.strategies as st
from hdrh.histogram import HdrHistogram
from hypothesis import given

from exodus.commands.table import Command, CommandTable
from exodus.gateway.orders import Orders
from exodus.gateway.session import Session
from exodus.plan.bounds import DISTINCT_SAMPLE
from exodus.resp.encode import encode
from exodus.telemetry.counters import NO_PREFIX, OTHER, NoKeyStatistics, Telemetry
from exodus.telemetry.histogram import VALUE_MAX, Histogram
from exodus.telemetry.sketches import KeySketches
from tests.support.full import FULL
from tests.support.script import Recorder

MANY = 1_000_000 if FULL else 60_000  # different keys, prefixes and codes
SET, GET = (
    Command(b"SET", write=True, first=1, last=1),
    Command(b"GET", write=False, first=1, last=1),
)


@given(
    st.lists(st.integers(1, VALUE_MAX), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]),
)
def test_quantiles_are_those_of_hdrhistogram(values: list[int], share: float) -> None:
    ours, theirs = Histogram(), HdrHistogram(1, VALUE_MAX, 2)
    for value in values:
        ours.record(value)
        theirs.record_value(value)
    assert ours.quantile(share) == theirs.get_value_at_percentile(share * 100)
    assert ours.value_max == max(values)
    assert ours.total == len(values)
    assert sum(count for _, count in ours.steps()) == len(values)


def test_values_outside_of_a_histogram_count_at_its_ends() -> None:
    histogram = Histogram()
    for value in (0, -5, VALUE_MAX + 1, 2**40):
        histogram.record(value)
    assert histogram.total == 4
    assert histogram.quantile(0.5) == 1
    assert histogram.quantile(1.0) == VALUE_MAX
    assert histogram.value_max == 2**40
    assert Histogram().quantile(0.5) == 0


def test_requests_are_counted_by_command_prefix_and_error_code() -> None:
    telemetry = Telemetry(NoKeyStatistics())
    telemetry.observe(SET, b"user:1", 0.001, 40, 5, b"")
    telemetry.observe(SET, b"user:2", 0.002, 60, 20, b"OOM")
    telemetry.observe(GET, b"plain", 0.5, 30, 300, b"")
    commands, prefixes = telemetry.snapshot(), telemetry.prefixes_snapshot()
    assert commands["SET"]["calls"] == 2
    assert commands["SET"]["errors_by_code"] == {"OOM": 1}
    assert commands["SET"]["request_bytes"] == 100
    assert commands["GET"]["reply_bytes_max"] == 300
    assert 495_000 <= commands["GET"]["latency_us_p50"] <= 505_000
    assert prefixes["user:"] == {
        "calls": 2,
        "writes": 2,
        "errors": 1,
        "request_bytes": 100,
        "reply_bytes": 25,
    }
    assert prefixes[NO_PREFIX]["calls"] == 1
    names = {name for name, *_ in telemetry.samples()}
    assert {
        "exodus_gateway_requests_total",
        "exodus_gateway_prefix_requests_total",
        "exodus_gateway_errors_total",
    } <= names


def test_hot_keys_and_distinct_keys_are_found() -> None:
    telemetry = Telemetry(KeySketches())
    for number in range(40_000):
        telemetry.observe(
            GET, b"hot:key" if number % 4 == 0 else b"key:%d" % number, 0.001, 30, 30, b""
        )
    key, count = telemetry.hot_keys()[0]
    assert key == "hot:key"
    assert 9_000 <= count <= 11_000
    # Five standard deviations of the sample and the sketch together
    assert 25_500 <= telemetry.distinct_keys() <= 34_500


def test_keys_and_made_up_names_take_bounded_memory() -> None:
    """Keys, prefixes, commands and error codes that never repeat: memory stops growing."""
    telemetry = Telemetry(KeySketches())
    table = CommandTable([])

    def see(start: int, end: int) -> None:
        for number in range(start, end):
            key = b"p%d:%d" % (number, number)
            telemetry.observe(SET, key, 0.001, 30, 30, b"E%d" % number)
            if number % 20 == 0:
                telemetry.observe(table.find(b"C%d" % number), key, 0.001, 30, 30, b"")

    see(0, MANY // 2)  # fills the bounds
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    see(MANY // 2, MANY)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2 * 1024 * 1024
    assert len(telemetry.commands) <= 1_001
    assert len(telemetry.prefixes) <= 513
    assert OTHER in telemetry.prefixes
    assert len(telemetry.snapshot()["SET"]["errors_by_code"]) <= 65
    assert 0.85 * MANY <= telemetry.distinct_keys() <= 1.15 * MANY


def test_long_keys_take_bounded_memory() -> None:
    """A client that names one long key again and again, which the sketch of distinct keys sees."""
    telemetry = Telemetry(KeySketches())
    beginning = b"k" * 100_000
    seen = next(
        end
        for end in map(b"%d".__mod__, range(10_000))
        if not hash(beginning + end) % DISTINCT_SAMPLE
    )
    tracemalloc.start()
    for _ in range(400):
        telemetry.observe(GET, beginning + seen, 0.001, 30, 30, b"")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1024 * 1024, "each of them was kept whole"


def test_secrets_never_leave_the_scanner() -> None:
    """AUTH, HELLO, ACL SETUSER and MIGRATE carry passwords. No counter, journal entry, shadow pair
    or session report has one.
    """
    secret = b"s3cret-do-not-tell"
    table = CommandTable(
        [
            Command(b"AUTH", write=False),
            Command(b"HELLO", write=False),
            Command(b"ACL", write=False),
            Command(b"MIGRATE", write=True, first=3, last=3),
            Command(b"CONFIG", write=False),
            GET,
        ]
    )
    telemetry = Telemetry(KeySketches())
    orders = Orders(table, telemetry)
    orders.pick(shadow_below=2**32)
    out = Recorder()
    session = Session(out, orders)
    requests = [
        encode("AUTH", secret),
        encode("AUTH", "user", secret),
        encode("HELLO", 3, "AUTH", "user", secret),
        encode("ACL", "SETUSER", "user", b">" + secret),
        encode("MIGRATE", "host", 6379, "k", 0, 100, "AUTH2", "user", secret),
        encode("CONFIG", "SET", "requirepass", secret),
        b"AUTH " + secret + b"\r\n",
    ]
    for request in requests:
        session.from_client(request, 0.0)
        session.from_server(b"-ERR no " + b"\r\n", 1.0)
    told = repr([call for call in out.calls if call[0] not in ("to_server", "to_client")])
    told += json.dumps(
        [telemetry.snapshot(), telemetry.prefixes_snapshot(), telemetry.hot_keys()]
    ) + repr(list(telemetry.samples()))
    told += (
        repr(session)
        + repr(session.opaque)
        + repr(session.cannot_switch)
        + repr(list(session.pending))
        + repr(orders.risks)
    )
    assert telemetry.calls == len(requests)
    assert secret.decode() not in told
