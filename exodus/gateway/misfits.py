"""Requests that a server executes and a cluster refuses, known before the data is in a cluster.

The gateways count them from the applications' own traffic, as long as the authority is a single
server and the other side a cluster. A request counts once the authority has executed it. No I/O.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from exodus.commands.key_slots import slot_of
from exodus.commands.semantics import Role
from exodus.commands.table import Command
from exodus.control.effects import keys_elsewhere
from exodus.resp.scanner import SKIPPED

IN_COMMAND = "keys of several slots in one command"
IN_SCRIPT = "keys of several slots in one script"
IN_TRANSACTION = "keys of several slots in one transaction"
OTHER_DATABASE = "another database than 0"
SWAP = "databases are exchanged"
_SORTS = frozenset({b"SORT", b"SORT_RO"})


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
    first = slots[0] if slots else None
    if select or (command.role is Role.MOVES_DB and _leaves_database(command, args)):
        return Fit(OTHER_DATABASE, first)
    if command.name == b"SWAPDB":
        return Fit(SWAP, first)
    if command.name in _SORTS and first is not None and _sorts_elsewhere(args, first):
        return Fit(IN_COMMAND, first)
    if len(set(slots) - {None}) < 2:
        return Fit(None, first)
    return Fit(IN_SCRIPT if command.script else IN_COMMAND, first)


def _leaves_database(command: Command, args: list[bytes]) -> bool:
    """Return whether a MOVE or COPY is one that a cluster refuses: COPY only into another one."""
    return command.name == b"MOVE" or any(db for db, _ in keys_elsewhere(command, args))


def _sorts_elsewhere(args: list[bytes], slot: int) -> bool:
    """Return whether BY or GET of a SORT names keys that may be in other slots than its list."""
    patterns = [
        pattern
        for word, pattern in pairwise(args[2:])
        if word.upper() in (b"BY", b"GET") and b"*" in pattern and pattern is not SKIPPED
    ]
    return any(_slot_of_all(pattern) != slot for pattern in patterns)


def _slot_of_all(pattern: bytes) -> int | None:
    """Return the slot of all keys that a pattern names; None where they are in several."""
    tag = pattern.partition(b"{")[2].partition(b"}")
    return slot_of(pattern) if tag[0] and tag[1] and b"*" not in tag[0] else None
