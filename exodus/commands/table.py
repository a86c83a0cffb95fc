"""Commands as a live server describes them, with the overrides of `semantics.py`.

Redis 6.2 describes a command in seven fields, without subcommands. Redis 7.0 and Valkey use ten
fields, with subcommands at index 9. Exodus uses what both have and has its own rules for movable
keys, so one reading serves all versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from exodus.commands import semantics
from exodus.commands.keys import MOVABLE, by_position
from exodus.commands.semantics import Role
from exodus.plan.bounds import COMMAND_NAME_BYTES_MAX, COMMAND_SPELLINGS_MAX


class Command:
    """One command's facts, looked up once and then shared by all requests that name it."""

    __slots__ = (
        "acts_on_error",
        "first",
        "hides_keys",
        "known",
        "last",
        "movable",
        "name",
        "plain",
        "renamed",
        "role",
        "script",
        "step",
        "subcommands",
        "write",
    )

    def __init__(
        self,
        name: bytes,
        *,
        write: bool,
        first: int = 0,
        last: int = 0,
        step: int = 1,
        movable_keys: bool = False,
        known: bool = True,
    ) -> None:
        self.name = name
        container = name.partition(b"|")[0]
        self.write = (write or name in semantics.WRITES) and container not in semantics.NOT_WRITES
        self.first, self.last, self.step = first, last, step or 1
        self.role = semantics.ROLES.get(container, Role.PLAIN)
        self.plain = self.role is Role.PLAIN
        self.movable = MOVABLE.get(name)
        self.known = known
        self.renamed = False  # the server calls it by another name than `name` (rename-command)
        # Whether it may write keys whose places nobody has described
        places_known = self.movable is not None or (first and not movable_keys)
        self.hides_keys = self.write and self.plain and not places_known
        self.script = self.role is Role.SCRIPT
        # Whether it may have changed something although it answered an error.
        self.acts_on_error = (
            not known or self.script or b"." in name or name in semantics.ACTS_ON_ERROR
        )  # a dot: of a module
        self.subcommands: dict[bytes, Command] = {}

    def keys(self, args: list[bytes]) -> list[bytes]:
        """Return the keys of a request, read ones included, in the order of its arguments."""
        if self.movable is not None:
            return self.movable([self.name, *args[1:]] if self.renamed else args)
        if self.first == self.last:  # one key, by far the most
            return args[self.first : self.first + 1] if self.first > 0 else []
        return by_position(args, self.first, self.last, self.step)

    def refused(self, error: bytes) -> bool:
        """Return whether the command did nothing, by the first line of the error that it was
        answered with.
        """
        if not self.acts_on_error:
            return True
        if self.script:
            return (
                error.startswith(semantics.SCRIPT_REFUSALS)
                and b"@user_" not in error
                and b" script: " not in error
            )
        return error.startswith(semantics.REFUSALS)

    def __repr__(self) -> str:
        return (
            f"<Command {self.name.decode('ascii', 'replace')} {'write' if self.write else 'read'}>"
        )


UNKNOWN = b"(UNKNOWN)"


class CommandTable:
    """Name → `Command`, in any spelling of the name; a name that no server lists is `unknown`, a
    write.
    """

    def __init__(self, commands: Iterable[Command]) -> None:
        self._by_name = {name: Command(name, write=False) for name in semantics.CLOSE_AT_ONCE}
        self._by_name.update({command.name: command for command in commands})
        # One for all, since clients may send any name
        self.unknown = Command(UNKNOWN, write=True, known=False)
        self._spelled: dict[bytes, Command] = {}
        # By spelling: arguments, the name included, behind which there are only values
        self.kept: dict[bytes, int] = {}

    @classmethod
    def from_replies(cls, *replies: Sequence[Any]) -> CommandTable:
        """Merge what one or more servers answered to COMMAND; a command is a write if any of them
        says so.
        """
        merged: dict[bytes, Command] = {}
        for reply in replies:
            for row in reply:
                _merge(merged, row)
        return cls(merged.values())

    def of(self, args: list[bytes]) -> Command:
        """Return a request's command, or its subcommand where the servers describe one."""
        command = self._spelled.get(args[0]) or self.find(args[0])
        if command.subcommands and len(args) > 1:
            return command.subcommands.get(args[1].upper(), command)
        return command

    def find(self, name: bytes) -> Command:
        """Return the command of that name, as a whole. Costs one look-up for a spelling seen
        before.
        """
        command = self._spelled.get(name)
        if command is None:
            command = self._by_name.get(name.upper())
            if command is None:
                return self.unknown
            if len(self._spelled) < COMMAND_SPELLINGS_MAX and len(name) <= COMMAND_NAME_BYTES_MAX:
                self._spelled[name] = command
                if (
                    command.plain
                    and command.movable is None
                    and not command.subcommands
                    and command.last >= 0
                ):
                    self.kept[name] = command.last + 1
        return command

    def learn(self, name: bytes, row: Sequence[Any]) -> Command:
        """Take over that the server knows a command by another name, from its answer to COMMAND
        INFO of that name.
        """
        found: dict[bytes, Command] = {}
        _merge(found, row)
        (command,) = found.values()
        command.renamed = command.name != name.upper()
        self._by_name[name.upper()] = command
        return command

    @property
    def renamed(self) -> dict[str, str]:
        """Return learnt names, and the commands they stand for."""
        return {
            name.decode("ascii", "backslashreplace"): command.name.decode(
                "ascii", "backslashreplace"
            )
            for name, command in self._by_name.items()
            if command.renamed
        }

    def names(self) -> frozenset[bytes]:
        """Return all names that a server listed."""
        return frozenset(self._by_name) - frozenset(semantics.CLOSE_AT_ONCE)

    def without(self, other: CommandTable) -> frozenset[bytes]:
        """Return the commands that `other` lacks: the target would refuse them."""
        return self.names() - other.names()


def _merge(merged: dict[bytes, Command], row: Sequence[Any]) -> None:
    """Take one row of COMMAND over. Of two servers' descriptions the one that knows where keys are
    counts; a write is one if either says so.

    From Redis 7.0 on a container (XGROUP) has no keys itself and its subcommands have; in 6.2 it is
    the other way round.
    """
    name = bytes(row[0]).upper()
    known = merged.get(name)
    flags = {bytes(flag) for flag in row[2]}
    write = b"write" in flags or (known is not None and known.write)
    first, last, step = row[3], row[4], row[5]
    if not first and known is not None:
        first, last, step = known.first, known.last, known.step
    command = merged[name] = Command(
        name,
        write=write,
        first=first,
        last=last,
        step=step,
        movable_keys=b"movablekeys" in flags,
    )
    if known is not None:
        command.subcommands = known.subcommands
    for inner in row[9] if len(row) > 9 else ():
        inner_name = bytes(inner[0]).upper()
        flags = {bytes(flag) for flag in inner[2]}
        command.subcommands[inner_name.partition(b"|")[2]] = Command(
            inner_name,
            write=b"write" in flags,
            first=inner[3],
            last=inner[4],
            step=inner[5],
            movable_keys=b"movablekeys" in flags,
        )
