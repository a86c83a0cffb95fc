"""The masters of services behind Sentinel, as this process knows them, and where to connect to.

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
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from exodus.net.clusters import NoMaster, any_master, cluster_of, look
from exodus.net.ends import Ends
from exodus.net.inquiry import Inquiry
from exodus.net.role import RoleReport, role_report
from exodus.net.sentinel import Sentinels, Verdict, decide
from exodus.plan.address import Address, Cluster, Place, Service
from exodus.plan.bounds import SENTINEL_ANSWER_S, TOPOLOGY_FRESH_S, TOPOLOGY_UNWATCHED_S

_ROLE = (("ROLE",), ("INFO", "server"), ("INFO", "replication"))


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
        self._ends = Ends()

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
            self._ends.all_but({(self.believed.address.place, self.believed.config_epoch)})
        return changed

    def end_by(self, address: Address, end: Callable[[], None]) -> None:
        """Call `end` (a method; kept weakly) when another server is the master, or this one is
        after a failover.
        """
        believed = self.believed
        epoch = believed.config_epoch if believed is not None else -1
        self._ends.add((address.place, epoch), end)


_masters: dict[tuple[tuple[str, ...], str], Master] = {}
_masters_turn = threading.Lock()


def master_of(service: Service) -> Master:
    """Return what this process knows of a service. All users of a service share one object."""
    with _masters_turn:
        return _masters.setdefault((service.sentinels, service.service), Master(service))


def doubt(place: Place) -> None:
    """Ask the Sentinels, or the nodes, before the next connection to this place."""
    if isinstance(place, Service):
        master_of(place).doubt()
    elif isinstance(place, Cluster):
        cluster_of(place).doubt()


def end_with_master(service: Service, address: Address, end: Callable[[], None]) -> None:
    """See `Master.end_by`."""
    master_of(service).end_by(address, end)


def standing_masters(place: Place) -> list[Address]:
    """Return the addresses of all masters by what is known: of a cluster each, else the one.

    Raises:
        NoMaster: nothing is known.
    """
    if isinstance(place, Cluster):
        return [place.server(master) for master in cluster_of(place).known.masters]
    return [standing(place)]


def standing(place: Place) -> Address:
    """Return the address to connect to by what is known, with the login of `place`. Of a cluster
    that is one of its masters, for what all of them answer alike.

    Raises:
        NoMaster: nothing is known.
    """
    if isinstance(place, Address):
        return place
    if isinstance(place, Cluster):
        return any_master(place)
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
    if isinstance(place, Cluster):
        await look(place)
    elif isinstance(place, Service) and not master_of(place).fresh:
        async with Lookout(place) as lookout:
            await lookout.look()
    return standing(place)


def failovers_of(place: Place) -> str:
    """Return what tells lives of a server apart beside its run id: a server may be the master, a
    replica, and the master again, and have lost keys in between.
    """
    if not isinstance(place, Service):
        return ""
    believed = master_of(place).believed
    return f"@{believed.config_epoch}" if believed is not None else "@?"


class Lookout:
    """Asks the Sentinels and the server that they name, over connections that it keeps."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sentinels = Sentinels(service)
        self._servers = Inquiry(service.service)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        self._servers.hang_up()
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
                return role_report(*await self._servers.ask(address, _ROLE))
        except (OSError, TimeoutError, ValueError) as exc:
            self._servers.hang_up()
            return str(exc) or type(exc).__name__
