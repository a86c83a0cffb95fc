"""Requests that run a script on copies and let it see its keys' names."""

from __future__ import annotations

import pytest

from exodus.net.leg import Reply, ReplyError
from exodus.shadow.key_names import seeing_keys

COPIED = [b"EVAL", b"", b"2", b"copy 1", b"copy 2", b"a"]
LIBRARIES = [
    [b"library_name", b"other", b"functions", [[b"name", b"no"]], b"library_code", b"#!lua\nno"],
    [
        *(b"library_name", b"lib", b"engine", b"LUA", b"functions"),
        [[b"name", b"First", b"flags", []], [b"name", b"second", b"flags", []]],
        *(b"library_code", b"#!lua name=lib\nthe library"),
    ],
]


async def seen(
    args: list[bytes], said: Reply = None
) -> tuple[list[bytes] | None, list[list[bytes]]]:
    asked: list[list[bytes]] = []

    async def ask(request: list[bytes]) -> Reply:
        asked.append(request)
        return said

    return await seeing_keys(args, COPIED, ask), asked


async def test_keys_are_copies_and_their_names_are_arguments() -> None:
    found, asked = await seen([b"eval", b"return 1", b"2", b"k1", b"k2", b"a"])
    assert found is not None
    assert [found[0], *found[2:]] == [
        *(b"EVAL", b"2", b"copy 1", b"copy 2"),
        b"",
        b"k1",
        b"k2",
        b"a",
    ]
    assert b"\nreturn 1\nend\n" in found[1]
    assert asked == []


async def test_the_text_is_the_same_for_other_keys() -> None:
    one, _ = await seen([b"EVAL", b"return 1", b"2", b"k1", b"k2", b"a"])
    other, _ = await seen([b"EVAL", b"return 1", b"2", b"k3", b"k4", b"b"])
    assert one is not None
    assert other is not None
    assert one[1] == other[1]


async def test_the_flags_of_a_script_stay_its_first_line() -> None:
    found, _ = await seen([b"EVAL", b"#!lua flags=allow-oom\nreturn 1", b"2", b"k1", b"k2"])
    assert found is not None
    assert found[1].startswith(b"#!lua flags=allow-oom\n")
    assert found[1].count(b"#!lua") == 1


async def test_the_text_of_a_digest_is_asked_for() -> None:
    args = [b"EVALSHA", b"ab" * 20, b"2", b"k1", b"k2"]
    found, asked = await seen(args, b"return 2")
    assert asked == [[b"SCRIPT", b"SHOW", b"ab" * 20]]
    assert found is not None
    assert b"\nreturn 2\nend\n" in found[1]
    assert (await seen(args, ReplyError("ERR unknown subcommand")))[0] is None


@pytest.mark.parametrize("name", [b"first", b"SECOND"])
async def test_a_function_brings_its_library(name: bytes) -> None:
    """The names of functions are without case."""
    found, asked = await seen([b"FCALL", name, b"2", b"k1", b"k2"], LIBRARIES)
    assert asked == [[b"FUNCTION", b"LIST", b"WITHCODE"]]
    assert found is not None
    assert found[5] == name
    assert b"\nthe library\nend\n" in found[1]
    assert b"#!lua" not in found[1]


@pytest.mark.parametrize("said", [LIBRARIES, [], ReplyError("NOPERM")])
async def test_a_function_that_nobody_tells_has_no_text(said: Reply) -> None:
    assert (await seen([b"FCALL", b"third", b"2", b"k1", b"k2"], said))[0] is None
