"""The masters of services behind Sentinel, as this process knows them.

    located     the address to connect to; asks the Sentinels where nobody has asked of late
    standing    the same without asking, for a gateway: no Sentinel delays an application
    doubt       a connection failed, or its server is no master: `located` asks again
    Lookout     asks again and again; `exodus/topology/watch.py` does so every second

A server is believed only after it says itself that it is the master (ROLE). Where no Sentinel
answers, the last master that was believed stays, since it may well be there. `Master.why` says so
then, and no switch begins.

When another server becomes the master, all connections to the one before end, as Sentinel itself
ends them. What was bound to a connection then starts again by its own means.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import hiredis

from exodus.net.connect import login_of, open_streams
from exodus.net.info import info_of
from exodus.net.sentinel import Sentinels, Verdict, decide
from exodus.net.tls import ssl_context
from exodus.plan.address import Address, Place, Service, place_of
from exodus.plan.bounds import SENTINEL_ANSWER_S, TOPOLOGY_FRESH_S, TOPOLOGY_UNWATCHED_S
from exodus.resp.encode import encode, encode_many

_READ_BYTES = 64 * 1024
_NAME = "exodus-topology"  # no application's connection


class NoMaster(OSError):
    """Which server is the master is not known."""


@dataclass(frozen=True)
class RoleReport:
    """What a server says of its part in replication."""

    is_master: bool
    run_id: str
    offset: int  # of what it wrote, or applied
    replid: str
    replid_before: str  # of the master that it was a replica of, until its own failover
    offset_before: int  # up to which the stream of that master was its own; -1: none
    replicas: dict[str, int] = field(default_factory=dict)  # as they announce themselves → offset


@dataclass(frozen=True)
class Believed:
    """The master of a service."""

    announced: str  # host:port, as the Sentinels say
    address: Address
    config_epoch: int
    replicas: tuple[str, ...]  # announced; those that answer a Sentinel
    down: tuple[str, ...]  # replicas that answer none
    role: RoleReport
    sure: bool  # a majority of the Sentinels answered


class Master:
    """What this process knows of the master of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.believed: Believed | None = None
        self.why = "the Sentinels were not asked yet"  # what is not known; empty: all is
        self.watches = 0  # that hear of a failover at once
        self._looked_at = -TOPOLOGY_FRESH_S
        self._ends: dict[int, tuple[str, int, asyncio.AbstractEventLoop, Any]] = {}
        self._next = 0

    @property
    def fresh(self) -> bool:
        """Return whether the master was seen of late, and nobody doubts it.

        After SENTINEL FAILOVER the old master may say for seconds that it is the master.
        """
        within_s = TOPOLOGY_FRESH_S if self.watches else TOPOLOGY_UNWATCHED_S
        return time.monotonic() - self._looked_at < within_s

    def doubt(self) -> None:
        """Ask the Sentinels before the next connection."""
        self._looked_at = -TOPOLOGY_FRESH_S

    def seed(self, announced: str, config_epoch: int, replicas: tuple[str, ...]) -> None:
        """Begin with what another process believed (the control store has it)."""
        if self.believed is None:
            unknown = RoleReport(True, "", 0, "", "", -1)
            address = self.service.server(announced)
            self.believed = Believed(announced, address, config_epoch, replicas, (), unknown, False)

    def take(self, verdict: Verdict | None, role: RoleReport | str, sentinels_why: str) -> bool:
        """Believe a verdict whose server says that it is the master; return whether the master is
        another one, or the same after a failover.
        """
        before = self.believed
        if verdict is None:
            self.why = sentinels_why or "the Sentinels that answer know only an older master"
            return False
        if isinstance(role, str) or not role.is_master:
            said = role if isinstance(role, str) else "it says that it is a replica"
            self.why = f"the Sentinels name {verdict.master}: {said}"
            return False
        address = self.service.server(verdict.master)
        self.believed = Believed(
            verdict.master,
            address,
            verdict.config_epoch,
            verdict.replicas,
            verdict.down,
            role,
            verdict.sure,
        )
        self.why = (
            ""
            if verdict.sure
            else f"only {verdict.answered} of {verdict.asked} Sentinels answer: {sentinels_why}"
        )
        self._looked_at = time.monotonic()
        changed = before is not None and (before.announced, before.config_epoch) != (
            verdict.master,
            verdict.config_epoch,
        )
        if changed:
            self._end_others()
        return changed

    def end_by(self, address: Address, end: Callable[[], None]) -> None:
        """Call `end` (a method; kept weakly) when another server is the master, or this one is
        after a failover.
        """
        believed = self.believed
        epoch = believed.config_epoch if believed is not None else -1
        self._next += 1
        number = self._next
        method = weakref.WeakMethod(end, lambda _: self._ends.pop(number, None))
        self._ends[number] = (address.place, epoch, asyncio.get_running_loop(), method)

    def _end_others(self) -> None:
        assert self.believed is not None
        now = (self.believed.address.place, self.believed.config_epoch)
        for number, (place, epoch, loop, method) in list(self._ends.items()):
            if (place, epoch) == now:
                continue
            self._ends.pop(number, None)
            end = method()
            if end is not None:
                with contextlib.suppress(RuntimeError):  # its loop has ended, and it with it
                    loop.call_soon_threadsafe(end)


