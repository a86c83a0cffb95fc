"""Backfill: SCAN slices copied chunk by chunk, with a checkpoint after each, so that a crash costs one chunk.

A chunk takes the feed's positions before it reads and, after its last write, asks what changed since: every key in both
is marked changed again, so a stale write of ours is always followed by a fresh sync (race rule 3). A barrier or a gap
in between counts as all of its keys (rule 4). The next chunk is read while the follower takes this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from exodus.control.checkpoint import SliceProgress, load_progress, save_progress
from exodus.control.route import read_route
from exodus.endpoint import Node
from exodus.errors import EpochEnded, SourceError, TargetError
from exodus.leg import Leg
from exodus.sync.engine import Engine
from exodus.sync.key import BatchReport, Copier
from exodus.sync.payload import State
from exodus.sync.scan import Slice, scan_once

CHUNK_KEYS = 512  # asked of one SCAN
CHUNKS_PER_CHECKPOINT = 4
_RETRIES = 5
_BACKOFF_S = 0.2


@dataclass
class _Chunk:
    """Keys that were read and are to be written, and where the slice is after them."""

    keys: list[bytes]
    states: list[State]
    report: BatchReport
    positions: dict[int, bytes]
    cursor: int
    ended: bool


async def copy_slice(
    engine: Engine, run: str, piece: Slice, *, budget_s: float, on_progress: Callable[[SliceProgress], None] | None = None
) -> SliceProgress:
    """Copy a slice until it is done or `budget_s` seconds are used; continues from its checkpoint.

    Raises:
        EpochEnded: the route's epoch ended; nothing more was written.
        SourceError, TargetError: a side was lost more often than is retried; the checkpoint stands.
    """
    node = next(node for node in await engine.authority.nodes() if node.name == piece.node)
    progress = (await load_progress(engine.store, run)).get(piece.slice_id)
    run_id = engine.authority_facts.run_id
    if progress is None:
        progress = SliceProgress(slice_id=piece.slice_id, run_id=run_id, cursor=piece.start)
    if progress.done:
        return progress
    progress.attempts += 1
    began, before = time.monotonic(), progress.seconds
    failures = 0
    while True:
        try:
            await _copy(engine, run, piece, node, progress, deadline=began + budget_s, on_progress=on_progress)
            break
        except (SourceError, TargetError):
            failures += 1
            if failures > _RETRIES:
                raise
            await asyncio.sleep(_BACKOFF_S * 2**failures)
        finally:
            progress.seconds = before + time.monotonic() - began
    await save_progress(engine.store, run, progress)
    return progress


async def _copy(
    engine: Engine,
    run: str,
    piece: Slice,
    node: Node,
    progress: SliceProgress,
    *,
    deadline: float,
    on_progress: Callable[[SliceProgress], None] | None,
) -> None:
    run_id = (await node.facts()).run_id
    if run_id != progress.run_id:
        progress.run_id, progress.cursor = run_id, piece.start
        progress.restarts += 1
    copier = await engine.copier(engine.guard(), name="exodus-backfill")
    scanner = await node.connect(piece.db, name="exodus-backfill")
    writing: asyncio.Task[None] | None = None
    try:
        chunk: _Chunk | None = None
        cursor, ended = progress.cursor, False
        while not ended or chunk is not None:
            following: _Chunk | None = None
            if not ended and (time.monotonic() < deadline or chunk is None):
                following = await _read(engine, copier, scanner, piece, cursor)
                cursor, ended = following.cursor, following.ended
            if writing is not None and chunk is not None:
                await writing
                await _settle(engine, run, piece, chunk, progress)
                if on_progress is not None:
                    on_progress(progress)
            chunk, writing = following, None
            if chunk is None:
                break
            writing = asyncio.create_task(copier.write(piece.db, chunk.states, chunk.report))
    finally:
        if writing is not None and not writing.done():
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        await scanner.close()
        await copier.close()


async def _read(engine: Engine, copier: Copier, scanner: Leg, piece: Slice, cursor: int) -> _Chunk:
    positions = await engine.feed.positions()
    cursor, keys = await scan_once(scanner, cursor, CHUNK_KEYS)
    report = BatchReport()
    states = await copier.read(piece.db, keys, report)
    return _Chunk(keys, states, report, positions, cursor, piece.ended(cursor))


async def _settle(engine: Engine, run: str, piece: Slice, chunk: _Chunk, progress: SliceProgress) -> None:
    """After a chunk was written: mark what changed meanwhile, then write the checkpoint."""
    marked = await mark_overtaken(engine, piece.db, chunk.keys, chunk.positions)
    report = chunk.report
    if report.failed:
        await engine.keep_failures(report.failed)
    progress.scans += 1
    progress.chunks += 1
    progress.keys_seen += len(chunk.keys)
    progress.keys_copied += report.copied
    progress.keys_removed += report.removed
    progress.keys_skipped += report.skipped
    progress.keys_failed += len(report.failed)
    progress.payload_bytes += report.payload_bytes
    progress.re_marked += marked
    progress.cursor, progress.done = chunk.cursor, chunk.ended
    await save_progress(engine.store, run, progress)
    if progress.chunks % 16 == 0 and (await read_route(engine.store)).writer_epoch != engine.route.writer_epoch:
        raise EpochEnded("the backfill's epoch ended", why="the route changed", next_step="start the phase again")


async def mark_overtaken(engine: Engine, db: int, keys: list[bytes], positions: dict[int, bytes]) -> int:
    """Mark the keys of a chunk that changed after `positions` as changed again (race rules 3 and 4); how many."""
    changes = await engine.feed.changes_since(positions)
    if changes.gap or changes.barriers:
        marked = [(db, key) for key in keys]
    else:
        mine = set(keys)
        marked = [key for key in dict.fromkeys(changes.keys) if key[0] == db and key[1] in mine]
    await engine.feed.mark(marked)
    return len(marked)
