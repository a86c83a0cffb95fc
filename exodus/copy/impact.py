"""The impact budget: how much load Exodus may add to a server. It is measured all the time and kept
by slowing down.

Bulk readers (backfill, verification) ask for a turn before each batch, and Compare before each
request that it tries. Compare keeps the budget on both sides. A PING every
IMPACT_PROBE_EVERY_S shows what other clients feel. INFO shows the CPU share of the server. Over the
budget the pause before a turn doubles, under it the pause shrinks. Several processes settle without
talking to each other, since all see the same server. The control store shows each process's use and
its reason; the budget can be changed there.

The CPU share is what Exodus adds to the applications' load. So where a share is bounded, all bulk
readers rest together for IMPACT_REST_MS of every IMPACT_REST_EVERY_MS, and measure the server
without them.

The follower's own replicas receive every write. A replica far behind fills the follower's output
buffer, is dropped at its limit, and starts again from nothing. So bulk writers wait until it has
caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from exodus.cancellation import end_all
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.client import answered
from exodus.net.info import info_of
from exodus.net.leg import Leg, close_all
from exodus.plan.bounds import (
    IMPACT_BASELINE_PROBES,
    IMPACT_FIRST_S,
    IMPACT_FRESH_MS,
    IMPACT_LOOK_EVERY_S,
    IMPACT_PAUSE_S_MAX,
    IMPACT_PAUSE_S_MIN,
    IMPACT_PROBE_EVERY_S,
    IMPACT_REST_EVERY_MS,
    IMPACT_REST_MS,
    IMPACT_SETTLE_MS,
    IMPACT_TOLD_S,
    IMPACT_WINDOW_PROBES,
)
from exodus.plan.settings import Budget
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node

log = logging.getLogger(__name__)
Turn = Callable[[], Awaitable[None]]  # waited for before each batch or piece
_REPLICA = re.compile(r"slave\d+")


class PaceReport(BaseModel):
    """What one process spends, and why it is as slow as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_ms: int
    what: str
    server: str = ""  # side and address of what was measured
    pause_ms: float
    why: str
    probe_ms_p99: float
    probe_ms_baseline: float
    server_cpu_share: float  # of one core, all of it
    applications_cpu_share: float | None = None  # of it without Exodus; None: it was not measured
    replica_behind_bytes: int = 0  # of the follower's own replicas, the one that is furthest behind


class Governor:
    """From measurements to a pause. No I/O, no clock."""

    def __init__(self, baseline_ms: float) -> None:
        self.baseline_ms = baseline_ms
        self.pause_s = 0.0
        self.why = ""
        self.waits = ""  # for what, where nothing may be done at all

    def look(
        self,
        budget: Budget,
        probe_ms_p99: float,
        cpu_share: float,
        replica_behind_bytes: int = 0,
        applications_share: float | None = None,
    ) -> None:
        """Take one look's figures; slower at once where one is over the budget, faster by a fifth
        where none is.
        """
        behind_mb, most_mb = replica_behind_bytes / 1e6, budget.replica_behind_mb_max
        self.waits = ""
        if most_mb is not None and behind_mb > most_mb:
            self.waits = (
                f"waits: a replica of the follower is {behind_mb:.1f} MB behind, "
                f"{most_mb:g} MB are allowed"
            )
        added_ms = probe_ms_p99 - self.baseline_ms
        over: list[str] = []
        if budget.probe_ms_added_max is not None and added_ms > budget.probe_ms_added_max:
            over.append(
                f"the probe's p99 is {added_ms:.2f} ms above what it was, "
                f"{budget.probe_ms_added_max} ms are allowed"
            )
        others = applications_share or 0.0
        added = max(0.0, cpu_share - others)
        if budget.cpu_share_max is not None and added > budget.cpu_share_max:
            over.append(
                f"Exodus adds {added * 100:.0f} % of a core, {budget.cpu_share_max * 100:.0f} % "
                f"are allowed (without it: {others * 100:.0f} %)"
            )
        if over:
            self.pause_s = min(max(self.pause_s * 2, IMPACT_PAUSE_S_MIN), IMPACT_PAUSE_S_MAX)
            self.why = "throttled: " + "; ".join(over)
        else:
            self.pause_s = self.pause_s * 0.8 if self.pause_s > IMPACT_PAUSE_S_MIN else 0.0
            self.why = "" if not self.pause_s else "within the budget again, speeding up"


