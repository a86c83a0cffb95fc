"""Requests that name scratch copies in place of their keys."""

from __future__ import annotations

import pytest

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import tag_of
from exodus.commands.table import Command, CommandTable
from exodus.plan.own_keys import is_own
from exodus.shadow.confinement import is_copy, name_of_key, own_name
from exodus.shadow.scratch import NoScratch
from exodus.shadow.scratch_cluster import renamed

TABLE = CommandTable(
    [
        Command(b"SET", write=True, first=1, last=1),
        Command(b"MSET", write=True, first=1, last=-1, step=2),
        Command(b"LMPOP", write=True),
        Command(b"SORT", write=True, first=1, last=1),
        Command(b"MULTI", write=False),
    ]
)
NAMES = {b"k": b"K", b"a": b"A"}


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("SET k v", "SET K v"),
        ("SET k k", "SET K k"),
        ("SET a a", "SET A a"),  # one letter: one object in Python
        ("MSET k a a k", "MSET K a A k"),
        ("LMPOP 2 k a LEFT COUNT 2", "LMPOP 2 K A LEFT COUNT 2"),
        ("SORT k STORE a", "SORT K STORE A"),
        ("MULTI", "MULTI"),
    ],
)
def test_only_keys_are_renamed(request_: str, wanted: str) -> None:
    assert renamed(TABLE, request_.encode().split(), NAMES) == wanted.encode().split()


def test_a_copy_is_in_the_slot_of_its_key_whatever_tag_that_has() -> None:
    for key in (b"cart:42", b"{user}:1", b"a}b", b"{}x", b"{", b"\xff{\x00}"):
        name = b"exodus:{%b}:%b" % (tag_of(b"scratch", slot_of(key)), b"0" * 16)
        assert slot_of(name) == slot_of(key)
        assert is_own(name)


def test_copies_of_scripts_are_in_the_slots_of_their_keys_under_names_of_two_forms() -> None:
    """The user of scripts may use both forms, and no name that a script makes of one."""
    token = b"0123456789abcdef"
    for key in (b"cart", b"cart:{42}:items", b"a}b", b"", b"\xff\n"):
        names = name_of_key(key, token), own_name(key, token)
        assert {slot_of(name) for name in names} == {slot_of(key)}
        assert names[0].startswith(key)
        assert all(map(is_copy, names))
        assert not any(is_copy(name + b":index") for name in names)
        assert not is_copy(key)
    assert is_own(own_name(b"cart", token))
    for key in (b"a{b", b"{}a"):  # the brace would make another tag of the rest
        with pytest.raises(NoScratch):
            name_of_key(key, token)
