"""Fill the target by native replication: the servers copy, a task watches the progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from exodus.backfill.progress import ProgressSample
from exodus.control.store import ControlStore
from exodus.copy.key import CopyMethod
from exodus.errors import DecisionRefused
from exodus.native import link, replica
from exodus.plan.bounds import TASKS_NATIVE_POLL_S, TASKS_NATIVE_STUCK_S, TASKS_NATIVE_WATCH_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks.backfill import count_source
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

REPORT = "native"


@kept_task("Watch the first copy", run_name="Watch the first copy, round {attempt}")
@opens_migration
async def watch_filling(it: Opened, writer_epoch: int, attempt: int) -> Json:
    """Watch the first copy for a while.

    It is `done` when the target follows the source and has applied its present offset.

    Raises:
        DecisionRefused: no data arrives at the target.
    """
    del attempt
    began = moved = time.monotonic()
    before = (0.0, 0)
    while True:
        await replica.attach(it.plan, writer_epoch)
        state = await link.look(it.plan)
        if state.up:
            source, target = [await it.endpoint(side).connect(name="exodus-fill") for side in Side]
            async with source, target:
                await replica.wait_reached(source, target, within_s=TASKS_NATIVE_STUCK_S)
            return {"done": True, "percent": 100.0}
        if (state.percent, state.keys) != before:
            before, moved = (state.percent, state.keys), time.monotonic()
        if time.monotonic() - moved > TASKS_NATIVE_STUCK_S:
            raise DecisionRefused(
                "no data of the source arrives at the target",
                why=f"{state.text} for {TASKS_NATIVE_STUCK_S:.0f} s",
                next_step="read the target's log; it must reach "
                f"{it.plan.source.url} and be allowed to replicate there (+psync "
                "+replconf)",
            )
        if time.monotonic() - began > TASKS_NATIVE_WATCH_S:
            return {"done": False, "percent": state.percent}
        await asyncio.sleep(TASKS_NATIVE_POLL_S)


def filling_look(
    migration: str,
) -> Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]]:
    """Return the function that reads how much of the source's data the replica has loaded."""
    total = count_source(migration)

    async def look(store: ControlStore, plan: Plan) -> ProgressSample:
        del store
        state = await link.look(plan)
        return ProgressSample(
            keys=round(total * state.percent / 100),
            keys_total=total,
            why="" if state.up else state.text,
        )

    return look


@kept_task("Count replicated keys")
@opens_migration
async def count_filled(it: Opened) -> Json:
    """Return the row of a backfill by keys: a replica has what its source has."""
    began = await it.store.report(REPORT) or {"at_ms": await it.store.now_ms()}
    now_ms = await it.store.now_ms()
    if "filled_ms" not in began:
        began["filled_ms"] = now_ms
        await it.store.save_report(REPORT, began)
    keys = (await link.look(it.plan)).keys
    seconds = max(began["filled_ms"] - began["at_ms"], 1) / 1000
    zero = dict.fromkeys(
        (
            "keys_removed",
            "keys_failed",
            "keys_skipped",
            "keys_excluded",
            "payload_bytes",
            "re_marked",
            "chunks",
        ),
        0,
    )
    return {
        **zero,
        "keys_seen": keys,
        "keys_copied": keys,
        "keys_accounted": keys,
        "seconds": seconds,
        "keys_per_s": round(keys / seconds, 1),
        "excluded": {},
        "not_sent": {},
        "strategies": {str(CopyMethod.NATIVE): keys},
    }
