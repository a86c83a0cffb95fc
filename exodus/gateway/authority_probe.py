"""The authority probe: whether the authority answers, and whether it requires a login.

The probe uses a connection of its own, without a login.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from exodus.control.heartbeats import LatencyFacts
from exodus.gateway.orders import Orders
from exodus.gateway.tls import TlsContexts
from exodus.net.connect import open_streams
from exodus.net.masters import standing, standing_masters
from exodus.plan.address import Address
from exodus.plan.bounds import AUTHORITY_PROBE_PINGS, AUTHORITY_PROBE_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)
_BUSY = (b"LOADING", b"MASTERDOWN", b"BUSY", b"ERR")
NOT_ASKED = "the authority was not asked yet"


class AuthorityProbe:
    """Probes the authority of the applications' sessions."""

    def __init__(self, plan: Plan, tls: TlsContexts, orders: Orders) -> None:
        self._plan = plan
        self._tls = tls
        self._orders = orders
        self._requires_login: dict[Side, bool] = {}  # of a side that may become the authority
        self.latency = LatencyFacts()
        self.why = NOT_ASKED  # the authority does not serve; empty when it does

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            side = self._orders.authority
            try:
                async with asyncio.timeout(AUTHORITY_PROBE_S):
                    reader, writer = await self._connect(side)
            except (OSError, TimeoutError) as exc:
                self.why = f"the {side} takes no connection: {str(exc) or type(exc).__name__}"
                self._orders.login_needed = False  # unknown
                await asyncio.sleep(AUTHORITY_PROBE_S)
                continue
            try:
                await self._watch(side, reader, writer)
            except (OSError, TimeoutError, ValueError) as exc:
                self.why = f"the {side} does not answer: {type(exc).__name__}"
            finally:
                writer.close()

    async def _watch(
        self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        address = standing(self._plan.address(side))
        while side is self._orders.authority and address == standing(self._plan.address(side)):
            writer.write(b"PING\r\n")
            async with asyncio.timeout(AUTHORITY_PROBE_S):
                line = await reader.readline()
            if not line:
                return
            failed = line[:1] == b"-"
            code = line[1:].split(b" ", 1)[0].strip()
            self._orders.login_needed = failed and code == b"NOAUTH"
            busy = failed and code in _BUSY
            self.why = f"the {side} answers {code.decode('ascii', 'replace')}" if busy else ""
            await asyncio.sleep(AUTHORITY_PROBE_S)

    async def _connect(self, side: Side) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await open_streams(standing(self._plan.address(side)), self._tls.side(side))

    async def foresee(self, side: Side) -> None:
        """Ask a side that may soon be the authority whether it requires a login.

        With that known from the start, requests of strangers open no gap there. The connection is
        closed at once, since the side counts its connections.
        """
        self._requires_login.pop(side, None)
        try:
            async with asyncio.timeout(AUTHORITY_PROBE_S):
                reader, writer = await self._connect(side)
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    reply = await reader.readline()
                    self._requires_login[side] = reply.startswith(b"-NOAUTH ")
        except (OSError, TimeoutError, ValueError) as exc:
            why = str(exc) or type(exc).__name__
            log.info("whether the %s requires a login is unknown: %s", side, why)

    async def measure(self, asked_ms: int) -> None:
        """Measure how long each side takes to answer a PING here; of a cluster, each master."""
        found = LatencyFacts(asked_ms=asked_ms)
        for side in Side:
            try:
                masters = standing_masters(self._plan.address(side))
                pings = {master.place: await self._pings(side, master) for master in masters}
            except (OSError, TimeoutError, ValueError) as exc:
                found.failed = f"the {side} does not answer: {str(exc) or type(exc).__name__}"
                break
            slowest = max(pings, key=lambda place: pings[place][len(pings[place]) // 2])
            took = pings[slowest]
            found.ping_ms_p50[side] = took[len(took) // 2]
            found.ping_ms_p99[side] = took[-1 - len(took) // 100]
            found.slowest[side], found.masters[side] = slowest, len(pings)
        self.latency = found

    async def _pings(self, side: Side, master: Address) -> list[float]:
        """Return the round trips in ms, the shortest first.

        Raises:
            OSError, ValueError: the master does not answer; the text names it.
        """
        took = []
        try:
            async with asyncio.timeout(AUTHORITY_PROBE_S * AUTHORITY_PROBE_PINGS):
                reader, writer = await open_streams(master, self._tls.side(side))
                with contextlib.closing(writer):
                    for _ in range(AUTHORITY_PROBE_PINGS):
                        began = time.perf_counter()
                        writer.write(b"PING\r\n")
                        async with asyncio.timeout(AUTHORITY_PROBE_S):
                            if not await reader.readline():
                                raise ConnectionResetError("it closed the connection")
                        took.append(round((time.perf_counter() - began) * 1000, 3))
        except (OSError, TimeoutError) as exc:
            raise OSError(f"{master.place}: {str(exc) or type(exc).__name__}") from exc
        return sorted(took)

    def requires_login(self, side: Side) -> bool:
        """Tell whether a side is known to require a login."""
        return self._requires_login.get(side, False)
