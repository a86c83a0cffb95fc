"""Backfill as mapped tasks: one a slice and round, each about `TASKS_BACKFILL_BUDGET_S` long,
without state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from exodus.backfill.progress import ProgressSample
from exodus.backfill.progress_view import count_keys, look_at_backfill
from exodus.backfill.slices import copy_slice
from exodus.control.checkpoint import load_progress
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.copy.scan import Slice, nodes_in_turn, plan_slices
from exodus.engine import open_engine
from exodus.errors import EpochEnded
from exodus.plan.bounds import TASKS_BACKFILL_BUDGET_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks.budget import budget_heard
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task


@kept_task("Slice the keyspace")
@opens_migration
async def slice_keyspace(it: Opened) -> list[str]:
    """Return the ids of the slices of every database of the source, in the order to copy them."""
    slices = await plan_slices(it.endpoint(Side.SOURCE), it.plan.slices)
    return [piece.slice_id for piece in nodes_in_turn(slices)]


@kept_task(
    "Copy slice",
    run_name="Copy slice {slice_id}, round {attempt}",
    retries=2,
    retry_delay_seconds=2,
)
@opens_migration
async def copy_one_slice(
    it: Opened, backfill: str, slice_id: str, writer_epoch: int, attempt: int
) -> Json:
    """Copy one slice from its checkpoint on, for a while; return its progress."""
    del attempt
    route = await read_route(it.store)
    if route.writer_epoch != writer_epoch:
        raise EpochEnded(
            "the backfill's epoch ended",
            why=f"the route is at writer epoch {route.writer_epoch}, not {writer_epoch}",
            next_step="start migrate again",
        )
    engine = await open_engine(it.store, it.plan, route)
    async with budget_heard(it.store):
        progress = await copy_slice(
            engine, backfill, Slice.parse(slice_id), budget_s=TASKS_BACKFILL_BUDGET_S
        )
    return progress.model_dump()


@kept_task("Count source keys")
@opens_migration
async def count_source(it: Opened) -> int:
    """Return the number of keys of the source when the copy begins, the base of the progress."""
    return await count_keys(it.plan, Side.SOURCE)


def backfill_look(
    migration: str, backfill: str
) -> Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]]:
    """Return the function that reads the progress of a backfill."""
    total = count_source(migration)

    async def look(store: ControlStore, plan: Plan) -> ProgressSample:
        del plan
        return await look_at_backfill(store, backfill, total)

    return look


@kept_task("Count copied keys")
@opens_migration
async def count_backfill(it: Opened, backfill: str) -> Json:
    """Return the sum of all checkpoints of the run; the counts must reconcile."""
    slices = list((await load_progress(it.store, backfill)).values())
    total = {
        field: sum(getattr(progress, field) for progress in slices)
        for field in (
            "keys_seen",
            "keys_copied",
            "keys_removed",
            "keys_failed",
            "keys_skipped",
            "keys_excluded",
            "payload_bytes",
            "usage_kept",
            "re_marked",
            "chunks",
            "restarts",
            "attempts",
        )
    }
    accounted = sum(
        total[f"keys_{what}"] for what in ("copied", "removed", "failed", "skipped", "excluded")
    )
    excluded: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    not_sent: Counter[str] = Counter()
    for progress in slices:
        excluded.update(progress.excluded)
        strategies.update(progress.strategies)
        not_sent.update(progress.not_sent)
    # From the first slice's beginning to the last one's end: with few workers slices run
    # one after the other.
    times = [(progress.began_ms, progress.ended_ms) for progress in slices if progress.ended_ms]
    seconds = (
        (max(ended for _, ended in times) - min(began for began, _ in times)) / 1000
        if times
        else 0.0
    )
    return {
        **total,
        "keys_accounted": accounted,
        "slices": len(slices),
        "slices_done": sum(progress.done for progress in slices),
        "seconds": round(seconds, 3),
        "keys_per_s": round(total["keys_copied"] / seconds, 1) if seconds else 0.0,
        "excluded": dict(excluded),
        "strategies": dict(strategies),
        "not_sent": dict(not_sent),
    }
