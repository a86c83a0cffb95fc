"""The lag that an application sees: a key is written through a gateway, as an application would, and waited for at the follower.

What the lanes measure begins with a journal entry. This begins with the answer to a write, so it has the gateway's journalling and the feed in it.
One syncer does it, the one that holds the key's partition, once a second and never while writes are held. The key is removed each time, and where
that could not be done it expires.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

from exodus.config import Plan
from exodus.control.changes import partition_of
from exodus.control.route import Route
from exodus.endpoint import Endpoint, connect_as_application
from exodus.errors import ExodusError
from exodus.leg import Leg, ReplyError, close_all

_EVERY_S = 1.0
_POLL_S = 0.002
_GIVEN_UP_S = 5.0
_KEY_MS = 10_000
_KEPT = 120  # measurements: two minutes


class LagProbe:
    """Measures until it is cancelled; `lag_ms` has the last two minutes."""

    def __init__(self, plan: Plan, route: Route, mine: Callable[[int], bool]) -> None:
        """`mine` says whether this process has a partition now, and may write."""
        self._plan = plan
        self._route = route
        self._mine = mine
        self._key = f"{plan.rehearsal_prefix}lag-probe".encode()
        self.lag_ms: deque[float] = deque(maxlen=_KEPT)
        self.misses = 0  # not seen for 5 s, which then counts as its lag
        self.why = ""

    def percentile(self, share: float) -> float:
        """The lag that this share of the measurements did not exceed, in ms; 0 where there is none."""
        return percentile(self.lag_ms, share)

    async def run(self) -> None:
        """Measure again and again; failures are said in `why`."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._mine(partition_of(0, self._key, self._plan.partitions)):
                continue
            try:
                await self._measure_on_connections()
            except (ExodusError, ReplyError, OSError, TimeoutError) as exc:
                self.why = f"{exc.what}: {exc.why}" if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"

    async def _measure_on_connections(self) -> None:
        """Measure as long as the connections and the partition last."""
        authority = self._route.authority
        writer: Leg | None = None
        reader: Leg | None = None
        try:
            writer = await connect_as_application(self._plan, authority, name="exodus-lag")
            reader = await (await Endpoint(authority.other, self._plan.address(authority.other)).nodes())[0].connect(name="exodus-lag")
            while self._mine(partition_of(0, self._key, self._plan.partitions)):
                await self._measure(writer, reader)
                self.why = ""
                await asyncio.sleep(_EVERY_S)
        finally:
            await close_all((writer, reader))

    async def _measure(self, writer: Leg, reader: Leg) -> None:
        token = secrets.token_hex(8).encode()
        await writer.call("SET", self._key, token, "PX", _KEY_MS)
        began = time.monotonic()
        while await reader.call("GET", self._key) != token:
            if time.monotonic() - began > _GIVEN_UP_S:
                self.misses += 1
                break
            await asyncio.sleep(_POLL_S)
        self.lag_ms.append((time.monotonic() - began) * 1000)
        await writer.call("DEL", self._key)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that at least this share of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
