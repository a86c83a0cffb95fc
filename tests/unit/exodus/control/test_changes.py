"""Packed keys and barriers: they come back as they were, and damaged ones are noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exodus.control.changes import (
    RESYNC,
    Barrier,
    UnreadableChanges,
    pack,
    parse_entries,
    partition_of,
    unpack,
)

KEYS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=400)), max_size=8)


@given(KEYS)
def test_packed_keys_come_back(keys: list[tuple[int, bytes]]) -> None:
    assert unpack(pack(keys)) == keys


@given(KEYS.filter(bool), st.data())
def test_a_cut_is_noticed_or_leaves_whole_keys(keys: list, data: st.DataObject) -> None:
    packed = pack(keys)
    cut = data.draw(st.integers(0, len(packed) - 1))
    try:
        found = unpack(packed[:cut])
    except UnreadableChanges:
        return
    assert found == keys[: len(found)]


@pytest.mark.parametrize(
    "barrier", [Barrier("flush"), Barrier("flush", (3,)), Barrier("swap", (0, 15))]
)
def test_a_barrier_comes_back(barrier: Barrier) -> None:
    assert Barrier.decode(barrier.encode()) == barrier


def test_an_entry_that_cannot_be_read_counts_as_a_change_of_every_key() -> None:
    changes = parse_entries([(b"5-0", {b"k": pack([(0, b"key")])[:-1]})])
    assert changes.gap or changes.barriers
    assert changes.last_id == b"5-0"


def test_the_partition_depends_on_key_and_database_alone() -> None:
    assert partition_of(0, b"key", 8) == partition_of(0, b"key", 8)
    assert {partition_of(db, b"key", 8) for db in range(64)} == set(range(8))


def test_what_a_feed_missed_of_one_node_names_its_slots() -> None:
    barrier = Barrier.resync(((0, 5_460), (7_000, 7_000)))
    assert Barrier.decode(barrier.encode()) == barrier
    assert barrier.resyncs
    assert barrier.ranges == ((0, 5_460), (7_000, 7_000))
    whole = Barrier.decode(Barrier.resync(None).encode())
    assert (whole, whole.resyncs, whole.ranges) == (Barrier(RESYNC), True, None)
    assert not Barrier("flushall").resyncs


@pytest.mark.parametrize("raw", [b"resync@0-5460+x:", b"resync@5:", b"resync@1-2-3:"])
def test_slots_that_are_written_wrongly_count_as_all(raw: bytes) -> None:
    (barrier,) = parse_entries([(b"1-1", {b"b": raw})]).barriers
    assert (barrier.resyncs, barrier.ranges) == (True, None)
