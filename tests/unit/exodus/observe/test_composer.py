"""Requests drawn from a workload model have the model's distributions."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exodus.errors import OperatorError
from exodus.observe.composer import Composer, bursts_of, shares_of
from exodus.observe.distribution import Distribution
from exodus.observe.keyspace import SampledKey, interval, keyspace_of
from exodus.observe.known_commands import known_table
from exodus.observe.profile import Profile
from exodus.observe.shapes import Shapes
from exodus.observe.templates import KEYLESS, OPTIONS, TEMPLATES
from exodus.observe.workload import Operation, Pattern, Rates, Spread, Workload, workload_of
from exodus.resp.scanner import RequestScanner

PREFIX = b"exodus:load:abc:"


def operation(command: str, calls: int = 100, **more: object) -> Operation:
    fields: dict[str, object] = {
        "command": command,
        "subcommand": "",
        "options": [],
        "arity": "3",
        "pattern": "user:*" if command in TEMPLATES else "",
        "write": False,
        "blocking": False,
        "calls": calls,
        "in_transactions": 0,
        "answered": calls,
        "nils": 0,
        "keys": calls,
        "errors": {},
        "request_bytes": Spread(values=[(120, calls)]),
        "reply_bytes": Spread(values=[(60, calls)]),
        "latency_us": Spread(),
        "expiry_ms": Spread(),
        **more,
    }
    return Operation.model_validate(fields)


def workload(*operations: Operation, **more: object) -> Workload:
    calls = sum(each.calls for each in operations)
    pattern = Pattern(
        pattern="user:*",
        reads=1,
        writes=1,
        request_bytes=1,
        reply_bytes=1,
        keys_distinct=50,
        top_shares=[0.3, 0.1],
        zipf_exponent=0.8,
    )
    fields: dict[str, object] = {
        "taken_at": datetime.now(UTC),
        "source": "packets",
        "seconds": 10,
        "requests": calls,
        "rates": Rates(mean=1, peak_second=1, peak_minute=1, peak_hour=1),
        "operations": operations,
        "operations_left_out": 0,
        "patterns": [pattern],
        "depths": Spread(values=[(1, calls)]),
        "transactions": Spread(),
        "scripts": 0,
        "blocking": 0,
        "pubsub": 0,
        "connections": 1,
        "clients": 1,
        "databases": {0: calls},
        **more,
    }
    return Workload.model_validate(fields)


def composer(model: Workload, speed: float = 1.0) -> Composer:
    return Composer(model, prefix=PREFIX, speed=speed, draw=Random(1))


def sent(of: Composer, units: int) -> list[list[bytes]]:
    """Return the requests of some units, as words."""
    data = b"".join(each.data for _ in range(units) for each in of.unit().requests)
    return [request.args for request in RequestScanner().feed(data)]


@pytest.mark.parametrize("command", sorted(TEMPLATES.keys() | KEYLESS.keys()))
def test_each_command_is_written_as_the_servers_take_it(command: str) -> None:
    """Its keys are at the table's positions, and all are scratch keys."""
    table = known_table()
    for options in [[], *([option] for option in OPTIONS.get(command, {}))]:
        made = composer(workload(operation(command, options=options)))
        assert made.not_played == {}
        (words,) = sent(made, 1)
        assert words[0].decode() == command
        assert set(options) <= {word.decode() for word in words}
        keys = table.of(words).keys(words)
        assert bool(keys) == (command in TEMPLATES)
        assert all(key.startswith(PREFIX) for key in keys)


def test_sizes_are_those_of_the_model() -> None:
    sizes = [(100, 50), (1_000, 30), (20_000, 20)]
    made = composer(workload(operation("SET", write=True, request_bytes=Spread(values=sizes))))
    drawn = Counter(len(made.unit().requests[0].data) for _ in range(1_000))
    for size, share in ((100, 0.5), (1_000, 0.3), (20_000, 0.2)):
        found = sum(count for value, count in drawn.items() if abs(value - size) <= 3)
        assert found / 1_000 == pytest.approx(share, abs=0.05)


def test_keys_are_drawn_with_the_skew_of_the_model() -> None:
    made = composer(workload(operation("GET", arity="2")))
    counts = Counter(words[1] for words in sent(made, 20_000))
    (first, hottest), (second, next_) = counts.most_common(2)
    assert first == PREFIX + b"s:user:0"
    assert second == PREFIX + b"s:user:1"
    assert hottest / 20_000 == pytest.approx(0.3, abs=0.015)
    assert next_ / 20_000 == pytest.approx(0.1, abs=0.01)
    assert len(counts) == 50


@given(
    st.integers(1, 3_000),
    st.floats(0, 3),
    st.lists(st.floats(0.0001, 0.05), max_size=20),
)
def test_shares_add_up(distinct: int, exponent: float, top: list[float]) -> None:
    pattern = (
        workload(operation("GET"))
        .patterns[0]
        .model_copy(update={"top_shares": sorted(top, reverse=True), "zipf_exponent": exponent})
    )
    shares = shares_of(pattern, distinct)
    assert len(shares) <= max(distinct, 1)
    if distinct > len(top):
        assert sum(shares) == pytest.approx(1)


