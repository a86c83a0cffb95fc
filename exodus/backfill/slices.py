"""Backfill: it copies slices of a SCAN in chunks, with a checkpoint after each, so a crash costs
one chunk.

A chunk is BACKFILL_CHUNK_KEYS keys or BACKFILL_CHUNK_BYTES. Its batches are read while the batch
before is written. A chunk notes the feed's positions before its first read. After its last write it
asks what changed since. A key in both is marked as changed again, so a fresh sync follows every
stale write (race rule 3). A barrier or a gap counts as a change of all its keys (rule 4).

    read 1 │ read 2 │ read 3 │ …         a queue of BACKFILL_QUEUED_BATCHES between the two
           │ write 1│ write 2│ … settle  keeps both servers busy, and bounds the memory
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from exodus import gc_tuning
from exodus.backfill.migrate import MigrateLane, open_migrate_lane
from exodus.cancellation import end_all
from exodus.control.checkpoint import SliceProgress, load_progress, save_progress
from exodus.control.route import read_route
from exodus.copy.impact import Pace
from exodus.copy.key import BatchReport, Copier
from exodus.copy.payload import MigratedKeys, Packed, State
from exodus.copy.scan import Slice
from exodus.engine import Engine
from exodus.errors import EpochEnded, NoRoom, SourceError, TargetError
from exodus.plan.bounds import (
    BACKFILL_BACKOFF_S,
    BACKFILL_BATCH_KEYS,
    BACKFILL_CHUNK_BYTES,
    BACKFILL_CHUNK_KEYS,
    BACKFILL_NO_ROOM_S,
    BACKFILL_NODE_BATCH_KEYS,
    BACKFILL_QUEUED_BATCHES,
    BACKFILL_RETRIES,
)
from exodus.plan.vocabulary import CopyStrategy


@dataclass
class _Chunk:
    """Keys between two checkpoints, and where the slice is after them."""

    positions: dict[int, bytes]
    report: BatchReport = field(default_factory=BatchReport)
    keys: list[bytes] = field(default_factory=list)
    scans: int = 0
    cursor: int = 0
    ended: bool = False


@dataclass
class _Batch:
    """What one SCAN found; `last` ends its chunk."""

    chunk: _Chunk
    states: Packed | MigratedKeys | list[State]
    last: bool


async def copy_slice(
    engine: Engine,
    run: str,
    piece: Slice,
    *,
    budget_s: float,
    on_progress: Callable[[SliceProgress], None] | None = None,
) -> SliceProgress:
    """Copy a slice until it is done or `budget_s` seconds are used; continues from its checkpoint.

    Raises:
        EpochEnded: the route's epoch ended; nothing more was written.
        SourceError, TargetError: a side was lost more often than is retried; the checkpoint stands.
    """
    progress = (await load_progress(engine.store, run)).get(piece.slice_id)
    if progress is None:
        progress = SliceProgress(slice_id=piece.slice_id, run_id="", cursor=piece.start)
    if progress.done:
        return progress
    progress.attempts += 1
    progress.began_ms = progress.began_ms or await engine.store.now_ms()
    progress.worker = f"{socket.gethostname()}:{os.getpid()}"
    began, before = time.monotonic(), progress.seconds
    failures = 0
    while True:
        try:
            with gc_tuning.seldom():
                await _SliceCopy(
                    engine,
                    run,
                    piece,
                    progress,
                    deadline=began + budget_s,
                    on_progress=on_progress,
                ).run()
            break
        except NoRoom as exc:
            # No matter how often: the checkpoint stands, and it goes on by itself when there is
            # room.
            progress.why = str(exc.why)
            await save_progress(engine.store, run, progress)
            if time.monotonic() - began > budget_s:
                return progress
            await asyncio.sleep(BACKFILL_NO_ROOM_S)
        except EpochEnded:
            progress.why = await _lost_write_grant(engine)
            if not progress.why:
                raise
            await save_progress(engine.store, run, progress)
            if time.monotonic() - began > budget_s:
                return progress
            await asyncio.sleep(BACKFILL_NO_ROOM_S)
        except (SourceError, TargetError):
            failures += 1
            if failures > BACKFILL_RETRIES:
                raise
            await asyncio.sleep(BACKFILL_BACKOFF_S * 2**failures)
        finally:
            progress.seconds = before + time.monotonic() - began
    progress.ended_ms = await engine.store.now_ms()
    await save_progress(engine.store, run, progress)
    return progress


async def _lost_write_grant(engine: Engine) -> str:
    """Return why the follower does not know this epoch's writers though the route is theirs, or
    nothing: their epoch has ended.

    What it has lost of slices that were copied is found by live sync, which gives the right back
    (`server_runs.py`).
    """
    route = await read_route(engine.store)
    if not route.sync or route.writer_epoch != engine.route.writer_epoch:
        return ""
    return (
        f"the {route.follower} lost what this migration wrote; the copy goes on when live sync "
        "has taken it up again"
    )


class _SliceCopy:
    """One attempt at a slice: a reader and a writer with a short queue between them."""

    def __init__(
        self,
        engine: Engine,
        run: str,
        piece: Slice,
        progress: SliceProgress,
        *,
        deadline: float,
        on_progress: Callable[[SliceProgress], None] | None,
    ) -> None:
        self._engine = engine
        self._run_name = run
        self._piece = piece
        self._progress = progress
        self._deadline = deadline
        self._on_progress = on_progress
        self._queue: asyncio.Queue[_Batch | None] = asyncio.Queue(BACKFILL_QUEUED_BATCHES)
        clusters = engine.authority.cluster is not None and engine.follower.cluster is not None
        self._batch_keys = BACKFILL_NODE_BATCH_KEYS if clusters else BACKFILL_BATCH_KEYS

    async def run(self) -> None:
        """Copy until the slice or the time ends."""
        progress = self._progress
        # The node's name stays through a failover, and its server does not.
        node = await self._engine.authority.node(self._piece.node)
        engine = self._engine
        copier = await engine.copier(engine.guard(), name="exodus-backfill", node=node)
        pace = Pace(
            engine.store,
            node,
            engine.plan.budget,
            what=f"backfill {self._piece.slice_id}",
            follower=engine.follower,
        )
        copier.turn = pace.turn
        tasks: list[asyncio.Task[None]] = []
        lane: MigrateLane | None = None
        try:
            # On the connection that scans: each connection costs a slice about half a millisecond.
            run_id = await copier.scanned_life(node)
            if run_id != progress.run_id:  # the cursor was another server's life's (race rule 5)
                progress.restarts += bool(progress.run_id)
                progress.run_id, progress.cursor = run_id, self._piece.start
            if self._engine.plan.strategy is CopyStrategy.MIGRATE:
                lane = await open_migrate_lane(self._engine, copier, self._piece.slice_id)
            async with pace:
                tasks = [
                    asyncio.create_task(self._write(copier)),
                    asyncio.create_task(self._read(copier, lane, pace)),
                ]
                # Whichever fails first ends the other: a reader alone would wait at a full queue
                # for ever.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        finally:
            try:
                await end_all(tasks)
            finally:
                try:
                    if lane is not None:
                        await lane.close()
                finally:
                    await copier.close()

    async def _read(self, copier: Copier, lane: MigrateLane | None, pace: Pace) -> None:
        cursor, ended = self._progress.cursor, False
        first = True  # whatever the time: who is called makes progress
        while not ended and (first or time.monotonic() < self._deadline):
            first = False
            chunk = _Chunk(await self._engine.feed.positions())
            payload_bytes = -(lane.sent_bytes if lane is not None else 0)
            last = False
            while not last:
                await pace.turn()
                states: Packed | MigratedKeys | list[State]
                if lane is None:
                    cursor, keys, states = await copier.scan(
                        self._piece.db, cursor, self._batch_keys, chunk.report
                    )
                else:
                    more = partial(self._goes_on, len(chunk.keys))
                    cursor, keys, states = await lane.scan(
                        self._piece.db, cursor, chunk.report, more=more
                    )
                chunk.scans += 1
                chunk.keys += keys
                payload_bytes += (
                    sum(len(state.payload or b"") for state in states)
                    if isinstance(states, list)
                    else states.size()
                )
                ended = self._piece.ended(cursor)
                sent_bytes = lane.sent_bytes if lane is not None else 0
                last = (
                    ended
                    or len(chunk.keys) >= BACKFILL_CHUNK_KEYS
                    or payload_bytes + sent_bytes >= BACKFILL_CHUNK_BYTES
                )
                chunk.cursor, chunk.ended = cursor, ended
                await self._queue.put(_Batch(chunk, states, last))
        await self._queue.put(None)

    def _goes_on(self, before: int, cursor: int, found: int) -> bool:
        return not self._piece.ended(cursor) and before + found < BACKFILL_CHUNK_KEYS

    async def _write(self, copier: Copier) -> None:
        while (batch := await self._queue.get()) is not None:
            chunk = batch.chunk
            await copier.write(self._piece.db, batch.states, chunk.report)
            if batch.last:
                await self._settle(chunk)

    async def _settle(self, chunk: _Chunk) -> None:
        """After a chunk was written: mark what changed meanwhile, then write the checkpoint."""
        engine, progress, report = self._engine, self._progress, chunk.report
        marked = await mark_overtaken(
            engine, self._piece.db, chunk.keys, chunk.positions, report.unsettled
        )
        if report.failed:
            await engine.keep_failures(report.failed)
        progress.scans += chunk.scans
        progress.chunks += 1
        progress.keys_seen += len(chunk.keys)
        progress.keys_copied += report.copied
        progress.keys_removed += report.removed
        progress.keys_skipped += report.skipped
        progress.keys_failed += len(report.failed)
        progress.keys_excluded += report.excluded.total()
        for rule, count in report.excluded.items():
            progress.excluded[rule] = progress.excluded.get(rule, 0) + count
        progress.payload_bytes += report.payload_bytes
        progress.usage_kept += report.usage_kept
        for why, count in report.not_sent.items():
            progress.not_sent[why] = progress.not_sent.get(why, 0) + count
        progress.re_marked += marked
        for how, count in report.strategies.items():
            progress.strategies[how] = progress.strategies.get(how, 0) + count
        progress.cursor, progress.done, progress.why = chunk.cursor, chunk.ended, ""
        await save_progress(engine.store, self._run_name, progress)
        if self._on_progress is not None:
            self._on_progress(progress)
        if (await read_route(engine.store)).writer_epoch != engine.route.writer_epoch:
            raise EpochEnded(
                "the backfill's epoch ended",
                why="the route changed",
                next_step="start the phase again",
            )


async def mark_overtaken(
    engine: Engine,
    db: int,
    keys: list[bytes],
    positions: dict[int, bytes],
    unsettled: list[bytes] | None = None,
) -> int:
    """Mark the keys of a chunk that changed after `positions` as changed again (race rules 3 and
    4), and the unsettled ones; how many.
    """
    changes = await engine.feed.changes_since(positions)
    marked = [(db, key) for key in unsettled or ()]
    if changes.gap or changes.barriers:
        marked += [(db, key) for key in keys]
    elif changes.keys:
        mine = set(keys)
        marked += [key for key in dict.fromkeys(changes.keys) if key[0] == db and key[1] in mine]
    await engine.feed.mark(marked)
    return len(marked)
