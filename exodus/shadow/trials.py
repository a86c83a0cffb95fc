"""Connections on which Compare tries requests. A request that takes too long is tried no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from exodus.cancellation import end_all
from exodus.net.connect import login_of
from exodus.net.leg import Leg, NoDatabase, Reply, ReplyError, close_all
from exodus.plan.address import Cluster, Place
from exodus.plan.bounds import COMPARE_SECONDS_MAX, VERDICTS_KILL_S
from exodus.plan.plan import Plan
from exodus.shadow.rules import error_code
from exodus.topology.permits import refused_of

log = logging.getLogger(__name__)
_KEY = "{exodus}:permit"  # is never run
LEAVES: tuple[tuple[str | int, ...], ...] = (  # what takes a script out of a database
    ("SELECT", 0),
    ("SWAPDB", 0, 1),
    ("FLUSHALL",),
    ("MOVE", _KEY, 0),
    ("COPY", _KEY, _KEY),
    ("MIGRATE", "127.0.0.1", 1, _KEY, 0, 1),
)
LEAVES_CLUSTER: tuple[tuple[str | int, ...], ...] = (  # what reaches other keys without naming them
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("RANDOMKEY",),
    ("DBSIZE",),
    ("CLUSTER", "FLUSHSLOTS"),
    ("CLUSTER", "DELSLOTS", 0),
    ("CLUSTER", "SETSLOT", 0, "STABLE"),
)
NO_SCRIPT_USER = "a script that writes, and the plan names no compare_script_user"
LEAVES_COPIES = "the script would leave its scratch copies"


class TooSlow(Exception):
    """A request that was tried took longer than it may."""


@dataclass
class Slow:
    """Commands that took too long once, kept for as long as one sampling lasts, whatever connection
    is lost meanwhile.
    """

    names: set[bytes] = field(default_factory=set)
    script_runs: bool = False  # the target may still run a script that Compare started
    # Commands during which a node answered nothing at all: perhaps not for their sake
    stalled: set[bytes] = field(default_factory=set)


class Trials(Protocol):
    """Where trial requests run: on one server (`TrialConnection`), or on the nodes of a cluster
    (`ClusterTrials`).
    """

    async def ask_all(self, db: int, requests: list[list[bytes]], key: bytes) -> list[Reply]:
        """The replies to requests that are sent together, errors as values.

        Args:
            db: the database.
            requests: of one slot.
            key: one of their keys.

        Raises:
            TooSlow: they did not come in time.
            NoDatabase: the side has no such database.
            SourceError, TargetError, OperatorError: it does not answer.
        """

    async def may(self, ours: Leg, requests: Sequence[Sequence[str | int]]) -> list[str]:
        """Return which of these commands the user may run, by their names; `ours` may ask that."""

    async def ends_within(self, seconds: float) -> bool:
        """Return whether the request that took too long has ended, after waiting for it this long
        at most.
        """

    async def close(self) -> None:
        """End the connections."""


class TrialConnection:
    """One connection for trial requests. Its server continues a request that takes too long."""

    def __init__(self, leg: Leg, *, enters: Place | None = None) -> None:
        """`enters` names the user that enters a database in place of one that may not SELECT."""
        self._leg = leg
        self._enters = enters
        self._entered: dict[int, Leg] = {}  # database → connection, of such a user
        # The replies to requests that took too long
        self._late: asyncio.Task[list[Reply]] | None = None

    @property
    def ended(self) -> bool:
        """Return whether this end of the connection is closed."""
        return self._leg.ended

    async def ask_all(self, db: int, requests: list[list[bytes]], key: bytes) -> list[Reply]:
        """As `Trials.ask_all`."""
        del key  # the server has every key
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
        leg = await self._within(db)
        if isinstance(leg, ReplyError):  # this user may not enter the database
            return [leg] * len(requests)
        return await leg.pipeline([tuple(args) for args in requests])

    async def _within(self, db: int) -> Leg | ReplyError:
        """Return a connection in a database, or why this user may not enter it."""
        if db in self._entered:
            return self._entered[db]
        try:
            await self._leg.select(db)
        except NoDatabase:
            raise
        except ReplyError as exc:
            if self._enters is None:
                return exc
        else:
            return self._leg
        user, name = self._leg.place, self._leg.name
        leg = await Leg.connect(self._enters, self._leg.side, db=db, name=name)
        try:
            await leg.call_encoded(login_of(user, str(leg.side)))
        except BaseException:
            await leg.close()
            raise
        self._entered[db] = leg
        return leg

    async def may(self, ours: Leg, requests: Sequence[Sequence[str | int]]) -> list[str]:
        """As `Trials.may`."""
        user = self._leg.address.username or "default"
        said = await ours.pipeline([("ACL", "DRYRUN", user, *request) for request in requests])
        if any(isinstance(reply, ReplyError) for reply in said):
            said = await refused_of(self._leg, user, requests)
        return [
            str(request[0])
            for request, why in zip(requests, said, strict=True)
            # A refusal may be of the key alone.
            if why is None or "command" not in (why.decode() if isinstance(why, bytes) else why)
        ]

    async def ends_within(self, seconds: float) -> bool:
        """As `Trials.ends_within`."""
        if self._late is None:
            return True
        done, _ = await asyncio.wait([self._late], timeout=seconds)
        return bool(done)

    async def close(self) -> None:
        """End the connection."""
        await end_all([self._late])
        self._late = None
        entered, self._entered = list(self._entered.values()), {}
        await close_all([self._leg, *entered])


async def unconfined(plan: Plan, follower: Trials, ours: Leg) -> str:
    """Return why no script that writes is tried; empty: it can reach nothing but scratch copies.

    A script may run any command that its user may run. These would take it out of the database of
    the scratch copies. On a cluster, `confinement.py` checks each trial.
    """
    if plan.compare_user is None or not plan.compare_scripts:
        return "not_tried"
    if isinstance(ours.place, Cluster):
        return "" if plan.compare_script_user is not None else NO_SCRIPT_USER
    may = await follower.may(ours, LEAVES)
    return f"compare_user may run {', '.join(may)}: a script could leave its copies" if may else ""


def would_leave(said: str, *, cluster: bool) -> bool:
    """Return whether an error says that a script was refused one of `LEAVES`, or on a `cluster` of
    `LEAVES_CLUSTER`.
    """
    names = {str(name).lower() for name, *_ in (*LEAVES, *(LEAVES_CLUSTER if cluster else ()))}
    return any(f"'{name}'" in said or f"'{name}|" in said for name in names)


async def try_no_more(
    command: bytes, slow: Slow, tries: Sequence[Trials], ours: Leg, *, script: bool
) -> None:
    """Try a command no more that took too long. A script is ended, since its server serves nobody
    else until then. It may run on any of the `tries`.
    """
    slow.names.add(command)
    if script:
        slow.script_runs = True
        told = False
        # A busy server may begin the script only after a first SCRIPT KILL: only the reply shows
        # that it ended.
        while not all([await each.ends_within(VERDICTS_KILL_S) for each in tries]):
            if await kill_script(ours) or told:
                continue
            told = True
            log.error(
                "a script that Compare tried has written, so the target cannot end it: it "
                "serves nobody until the script ends by itself"
            )
        slow.script_runs = False


async def kill_script(ours: Leg) -> bool:
    """End a script on the follower; return whether the server can do that. It answers once the
    script has run for its `lua-time-limit`. On a cluster each node is asked.
    """
    said = [
        reply
        for leg in await ours.nodes()
        for reply in await leg.pipeline([("SCRIPT", "KILL"), ("FUNCTION", "KILL")])
    ]
    return not any(error_code(reply) == "UNKILLABLE" for reply in said)
