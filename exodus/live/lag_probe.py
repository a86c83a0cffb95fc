"""The lag that an application sees: a write through a gateway, waited for at the follower.

The lanes measure from the journal entry. This measures from the answer to a write, so it includes
the gateway's journalling and the feed. The syncer that holds the key's partition does it once a
second, never while writes are held.

The write is a DEL of a key that the authority does not have. It changes nothing, so no application
hears of it, and it is journalled as any other. Before it, the key is put on the follower, where
live sync removes it. A replica takes no writes. With native replication the key is written at the
authority, in its highest empty database.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from exodus.control.changes import partition_of
from exodus.control.route import Route
from exodus.errors import ExodusError
from exodus.net.leg import Leg, ReplyError, close_all
from exodus.plan.bounds import (
    LAG_PROBE_EVERY_S,
    LAG_PROBE_GIVEN_UP_S,
    LAG_PROBE_KEPT,
    LAG_PROBE_KEY_MS,
    LAG_PROBE_POLL_S,
)
from exodus.plan.plan import Plan
from exodus.topology.applications import connect_as_application
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import empty_database


class LagProbe:
    """Measures until it is cancelled; `lag_ms` has the last two minutes."""

    def __init__(self, plan: Plan, route: Route, mine: Callable[[int], bool]) -> None:
        """`mine` says whether this process has a partition now, and may write."""
        self._plan = plan
        self._route = route
        self._mine = mine
        self._key = f"{plan.rehearsal_prefix}lag-probe".encode()
        self._db = 0
        self.lag_ms: deque[float] = deque(maxlen=LAG_PROBE_KEPT)
        self.misses = 0  # not seen for 5 s, which then counts as its lag
        self.why = ""

    def percentile(self, share: float) -> float:
        """Return the lag in ms that this share of measurements did not exceed; 0 without any."""
        return percentile(self.lag_ms, share)

    async def run(self) -> None:
        """Measure again and again; failures are said in `why`."""
        while True:
            await asyncio.sleep(LAG_PROBE_EVERY_S)
            if not self._mine(partition_of(self._db, self._key, self._plan.partitions)):
                continue
            try:
                await self._measure_on_connections()
            except (ExodusError, ReplyError, OSError, TimeoutError) as exc:
                self.why = (
                    f"{exc.what}: {exc.why}"
                    if isinstance(exc, ExodusError)
                    else f"{type(exc).__name__}: {exc}"
                )

    async def _measure_on_connections(self) -> None:
        """Measure as long as the connections and the partition last."""
        authority = self._route.authority
        writer: Leg | None = None
        reader: Leg | None = None
        try:
            writer = await connect_as_application(self._plan, authority, name="exodus-lag")
            reader = await Endpoint(authority.other, self._plan.address(authority.other)).leg_for(
                self._key, name="exodus-lag"
            )
            if self._route.native:
                self._db = await empty_database(Endpoint(authority, self._plan.address(authority)))
                for leg in (writer, reader):
                    await leg.select(self._db)
            while self._mine(partition_of(self._db, self._key, self._plan.partitions)):
                await self._measure(writer, reader)
                self.why = ""
                await asyncio.sleep(LAG_PROBE_EVERY_S)
        finally:
            await close_all((writer, reader))

    async def _measure(self, writer: Leg, reader: Leg) -> None:
        if self._route.native:
            await writer.call("SET", self._key, "1", "PX", LAG_PROBE_KEY_MS)
        else:
            await reader.call("SET", self._key, "1", "PX", LAG_PROBE_KEY_MS)
            try:
                await writer.call("DEL", self._key)
            except (ExodusError, ReplyError):
                await reader.call("UNLINK", self._key)  # nobody else will
                raise
        began = time.monotonic()
        while await reader.call("EXISTS", self._key) != self._route.native:
            if time.monotonic() - began > LAG_PROBE_GIVEN_UP_S:
                self.misses += 1
                break
            await asyncio.sleep(LAG_PROBE_POLL_S)
        self.lag_ms.append((time.monotonic() - began) * 1000)
        if self._route.native:
            await writer.call("DEL", self._key)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them do not exceed; 0 of
    none.
    """
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
