"""The lag that an application sees: a write through a gateway, waited for at the follower.

The lanes measure from the journal entry. This measures from the answer to a write, so it includes
the gateway's journalling and the feed. The syncer that holds the key's partition does it once a
second, never while writes are held.

The write is a DEL of a key that the authority does not have. It changes nothing, so no application
hears of it, and it is journalled as any other. Before it, the key is put on the follower, where
live sync removes it. A replica takes no writes. With native replication the key is written at the
authority, in its highest empty database.

Where a side is a cluster, each way from a node of the source to a node of the target has a key of
its own, so that each node is measured at least once. What is shown is the slowest way. A node that
stalls holds up the syncer's batch, so writes to other nodes are late as well. The way whose own
node does not answer is shown first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from exodus.cancellation import end_all
from exodus.commands.key_slots import slot_of
from exodus.commands.slots import tag_of
from exodus.control.changes import partition_of
from exodus.control.route import Route
from exodus.errors import ExodusError
from exodus.net.clusters import cluster_of
from exodus.net.leg import Leg, ReplyError, close_all
from exodus.plan.address import Cluster
from exodus.plan.bounds import (
    LAG_PROBE_EVERY_S,
    LAG_PROBE_GIVEN_UP_S,
    LAG_PROBE_KEPT,
    LAG_PROBE_KEY_MS,
    LAG_PROBE_POLL_S,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.applications import connect_as_application
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import empty_database

_T = TypeVar("_T")
_TAG = b"lag"
MISSED = f"a write was not there after {LAG_PROBE_GIVEN_UP_S:g} s"
UNANSWERED = f"a write got no answer for {LAG_PROBE_GIVEN_UP_S:g} s"


class LagProbe:
    """Measures until it is cancelled; `spots` have the last two minutes."""

    def __init__(self, plan: Plan, route: Route, mine: Callable[[int], bool]) -> None:
        """`mine` says whether this process has a partition now, and may write."""
        self._plan = plan
        self._route = route
        self._mine = mine
        self.spots: dict[str, Spot] = {}  # by way (`probe_keys`)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Measure again and again; failures are said in `why`."""
        try:
            while True:
                await self._follow()
                await asyncio.sleep(LAG_PROBE_EVERY_S)
        finally:
            await end_all(self._running.values())
            self._running = {}

    async def _follow(self) -> None:
        """Measure the ways of now, each by a task of its own: a node that stalls delays no other.

        Raises:
            Exception: as a measurement did, for a reason that is not a server's.
        """
        before = {name: spot.key for name, spot in self.spots.items()}
        keys = probe_keys(self._plan, before)
        changed = [name for name, key in before.items() if keys.get(name) != key]
        await end_all([self._running.pop(name, None) for name in changed])
        for name in changed:
            del self.spots[name]
        for name, key in keys.items():
            running = self._running.get(name)
            if running is not None and running.done():
                running.result()
            if running is None:
                spot = self.spots.setdefault(
                    name, Spot(self._plan, self._route, name, key, self._mine)
                )
                self._running[name] = asyncio.create_task(spot.run())

    @property
    def slowest(self) -> Spot | None:
        """Return the way with the highest lag; None where nothing was measured yet."""
        known = [spot for spot in self.spots.values() if spot.lag_ms or spot.why]
        return max(
            known,
            key=lambda spot: (spot.percentile(0.99), spot.why not in ("", MISSED), bool(spot.why)),
            default=None,
        )

    @property
    def misses(self) -> int:
        """Return how many writes were not seen in time; each counts as that time."""
        return sum(spot.misses for spot in self.spots.values())

    @property
    def why(self) -> str:
        """Return why nothing is measured, or on which way no write comes; empty: all is well."""
        found = {spot.name: spot.why for spot in self.spots.values() if spot.why}
        return "; ".join(f"{name}: {why}" if name else why for name, why in found.items())