@given(st.lists(st.integers(1, 100), max_size=200))
def test_bursts_are_recovered_from_depths(sizes: list[int]) -> None:
    depths = Distribution()
    for size in sizes:
        for depth in range(1, size + 1):
            depths.record(depth)
    assert dict(bursts_of(depths)) == Counter(sizes)


def test_units_come_at_the_mean_rate_and_at_random() -> None:
    made = composer(workload(operation("GET", calls=1_000)), speed=2)
    times = [made.unit().due_s for _ in range(4_000)]
    assert times[-1] == pytest.approx(20, rel=0.06)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1)  # as independent clients come


def test_what_is_not_played_does_not_speed_the_rest_up() -> None:
    half = workload(operation("GET", calls=500), operation("XREAD", calls=500, blocking=True))
    made = composer(half)
    assert made.not_played == {"XREAD": 500}
    assert made.units_per_s == pytest.approx(50)


def test_a_workload_of_nothing_playable_is_refused() -> None:
    with pytest.raises(OperatorError, match="nothing of this workload"):
        composer(workload(operation("XREAD", blocking=True))).check()


def test_a_request_that_blocks_is_a_unit_of_its_own() -> None:
    made = composer(
        workload(
            operation("RPUSH", calls=600, write=True),
            operation("BLPOP", calls=400, blocking=True, write=True),
        )
    )
    assert made.blocks
    units = [made.unit() for _ in range(2_000)]
    waiting = [unit for unit in units if unit.waits]
    assert len(waiting) / len(units) == pytest.approx(0.4, abs=0.04)
    assert {request.shape for unit in waiting for request in unit.requests} == {"BLPOP /3"}
    assert {request.shape for unit in units if not unit.waits for request in unit.requests} == {
        "RPUSH /3"
    }
    assert made.units_per_s == pytest.approx(100)


def test_transactions_are_sent_together() -> None:
    model = workload(
        operation("SET", calls=300, in_transactions=300, write=True),
        transactions=Spread(values=[(3, 100)]),
        depths=Spread(),
    )
    unit = composer(model).unit()
    assert [each.shape for each in unit.requests] == ["MULTI /1", *["SET /3"] * 3, "EXEC /1"]


def test_what_reads_found_is_prepared() -> None:
    reads = operation(
        "GET",
        arity="2",
        nils=20,
        reply_bytes=Spread(values=[(5, 20), (500, 80)]),
    )
    made = composer(workload(reads))
    requests = RequestScanner().feed(b"".join(data for _, data in made.preparation()))
    assert 30 <= len(requests) <= 48  # 80 % of 50 keys
    assert {request.args[0] for request in requests} == {b"SET"}
    assert all(480 < len(request.args[2]) < 500 for request in requests)


def test_a_model_of_events_says_what_they_were() -> None:
    profile, shapes = Profile(), Shapes(known_table())
    for number in range(100):
        args = [b"SET", b"user:%d" % (number % 10), b"v", b"EX", b"60"]
        profile.add(shapes.event(1_000 + number, 1, "a", 0, shapes.table.of(args), args, 50))
    script = [b"EVAL", b"return 1", b"0"]
    profile.add(shapes.event(1_100, 2, "b", 1, shapes.table.of(script), script, 30))
    model = workload_of(profile, source="packets")
    assert (model.requests, model.scripts, model.connections, model.clients) == (101, 1, 2, 2)
    assert model.databases == {0: 100, 1: 1}
    first = model.operations[0]
    assert (first.command, first.options, first.arity) == ("SET", ["EX"], "5-8")
    assert first.expiry_ms.total == 100
    (pattern,) = model.patterns
    assert (pattern.pattern, pattern.writes, pattern.keys_distinct) == ("user:*", 100, 10)
    assert Workload.model_validate_json(model.model_dump_json()) == model


def test_nothing_seen_is_no_model() -> None:
    with pytest.raises(OperatorError, match="no workload"):
        workload_of(Profile(), source="packets")


# The keyspace sample's arithmetic.


def test_the_intervals_hold_what_they_say() -> None:
    """Of 300 samples, about 95 % of the intervals contain the truth."""
    draw, inside = Random(4), 0
    for _ in range(300):
        found = sum(draw.random() < 0.1 for _ in range(500))
        low, high = interval(found, 500, 1_000_000)
        inside += low <= 100_000 <= high
    assert inside / 300 > 0.91


def test_a_whole_keyspace_has_no_interval() -> None:
    rows = [SampledKey("a:*", "string", "raw", 100, -1)] * 3 + [
        SampledKey("b", "hash", "listpack", 2_000_000, 50)
    ]
    found = keyspace_of(rows, keys=4)
    assert found.complete
    assert [(group.keys_low, group.keys, group.keys_high) for group in found.groups] == [
        (3, 3, 3),
        (1, 1, 1),
    ]
    assert found.groups[1].large == 1
    assert found.groups[1].expiring_share == 1
    assert keyspace_of([], keys=0).groups == []


def test_what_sets_connections_up_is_no_part_of_the_mix() -> None:
    """Before, for an application that connects often, half of the requests seemed untestable."""
    setting_up = operation("AUTH", 500, pattern="", keys=0)
    played = composer(workload(operation("GET", 100), setting_up))
    assert played.not_played == {}
    assert composer(workload(operation("GET", 100), operation("LCS", 100))).not_played == {
        "LCS": 100
    }
