"""The order in which slices are copied."""

from __future__ import annotations

from exodus.copy.scan import Slice, nodes_in_turn


def test_slices_copied_at_a_time_are_of_different_nodes() -> None:
    by_node = [
        Slice(node, db, index, 4) for node in ("a", "b", "c") for db in (0, 3) for index in range(4)
    ]
    ordered = nodes_in_turn(by_node)
    assert sorted(ordered, key=by_node.index) == by_node
    for at in range(0, len(ordered), 3):
        assert [piece.node for piece in ordered[at : at + 3]] == ["a", "b", "c"]


def test_those_of_one_server_stay_in_their_order() -> None:
    slices = [Slice("a", db, index, 8) for db in (0, 1) for index in range(8)]
    assert nodes_in_turn(slices) == slices
