"""Requests to several servers of a fenced side, each over a connection of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from exodus.cutover.fence_methods import Command
from exodus.errors import ExodusError
from exodus.net.leg import Reply, ReplyError, error_of
from exodus.plan.vocabulary import Side


class FencedServers(ABC):
    """The servers of one side, by name."""

    _what = "server"  # what one of them is
    _page = ""  # which rights it needs

    def __init__(self, side: Side) -> None:
        self._side = side

    @abstractmethod
    async def call(self, name: str, *commands: Command) -> list[Reply]:
        """Return replies of commands sent together to one server, errors as values.

        Raises:
            SourceError, TargetError: it does not answer.
        """

    async def sure(self, name: str, *commands: Command) -> list[Reply]:
        """Return the same; an error among them is raised.

        Raises:
            SourceError, TargetError: the server does not answer, or refuses.
        """
        replies = await self.call(name, *commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self.refused(name, reply)
        return replies

    async def transaction(self, name: str, commands: list[Command]) -> bool:
        """Return whether it was done: not where the guard was touched since it was watched.

        Raises:
            SourceError, TargetError: the server does not answer, or refuses.
        """
        await self.sure(name, ("MULTI",))  # before it is begun nothing is sent: it would run
        outcome = (await self.call(name, *commands, ("EXEC",)))[-1]
        if outcome is None:
            return False
        for reply in outcome if isinstance(outcome, list) else [outcome]:
            if isinstance(reply, ReplyError):
                raise self.refused(name, reply)
        return True

    def refused(self, name: str, reply: ReplyError) -> ExodusError:
        """Return the error for a server that refuses a request."""
        return error_of(self._side)(
            f"the {self._what} {name} of the {self._side} refuses what its fence needs",
            why=str(reply),
            next_step="give Exodus's user the same rights on every server of the side "
            f"({self._page})",
        )
