"""Watch the workload: by MONITOR in Pre-test, by the gateways' counters later."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson

from exodus.control import registry
from exodus.errors import DecisionRefused
from exodus.gateway.tables import load_table
from exodus.net.client import answered
from exodus.observe.monitor import capture
from tasks.context import Json, Opened, opened, run
from tasks.kept import kept_task

_HOT_KEYS = 20


@kept_task("Capture traffic")
def capture_traffic(migration: str, seconds: float | None) -> Json:
    """Watch the source by MONITOR; return the profile and keep it as a report."""

    async def work() -> Json:
        async with opened(migration) as it:
            table = (await load_table(it.plan)).commands
            profile = await capture(
                it.plan.source, table, seconds=seconds or it.plan.observe_seconds
            )
            report = profile.report(table)
            await it.store.save_report("profile.pre-test", report)
            return report

    return run(work())


async def snapshots(it: Opened) -> dict[str, Json]:
    """Return what each gateway process has counted since it began."""
    found: dict[str, Json] = {}
    for beat in await registry.heartbeats(it.store, "gateway"):
        raw = await answered(it.store.client.get(it.store.keys.telemetry(beat.process)))
        if raw is not None:
            found[beat.process] = orjson.loads(raw)
    return found


@kept_task("Learn the workload")
def learn_workload(migration: str, seconds: float | None) -> Json:
    """Return what the gateways counted during some seconds, by command.

    Raises:
        DecisionRefused: no gateway is registered.
    """

    async def work() -> Json:
        async with opened(migration) as it:
            watched = seconds or it.plan.observe_seconds
            before = await snapshots(it)
            if not before:
                raise DecisionRefused(
                    "no gateway has reported",
                    why="applications connect to the gateway in this phase",
                    next_step="start exodus gateway and point the applications at it",
                )
            await asyncio.sleep(watched)
            after = await snapshots(it)
            commands = difference(before, after)
            requests = sum(row["calls"] for row in commands)
            report = {
                "seconds": watched,
                "requests": requests,
                "requests_per_s": round(requests / watched, 1),
                "writes": sum(row["calls"] for row in commands if row["write"]),
                "errors": sum(row["errors"] for row in commands),
                "connections": sum(snapshot["connections"] for snapshot in after.values()),
                "gateways": len(after),
                "risks": _risks(after),
                "hot_keys": _hot(before, after, watched),
                "commands": commands,
            }
            await it.store.save_report("profile.analyze", report)
            return report

    return run(work())


def _hot(before: dict[str, Json], after: dict[str, Json], seconds: float) -> list[Json]:
    """Return the keys that were used most, with their estimated requests a second."""
    counts: Counter[str] = Counter()
    for process, snapshot in after.items():
        earlier = dict(before.get(process, {}).get("hot_keys", []))
        counts.update({key: count - earlier.get(key, 0) for key, count in snapshot["hot_keys"]})
    return [
        {"key": key, "requests_per_s": round(count / seconds, 1)}
        for key, count in counts.most_common(_HOT_KEYS)
        if count > 0
    ]


def _risks(snapshots: dict[str, Json]) -> dict[str, int]:
    total: dict[str, int] = {}
    for snapshot in snapshots.values():
        for name, count in snapshot["risks"].items():
            total[name] = total.get(name, 0) + count
    return total


def difference(before: dict[str, Json], after: dict[str, Json]) -> list[Json]:
    """Return command by command what was counted between two snapshots."""
    rows: dict[str, dict[str, Any]] = {}
    for process, snapshot in after.items():
        earlier = before.get(process, {}).get("commands", {})
        for name, now in snapshot["commands"].items():
            was = earlier.get(name, {})
            row = rows.setdefault(
                name,
                {
                    "command": name,
                    "calls": 0,
                    "errors": 0,
                    "write": now["write"],
                    "request_bytes": 0,
                    "reply_bytes": 0,
                    "latency_us_p50": 0,
                    "latency_us_p99": 0,
                },
            )
            for field in ("calls", "errors", "request_bytes", "reply_bytes"):
                row[field] += now[field] - was.get(field, 0)
            for field in ("latency_us_p50", "latency_us_p99"):
                row[field] = max(row[field], now[field])
    return sorted((row for row in rows.values() if row["calls"]), key=lambda row: -row["calls"])
