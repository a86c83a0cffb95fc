"""The values that a comparison decodes from DUMP payloads are those that the servers answer, in
every encoding (`exodus/verify/decode.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings

from exodus.copy.value import canonical, reads_of
from exodus.verify.decode import apart, kind_of, same_value
from tests.property.test_twins import FORMS
from tests.support.full import FULL
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.property
Write = Callable[[redis.Redis, bytes], None]
EXAMPLES = 2_000 if FULL else 150
# So few that a drawn value is on either side of them: packed, and in a table, a tree or several
# nodes.
_PACKED = {
    "hash-max-ziplist-entries": 6,
    "zset-max-ziplist-entries": 6,
    "set-max-intset-entries": 6,
    "list-max-ziplist-size": 5,
    "stream-node-max-entries": 4,
}

_edges = [
    edge + by
    for edge in (0, 12, 127, 4095, 2**12, 2**13, 2**15, 2**23, 2**31, 2**63 - 1)
    for by in (-1, 0, 1)
    if edge + by < 2**63
]
_numbers = (
    st.sampled_from([sign * edge for edge in _edges for sign in (1, -1)])
    | st.integers(-(2**63), 2**63 - 1)
).map(lambda n: b"%d" % n)
_texts = st.binary(max_size=70) | st.builds(
    lambda text, size: (text * size)[:size],
    st.binary(min_size=1, max_size=12),
    st.sampled_from([62, 63, 64, 65, 200, 4095, 4096, 16383, 16384, 17_000]),
)
_elements = _numbers | _texts | st.sampled_from([b"01", b"-0", b"+1", b" 1", b"1.0"])
_scores = st.floats(allow_nan=False) | st.integers(-(2**53), 2**53).map(float)


def _stream(entries: list[list[bytes]], deleted: set[int], read: int, acked: int) -> Write:
    def write(client: redis.Redis, key: bytes) -> None:
        for number, fields in enumerate(entries):
            ms = 1_700_000_000_000 + number // 3 * 7
            client.execute_command("XADD", key, b"%d-%d" % (ms, number), *fields, b"x")
        for number in sorted(deleted):
            if number < len(entries):
                client.xdel(key, b"%d-%d" % (1_700_000_000_000 + number // 3 * 7, number))
        client.execute_command("XGROUP", "CREATE", key, b"first", "0", "MKSTREAM")
        client.execute_command("XGROUP", "CREATE", key, b"12", "$")
        # Times of deliveries of our own: those of the servers would differ.
        for number in range(min(read, len(entries))):
            entry = b"%d-%d" % (1_700_000_000_000 + number // 3 * 7, number)
            told = "TIME", 1_000 + number, "RETRYCOUNT", number, "FORCE", "JUSTID"
            client.execute_command("XCLAIM", key, b"first", b"c%d" % (number % 2), 0, entry, *told)
            if number < acked:
                client.execute_command("XACK", key, b"first", entry)

    return write


def _fields(names: list[bytes]) -> list[bytes]:
    """Return all but the last value."""
    return [each for name in names for each in (name, b"v" + name)][:-1]


def _write(command: str, *arguments: bytes) -> Write:
    return lambda client, key: client.execute_command(command, key, *arguments)


_hashes = st.dictionaries(_elements, _elements, min_size=1, max_size=10)
_values = st.one_of(
    st.lists(_elements, min_size=1, max_size=14).map(lambda found: _write("RPUSH", *found)),
    st.sets(_elements, min_size=1, max_size=10).map(lambda found: _write("SADD", *found)),
    st.sets(_numbers, min_size=1, max_size=10).map(lambda found: _write("SADD", *found)),
    _hashes.map(lambda found: _write("HSET", *[each for pair in found.items() for each in pair])),
    st.dictionaries(_elements, _scores, min_size=1, max_size=10).map(
        lambda found: _write(
            "ZADD",
            *[each for member, score in found.items() for each in (repr(score).encode(), member)],
        )
    ),
    st.builds(
        _stream,
        st.lists(st.lists(_elements, min_size=1, max_size=3).map(_fields), max_size=10),
        st.sets(st.integers(0, 9), max_size=3),
        st.integers(0, 6),
        st.integers(0, 3),
    ),
)


@pytest.fixture
def servers(
    redis62: DatabaseServer,
    redis82: DatabaseServer,
    valkey81: DatabaseServer,
    valkey91: DatabaseServer,
) -> Iterator[list[redis.Redis]]:
    clients = [box.client(protocol=2) for box in (redis62, redis82, valkey81, valkey91)]
    before = [{name: client.config_get(name)[name] for name in _PACKED} for client in clients]
    for client in clients:
        client.response_callbacks.clear()  # answers as the server says them
        for name, most in _PACKED.items():
            client.config_set(name, most)
    yield clients
    for client, settings_before in zip(clients, before, strict=True):
        for name, value in settings_before.items():
            client.config_set(name, value)
        client.close()


def _read(client: redis.Redis, key: bytes) -> tuple[bytes, bytes, object]:
    """Return type, payload, and the value by type."""
    kind = client.execute_command("TYPE", key)
    value = canonical(kind, [client.execute_command(*command) for command in reads_of(kind, key)])
    payload = client.execute_command("DUMP", key)
    return kind, payload, dict(value) if kind == b"zset" else value


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(writes=st.tuples(_values, _values))
@example(writes=(_write("HSET", b"f", b"1"), _write("HSET", b"f", b"01")))
@example(
    writes=(_write("ZADD", b"inf", b"a", b"-inf", b"b"), _write("ZADD", b"1", b"a", b"2", b"b"))
)
@example(writes=(_write("RPUSH", b"x" * 70_000, b"y"), _write("RPUSH", b"x" * 70_000, b"z")))
def test_a_payload_says_what_the_server_answers(
    servers: list[redis.Redis], writes: tuple[Write, ...]
) -> None:
    for number, write in enumerate(writes):
        for client in servers:
            client.delete(b"%d" % number)
            write(client, b"%d" % number)
    found = [[_read(client, b"%d" % number) for client in servers] for number in range(len(writes))]
    for told in found:
        for kind, payload, value in told:
            assert kind_of(payload) == kind
            assert [form.decode.decode(payload) for form in FORMS] == [value, value]
    for (kind, one, value), (other_kind, other, other_value) in combinations(
        found[0] + found[1], 2
    ):
        assert same_value(one, other) == (kind == other_kind and value == other_value)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(write=_values, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_payload_is_equal_to_nothing(
    servers: list[redis.Redis], write: Write, where: float, bit: int
) -> None:
    for client in servers:
        client.delete(b"key")
        write(client, b"key")
        payload = client.dump(b"key")
        for cut in range(0, len(payload), max(1, len(payload) // 50)):
            assert not same_value(payload[:cut], payload)
        damaged = bytearray(payload)
        damaged[int(where * len(payload))] ^= 1 << bit
        found = []
        for form in FORMS:  # to something or nothing, and never beyond its end
            try:
                found.append(form.decode.decode(bytes(damaged)))
            except form.decode.DAMAGED:
                found.append(None)
        assert found[0] == found[1] or repr(found[0]) == repr(found[1])  # a score may be NaN by now


def test_strings_are_never_taken_for_payloads(servers: list[redis.Redis]) -> None:
    client = servers[0]
    client.sadd("a", "1", "2")
    client.sadd("b", *[b"2", b"1", b"x"])
    client.srem("b", b"x")
    one, other = client.dump("a"), client.dump("b")
    assert one != other
    assert same_value(one, other)
    assert apart([b"string", b"set"], [one, one], [other, other]) == [0]
    assert apart([b"set"] * 4, [None, 0, one, one], [None, 0, None, one]) == [0, 1, 2]
