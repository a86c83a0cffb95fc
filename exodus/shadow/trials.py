"""Connections on which Compare tries requests. A request that takes too long is tried no more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from exodus.cancellation import end_all
from exodus.net.leg import Leg, NoDatabase, Reply, ReplyError
from exodus.plan.bounds import COMPARE_SECONDS_MAX


class TooSlow(Exception):
    """A request that was tried took longer than it may."""


@dataclass
class Slow:
    """Commands that took too long once, kept for as long as one sampling lasts, whatever connection
    is lost meanwhile.
    """

    names: set[bytes] = field(default_factory=set)
    script_runs: bool = False  # the target may still run a script that Compare started


class TrialConnection:
    """One connection for trial requests. Its server continues a request that takes too long."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        # The replies to requests that took too long
        self._late: asyncio.Task[list[Reply]] | None = None

    async def ask(self, db: int, args: list[bytes]) -> Reply:
        """The reply, an error as a value.

        Raises:
            TooSlow: it did not come in time.
            NoDatabase: the server has no such database.
            SourceError, TargetError, OperatorError: it does not answer.
        """
        return (await self.ask_all(db, [args]))[-1]

    async def ask_all(self, db: int, requests: list[list[bytes]]) -> list[Reply]:
        """The replies to requests that are sent together; otherwise as `ask`."""
        if self._late is not None:
            await self.close()
            before = self._leg
            self._leg = await Leg.connect(before.place, before.side, name=before.name)
        asked = asyncio.create_task(self._ask(db, requests))
        try:
            done, _ = await asyncio.wait([asked], timeout=COMPARE_SECONDS_MAX)
        except asyncio.CancelledError:
            await end_all([asked])
            raise
        if not done:
            self._late = asked
            raise TooSlow
        return asked.result()

    async def _ask(self, db: int, requests: list[list[bytes]]) -> list[Reply]:
        try:
            await self._leg.select(db)
        except NoDatabase:
            raise
        except ReplyError as exc:  # this user may not enter the database
            return [exc] * len(requests)
        return await self._leg.pipeline([tuple(args) for args in requests])

    async def ends_within(self, seconds: float) -> bool:
        """Return whether the server has ended the request that took too long, after waiting for it
        this long at most.
        """
        if self._late is None:
            return True
        done, _ = await asyncio.wait([self._late], timeout=seconds)
        return bool(done)

    async def close(self) -> None:
        """End the connection."""
        await end_all([self._late])
        self._late = None
        await self._leg.close()


async def kill_script(ours: Leg) -> None:
    """End a read-only script on the follower. The server answers once the script has run for its
    `lua-time-limit`.
    """
    await ours.pipeline([("SCRIPT", "KILL"), ("FUNCTION", "KILL")])