_masters: dict[tuple[tuple[str, ...], str], Master] = {}
_masters_turn = threading.Lock()


def master_of(service: Service) -> Master:
    """Return what this process knows of a service. All users of a service share one object."""
    with _masters_turn:
        return _masters.setdefault((service.sentinels, service.service), Master(service))


def doubt(place: Place) -> None:
    """Ask the Sentinels before the next connection to this place."""
    if isinstance(place, Service):
        master_of(place).doubt()


def end_with_master(service: Service, address: Address, end: Callable[[], None]) -> None:
    """See `Master.end_by`."""
    master_of(service).end_by(address, end)


def standing(place: Place) -> Address:
    """Return the address to connect to by what is known, with the login of `place`.

    Raises:
        NoMaster: nothing is known.
    """
    if isinstance(place, Address):
        return place
    master = master_of(place)
    if master.believed is None:
        raise NoMaster(f"no master of {place.service} is known: {master.why}")
    return place.server(master.believed.announced)


async def located(place: Place) -> Address:
    """Return the address to connect to; ask the Sentinels where that is not known of late.

    Raises:
        NoMaster: it is not known, and no Sentinel says it.
        OperatorError: a password cannot be read.
    """
    if isinstance(place, Service) and not master_of(place).fresh:
        async with Lookout(place) as lookout:
            await lookout.look()
    return standing(place)


def failovers_of(place: Place) -> str:
    """Return what tells lives of a server apart beside its run id: a server may be the master, a
    replica, and the master again, and have lost keys in between.
    """
    if isinstance(place, Address):
        return ""
    believed = master_of(place).believed
    return f"@{believed.config_epoch}" if believed is not None else "@?"


class Lookout:
    """Asks the Sentinels and the server that they name, over connections that it keeps."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sentinels = Sentinels(service)
        self._asked: tuple[Address, asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        self._hang_up()
        await self._sentinels.close()

    async def look(self) -> bool:
        """Ask, and return whether there was a failover since the last look of this process.

        Raises:
            OperatorError: a password cannot be read.
        """
        master = master_of(self._service)
        answers = await self._sentinels.ask()
        seen = master.believed.config_epoch if master.believed is not None else -1
        verdict = decide(answers, len(self._service.sentinels), seen)
        why = "; ".join(f"{name}: {said}" for name, said in self._sentinels.why.items())
        role: RoleReport | str = ""
        if verdict is not None:
            role = await self._role(self._service.server(verdict.master))
        return master.take(verdict, role, why)

    async def _role(self, address: Address) -> RoleReport | str:
        """Return what a server says of itself, or why it says nothing."""
        try:
            async with asyncio.timeout(SENTINEL_ANSWER_S):
                try:
                    return await self._ask_role(address)
                except OSError:
                    self._hang_up()  # the server may have ended it long ago
                    return await self._ask_role(address)
        except (OSError, TimeoutError, ValueError) as exc:
            self._hang_up()
            return str(exc) or type(exc).__name__

    async def _ask_role(self, address: Address) -> RoleReport:
        begin, wanted = b"", 3
        if self._asked is None or self._asked[0] != address:
            self._hang_up()
            reader, writer = await open_streams(address, ssl_context(address))
            self._asked = (address, reader, writer)
            login = login_of(address, self._service.service)
            begin = login + encode("CLIENT", "SETNAME", _NAME)
            wanted += 1 + bool(login)
        _, reader, writer = self._asked
        asked = encode_many([("ROLE",), ("INFO", "server"), ("INFO", "replication")])
        writer.write(begin + asked)
        parser, replies = hiredis.Reader(), list[Any]()
        while len(replies) < wanted:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise ConnectionError("it ended the connection")
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                replies.append(reply)
        return role_report(*replies[-3:])

    def _hang_up(self) -> None:
        if self._asked is not None:
            self._asked[2].close()
            self._asked = None


def role_report(role: Any, server: Any, replication: Any) -> RoleReport:
    """Read the replies to ROLE, INFO server and INFO replication.

    Raises:
        ValueError: the server refuses to tell.
    """
    refused = next((str(said) for said in (server, replication) if not isinstance(said, bytes)), "")
    if refused:
        raise ValueError(refused)
    facts = info_of(server) | info_of(replication)
    if isinstance(role, hiredis.ReplyError) and not str(role).startswith("NOPERM"):
        raise ValueError(str(role))
    is_master = facts.get("role") == "master" and (
        not isinstance(role, list) or role[0] == b"master"
    )
    replicas = {
        place_of(row[0].decode(), int(row[1])): int(row[2])
        for row in (role[2] if is_master and isinstance(role, list) else ())
    }
    return RoleReport(
        is_master,
        facts.get("run_id", ""),
        int(facts.get("master_repl_offset" if is_master else "slave_repl_offset", 0)),
        facts.get("master_replid", ""),
        facts.get("master_replid2", ""),
        int(facts.get("second_repl_offset", -1)),
        replicas,
    )
