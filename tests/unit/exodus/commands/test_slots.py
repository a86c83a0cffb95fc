"""Slots, views of a cluster, and redirects."""

from __future__ import annotations

import random

import pytest

from exodus.commands.key_slots import SLOTS, slot_of
from exodus.commands.slots import (
    NO_SHARD,
    Shard,
    View,
    is_redirect,
    redirected_to,
    shard_named,
    tag_of,
    view_of,
)
from exodus.net.clusters import ClusterState
from exodus.plan.address import Cluster, place_of


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 12_739),  # the check value of CRC16/XMODEM, 0x31C3
        (b"foo", 12_182),
        (b"{user1000}.following", 3_443),
        (b"{user1000}.followers", 3_443),
        (b"", 0),
    ],
)
def test_slots_are_the_servers(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_only_the_first_tag_that_is_not_empty_counts() -> None:
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(b"foo{bar}{zap}") == slot_of(b"bar")


def test_a_tag_is_in_its_slot_and_stays_the_same() -> None:
    for slot in random.Random(1).sample(range(SLOTS), 50):
        tag = tag_of(b"m-1", slot)
        assert slot_of(b"exodus:{%b}:guard" % tag) == slot
        assert tag_of(b"m-1", slot) == tag


def shard(number: int, first: int, last: int, node_id: str = "") -> Shard:
    return Shard(f"h:{number}", node_id or f"id{number}", ((first, last),), (f"h:{number + 10}",))


ROWS = [
    [0, 99, [b"10.0.0.1", 7001, b"a"], [b"10.0.0.1", 7004, b"d"]],
    [100, 200, [b"10.0.0.2", 7002, b"b"]],
    [201, 300, [b"10.0.0.2", 7002, b"b"]],
    [400, 400, [b"", 7001, b"c", []], [b"?", 7005, b"e"]],
]


def test_ranges_of_one_node_are_one_shard() -> None:
    view = view_of(ROWS, 7, "asked", place_of)
    assert [each.master for each in view.shards] == ["10.0.0.1:7001", "10.0.0.2:7002", "asked:7001"]
    assert view.shards[1].ranges == ((100, 300),)
    assert view.shards[0].replicas == ("10.0.0.1:7004",)
    assert view.shards[2].replicas == ("asked:7005",)
    assert view.owner(250) is view.shards[1]
    assert view.owner(350) is None
    assert view.uncovered == SLOTS - 302


def test_shards_of_two_clusters_meet_where_a_slot_is_of_both() -> None:
    several = Shard("h:1", "id1", ((0, 99), (300, 399)))
    assert [several.meets(shard(2, *ends)) for ends in ((99, 120), (100, 299), (399, 500))] == [
        True,
        False,
        True,
    ]
    assert not shard(2, 100, 299).meets(several)


def test_a_moved_corrects_one_slot() -> None:
    view = view_of(ROWS, 7, "asked", place_of)
    assert view.move(250, "10.0.0.1:7001")
    assert view.owner(250) is view.shards[0]
    assert view.owner(251) is view.shards[1]
    moved, stays, nobody = (tag_of(b"t", slot) for slot in (250, 251, 350))
    assert view.by_owner([moved, stays, nobody, moved]) == {0: [0, 3], 1: [1], NO_SHARD: [2]}
    assert not view.move(250, "10.9.9.9:1")


def test_a_shard_is_found_by_its_name() -> None:
    split = Shard("h:1", "0123456789", ((5, 9), (20, 20)))
    assert split.name == "slots 5-9 and 1 more (01234567)"
    other = Shard("h:2", "abcdefgh", ((10, 19),))
    assert shard_named([other, split], split.name) is split
    # Its first slot moved: a scan of it goes on where it was.
    less, more = Shard("h:1", "0123456789", ((6, 9),)), Shard("h:2", "abcdefgh", ((5, 5), (10, 19)))
    assert shard_named([more, less], split.name) is less
    promoted = Shard("h:3", "99999999", ((5, 9), (20, 20)))
    assert shard_named([other, promoted], split.name) is promoted
    assert shard_named([other], split.name) is None
    with pytest.raises(ValueError, match="no name of a shard"):
        shard_named([split], "127.0.0.1:7001")


@pytest.mark.parametrize(
    ("said", "to"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3_999, "127.0.0.1:6381")),
        ("MOVED 3999 :6381", (3_999, "asked:6381")),
        ("ASK 7 2001:db8::1:6381", (7, "[2001:db8::1]:6381")),
        ("ASK 7 node-3.example:6381", (7, "node-3.example:6381")),
        ("TRYAGAIN Multiple keys request", None),
    ],
)
def test_where_a_redirect_leads(said: str, to: tuple[int, str] | None) -> None:
    assert redirected_to(said, "asked") == to
    assert is_redirect(said)


@pytest.mark.parametrize(
    "said",
    [
        "@user_script: 1: Lua script attempted to access a non local key in a cluster node",
        "ERR Attempted to access a non local key in a cluster node",
        "CLUSTERDOWN Hash slot not served",
    ],
)
def test_what_servers_say_of_a_slot_that_they_do_not_serve(said: str) -> None:
    assert is_redirect(said)
    assert not is_redirect("WRONGTYPE Operation against a key")


def test_the_newest_view_counts_and_a_stale_one_does_not() -> None:
    state = ClusterState(Cluster(cluster=("h:1",)))
    old = View((shard(1, 0, 8_191), shard(2, 8_192, 16_383)), 3)
    new = View((shard(1, 0, 8_191), shard(3, 8_192, 16_383)), 4)
    assert not state.take([old], 3, "")
    assert state.take([old, new, old], 3, "")
    assert state.view is new
    assert not state.take([old], 3, "h:1: it does not answer")
    assert state.view is new
    assert state.why == "h:1: it does not answer"
    assert state.take([old, old], 3, "")  # most nodes say so: the cluster was created anew
    assert state.view is old


def test_slots_without_a_master_are_told() -> None:
    state = ClusterState(Cluster(cluster=("h:2",)))
    state.take([View((shard(1, 0, 8_191),), 1)], 1, "")
    assert state.why == "8192 slots have no master"
