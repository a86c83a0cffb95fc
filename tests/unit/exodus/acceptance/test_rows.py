"""Rows of several nodes become one row a check, which is red where one node's is."""

from __future__ import annotations

from exodus.acceptance.rows import Checked, not_done, of_nodes, told


def test_one_node_says_what_it_says() -> None:
    rows = [Checked("a", True, "fine"), told("b", "shown")]
    assert of_nodes({"n1": rows}) == rows


def test_a_red_row_of_one_node_is_red_and_names_the_node() -> None:
    found = of_nodes(
        {
            "n1": [Checked("a", True, "fine"), Checked("b", True)],
            "n2": [Checked("a", False, "broken", "why", "next"), Checked("b", True)],
        }
    )
    assert found[0] == Checked("a", False, "n2: broken", "why", "next")
    assert found[1] == Checked("b", True, "(each of 2 nodes)")


def test_what_only_some_nodes_say_is_told_with_their_names() -> None:
    found = of_nodes({"n1": [told("a", "1 key")], "n2": [told("a", "2 keys")], "n3": []})
    assert [(row.detail, row.judged) for row in found] == [("n1: 1 key; n2: 2 keys", False)]


def test_a_row_that_one_node_judges_is_judged() -> None:
    (row,) = of_nodes({"n1": [told("a", "not told")], "n2": [Checked("a", False, "broken")]})
    assert (row.ok, row.judged, row.detail) == (False, True, "n2: broken")


def test_what_is_not_done_is_red_and_accepted_by_name() -> None:
    row = not_done("a", "why", "next")
    assert (row.ok, row.judged, row.by_name) == (False, True, True)
