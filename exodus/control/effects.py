"""What a command that was executed may have changed: keys with their databases, or whole databases at once.

For commands as a server propagates them to its replicas: effects only, in the order of execution, each write once.
"""

from __future__ import annotations

from exodus.commands.semantics import Role
from exodus.commands.table import Command
from exodus.control.changes import Barrier, Key


def changed_keys(command: Command, args: list[bytes], db: int) -> list[Key]:
    """The keys that a write may have changed when it ran in database `db`."""
    keys = [(db, key) for key in command.keys(args)]
    if command.role is Role.MOVES_DB:
        keys += keys_elsewhere(command, args)
    return keys


def keys_elsewhere(command: Command, args: list[bytes]) -> list[Key]:
    """The key that MOVE or COPY … DB writes in a database other than the connection's."""
    if command.name == b"MOVE" and len(args) == 3 and args[2].isdigit():
        return [(int(args[2]), args[1])]
    for index in range(3, len(args) - 1):
        if args[index].upper() == b"DB" and args[index + 1].isdigit():
            return [(int(args[index + 1]), args[2])]
    return []


def barrier_of(args: list[bytes], db: int) -> Barrier:
    """What a FLUSHDB, FLUSHALL or SWAPDB in database `db` stands for in a feed."""
    name = args[0].upper()
    if name == b"FLUSHDB":
        return Barrier("flushdb", (db,))
    if name == b"SWAPDB" and len(args) == 3 and args[1].isdigit() and args[2].isdigit():
        return Barrier("swapdb", (int(args[1]), int(args[2])))
    return Barrier(name.decode("ascii", "replace").lower())
