"""Filling the target by native replication: the servers do it, a task watches how far they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from exodus.backfill.progress import ProgressSample
from exodus.control.store import ControlStore
from exodus.copy.key import CopyMethod
from exodus.errors import DecisionRefused
from exodus.native import link, replica
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks.backfill import count_source
from tasks.context import Json, opened, run
from tasks.kept import kept_task

_WATCH_S = 20.0  # of one task, as long as a slice's turn
_STUCK_S = 60.0  # without a byte or a key more
_POLL_S = 0.2
REPORT = "native"


@kept_task("watch the target being filled", run_name="watch the target being filled, round {attempt}")
def watch_filling(migration: str, writer_epoch: int, attempt: int) -> Json:
    """Watch for a while; `done` once the target follows the source and has applied what the source had then.

    Raises:
        DecisionRefused: nothing comes: the target is no replica any more.
    """
    del attempt

    async def work() -> Json:
        async with opened(migration) as it:
            began = moved = time.monotonic()
            before = (0.0, 0)
            while True:
                await replica.attach(it.plan, writer_epoch)
                state = await link.look(it.plan)
                if state.up:
                    source, target = [await it.endpoint(side).connect(name="exodus-fill") for side in Side]
                    async with source, target:
                        await replica.wait_reached(source, target, within_s=_STUCK_S)
                    return {"done": True, "percent": 100.0}
                if (state.percent, state.keys) != before:
                    before, moved = (state.percent, state.keys), time.monotonic()
                if time.monotonic() - moved > _STUCK_S:
                    raise DecisionRefused(
                        "the source's data does not come to the target",
                        why=f"{state.text} for {_STUCK_S:.0f} s",
                        next_step=f"see the target's log; it must reach {it.plan.source.url} and be let in there (+psync +replconf)",
                    )
                if time.monotonic() - began > _WATCH_S:
                    return {"done": False, "percent": state.percent}
                await asyncio.sleep(_POLL_S)

    return run(work())


def filling_look(migration: str) -> Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]]:
    """Return what looks how much of the source's data the replica has loaded."""
    total = count_source(migration)

    async def look(store: ControlStore, plan: Plan) -> ProgressSample:
        del store
        state = await link.look(plan)
        return ProgressSample(keys=round(total * state.percent / 100), keys_total=total, why="" if state.up else state.text)

    return look


@kept_task("count what the replica has")
def count_filled(migration: str) -> Json:
    """The row that a backfill by keys has: a replica has what its source has."""

    async def work() -> Json:
        async with opened(migration) as it:
            began = await it.store.report(REPORT) or {"at_ms": await it.store.now_ms()}
            now_ms = await it.store.now_ms()
            if "filled_ms" not in began:
                began["filled_ms"] = now_ms
                await it.store.save_report(REPORT, began)
            keys = (await link.look(it.plan)).keys
            seconds = max(began["filled_ms"] - began["at_ms"], 1) / 1000
            zero = dict.fromkeys(("keys_removed", "keys_failed", "keys_skipped", "keys_excluded", "payload_bytes", "re_marked", "chunks"), 0)
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

    return run(work())
