"""Names that a person accepts: exactly those that are there, one a line."""

from __future__ import annotations

import pytest

from exodus.control.accepted_names import names_in, why_not_all

WORDS = {
    "field": "accept_letters",
    "noun": "dead letter",
    "resolved": "repaired",
    "resolve": "repair them",
}


@pytest.mark.parametrize("text", ["0:a\n0:b", " 0:a \n\n0:b\n"])
def test_all_names_are_enough(text: str) -> None:
    assert why_not_all(text, {"0:a", "0:b"}, **WORDS) is None


def test_a_missing_name_is_told() -> None:
    why = why_not_all("0:a", {"0:a", "0:b"}, **WORDS)
    assert why is not None
    assert "0:b" in why


def test_an_unknown_name_is_told() -> None:
    assert "'0:c' is no dead letter" in str(why_not_all("0:a\n0:c", {"0:a"}, **WORDS))


def test_a_name_with_spaces_around_it_is_taken_as_it_is_listed() -> None:
    assert names_in("0: k ", {"0: k "}) == ["0: k "]
