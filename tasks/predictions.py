"""What Analyze predicts, kept until the cutover, and then scored against what came."""

from __future__ import annotations

import asyncio
from typing import Any

from exodus.net.info import data_bytes
from exodus.plan.bounds import (
    TASKS_PREDICTED_MEMORY_OFF,
    TASKS_PREDICTED_P99_OFF,
    TASKS_PREDICTED_WATCH_S,
)
from exodus.plan.vocabulary import Phase, Side
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task
from tasks.profile import difference, snapshots

PREDICTIONS = "predictions"


@kept_task("Keep the predictions")
@opens_migration
async def keep_predictions(it: Opened, size: Json, workload: Json) -> list[Json]:
    """Keep what Analyze expects, each as a range, and return it as rows."""
    needed = size["needed_bytes"]
    p99 = slowest_p99_us(workload["commands"])
    low, high = backfill_seconds(size, it.plan.slices)
    rows = [
        _row(
            "bytes that the keys take on the target",
            round(needed * (1 - TASKS_PREDICTED_MEMORY_OFF)),
            round(needed * (1 + TASKS_PREDICTED_MEMORY_OFF)),
            size["arithmetic"],
        ),
        _row(
            "seconds of the backfill",
            low,
            high,
            f"{size['keys']:,} keys, {size['keys_per_s'] or 0:,.0f} a second over one connection "
            f"in the sample, {it.plan.slices} slices",
        ),
        _row(
            "p99 of the slowest common command in µs",
            0,
            round(p99 * (1 + TASKS_PREDICTED_P99_OFF)),
            f"it is {p99:,} at the source through the gateways",
        ),
    ]
    await it.store.save_report(
        PREDICTIONS, {"at_ms": await it.store.now_ms(), "rows": rows, "needed_bytes": needed}
    )
    return rows


def backfill_seconds(size: Json, slices: int) -> tuple[float | None, float | None]:
    """Return the shortest and the longest time that the sample lets expect; None: it says nothing.

    At best all slices are copied side by side, and a server is not slower for it. At worst one
    connection does all, at half the sample's rate.
    """
    rate = size["keys_per_s"]
    if not rate:
        return None, None
    return round(size["keys"] / (rate * slices), 3), round(2 * size["keys"] / rate + 1, 3)


def _row(what: str, low: float | None, high: float | None, because: str) -> Json:
    return {"what": what, "low": low, "high": high, "because": because}


def slowest_p99_us(commands: list[Json]) -> int:
    """Return the highest 99th percentile of the commands that are not rare and do not wait."""
    total = sum(row["calls"] for row in commands)
    common = [row for row in commands if not row["waits"] and row["calls"] * 100 >= total]
    return max((int(row["latency_us_p99"]) for row in common), default=0)


@kept_task("Score the predictions")
@opens_migration
async def score_predictions(it: Opened) -> list[Json]:
    """Return each prediction of Analyze with what came, after the cutover.

    The latency is of `TASKS_PREDICTED_WATCH_S` in which the gateways are watched.
    """
    kept = await it.store.report(PREDICTIONS)
    if kept is None:
        return []
    before = await snapshots(it)
    await asyncio.sleep(TASKS_PREDICTED_WATCH_S)
    commands = difference(before, await snapshots(it))
    migrated = await it.store.report(f"evidence.{Phase.MIGRATE}")
    infos = [await node.info() for node in await it.endpoint(Side.TARGET).each_node()]
    came: list[float | None] = [
        sum(map(data_bytes, infos)),
        (migrated or {}).get("summary", {}).get("seconds"),
        slowest_p99_us(commands) or None,
    ]
    return [scored(row, value) for row, value in zip(kept["rows"], came, strict=True)]


def scored(row: Json, came: float | None) -> Json:
    """Return a prediction with what came, and whether it was within the range."""
    known = came is not None and row["low"] is not None and row["high"] is not None
    within: Any = row["low"] <= came <= row["high"] if known else None
    verdict = {None: "not measured", True: "as predicted", False: "NOT as predicted"}[within]
    return {**row, "came": came, "verdict": verdict}