class Spot:
    """Measures one way until it is cancelled."""

    def __init__(
        self, plan: Plan, route: Route, name: str, key: bytes, mine: Callable[[int], bool]
    ) -> None:
        self.name = name
        self.key = key
        self.lag_ms: deque[float] = deque(maxlen=LAG_PROBE_KEPT)
        self.misses = 0  # not seen for 5 s, which then counts as its lag
        self.why = ""
        self._asked: tuple[Side, float] | None = None  # whose answer it waits for, since when
        self._plan = plan
        self._route = route
        self._mine = mine
        self._db = 0

    def percentile(self, share: float) -> float:
        """Return the lag in ms that this share of measurements did not exceed; 0 without any."""
        return percentile(self.lag_ms, share)

    async def run(self) -> None:
        """Measure again and again; failures are said in `why`."""
        while True:
            await asyncio.sleep(LAG_PROBE_EVERY_S)
            if not self._is_mine:
                continue
            try:
                await self._measure_on_connections()
            except TimeoutError:
                self.misses += 1
                self.lag_ms.append(LAG_PROBE_GIVEN_UP_S * 1000)
                self.why = self._missed
            except (ExodusError, ReplyError, OSError) as exc:
                self.why = (
                    f"{exc.what}: {exc.why}"
                    if isinstance(exc, ExodusError)
                    else f"{type(exc).__name__}: {exc}"
                )

    @property
    def _missed(self) -> str:
        """Return why a write was not seen in time. If one answer took most of that time, that is
        why.
        """
        if self._asked is None or time.monotonic() - self._asked[1] < LAG_PROBE_GIVEN_UP_S / 2:
            return MISSED
        return UNANSWERED if self._asked[0] is self._route.authority else silent(self._asked[0])

    async def _answer(self, side: Side, asked: Awaitable[_T]) -> _T:
        self._asked = (side, time.monotonic())
        answer = await asked
        self._asked = None
        return answer

    @property
    def _is_mine(self) -> bool:
        return self._mine(partition_of(self._db, self.key, self._plan.partitions))

    async def _measure_on_connections(self) -> None:
        """Measure as long as the connections and the partition last.

        Raises:
            TimeoutError: a write was not on the follower in time. The connections are ended.
        """
        authority, follower = self._route.authority, self._route.follower
        self._asked = None
        writer: Leg | None = None
        reader: Leg | None = None
        try:
            async with asyncio.timeout(LAG_PROBE_GIVEN_UP_S):
                writer = await self._answer(
                    authority,
                    connect_as_application(self._plan, authority, name="exodus-lag", key=self.key),
                )
                to = Endpoint(follower, self._plan.address(follower))
                reader = await self._answer(follower, to.leg_for(self.key, name="exodus-lag"))
                if self._route.native:
                    self._db = await empty_database(
                        Endpoint(authority, self._plan.address(authority))
                    )
                    for leg in (writer, reader):
                        await leg.select(self._db)
            while self._is_mine:
                async with asyncio.timeout(LAG_PROBE_GIVEN_UP_S):
                    await self._measure(writer, reader)
                self.why = ""
                await asyncio.sleep(LAG_PROBE_EVERY_S)
        finally:
            await close_all((writer, reader))

    async def _measure(self, writer: Leg, reader: Leg) -> None:
        async def write(*words: Any) -> Any:
            return await self._answer(self._route.authority, writer.call(*words))

        async def at_follower(*words: Any) -> Any:
            return await self._answer(self._route.follower, reader.call(*words))

        if self._route.native:
            await write("SET", self.key, "1", "PX", LAG_PROBE_KEY_MS)
        else:
            await at_follower("SET", self.key, "1", "PX", LAG_PROBE_KEY_MS)
            try:
                await write("DEL", self.key)
            except (ExodusError, ReplyError):
                await at_follower("UNLINK", self.key)  # nobody else will
                raise
        began = time.monotonic()
        while await at_follower("EXISTS", self.key) != self._route.native:
            await asyncio.sleep(LAG_PROBE_POLL_S)
        self.lag_ms.append((time.monotonic() - began) * 1000)
        if self._route.native:
            await write("DEL", self.key)


def silent(follower: Side) -> str:
    """Return the message about a follower's node that did not answer."""
    return f"the {follower} did not answer for {LAG_PROBE_GIVEN_UP_S:g} s"


def probe_keys(plan: Plan, before: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the keys that are written, by the way that each takes: from which node of the source
    to which of the target. Each master of a cluster is in at least one. Between two servers there
    is one way, without a name.

    Args:
        plan: the two sides.
        before: the keys so far. A way keeps its key as long as the key takes it.
    """
    prefix = f"{plan.rehearsal_prefix}lag-probe".encode()
    places = {side: plan.address(side) for side in Side}
    views = {
        side: cluster_of(place).view for side, place in places.items() if isinstance(place, Cluster)
    }
    if not views:
        return {"": prefix}

    def way(slot: int) -> str:
        ends = []
        for side in Side:
            view = views.get(side)
            shard = view.owner(slot) if view is not None else None
            ends.append(f"{side} {shard.master}" if shard is not None else str(side))
        return " to ".join(ends)

    found: dict[str, bytes] = {}
    for view in views.values():
        for shard in view.shards if view is not None else ():
            slot = shard.ranges[0][0]
            name, key = way(slot), b"%b:{%b}" % (prefix, tag_of(_TAG, slot))
            kept = before.get(name, key)
            found[name] = kept if way(slot_of(kept)) == name else key
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them do not exceed; 0 of
    none.
    """
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
