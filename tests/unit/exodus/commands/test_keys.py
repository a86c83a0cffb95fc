"""Key extraction against what real servers answer to COMMAND GETKEYS."""

from __future__ import annotations

import pytest
import redis

from exodus.commands.table import CommandTable
from tests.support.servers import DatabaseServer

CASES = [
    "SET a 1",
    "MSET a 1 b 2 c 3",
    "DEL a b c",
    "RENAME a b",
    "SMOVE a b m",
    "BITOP AND d a b",
    "PFMERGE d a b",
    "LMOVE a b LEFT RIGHT",
    "COPY a b DB 2",
    "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
    "ZDIFFSTORE d 2 a b",
    "SORT a BY x GET y STORE d",
    "SORT a LIMIT 0 1 STORE d",
    "GEORADIUS a 1 2 3 km STORE d",
    "GEORADIUSBYMEMBER a m 3 km STOREDIST d",
    "XREADGROUP GROUP g c COUNT 1 STREAMS a b > >",
    "XREAD COUNT 2 BLOCK 5 STREAMS a b 0 0",
    "EVAL return 2 a b x",
    "EVALSHA abc 1 a x",
    "BLPOP a b 0",
    "BRPOPLPUSH a b 0",
    "BLMOVE a b LEFT LEFT 0",
    "BZPOPMIN a b 0",
    "XADD a * f v",
    "XGROUP CREATE a g 0",
    "XCLAIM a g c 0 1-1",
    "HSET a f v",
    "SINTERSTORE d a b",
    "GETEX a EX 5",
    "APPEND a x",
    "SETRANGE a 1 x",
    "LINSERT a BEFORE p x",
    "MIGRATE h 1 a 0 5",
    "ZRANGESTORE d a 0 1",
    "XAUTOCLAIM a g c 0 0",
    "GEOSEARCHSTORE d a FROMMEMBER m BYRADIUS 1 km",
    "LMPOP 2 a b LEFT",
    "BZMPOP 0 2 a b MIN",
    "SINTERCARD 2 a b",
    "FCALL f 2 a b x",
    "MSETNX a 1 b 2",
    "UNLINK a b",
    "RESTORE a 0 x",
]
NEW = ("LMPOP", "BZMPOP", "SINTERCARD", "FCALL")  # Redis 7.0
# GETKEYS itself is wrong here: 6.2 names other keys, or another order
# (docs/decisions/0007-keys-of-commands.md).
ODD_IN_62 = ("SORT", "GEORADIUS", "GEORADIUSBYMEMBER", "ZUNIONSTORE", "ZDIFFSTORE", "MIGRATE")


def _table(box: DatabaseServer) -> CommandTable:
    client = box.client()
    client.response_callbacks.pop("COMMAND", None)
    return CommandTable.from_replies(client.execute_command("COMMAND"))


@pytest.mark.parametrize("server", ["redis62", "redis82", "valkey91"])
def test_keys_are_those_that_the_server_names(server: str, request: pytest.FixtureRequest) -> None:
    box: DatabaseServer = request.getfixturevalue(server)
    table, client = _table(box), box.client()
    client.response_callbacks.pop("COMMAND", None)
    compared = 0
    for case in CASES:
        args = [word.encode() for word in case.split()]
        if server == "redis62" and (case.split()[0] in NEW or case.split()[0] in ODD_IN_62):
            continue
        try:
            wanted = client.execute_command("COMMAND", "GETKEYS", *args)
        except redis.ResponseError as exc:
            pytest.fail(f"{case}: {exc}")
        found = table.of([args[0].lower(), *args[1:]]).keys(args)
        assert set(found) == {bytes(key) for key in wanted}, case
        compared += 1
    assert compared >= len(CASES) - len(NEW) - len(ODD_IN_62) - 1


@pytest.mark.parametrize("server", ["redis62", "redis82", "valkey91"])
def test_every_write_of_the_server_is_a_write(server: str, request: pytest.FixtureRequest) -> None:
    """And what the server flags as a read is one, but for the reviewed overrides."""
    box: DatabaseServer = request.getfixturevalue(server)
    client = box.client()
    client.response_callbacks.pop("COMMAND", None)
    rows = client.execute_command("COMMAND")
    table = CommandTable.from_replies(rows)
    overridden = set()
    for name, _, flagged, *_ in [
        *rows,
        *(inner for row in rows if len(row) > 9 for inner in row[9]),
    ]:
        flags = {bytes(flag) for flag in flagged}
        command = table.of(bytes(name).split(b"|"))
        if (b"write" in flags) != command.write:
            overridden.add(command.name.partition(b"|")[0])
    assert overridden <= {b"EVAL", b"EVALSHA", b"FCALL", b"PFCOUNT", b"EXEC", b"FUNCTION"}


def test_a_container_has_its_keys_whichever_server_describes_it(
    redis62: DatabaseServer, valkey91: DatabaseServer
) -> None:
    """6.2 gives XGROUP's key at the container, later ones at its subcommands; a gateway reads both
    servers' tables.
    """
    rows = []
    for box in (redis62, valkey91):
        client = box.client()
        client.response_callbacks.pop("COMMAND", None)
        rows.append(client.execute_command("COMMAND"))
    for replies in (rows, rows[::-1]):
        args = [b"xgroup", b"create", b"a", b"g", b"0"]
        command = CommandTable.from_replies(*replies).of(args)
        assert command.write
        assert command.keys(args) == [b"a"]


def test_an_unknown_command_is_a_write_with_unknown_keys(redis62: DatabaseServer) -> None:
    command = _table(redis62).find(b"json.set")
    assert command.write
    assert not command.known
    assert command.keys([b"JSON.SET", b"k"]) == []
