"""Live sync: the process that makes journalled keys equal on the follower, a lane for each partition that it holds the lease of.

It does nothing until the route says `sync`, follows the route's direction (so reverse sync after a cutover is the same
code with the sides swapped), and writes only under the guard of the epoch and of its lease. Failures of any server are
waited out; nothing is skipped: a key that cannot be carried is listed as a dead letter. A lane's position moves only
when every key before it was synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Iterable

from redis.exceptions import RedisError

from exodus.config import HEARTBEAT_S, JOURNAL_RETAIN_MS, LEASE_MS, Plan
from exodus.control import journal, registry
from exodus.control.changes import Barrier, Changes, id_order
from exodus.control.registry import Heartbeat
from exodus.control.route import Route, read_route
from exodus.control.store import ControlStore, answered, lane_guard_key
from exodus.errors import EpochEnded, ExodusError, OperatorError
from exodus.leg import ReplyError
from exodus.sync.engine import Engine, open_engine
from exodus.sync.key import Copier
from exodus.sync.scan import scan_once
from exodus.telemetry.http import Sample, StatusServer

log = logging.getLogger(__name__)
_WAIT_MS = 500
_CADENCE_S = 0.02  # a lane looks no more often: what gathers meanwhile is synced in one batch, and at most this much later
_BATCH_KEYS = 256
_BACKOFF_S = 0.25
_TRIM_EVERY_S = 10.0
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) else return 0 end"
_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"
_STORE_ERRORS = (RedisError, OSError, TimeoutError)


class LeaseLost(Exception):
    """Another syncer owns the partition now."""


class Lane:
    """One partition while this process holds its lease."""

    def __init__(self, syncer: Syncer, engine: Engine, partition: int, token: int) -> None:
        self._syncer = syncer
        self._engine = engine
        self._store = engine.store
        self._partition = partition
        self._token = token
        self._held = f"{syncer.process}:{token}"
        self._renewed = time.monotonic()
        self._trimmed = time.monotonic()

    async def run(self) -> None:
        """Sync this partition until the lease or the epoch ends.

        Raises:
            LeaseLost, EpochEnded: as said.
            SourceError, TargetError, RedisError: a server is away; the caller tries again.
        """
        follower = (await self._engine.follower.nodes())[0]
        async with await follower.connect(name="exodus-lease") as leg:
            # The follower refuses whoever comes with an older token, even if it wakes up after we are gone.
            await leg.call("SET", lane_guard_key(self._engine.plan.name, self._partition), self._token)
        copier = await self._engine.copier(self._engine.guard(partition=self._partition, token=self._token), name="exodus-syncer")
        try:
            position = (await journal.positions(self._store)).get(self._partition, b"0-0")
            looked = 0.0
            while True:
                await asyncio.sleep(max(0.0, looked + _CADENCE_S - time.monotonic()))
                looked = time.monotonic()
                changes = await self._engine.feed.tail(self._partition, position, wait_ms=_WAIT_MS)
                await self._renew()
                if changes.last_id is None:
                    continue
                await self._sync(copier, changes)
                position = changes.last_id
                await answered(self._store.client.hset(self._store.keys.position, str(self._partition), position))
                await self._trim(position)
        finally:
            await copier.close()

    async def _renew(self) -> None:
        if time.monotonic() - self._renewed < LEASE_MS / 3000:
            return
        mine = await answered(self._store.client.eval(_RENEW, 1, self._store.keys.lease(self._partition), self._held, str(LEASE_MS)))
        if not int(mine):
            raise LeaseLost
        self._renewed = time.monotonic()

    async def give_back(self) -> None:
        """Let another syncer have the partition at once."""
        await answered(self._store.client.eval(_GIVE_BACK, 1, self._store.keys.lease(self._partition), self._held))

    async def _sync(self, copier: Copier, changes: Changes) -> None:
        by_db: dict[int, dict[bytes, None]] = {}
        for db, key in changes.keys:
            by_db.setdefault(db, {})[key] = None  # a key that changed often is copied once
        counts = self._syncer.counts
        for db, unique in by_db.items():
            keys = list(unique)
            for start in range(0, len(keys), _BATCH_KEYS):
                part = keys[start : start + _BATCH_KEYS]
                report = await copier.sync_keys(db, part)
                counts["copied"] += report.copied
                counts["removed"] += report.removed
                counts["payload_bytes"] += report.payload_bytes
                counts["failed"] += len(report.failed)
                failed = {(failure.db, failure.key) for failure in report.failed}
                await self._engine.keep_failures(report.failed)
                await self._engine.forget_failures((db, key) for key in part if (db, key) not in failed)
                await self._renew()
        counts["coalesced"] += len(changes.keys) - sum(map(len, by_db.values()))
        for barrier in changes.barriers:
            counts["marked_by_barriers"] += await rescan(self._engine, barrier)

    async def _trim(self, position: bytes) -> None:
        if time.monotonic() - self._trimmed < _TRIM_EVERY_S:
            return
        self._trimmed = time.monotonic()
        keep = b"%d-0" % (await self._store.now_ms() - JOURNAL_RETAIN_MS)
        if id_order(keep) > id_order(position):
            keep = position
        pipe = self._store.client.pipeline(transaction=True)
        pipe.hset(self._store.keys.trimmed, str(self._partition), keep)
        pipe.xtrim(self._store.keys.journal(self._partition), minid=keep, approximate=True)
        await pipe.execute()


async def rescan(engine: Engine, barrier: Barrier) -> int:
    """Mark what a FLUSHDB, FLUSHALL or SWAPDB may have changed, by looking at both sides; how many keys.

    A FLUSH is not repeated on the follower: a key written after it can stand in the journal before it (two connections, one
    window), and would be lost. Keys of the follower that the authority lacks are marked instead, which is free of order.
    """
    marked = 0
    swapped = barrier.what == "swapdb"
    sides = (engine.follower, engine.authority) if swapped else (engine.follower,)
    for side in sides:
        for node in await side.nodes():
            databases = barrier.databases or tuple((await node.facts()).databases)
            for db in databases:
                async with (
                    await node.connect(db, name="exodus-rescan") as leg,
                    await (await engine.authority.nodes())[0].connect(db, name="exodus-rescan") as authority,
                ):
                    cursor = -1
                    while cursor:
                        cursor, keys = await scan_once(leg, max(cursor, 0), 500)
                        if not swapped:
                            there = await authority.pipeline([("EXISTS", key) for key in keys])
                            keys = [key for key, exists in zip(keys, there, strict=True) if exists != 1]
                        await engine.feed.mark((db, key) for key in keys)
                        marked += len(keys)
    return marked


class Syncer:
    """The process: follows the route, takes leases, runs lanes, says how it goes."""

    def __init__(self, store: ControlStore, plan: Plan, process: str) -> None:
        self.process = process
        self.counts: dict[str, int] = dict.fromkeys(("copied", "removed", "payload_bytes", "failed", "coalesced", "marked_by_barriers", "retries"), 0)
        self._store = store
        self._plan = plan
        self._route = Route(epoch=-1)
        self._lanes: dict[int, asyncio.Task[None]] = {}
        self._why = ""
        self._beat_now = asyncio.Event()
        self._stopping = asyncio.Event()
        self._lag_entries = 0
        self._oldest_ms = 0

    def stop(self) -> None:
        """End in order."""
        self._stopping.set()

    async def run(self, status_host: str = "127.0.0.1", status_port: int = 0) -> None:
        """Serve until `stop`."""
        status = StatusServer(status_host, status_port, self.metrics, lambda: (True, self._why or "following"))
        tasks = [
            asyncio.create_task(registry.follow(self._look_at_route, self._store, poll_s=HEARTBEAT_S)),
            asyncio.create_task(self._beat()),
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # a task that ends by itself failed
        finally:
            await self._stop_lanes()
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            with contextlib.suppress(*_STORE_ERRORS):  # the store may be what failed; our heartbeat then goes stale by itself
                await self._store.unregister("syncer", self.process)
            status.close()

    async def _look_at_route(self) -> None:
        try:
            route = await read_route(self._store)
        except _STORE_ERRORS as exc:
            self._why = f"the control store is away: {type(exc).__name__}"
            return
        before = self._route
        if route.epoch == before.epoch:
            return
        same = (route.sync, route.authority, route.writer_epoch) == (before.sync, before.authority, before.writer_epoch)
        if not same:
            await self._stop_lanes()
            if route.sync:
                for partition in range(self._plan.partitions):
                    self._lanes[partition] = asyncio.create_task(self._keep_lane(route, partition))
        self._route = route
        self._beat_now.set()

    async def _stop_lanes(self) -> None:
        lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    async def _keep_lane(self, route: Route, partition: int) -> None:
        """Take the partition's lease and run its lane, again and again until the epoch ends."""
        while True:
            lane: Lane | None = None
            try:
                token = int(await answered(self._store.client.incr(self._store.keys.token)))
                name = self._store.keys.lease(partition)
                if not await answered(self._store.client.set(name, f"{self.process}:{token}", nx=True, px=LEASE_MS)):
                    await asyncio.sleep(LEASE_MS / 2000)
                    continue
                engine = await open_engine(self._store, self._plan, route)
                lane = Lane(self, engine, partition, token)
                self._why = ""
                await lane.run()
            except EpochEnded as exc:
                self._why = exc.why
                return  # the next route starts new lanes
            except LeaseLost:
                self._why = f"another syncer took partition {partition} over"
            except OperatorError as exc:
                self._why = exc.what
                self.counts["retries"] += 1
                await asyncio.sleep(4 * _BACKOFF_S)
            except (ExodusError, ReplyError, *_STORE_ERRORS) as exc:
                self._why = exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                self.counts["retries"] += 1
                log.info("partition %d waits: %s", partition, self._why)
                await asyncio.sleep(_BACKOFF_S)
            finally:
                if lane is not None:
                    with contextlib.suppress(*_STORE_ERRORS):  # the lease then ends by its own time
                        await lane.give_back()

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beat_now.wait(), HEARTBEAT_S)
            self._beat_now.clear()
            try:
                now_ms = await self._store.now_ms()
                if self._route.sync:
                    await self._measure_lag(now_ms)
                await registry.beat(self._store, self.heartbeat(now_ms))
            except _STORE_ERRORS as exc:
                self._why = f"the control store is away: {type(exc).__name__}"

    async def _measure_lag(self, now_ms: int) -> None:
        self._lag_entries = await journal.lag_entries(self._store, self._plan.partitions, at_most=1_000)
        self._oldest_ms = await journal.oldest_ms(self._store, self._plan.partitions, now_ms)

    def heartbeat(self, at_ms: int) -> Heartbeat:
        """What this process says of itself."""
        running = sum(not lane.done() for lane in self._lanes.values())
        return Heartbeat(
            kind="syncer",
            process=self.process,
            at_ms=at_ms,
            epoch=self._route.epoch,
            state="syncing" if self._route.sync else "idle",
            why=self._why,
            facts={
                "direction": f"{self._route.authority} to {self._route.follower}",
                "lanes": running,
                "lag_entries": self._lag_entries,
                "oldest_dirty_ms": self._oldest_ms,
                **self.counts,
            },
        )

    def metrics(self) -> Iterable[Sample]:
        """For Prometheus."""
        yield "exodus_syncer_lag_entries", "journal entries not synced", {}, self._lag_entries
        yield "exodus_syncer_oldest_dirty_ms", "age of the oldest of them", {}, self._oldest_ms
        for name, value in self.counts.items():
            yield f"exodus_syncer_{name}_total", f"keys {name}", {}, value


async def run_syncer(store: ControlStore, plan: Plan, process: str) -> None:
    """`exodus syncer`."""
    syncer = Syncer(store, plan, process)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, syncer.stop)
    await syncer.run()
