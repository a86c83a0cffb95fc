"""What an executed command may have changed: keys with their databases, or whole databases.

It reads commands as a server propagates them to its replicas: effects only, in the order of
execution, each write once.
"""

from __future__ import annotations

from exodus.commands.keys import database
from exodus.commands.semantics import Role
from exodus.commands.table import Command
from exodus.control.changes import Barrier, Key


def changed_keys(command: Command, args: list[bytes], db: int) -> list[Key]:
    """Return the keys that a write may have changed when it ran in database `db`."""
    keys = [(db, key) for key in command.keys(args)]
    if command.role is Role.MOVES_DB:
        keys += keys_elsewhere(command, args)
    return keys


def keys_elsewhere(command: Command, args: list[bytes]) -> list[Key]:
    """Return the key that MOVE or COPY … DB writes in a database other than the connection's."""
    if command.name == b"MOVE" and len(args) == 3:
        db = database(args[2])
        return [] if db is None else [(db, args[1])]
    for index in range(3, len(args) - 1):
        if args[index].upper() == b"DB":
            db = database(args[index + 1])
            return [] if db is None else [(db, args[2])]
    return []


def barrier_of(command: Command, args: list[bytes], db: int) -> Barrier:
    """Return the barrier of a FLUSHDB, FLUSHALL or SWAPDB that ran in database `db`."""
    if command.name == b"FLUSHDB":
        return Barrier("flushdb", (db,))
    if command.name == b"SWAPDB" and len(args) == 3:
        first, second = database(args[1]), database(args[2])
        if first is not None and second is not None:
            return Barrier("swapdb", (first, second))
    return Barrier(command.name.decode("ascii", "replace").lower())
