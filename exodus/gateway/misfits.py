"""Requests that a server executes and a cluster refuses, known before the data is in a cluster.

The gateways count them from the applications' own traffic, as long as the authority is a single
server and the other side a cluster. A request counts once the authority has executed it. No I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from exodus.commands.key_slots import slot_of
from exodus.commands.table import Command
from exodus.resp.scanner import SKIPPED

IN_COMMAND = "keys of several slots in one command"
IN_SCRIPT = "keys of several slots in one script"
IN_TRANSACTION = "keys of several slots in one transaction"
OTHER_DATABASE = "another database than 0"
SWAP = "databases are exchanged"


class Fit(NamedTuple):
    """How a request fits a cluster."""

    why_not: str | None  # why a cluster refuses it, even outside a transaction; None: it does not
    slot: int | None  # of its first key; None: it has none, or one too long to be kept


def fit_of(command: Command, args: list[bytes], select: int | None) -> Fit:
    """Return how a request fits a cluster.

    Args:
        command: the request's.
        args: its words.
        select: the database that it selects.
    """
    if not command.known:
        return Fit(None, None)  # its keys are a guess
    slots = [None if key is SKIPPED else slot_of(key) for key in command.keys(args)]
    return Fit(_why_not(command, set(slots) - {None}, select), slots[0] if slots else None)


def _why_not(command: Command, slots: set[int | None], select: int | None) -> str | None:
    if select or command.name == b"MOVE":
        return OTHER_DATABASE
    if command.name == b"SWAPDB":
        return SWAP
    if len(slots) < 2:
        return None
    return IN_SCRIPT if command.script else IN_COMMAND
