"""The lanes of one process in one epoch: all partitions whose leases it holds, worked together.

What gathers within a cadence is read in one call, deduplicated, and written in one guarded batch.
So many partitions cost no more round trips than one. A position moves only after every key before
it was synced. The epoch and the token of each held partition guard a batch. Losing one voids the
batch, which is done again without that partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from hdrh.histogram import HdrHistogram

from exodus.cancellation import beside, end_all
from exodus.control import journal
from exodus.control.changes import Changes, id_order
from exodus.control.leases import Leases
from exodus.copy.guard import lost_lane_grants, set_lane_grants
from exodus.copy.guarded_cluster import guarded_leg
from exodus.engine import Engine, KeySync
from exodus.errors import EpochEnded, LeaseEnded
from exodus.live import server_runs
from exodus.live.costly_keys import HeavyKeys
from exodus.live.recheck import Keeper
from exodus.live.rescan import rescan
from exodus.lua import lua
from exodus.net.client import answered
from exodus.net.leg import Leg, close_all
from exodus.plan.bounds import (
    JOURNAL_RETAIN_MS,
    LANES_BATCH_KEYS,
    LANES_CADENCE_S,
    LANES_IDLE_S,
    LANES_LAG_MS_MAX,
    LANES_STANDING_S,
    LANES_TRIM_EVERY_S,
    LANES_WAIT_MS,
    LEASE_MS,
)
from exodus.plan.vocabulary import Side

_ADVANCE = lua("exodus.live", "advance_positions")
_NO_KEYS: tuple[int, Sequence[bytes]] = (0, ())


class LaneCounts:
    """What a process counts over all the epochs of its life."""

    def __init__(self) -> None:
        names = (
            "copied",
            "removed",
            "payload_bytes",
            "failed",
            "coalesced",
            "marked_by_barriers",
            "retries",
            "keys_in",
            "unsettled",
            "excluded",
        )
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.strategies: Counter[str] = Counter()
        # The rule that leaves keys out → how often one of them was written
        self.excluded: Counter[str] = Counter()
        self.heavy = HeavyKeys()
        self.lag = HdrHistogram(
            1,
            LANES_LAG_MS_MAX,
            2,
            # Ms from an entry's time to its being synced, by the store's clock; emptied at each
            # heartbeat
        )


class Lanes:
    """One epoch's work. `run` ends with the epoch."""

    def __init__(self, engine: Engine, process: str, tally: LaneCounts) -> None:
        self._engine = engine
        self._store = engine.store
        self._tally = tally
        self._leases = Leases(engine.store, process, engine.plan.partitions)
        self._positions: dict[int, bytes] = {}
        self._keeper = Keeper(engine)
        # Sides that have to be compared in full (`server_runs.py`)
        self._restarted: list[Side] = []
        self._recovery: asyncio.Task[str] | None = None
        self._pulse: list[Leg] = []
        self.why = ""  # what a full comparison is made for, or what it leaves to a person
        self._tended = self._renewed = self._asked = 0.0
        self._trimmed = time.monotonic()
        self._step, self._part, self._since = "begins", _NO_KEYS, time.monotonic()
        self.hurry = asyncio.Event()  # writes are held, and wait for what is in the journal

    @property
    def partitions(self) -> list[int]:
        """Return the partitions held now."""
        return sorted(self._leases.tokens)

    @property
    def standing(self) -> str:
        """Return what the lanes have been at since when, where that is longer than usual."""
        seconds, (db, keys) = time.monotonic() - self._since, self._part
        if seconds < LANES_STANDING_S:
            return ""
        first = [f"{db}:{key.decode('utf-8', 'backslashreplace')}" for key in keys[:1]]
        part = f" {len(keys)} keys from {first[0]} on" if first else ""
        return f"live sync {self._step}{part} for {seconds:.0f} s now"

    def _at(self, step: str, part: tuple[int, Sequence[bytes]] = _NO_KEYS) -> None:
        self._step, self._part, self._since = step, part, time.monotonic()

    async def run(self) -> None:
        """Sync until the epoch ends.

        Raises:
            EpochEnded: as said.
            SourceError, TargetError, RedisError: a server is away; the caller tries again.
        """
        self._restarted = await server_runs.changed(self._engine)
        self.why = await server_runs.left(self._store)
        copier = await self._engine.key_sync(self._engine.guard(), name="exodus-syncer")
        keeping = asyncio.create_task(self._keeper.run())
        try:
            for side in (self._engine.authority, self._engine.follower):
                self._pulse.append(await side.connect(name="exodus-pulse"))
            looked = 0.0
            while True:
                if keeping.done():
                    keeping.result()  # it only ends by failing
                self._at("renews its leases")
                await self._tend(copier)
                await self._recover()
                if not self._positions:
                    await asyncio.sleep(LANES_IDLE_S)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(
                        max(0.0, looked + LANES_CADENCE_S - time.monotonic())
                    ):
                        await self.hurry.wait()
                looked = time.monotonic()
                self._at("reads the journal")
                changes = await self._engine.feed.tail(self._positions, wait_ms=LANES_WAIT_MS)
                if not changes:
                    continue
                self._keeper.note(changes)
                try:
                    await self._sync(copier, changes)
                except EpochEnded:
                    if not await self._drop_lost(copier):
                        raise
                    continue
                self._at("writes down its positions")
                await self._advance(changes)
        finally:
            try:
                await end_all([keeping, self._recovery])
            finally:  # cancelled once more meanwhile, as `end_all` does
                try:
                    await copier.close()
                finally:
                    await close_all(self._pulse)

    async def _recover(self) -> None:
        """Compare both sides where one of them restarted; who holds the first partition does it."""
        if self._recovery is not None and self._recovery.done():
            self._restarted, self.why, self._recovery = [], self._recovery.result(), None
        elif self._restarted and self._recovery is None and 0 in self._positions:
            self._recovery = asyncio.create_task(server_runs.recover(self._engine, self._restarted))
        elif not self._restarted and self.why and time.monotonic() - self._asked > LANES_IDLE_S:
            self._asked = time.monotonic()
            self.why = await server_runs.left(self._store)  # another syncer compares

    async def give_back(self) -> None:
        """Let others have the partitions at once."""
        self._positions.clear()
        await self._leases.give_back(self.partitions)

    def look_now(self) -> None:
        """Look at both servers before the next batch: one of them may be another one."""
        self._tended = 0.0

    # ------------------------------------------------------------------ leases

    async def _tend(self, copier: KeySync) -> None:
        """Renew what is held, give surplus back, take what is free up to a fair share."""
        if time.monotonic() - self._tended < LEASE_MS / 3000:
            return
        self._tended = self._renewed = time.monotonic()
        # A server that restarts ends it, also where there is nothing to copy
        for leg in self._pulse:
            guarded = leg.side is self._engine.route.follower and not self._engine.route.native
            await guarded_leg(leg, self._engine.guard()).check(enforced=guarded)
        before = dict(self._leases.tokens)
        await self._leases.renew()
        share = await self._leases.fair_share()
        await self._leases.give_back(self.partitions[share:])
        taken = await self._leases.take(share)
        # A replica takes no writes, of whoever comes with whatever token
        if taken and not self._engine.route.native:
            await set_lane_grants(
                self._engine.follower,
                self._engine.plan.name,
                {partition: self._leases.tokens[partition] for partition in taken},
            )
        if taken:
            synced = await journal.positions(self._store)
            self._positions.update(
                {partition: synced.get(partition, b"0-0") for partition in taken}
            )
        if self._leases.tokens != before:
            await self._reguard(copier)

    async def _reguard(self, copier: KeySync) -> None:
        self._positions = {
            partition: at
            for partition, at in self._positions.items()
            if partition in self._leases.tokens
        }
        await copier.guard_by(self._engine.guard(self._leases.tokens))
        await self._keeper.hold(self._positions)

    async def _drop_lost(self, copier: KeySync) -> bool:
        """After a guard did not hold: let go of the partitions that others own by now; False where
        none is, so that the epoch itself ended.
        """
        lost = await self._leases.renew()
        if not self._engine.route.native:
            others = await lost_lane_grants(
                self._engine.follower, self._engine.plan.name, self._leases.tokens
            )
            lost += others
            for partition in others:
                del self._leases.tokens[partition]
        if lost:
            await self._reguard(copier)
        return bool(lost)

    # ------------------------------------------------------------------ work

    async def _sync(self, copier: KeySync, changes: Mapping[int, Changes]) -> None:
        by_db: dict[int, dict[bytes, None]] = {}
        seen = 0
        for each in changes.values():
            seen += len(each.keys)
            for db, key in each.keys:
                by_db.setdefault(db, {})[key] = None  # a key that changed often is copied once
        counts = self._tally.counts
        counts["keys_in"] += seen
        counts["coalesced"] += seen - sum(map(len, by_db.values()))
        for db, unique in by_db.items():
            keys = list(unique)
            for start in range(0, len(keys), LANES_BATCH_KEYS):
                part = keys[start : start + LANES_BATCH_KEYS]
                self._at("copies", (db, part))
                report = await copier.sync_keys(db, part)
                for name in ("copied", "removed", "payload_bytes"):
                    counts[name] += getattr(report, name)
                self._tally.heavy.add(db, report.heavy)
                counts["failed"] += len(report.failed)
                counts["unsettled"] += len(report.unsettled)
                counts["excluded"] += report.excluded.total()
                self._tally.excluded.update(report.excluded)
                self._tally.strategies.update(report.strategies)
                failed = {(failure.db, failure.key) for failure in report.failed}
                await self._engine.keep_failures(report.failed)
                await self._engine.forget_failures(
                    (db, key) for key in part if (db, key) not in failed
                )
                await self._engine.feed.mark((db, key) for key in report.unsettled)
                await self._renew_in_time()
        if self._engine.route.native:
            return  # a replica flushes and swaps as its source does
        barriers = [barrier for each in changes.values() for barrier in each.barriers]
        if not barriers:
            return
        async with beside(self._keep_leases()):  # a rescan looks at every key
            for barrier in barriers:
                self._at(f"looks for what a {barrier.what} changed")
                counts["marked_by_barriers"] += await rescan(self._engine, barrier)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            with contextlib.suppress(LeaseEnded):  # the next batch says so
                await self._renew_in_time()

    async def _renew_in_time(self) -> None:
        # By a clock of its own: with a write a second this came before `_tend` each time, and what
        # a dead syncer had was never taken.
        if time.monotonic() - self._renewed > LEASE_MS / 3000:
            self._renewed = time.monotonic()
            if await self._leases.renew():
                raise LeaseEnded(
                    "a lease ended",
                    why="another syncer has the partition",
                    next_step="nothing; the rest goes on",
                )

    async def _advance(self, changes: Mapping[int, Changes]) -> None:
        reached = {
            partition: each.last_id
            for partition, each in changes.items()
            if each.last_id is not None
        }
        self._positions.update(reached)
        pipe = self._store.client.pipeline(transaction=False)
        pipe.eval(
            _ADVANCE,
            1,
            self._store.keys.position,
            *[word for partition, at in reached.items() for word in (str(partition), at)],
        )
        pipe.time()
        if self.hurry.is_set():
            pipe.publish(self._store.keys.part_changed, "synced")  # to the switch that waits for it
        _, (seconds, micros), *_ = await pipe.execute()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        for each in changes.values():
            for written_ms in each.times_ms:
                self._tally.lag.record_value(min(max(now_ms - written_ms, 1), LANES_LAG_MS_MAX))
        if time.monotonic() - self._trimmed > LANES_TRIM_EVERY_S:
            self._trimmed = time.monotonic()
            await self._trim(now_ms)

    async def _trim(self, now_ms: int) -> None:
        pipe = self._store.client.pipeline(transaction=True)
        for partition, position in self._positions.items():
            keep = b"%d-0" % (now_ms - JOURNAL_RETAIN_MS)
            if id_order(keep) > id_order(position):
                keep = position
            pipe.hset(self._store.keys.trimmed, str(partition), keep)
            pipe.xtrim(self._store.keys.journal(partition), minid=keep, approximate=True)
        await answered(pipe.execute())
