"""The syncer: the process of live sync. It follows the route, and runs the lanes (`lanes.py`) while
the route asks for them.

It also follows the route's direction, so reverse sync after a cutover is the same code with the
sides swapped. It waits out failures of any server and skips nothing: a key that fails to copy is a
dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

from exodus import gc_tuning
from exodus.cancellation import end_all
from exodus.control import journal
from exodus.control.heartbeats import ProcessKind, ProcessState, SyncerFacts, SyncerHeartbeat
from exodus.control.process import STORE_ERRORS, RouteProcess
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.copy.guard import has_write_grant
from exodus.engine import open_engine
from exodus.errors import EpochEnded, ExodusError, LeaseEnded, OperatorError
from exodus.feeds.feed import reader_of
from exodus.feeds.reader import FeedReader
from exodus.live.lag_probe import LagProbe
from exodus.live.lanes import LaneCounts, Lanes
from exodus.live.server_runs import regain
from exodus.native.replica import Attachment, check_filled
from exodus.net.leg import ReplyError
from exodus.plan.bounds import SYNCER_BACKOFF_S, SYNCER_BEHIND_MS, SYNCER_TIDY_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import WAITS
from exodus.topology.endpoint import Endpoint
from exodus.topology.watch import TopologyWatch

log = logging.getLogger(__name__)


# What each counter of `LaneCounts` counts, for Prometheus.
COUNTED = {
    "copied": "keys copied",
    "removed": "keys removed from the follower",
    "payload_bytes": "bytes of copied payloads",
    "failed": "failed copies of keys",
    "coalesced": "marks of keys that were already in the batch",
    "marked_by_barriers": "keys marked after a flush, SWAPDB or a gap of the feed",
    "retries": "new starts of live sync after an error",
    "keys_in": "marks of keys read from the journal",
    "unsettled": "large keys that changed during their copy and were marked again",
    "excluded": "writes of filtered keys",
}


class Syncer(RouteProcess):
    """The process: it follows the route, takes leases, and runs lanes."""

    kind = ProcessKind.SYNCER

    def __init__(self, store: ControlStore, plan: Plan, process: str) -> None:
        super().__init__(store, process, log)
        self.tally = LaneCounts()
        self._plan = plan
        self._topology = TopologyWatch(plan, store, self._failed_over)
        self._lanes: Lanes | None = None
        self._work: asyncio.Task[None] | None = None
        self._stream: FeedReader | None = None
        self._streaming: asyncio.Task[None] | None = None
        self._attachment: Attachment | None = None  # native replication
        self._attaching: asyncio.Task[None] | None = None
        self._probe: LagProbe | None = None
        self._probing: asyncio.Task[None] | None = None
        self._lag_entries = 0
        self._oldest_ms = 0
        self._rates = _Rates()

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (self._topology.run(),)

    def _failed_over(self, side: Side) -> None:
        log.warning("failover of the %s: both sides are compared", side)
        if self._lanes is not None:
            self._lanes.look_now()

    async def _follow(self, route: Route) -> None:
        before = self._route
        if route.epoch == before.epoch:
            return
        if before.sync and not route.sync:
            # The follower's guard has ended our write grant already. Only the tidying up is left.
            await asyncio.sleep(SYNCER_TIDY_S)
            newer = await self._read_route()
            if newer is None:
                return
            route = newer
        same = all(
            getattr(route, what) == getattr(before, what)
            for what in ("sync", "authority", "writer_epoch", "native", "feed")
        )
        if not same:
            await self._stop_work()
            if route.sync:
                self._work = self._tasks.keep_running(partial(self._keep_syncing, route))
                if route.native:
                    self._attachment = Attachment(self._store, self._plan, route)
                    self._attaching = self._tasks.keep_running(self._attachment.run)
                authority = Endpoint(route.authority, self._plan.address(route.authority))
                self._stream = reader_of(
                    self._store, route.feed, self._plan.partitions, authority, self.process
                )
                if self._stream is not None:
                    self._streaming = self._tasks.keep_running(self._stream.run)
        elif self._lanes is not None:
            self._lanes.hurry.set() if route.hold is Hold.WRITES else self._lanes.hurry.clear()
        self._route = route
        await self._probe_or_not()
        self._beat_now.set()

    async def _stop_work(self) -> None:
        await end_all((self._work, self._streaming, self._attaching, self._probing))
        self._work = self._streaming = self._stream = self._attaching = self._attachment = (
            self._probing
        ) = self._probe = None
        self._why = ""  # of work that has ended

    async def _probe_or_not(self) -> None:
        """Measure the lag through a gateway, unless writes are held or the probe's key is a
        rehearsal's. Ended, so that a switch finds no session of ours.
        """
        route = self._route
        calm = (
            self._plan.has_gateways
            and route.sync
            and route.hold is Hold.NONE
            and route.rehearsal_prefix is None
        )
        if not calm:
            await end_all((self._probing,))
            self._probing = None
        elif self._probing is None:
            self._probe = self._probe or LagProbe(
                self._plan,
                route,
                lambda partition: self._lanes is not None and partition in self._lanes.partitions,
            )
            self._probing = self._tasks.keep_running(self._probe.run)

    async def _keep_syncing(self, route: Route) -> None:
        """Run lanes, again and again, until another route comes (`_follow` then ends this).

        A right that is not there may come: where a switch is given up, the route that gives it is
        out before the follower is told.
        """
        follower, has_it = Endpoint(route.follower, self._plan.address(route.follower)), True
        while True:
            lanes: Lanes | None = None
            try:
                if not has_it:
                    waits_for = "" if route.native else await regain(self._store, self._plan, route)
                    if waits_for or not await has_write_grant(
                        follower, self._plan.name, route.writer_epoch
                    ):
                        self._why = waits_for or self._why
                        await asyncio.sleep(SYNCER_BACKOFF_S)
                        continue
                has_it = True
                if route.native:
                    await check_filled(self._plan)
                lanes = self._lanes = Lanes(
                    await open_engine(self._store, self._plan, route), self.process, self.tally
                )
                self._why = ""
                self._states.away("live sync", "", verbs=WAITS)
                await lanes.run()
            except LeaseEnded as exc:
                # The right to the follower is still ours: a server that stood still for longer than
                # a lease must not end live sync for good.
                self._why = exc.why
                await asyncio.sleep(SYNCER_BACKOFF_S)
            except EpochEnded as exc:
                self._why, has_it = exc.why, False
            except OperatorError as exc:
                self._why = exc.what
                self.tally.counts["retries"] += 1
                await asyncio.sleep(4 * SYNCER_BACKOFF_S)
            except (ExodusError, ReplyError, *STORE_ERRORS) as exc:
                self._why = (
                    exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                )
                self.tally.counts["retries"] += 1
                self._states.away("live sync", self._why, verbs=WAITS)
                await asyncio.sleep(SYNCER_BACKOFF_S)
            finally:
                self._lanes = None
                if lanes is not None:
                    # The leases then end by their own time
                    with contextlib.suppress(*STORE_ERRORS):
                        await lanes.give_back()

    async def _measure(self, now_ms: int, *, asked: bool) -> None:
        if not self._route.sync or (asked and self._route.hold is Hold.WRITES):
            return  # under a hold, writes wait for the keys that are synced now
        await self._measure_lag(now_ms)

    async def _measure_lag(self, now_ms: int) -> None:
        self._lag_entries = await journal.lag_entries(
            self._store, self._plan.partitions, at_most=1_000
        )
        self._oldest_ms = await journal.oldest_ms(self._store, self._plan.partitions, now_ms)
        self._rates.look(self.tally, self._oldest_ms)
        if self._oldest_ms > SYNCER_BEHIND_MS and not self._why and not self.converges:
            self._why = (
                f"does not converge: {self._oldest_ms} ms behind and growing, while "
                f"{self._rates.synced_per_s:.0f} keys/s are copied; "
                "start more syncers, or wait for a quieter hour"
            )
        elif self._why.startswith("does not converge") and self.converges:
            self._why = ""

    @property
    def converges(self) -> bool:
        """Return whether live sync keeps up: its oldest entry is young, or younger than before."""
        return self._oldest_ms <= SYNCER_BEHIND_MS or self._oldest_ms < self._rates.oldest_ms_before

    def heartbeat(self, at_ms: int) -> SyncerHeartbeat:
        """Return what this process reports of itself."""
        lag = self._rates
        return SyncerHeartbeat(
            process=self.process,
            at_ms=at_ms,
            epoch=self._route.epoch,
            state=ProcessState.SYNCING if self._route.sync else ProcessState.IDLE,
            why=self._store_why
            or (self._lanes.standing if self._route.sync and self._lanes is not None else "")
            or self._tasks.why
            or self._why
            or self._topology.why
            or next(
                (
                    part.why
                    for part in (self._attachment, self._stream, self._lanes)
                    if part is not None and part.why
                ),
                "",
            ),
            facts=SyncerFacts(
                stream_gaps=self._stream.gaps if self._stream is not None else 0,
                replica=self._attachment.text if self._attachment is not None else None,
                direction=f"{self._route.authority} to {self._route.follower}",
                partitions=self._lanes.partitions
                if self._lanes is not None and self._route.sync
                else [],
                lag_entries=self._lag_entries,
                lag_ms_p50=lag.lag_ms_p50,
                lag_ms_p99=lag.lag_ms_p99,
                oldest_dirty_ms=self._oldest_ms,
                **self._probed(),
                keys_in_per_s=round(lag.keys_in_per_s, 1),
                synced_per_s=round(lag.synced_per_s, 1),
                converges=self.converges,
                heavy=self.tally.heavy.rows(),
                excluded_by_rule=dict(self.tally.excluded),
                strategies={str(how): count for how, count in self.tally.strategies.items()},
                counts=dict(self.tally.counts),
                task_failures=self._tasks.failures,
            ),
        )

    def _probed(self) -> dict[str, Any]:
        probe = self._probe
        slowest = probe.slowest if probe is not None else None
        if probe is None or slowest is None:
            return {}  # another syncer does it
        p50, p99 = (round(slowest.percentile(share), 1) for share in (0.5, 0.99))
        return {
            "probe_slowest": slowest.name,
            "probe_lag_ms_p50": p50,
            "probe_lag_ms_p99": p99,
            "probes_missed": probe.misses,
            "probe_why": probe.why,
        }

    def metrics(self) -> Iterable[Sample]:
        """Yield the samples for Prometheus."""
        yield "exodus_syncer_lag_entries", "journal entries not synced", {}, self._lag_entries
        yield (
            "exodus_syncer_oldest_dirty_ms",
            "age of the oldest journal entry that is not synced",
            {},
            self._oldest_ms,
        )
        yield (
            "exodus_syncer_lag_ms_p50",
            "time from a journal entry to its keys being equal, median of the last seconds",
            {},
            self._rates.lag_ms_p50,
        )
        yield (
            "exodus_syncer_lag_ms_p99",
            "time from a journal entry to its keys being equal, 99th percentile",
            {},
            self._rates.lag_ms_p99,
        )
        for spot in list(self._probe.spots.values()) if self._probe is not None else ():
            if not spot.lag_ms:
                continue
            yield (
                "exodus_syncer_probe_lag_ms_p50",
                "time from the answer to a write until the follower has it, median",
                {"way": spot.name},
                spot.percentile(0.5),
            )
            yield (
                "exodus_syncer_probe_lag_ms_p99",
                "time from the answer to a write until the follower has it, 99th percentile",
                {"way": spot.name},
                spot.percentile(0.99),
            )
        yield (
            "exodus_syncer_task_failures_total",
            "tasks of the process that failed and were started again",
            {},
            self._tasks.failures,
        )
        for name, value in self.tally.counts.items():
            yield f"exodus_syncer_{name}_total", COUNTED[name], {}, value
        for rule, count in list(self.tally.excluded.items()):
            yield (
                "exodus_syncer_rule_keys_total",
                "writes of filtered keys, by rule",
                {"rule": rule},
                count,
            )
        for how, count in list(self.tally.strategies.items()):
            yield (
                "exodus_syncer_strategy_keys_total",
                "keys copied, by strategy",
                {"strategy": how},
                count,
            )


class _Rates:
    """Figures of the last few seconds, from counters that only grow."""

    def __init__(self) -> None:
        self.keys_in_per_s = self.synced_per_s = 0.0
        self.lag_ms_p50 = self.lag_ms_p99 = 0
        self.oldest_ms_before = self._oldest_ms = 0
        self._at = time.monotonic()
        self._before = (0, 0)

    def look(self, tally: LaneCounts, oldest_ms: int) -> None:
        """Take the counters as they are now; a window is at least a second."""
        elapsed = time.monotonic() - self._at
        if elapsed < 1.0:
            return
        self.oldest_ms_before, self._oldest_ms = self._oldest_ms, oldest_ms
        counts = tally.counts
        now = (
            counts["keys_in"],
            counts["copied"] + counts["removed"] + counts["coalesced"] + counts["excluded"],
        )
        self.keys_in_per_s, self.synced_per_s = (
            (after - before) / elapsed for after, before in zip(now, self._before, strict=True)
        )
        self._at, self._before = time.monotonic(), now
        if tally.lag.total_count:
            self.lag_ms_p50 = int(tally.lag.get_value_at_percentile(50))
            self.lag_ms_p99 = int(tally.lag.get_value_at_percentile(99))
            tally.lag.reset()


async def run_syncer(store: ControlStore, plan: Plan, process: str) -> None:
    """`exodus syncer`."""
    syncer = Syncer(store, plan, process)
    gc_tuning.settle()  # a switch waits for what this still has to copy
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, syncer.stop)
    await syncer.run()
