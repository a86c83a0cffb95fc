"""The commands of the newest servers, for captures that are read where no server can be asked.

`known_commands.json` holds what Redis 8.2 and Valkey 9.1 answer to COMMAND, as
[name, write, first key, last key, step, subcommands]. A test holds it against both servers;
`python -m exodus.observe.known_commands FILE URL…` writes it anew from running servers.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from exodus.commands.table import Command, CommandTable
from exodus.net.client import answered, make_client
from exodus.plan.address import Address

_FILE = "known_commands.json"


def known_table() -> CommandTable:
    """Return the table of the commands in the file."""
    return CommandTable(map(_command, orjson.loads((files("exodus.observe") / _FILE).read_bytes())))


def rows_of(table: CommandTable) -> list[list[Any]]:
    """Return a table as the file has it."""
    return [
        _row(table.find(name))
        for name in sorted(table.names())
        if name.isascii() and b"." not in name  # those of modules differ from build to build
    ]


async def _commands(address: Address) -> list[Any]:
    client = make_client(address, field="--commands-of")
    client.response_callbacks.pop("COMMAND", None)  # redis-py would reshape the rows
    try:
        found: list[Any] = await answered(client.execute_command("COMMAND"))
    finally:
        await client.aclose()
    return found


def _row(command: Command) -> list[Any]:
    inner = [_row(each) for _, each in sorted(command.subcommands.items())]
    return [
        command.name.decode(),
        command.write,
        command.first,
        command.last,
        command.step,
        *([inner] if inner else []),
    ]


def _command(row: list[Any]) -> Command:
    command = Command(row[0].encode(), write=row[1], first=row[2], last=row[3], step=row[4])
    for inner in row[5] if len(row) > 5 else ():
        made = _command(inner)
        command.subcommands[made.name.partition(b"|")[2]] = made
    return command


def text_of(replies: list[list[Any]]) -> str:
    """Return what the file holds for the answers of some servers to COMMAND."""
    rows = rows_of(CommandTable.from_replies(*replies))
    return "[\n" + ",\n".join(orjson.dumps(row).decode() for row in rows) + "\n]\n"


async def commands_at(addresses: list[Address]) -> list[list[Any]]:
    """Return what servers answer to COMMAND.

    Raises:
        redis.RedisError, OSError: one does not answer.
    """
    return [await _commands(address) for address in addresses]


if __name__ == "__main__":
    asked = [Address.parse(url, field="URL") for url in sys.argv[2:]]
    Path(sys.argv[1]).write_text(text_of(asyncio.run(commands_at(asked))))
