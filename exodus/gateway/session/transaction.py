"""An open MULTI: the queued commands, and what EXEC will change."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exodus.commands.semantics import Role
from exodus.control.changes import Barrier, Key

if TYPE_CHECKING:
    from exodus.gateway.session.pending import Pending


class QueuedEffect(NamedTuple):
    """The effect of a queued command beyond the keys that it writes."""

    place: int  # of the command in the transaction
    role: Role  # SELECT, BARRIER, SCAN or CLUSTER; PLAIN: no server has described the command
    db: int = 0
    barrier: Barrier | None = None
    word: bytes = b""  # of CLUSTER
    args: tuple[bytes, ...] = ()  # of a command that no server has described


class TransactionChanges(NamedTuple):
    """What an executed transaction may have changed."""

    keys: list[Key]
    barriers: list[Barrier]
    undescribed: list[tuple[list[bytes], int]]  # requests of unknown commands; their database
    dbs: list[int]  # that the session may be in


class Transaction:
    """The commands between MULTI and EXEC, in order."""

    __slots__ = (
        "commands",
        "count",
        "effects",
        "first_key",
        "misfits",
        "raw",
        "raw_bytes",
        "slot",
        "texts",
        "undescribed",
        "unreadable",
        "unseen",
        "whole",
        "writes",
    )

    def __init__(self) -> None:
        # Keys are listed with their database, or without it where it depends on a queued SELECT.
        self.effects: list[QueuedEffect | list[bytes] | list[Key]] = []
        self.count = 0  # of commands
        self.raw: list[bytes] = []  # the queued requests, without MULTI
        self.raw_bytes = 0
        self.first_key: bytes | None = None  # of the first command that names one
        self.writes = False
        self.whole = False  # EXEC's reply has to be parsed
        self.unseen: list[str] = []  # gaps that EXEC opens
        self.undescribed = False  # the command of a request is described by no server
        self.unreadable: str | None = None  # why replies cannot be matched after EXEC
        self.texts: list[bytes] = []  # of scripts
        self.slot: int | None = None  # of the first key, where misfits are counted
        self.misfits: list[tuple[bytes, str]] = []  # command and reason (misfits.py)
        self.commands: list[tuple[int, Pending]] = []  # HELLO, AUTH, CLIENT, with their places

    def run(self, db: int, done: set[int] | None) -> TransactionChanges:
        """Return what EXEC may change, if it begins in a database.

        Args:
            db: the database in which EXEC begins.
            done: positions of the commands that were answered without an error; None: unknown.
        """
        keys: list[Key] = []
        barriers: list[Barrier] = []
        undescribed: list[tuple[list[bytes], int]] = []
        dbs = [db]
        for effect in self.effects:
            if not isinstance(effect, QueuedEffect):
                for entry in effect:
                    if isinstance(entry, bytes):
                        keys.extend([(each, entry) for each in dbs])
                    else:
                        keys.append(entry)
            elif effect.role is Role.SELECT:
                if done is None:
                    dbs = [*dbs, *([effect.db] if effect.db not in dbs else [])]
                elif effect.place in done:
                    dbs = [effect.db]
            elif effect.role is Role.PLAIN:
                undescribed += [(list(effect.args), each) for each in dbs]
            elif effect.barrier is not None and (done is None or effect.place in done):
                barriers.extend(flushes(effect.barrier, dbs))
        return TransactionChanges(keys, barriers, undescribed, dbs)


def flushes(barrier: Barrier | None, dbs: list[int]) -> list[Barrier]:
    """Return the barriers of a request that runs in one of `dbs`.

    FLUSHDB flushes the database that is selected when it runs.
    """
    if barrier is None:
        return []
    if barrier.what == "flushdb":
        return [Barrier("flushdb", (db,)) for db in dbs]
    return [barrier]
