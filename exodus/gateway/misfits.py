"""Requests that a server executes and a cluster refuses, known before the data is in a cluster.

The gateways count them from the applications' own traffic, as long as the authority is a single
server and the other side a cluster. A request counts once the authority has executed it. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from exodus.commands.semantics import Role
from exodus.commands.slots import slot_of
from exodus.commands.table import Command
from exodus.resp.scanner import SKIPPED

IN_COMMAND = "keys of several slots in one command"
IN_SCRIPT = "keys of several slots in one script"
IN_TRANSACTION = "keys of several slots in one transaction"
OTHER_DATABASE = "another database than 0"
SWAP = "databases are exchanged"


def misfit(command: Command, args: Sequence[bytes], select: int | None) -> str | None:
    """Return why a cluster would refuse a request by itself; None: it would not.

    Args:
        command: the request's.
        args: its words.
        select: the database that it selects.
    """
    if not command.known:
        return None  # its keys are a guess
    if select:
        return OTHER_DATABASE
    if command.name == b"SWAPDB":
        return SWAP
    if command.role is Role.MOVES_DB and command.name == b"MOVE":
        return OTHER_DATABASE
    keys = [key for key in command.keys(list(args)) if key is not SKIPPED]
    if len(keys) < 2 or len({slot_of(key) for key in keys}) < 2:
        return None
    return IN_SCRIPT if command.script else IN_COMMAND


def slot_of_first(command: Command, args: Sequence[bytes]) -> int | None:
    """Return the slot of a request's first key; None: it has none, or one too long to be kept."""
    keys = command.keys(list(args)) if command.known else []
    return slot_of(keys[0]) if keys and keys[0] is not SKIPPED else None
