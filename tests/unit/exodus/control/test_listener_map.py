"""Which listener stands for which node, through failovers, reshards, and changes of the plan."""

from __future__ import annotations

import pytest

from exodus.commands.key_slots import SLOTS
from exodus.commands.slots import Shard, View
from exodus.control.listener_map import ListenerMap, assign, learn

COUNT = 8


def view(*shards: tuple[str, int, int], epoch: int = 1, replicas: bool = False) -> View:
    """Each shard is its master's name, which is also its id, with its first and last slot."""
    return View(
        tuple(
            Shard(f"{name}:1", name, ((first, last),), (f"{name}-replica:1",) if replicas else ())
            for name, first, last in shards
        ),
        epoch,
    )


THREE = view(("a", 0, 5_000), ("b", 5_001, 10_000), ("c", 10_001, SLOTS - 1))


def places(known: ListenerMap) -> dict[int, str]:
    return {at: node.place for at, node in known.nodes.items()}


def assigned(before: ListenerMap, seen: View, *, replicas: bool = False) -> ListenerMap:
    after, missing = assign(before, seen, COUNT, replicas=replicas)
    assert missing == 0
    return after


def test_masters_get_listeners_in_the_order_of_their_slots() -> None:
    assert places(assigned(ListenerMap(), THREE)) == {0: "a:1", 1: "b:1", 2: "c:1"}


def test_a_node_keeps_its_listener_when_its_slots_or_its_address_change() -> None:
    before = assigned(ListenerMap(), THREE)
    swapped = View(
        (
            Shard("elsewhere:9", "b", ((0, 5_000),)),
            Shard("a:1", "a", ((5_001, 10_000),)),
            Shard("c:1", "c", ((10_001, SLOTS - 1),)),
        ),
        2,
    )
    assert places(assigned(before, swapped)) == {0: "a:1", 1: "elsewhere:9", 2: "c:1"}


def test_the_listener_of_a_failed_master_goes_with_its_slots() -> None:
    before = assigned(ListenerMap(), THREE)
    after = assigned(before, view(("a", 0, 5_000), ("x", 5_001, 10_000), ("c", 10_001, SLOTS - 1)))
    assert places(after) == {0: "a:1", 1: "x:1", 2: "c:1"}
    back = assigned(after, THREE)
    assert places(back) == {0: "a:1", 1: "b:1", 2: "c:1"}


def test_a_new_master_gets_a_free_listener_while_the_old_ones_have_slots() -> None:
    before = assigned(ListenerMap(), THREE)
    grown = view(("a", 0, 2_000), ("d", 2_001, 5_000), ("b", 5_001, 10_000), ("c", 10_001, 16_383))
    assert places(assigned(before, grown)) == {0: "a:1", 1: "b:1", 2: "c:1", 3: "d:1"}


def test_a_node_without_slots_keeps_its_listener_until_it_is_needed() -> None:
    before, _ = assign(ListenerMap(), THREE, 3, replicas=False)
    fewer = view(("a", 0, 8_000), ("b", 8_001, SLOTS - 1))
    after, _ = assign(before, fewer, 3, replicas=False)
    assert places(after) == {0: "a:1", 1: "b:1", 2: "c:1"}
    grown = view(("a", 0, 4_000), ("d", 4_001, 8_000), ("b", 8_001, SLOTS - 1))
    after, missing = assign(after, grown, 3, replicas=False)
    assert (places(after), missing) == ({0: "a:1", 1: "b:1", 2: "d:1"}, 0)


def test_listed_replicas_have_listeners_that_they_keep_when_they_are_promoted() -> None:
    two = (("a", 0, 8_000), ("b", 8_001, SLOTS - 1))
    before = assigned(ListenerMap(), view(*two, replicas=True), replicas=True)
    assert places(before) == {0: "a:1", 1: "b:1", 2: "a-replica:1", 3: "b-replica:1"}
    promoted = View(
        (
            Shard("a-replica:1", "r", ((0, 8_000),), ("a:1",)),
            Shard("b:1", "b", ((8_001, SLOTS - 1),), ("b-replica:1",)),
        ),
        2,
    )
    assert places(assigned(before, promoted, replicas=True)) == places(before)


def test_nodes_beyond_the_listeners_are_counted() -> None:
    after, missing = assign(ListenerMap(), THREE, 2, replicas=False)
    assert (places(after), missing) == ({0: "a:1", 1: "b:1"}, 1)


def test_an_older_word_about_the_same_cluster_changes_nothing() -> None:
    before = assigned(ListenerMap(), view(("x", 0, 8_000), ("b", 8_001, SLOTS - 1), epoch=5))
    after, _ = assign(
        before, view(("a", 0, 8_000), ("b", 8_001, 16_383), epoch=4), COUNT, replicas=False
    )
    assert after == before


def test_another_cluster_with_a_lower_epoch_is_believed() -> None:
    before = assigned(ListenerMap(), view(("x", 0, SLOTS - 1), epoch=5))
    assert places(assigned(before, view(("n", 0, SLOTS - 1), epoch=1))) == {0: "n:1"}


def test_listeners_that_the_plan_no_longer_has_are_given_up() -> None:
    before = assigned(ListenerMap(), THREE)
    after, missing = assign(before, THREE, 2, replicas=False)
    assert (places(after), missing) == ({0: "a:1", 1: "b:1"}, 1)


@pytest.mark.parametrize("order", [1, -1])
def test_two_gateways_find_the_same_map_whatever_they_saw_between(order: int) -> None:
    before = assigned(ListenerMap(), THREE)
    shards = [("x", 0, 5_000), ("y", 5_001, 10_000), ("c", 10_001, SLOTS - 1)]
    last = view(*shards, epoch=3)
    between = (
        view(*(THREE_NAMES[:1] + shards[1:]))
        if order > 0
        else view(*(shards[:1] + THREE_NAMES[1:]))
    )
    assert places(assigned(assigned(before, between), last)) == places(assigned(before, last))


THREE_NAMES = [("a", 0, 5_000), ("b", 5_001, 10_000), ("c", 10_001, SLOTS - 1)]


def test_a_replica_that_a_redirect_names_takes_its_masters_listener() -> None:
    seen = view(*THREE_NAMES, replicas=True)
    before = assigned(ListenerMap(), seen)
    after = learn(before, "b-replica:1", 6_000, seen, COUNT, replicas=False)
    assert after is not None
    assert places(after) == {0: "a:1", 1: "b-replica:1", 2: "c:1"}
    assert assigned(after, seen) == after  # a look that began before the failover
    looked = view(("a", 0, 5_000), ("b-replica", 5_001, 10_000), ("c", 10_001, 16_383), epoch=2)
    assert places(assigned(after, looked)) == places(after)


def test_a_promotion_that_was_undone_before_a_look_is_forgotten() -> None:
    seen = view(*THREE_NAMES, replicas=True)
    before = assigned(ListenerMap(), seen)
    after = learn(before, "b-replica:1", 6_000, seen, COUNT, replicas=False)
    assert after is not None
    undone = view(*THREE_NAMES, epoch=3, replicas=True)
    assert places(assigned(after, undone)) == places(before)


def test_an_unknown_node_that_a_redirect_names_gets_a_free_listener() -> None:
    before = assigned(ListenerMap(), THREE)
    after = learn(before, "new:1", 6_000, THREE, COUNT, replicas=False)
    assert after is not None
    assert places(after) == {0: "a:1", 1: "b:1", 2: "c:1", 3: "new:1"}
    assert learn(before, "new:1", 6_000, THREE, 3, replicas=False) is None
