"""Filters and renames: patterns as the servers take them, state that only a write changes, and
renames under which no two keys meet.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exodus.plan.plan import Plan
from exodus.plan.scope import FilterRule, Filters, KeyState, Rename, Scope, check_renames, glob

SERVERS = {"source": {"host": "a", "port": 1}, "target": {"host": "b", "port": 2}}


@pytest.mark.parametrize(
    ("pattern", "key", "meets"),
    [
        (b"shop:*", b"shop:1", True),
        (b"shop:*", b"shop", False),
        (b"*", b"", True),
        (b"h?llo", b"hello", True),
        (b"h?llo", b"hllo", False),
        (b"h[ae]llo", b"hallo", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[^e]llo", b"hxllo", True),
        (b"h[a-c]x", b"hbx", True),
        (b"h[c-a]x", b"hbx", True),
        (rb"\*", b"*", True),
        (rb"\*", b"x", False),
        (b"a.c", b"abc", False),
        (b"a*", b"a\nb\xff", True),
        (rb"[\]x]", b"]", True),
        (b"[a", b"a", True),
        (b"tail\\", b"tail\\", True),
    ],
)
def test_patterns_are_those_of_keys(pattern: bytes, key: bytes, meets: bool) -> None:
    assert bool(glob(pattern).fullmatch(key)) is meets


def test_a_key_that_its_name_leaves_undecided_is_decided_by_its_state() -> None:
    scope = Scope(
        Filters(
            include=(FilterRule(pattern="a:*", types=("hash",)), FilterRule(pattern="b:*")),
            exclude=(FilterRule(elements_over=3),),
        ),
        always="own:",
    )
    assert scope.filtered_by(0, b"c:1") == "no include rule meets it"
    assert scope.filtered_by(0, b"own:1") is None
    assert scope.filtered_by(0, b"a:1") is None
    assert scope.undecided(0, b"a:1")
    assert scope.filtered_by(0, b"a:1", KeyState("hash", 3, -1)) is None
    assert scope.filtered_by(0, b"a:1", KeyState("hash", 4, -1)) == "excluded: elements_over 3"
    assert scope.filtered_by(0, b"a:1", KeyState("string", 4, -1)) == "no include rule meets it"
    assert scope.filtered_by(0, b"b:1", KeyState("string", 400, -1)) is None
    assert not Scope(Filters(include=(FilterRule(pattern="b:*"),))).undecided(0, b"b:1")


def test_an_expiry_is_held_against_a_date() -> None:
    noon = datetime(2026, 12, 1, 12, tzinfo=UTC)
    scope = Scope(
        Filters(
            exclude=(FilterRule(expires_before=noon), FilterRule(expiry="none", databases=(3,)))
        )
    )
    at = round(noon.timestamp() * 1000)
    assert scope.filtered_by(0, b"k", KeyState("string", 1, at - 1)) is not None
    assert scope.filtered_by(0, b"k", KeyState("string", 1, at)) is None
    assert scope.filtered_by(0, b"k", KeyState("string", 1, -1)) is None
    assert (
        scope.filtered_by(3, b"k", KeyState("string", 1, -1))
        == "excluded: databases 3, expiry 'none'"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs a condition"),
        ({"string_bytes_over": 1, "elements_over": 1}, "no key meets both"),
        ({"expires_before": "2026-12-01T00:00:00"}, "timezone"),
        ({"types": ["json"]}, "types"),
        ({"databases": [-1]}, "from 0 on"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(given: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FilterRule.model_validate(given)


@pytest.mark.parametrize(
    ("renames", "says"),
    [
        ([Rename(prefix="a:", to_prefix="x:"), Rename(prefix="b:", to_prefix="x:")], "could meet"),
        (
            [Rename(prefix="a:", to_prefix="x:"), Rename(prefix="b:", to_prefix="x:y:")],
            "could meet",
        ),
        ([Rename(database=0, to_database=3), Rename(database=1, to_database=3)], "could meet"),
        ([Rename(prefix="a:", to_prefix="x:"), Rename(prefix="a:", to_prefix="y:")], "same keys"),
    ],
)
def test_renames_under_which_two_keys_could_meet_are_refused(
    renames: list[Rename], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        check_renames(renames)
    check_renames(
        [
            Rename(database=1, to_database=0, to_prefix="one:"),
            Rename(database=2, to_database=0, to_prefix="two:"),
        ]
    )
    check_renames([Rename(database=0, to_database=1), Rename(database=1, to_database=0)])
    with pytest.raises(ValidationError, match="name the database"):
        Rename(to_database=3)


WORDS = st.sampled_from(["", "a", "b", "a:", "b:", "ab", "a:b", "x:"])
RENAMES = st.lists(
    st.builds(
        dict,
        prefix=WORDS,
        to_prefix=WORDS,
        database=st.sampled_from([None, 0, 1]),
        to_database=st.sampled_from([None, 0, 2]),
    ),
    max_size=3,
)


@given(RENAMES)
def test_no_two_keys_ever_come_to_one_name_and_origin_is_the_reverse_of_place(
    drawn: list[dict],
) -> None:
    """Whatever renames are accepted: over all short names in three databases."""
    try:
        renames = [Rename(**each) for each in drawn]
        check_renames(renames)
    except ValueError:
        return
    scope = Scope(renames=renames)
    names = [
        b"".join(each)
        for size in range(5)
        for each in itertools.product((b"a", b"b", b":", b"x"), repeat=size)
    ]
    keys = [(db, name) for db in range(3) for name in names]
    places = {}
    for key in keys:
        if scope.name_conflict(*key) is None:
            place = scope.target_key(*key)
            assert place not in places, (key, places[place])
            places[place] = key
            assert scope.source_key(*place) == key
    for key in keys:
        origin = scope.source_key(*key)
        assert origin is None or scope.target_key(*origin) == key


def test_renames_need_a_cutover_of_ones_own() -> None:
    rename = {"prefix": "a:", "to_prefix": "b:"}
    with pytest.raises(ValidationError, match="cutover: own"):
        Plan.model_validate({"name": "x", **SERVERS, "renames": [rename]})
    plan = Plan.model_validate(
        {"name": "x", **SERVERS, "renames": [rename], "cutover": "own", "allow_nonempty": True}
    )
    assert plan.scope.target_key(0, b"a:1") == (0, b"b:1")
    assert Plan.model_validate_json(plan.model_dump_json()).scope.renames == plan.scope.renames


def test_filters_beside_keys_of_others_need_a_cutover_of_ones_own() -> None:
    filters = {"exclude": [{"pattern": "cache:*"}]}
    with pytest.raises(ValidationError, match="allow_nonempty"):
        Plan.model_validate({"name": "x", **SERVERS, "filters": filters, "allow_nonempty": True})
    assert Plan.model_validate({"name": "x", **SERVERS, "filters": filters}).scope