class Pace:
    """Use as a context manager around bulk reads; `turn` before each batch."""

    def __init__(
        self,
        store: ControlStore,
        node: Node,
        budget: Budget,
        *,
        what: str,
        follower: Endpoint | None = None,
    ) -> None:
        """Keep the budget on one node. With a `follower`, its replicas have to keep up with the
        writes.
        """
        self._store = store
        self._node = node
        self._server = f"{node.side} {node.where}"
        self._budget = budget
        self._what = what
        self._governor = Governor(0.0)
        self._probes: deque[float] = deque(maxlen=IMPACT_WINDOW_PROBES)
        self._cpu: tuple[float, float] | None = None
        self._cpu_share = 0.0
        self._leg: Leg | None = None
        self._follower = follower
        self._follower_legs: list[Leg] = []  # to each of its nodes, from the first look on
        self._task: asyncio.Task[None] | None = None
        self._now = budget
        self._offset_ms = 0.0  # of the store's clock to ours
        self._applications: float | None = None  # their share of a core
        self._rest: tuple[float, float] | None = (
            None  # processor time and moment at a rest's beginning
        )
        self._resting = False
        self._told = ""
        self.turns_delayed = 0

    @property
    def why(self) -> str:
        """Return why it is slow, or empty."""
        return self._governor.waits or self._governor.why

    @property
    def applications(self) -> float | None:
        """Return the share of a core that the server uses without Exodus, as last measured."""
        return self._applications

    async def __aenter__(self) -> Self:
        leg = self._leg = await self._node.connect(name="exodus-pace")
        try:
            for _ in range(IMPACT_BASELINE_PROBES):
                self._probes.append(await _probe(leg))
            self._governor = Governor(self._p99())
            await self._begin(leg)
        except BaseException:
            await leg.close()
            raise
        self._task = asyncio.create_task(self._watch(leg))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._leg is not None:
            self._leg.end()  # before anything is waited for: a cancellation meanwhile leaves none
        try:
            await end_all([self._task])
        finally:
            await close_all((self._leg, *self._follower_legs))
        with contextlib.suppress(RedisError, OSError):  # a report that stays says when it was made
            await answered(self._store.client.hdel(self._store.keys.pace, self._what))

    async def turn(self) -> None:
        """Wait as long as the budget asks."""
        self._measured()
        while self._governor.waits or self._resting:
            await asyncio.sleep(IMPACT_PROBE_EVERY_S)
            self._measured()
        if self._governor.pause_s:
            self.turns_delayed += 1
            await asyncio.sleep(self._governor.pause_s)

    def _measured(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()  # it only ends by failing: nobody goes on without being measured

    def _p99(self) -> float:
        ordered = sorted(self._probes)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    async def _watch(self, leg: Leg) -> None:
        looked = 0.0
        while True:
            await asyncio.sleep(IMPACT_PROBE_EVERY_S)
            self._probes.append(await _probe(leg))
            await self._rest_in_time(leg)
            if not self._resting and time.monotonic() - looked >= IMPACT_LOOK_EVERY_S:
                looked = time.monotonic()
                await self._look(leg)

    async def _begin(self, leg: Leg) -> None:
        """Know the store's clock, and what the applications use, before the first turn."""
        self._now = await read_budget(self._store) or self._budget
        store_ms = await self._store.now_ms()
        self._offset_ms = store_ms - time.monotonic() * 1000
        if self._now.cpu_share_max is None:
            return
        for other in await read_paces(self._store):
            if (
                other.server == self._server
                and other.applications_cpu_share is not None
                and store_ms - other.at_ms < IMPACT_FRESH_MS
            ):
                # It is at work, and would be measured with them
                self._applications = other.applications_cpu_share
                return
        before = await _cpu(leg)
        await asyncio.sleep(IMPACT_FIRST_S)
        self._applications = _share(before, await _cpu(leg))

    async def _rest_in_time(self, leg: Leg) -> None:
        at_ms = (time.monotonic() * 1000 + self._offset_ms) % IMPACT_REST_EVERY_MS
        resting = self._now.cpu_share_max is not None and at_ms < IMPACT_REST_MS
        if resting and self._rest is None and at_ms >= IMPACT_SETTLE_MS:
            self._rest = await _cpu(leg)
        if not resting and self._rest is not None:
            self._applications = _share(self._rest, await _cpu(leg))
            self._rest = self._cpu = (
                None  # the next look begins anew: a rest is no measure of Exodus's own share
            )
        self._resting = resting

    async def _look(self, leg: Leg) -> None:
        now = await _cpu(leg)
        if self._cpu is not None:
            self._cpu_share = _share(self._cpu, now)
        self._cpu = now
        self._now = budget = await read_budget(self._store) or self._budget
        behind = await self._replica_behind_bytes()
        self._governor.look(budget, self._p99(), self._cpu_share, behind, self._applications)
        self._tell()
        report = PaceReport(
            at_ms=await self._store.now_ms(),
            what=self._what,
            server=self._server,
            pause_ms=round(self._governor.pause_s * 1000, 2),
            why=self.why,
            probe_ms_p99=round(self._p99(), 3),
            probe_ms_baseline=round(self._governor.baseline_ms, 3),
            server_cpu_share=round(self._cpu_share, 3),
            replica_behind_bytes=behind,
            applications_cpu_share=None
            if self._applications is None
            else round(self._applications, 3),
        )
        await answered(
            self._store.client.hset(self._store.keys.pace, self._what, report.model_dump_json())
        )

    async def _replica_behind_bytes(self) -> int:
        """Return how far the follower's own replicas are behind, the one that is furthest.

        A slice of few keys ends before the first look, so nothing is connected for it.
        """
        if self._follower is not None and not self._follower_legs:
            for node in await self._follower.each_node():
                if not self._writes_to(node):
                    continue
                self._follower_legs.append(await node.connect(name="exodus-pace"))
        behind = 0
        for leg in self._follower_legs:
            replication = info_of(await leg.call("INFO", "replication"))
            behind = max(behind, _behind_bytes(replication))
        return behind

    def _writes_to(self, node: Node) -> bool:
        """Return whether keys of the node that is read may be written to a node of the follower."""
        read = self._node.shard
        return read is None or node.shard is None or read.meets(node.shard)

    def _tell(self) -> None:
        """Log once that it is slowed or waits, and once that it is not any more; the figures change
        all the time.
        """
        kind = (
            self.why.partition(":")[0]
            if self._governor.pause_s >= IMPACT_TOLD_S or self._governor.waits
            else ""
        )
        if kind != self._told:
            log.info("%s: %s", self._what, self.why if kind else "as fast as it can be again")
            self._told = kind


class Paces:
    """A pace for each node of a side. The slowest node rules: a batch may ask several of them."""

    def __init__(self, store: ControlStore, side: Endpoint, budget: Budget, *, what: str) -> None:
        self._store, self._side = store, side
        self._budget, self._what = budget, what
        self._paces: list[Pace] = []
        self._opened = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        nodes = await self._side.each_node()
        async with contextlib.AsyncExitStack() as opened:
            for node in nodes:
                what = self._what if len(nodes) == 1 else f"{self._what} {node.name}"
                pace = Pace(self._store, node, self._budget, what=what)
                self._paces.append(await opened.enter_async_context(pace))
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened.__aexit__(kind, exc, trace)

    @property
    def why(self) -> str:
        """Return why it is slow, of the first node that is; or empty."""
        return next((pace.why for pace in self._paces if pace.why), "")

    async def turn(self) -> None:
        """Wait as long as the budget of each node asks."""
        for pace in self._paces:
            await pace.turn()


async def _cpu(leg: Leg) -> tuple[float, float]:
    """Return the processor time that a server has used, and the moment, in seconds."""
    info = dict(
        line.split(b":", 1) for line in (await leg.call("INFO", "cpu")).splitlines() if b":" in line
    )
    return float(info[b"used_cpu_user"]) + float(info[b"used_cpu_sys"]), time.monotonic()


def _share(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / (after[1] - before[1])


def _behind_bytes(replication: Mapping[str, str]) -> int:
    """Return how far the last of a server's replicas is behind; one that acknowledges nothing wants
    no data, and is none.

    docs/decisions/0004-change-feeds.md
    """
    replicas = [
        dict(part.split("=", 1) for part in line.split(","))
        for name, line in replication.items()
        if _REPLICA.fullmatch(name)
    ]
    offsets = [int(replica["offset"]) for replica in replicas if replica.get("state") == "online"]
    return max(
        (int(replication["master_repl_offset"]) - offset for offset in offsets if offset), default=0
    )


async def unpaced() -> None:
    """Return the turn of who is not slowed."""


async def _probe(leg: Leg) -> float:
    began = time.perf_counter()
    await leg.call("PING")
    return (time.perf_counter() - began) * 1000


async def read_budget(store: ControlStore) -> Budget | None:
    """Return the budget that was set while running, or None where the plan's holds.

    Raises:
        OperatorError: what stands there is no budget.
    """
    raw = await answered(store.client.get(store.keys.budget))
    return None if raw is None else parse_budget(raw)


def parse_budget(raw: bytes | str) -> Budget:
    """Read a budget from JSON.

    Raises:
        OperatorError: it is none; names the field and the value.
    """
    try:
        return Budget.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "budget"
        raise OperatorError(
            f"{field}: {first['input']!r} {first['msg'].lower()}",
            why="the impact budget was not changed",
            next_step='for example {"probe_ms_added_max": 0.3, "cpu_share_max": 0.2}',
        ) from exc


async def set_budget(store: ControlStore, budget: Budget | None) -> None:
    """Change the budget while everything runs; None goes back to the plan's."""
    if budget is None:
        await answered(store.client.delete(store.keys.budget))
    else:
        await answered(store.client.set(store.keys.budget, budget.model_dump_json()))


async def read_paces(store: ControlStore) -> list[PaceReport]:
    """Return what every process uses of the budget now."""
    raw = await answered(store.client.hgetall(store.keys.pace))
    return [PaceReport.model_validate_json(value) for value in raw.values()]
