"""Learn the workload from the gateways' counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
from redis.crc import key_slot

from exodus.commands.semantics import ROLES, Role
from exodus.control import registry, windows
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.observe.shapes import hashed_words
from exodus.plan.bounds import (
    HEAVY_BYTES,
    RATES_SHOWN_MAX,
    TASKS_PROFILE_HOT_KEYS,
    TASKS_PROFILE_SLOWER,
    TASKS_PROFILE_WINDOWS_S,
)
from exodus.plan.vocabulary import Side
from exodus.telemetry.windows import clients_of, over_time, prefix_latencies, quantile
from exodus.telemetry.windows import merge as windows_merged
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

_PROFILE = "profile.analyze"
_NO_LATENCY = {"latency_us_p50": None, "latency_us_p99": None}  # of a prefix without windows


async def snapshots(it: Opened) -> dict[str, Json]:
    """Return what each gateway process has counted since it began."""
    found: dict[str, Json] = {}
    for beat in await registry.heartbeats(it.store, "gateway"):
        raw = await answered(it.store.client.get(it.store.keys.telemetry(beat.process)))
        if raw is not None:
            found[beat.process] = orjson.loads(raw)
    return found


@kept_task("Learn the workload")
@opens_migration
async def learn_workload(it: Opened, seconds: float | None) -> Json:
    """Return what the gateways counted during some seconds, by command.

    Raises:
        DecisionRefused: no gateway is registered.
    """
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
    hot = _hot(before, after, watched)
    shown = hashed_words if it.plan.hash_names else str
    kept = await kept_windows(it)
    latencies = prefix_latencies(kept)
    day = {row["command"]: row["latency_us_p99"] for row in windows_merged(kept)}
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
        "misfits": _misfits(before, after),
        "hot_keys": [{**row, "key": shown(row["key"])} for row in hot],
        "large_hot_keys": [{**row, "key": shown(row["key"])} for row in await _large(it, hot)],
        "prefixes": [
            {**row, **latencies.get(row["prefix"], _NO_LATENCY), "prefix": shown(row["prefix"])}
            for row in _prefixes(before, after)
        ],
        "clients": [row for snapshot in after.values() for row in snapshot["clients"]],
        "commands": [{**row, "latency_us_p99_day": day.get(row["command"])} for row in commands],
        "clients_day": clients_of(kept),
        "rates": over_time(kept, RATES_SHOWN_MAX),
    }
    last = await it.store.report(_PROFILE)
    report["changes"] = [] if last is None else changes(last, report)
    await it.store.save_report(_PROFILE, report)
    return report


async def kept_windows(it: Opened) -> list[Json]:
    """Return the windows of all gateways over the last day."""
    since = await it.store.now_ms() - int(TASKS_PROFILE_WINDOWS_S * 1000)
    return await windows.read(it.store, since)


def changes(last: Json, now: Json) -> list[Json]:
    """Return what is otherwise than when Analyze last looked: commands, rate, slowest latency."""
    before = {row["command"]: row for row in last["commands"]}
    after = {row["command"]: row for row in now["commands"]}
    found = [
        {"what": "requests a second", "was": last["requests_per_s"], "is": now["requests_per_s"]}
    ]
    found += [
        {"what": f"{name}: calls", "was": 0, "is": after[name]["calls"]}
        for name in sorted(after.keys() - before.keys())
    ]
    found += [
        {"what": f"{name}: calls", "was": before[name]["calls"], "is": 0}
        for name in sorted(before.keys() - after.keys())
    ]
    found += [
        {
            "what": f"{name}: p99 in µs",
            "was": before[name]["latency_us_p99"],
            "is": row["latency_us_p99"],
        }
        for name, row in after.items()
        if name in before
        and row["latency_us_p99"] > TASKS_PROFILE_SLOWER * max(1, before[name]["latency_us_p99"])
    ]
    return found


def _hot(before: dict[str, Json], after: dict[str, Json], seconds: float) -> list[Json]:
    """Return the keys that were used most, with their estimated requests a second."""
    counts: Counter[str] = Counter()
    for process, snapshot in after.items():
        earlier = dict(before.get(process, {}).get("hot_keys", []))
        counts.update({key: count - earlier.get(key, 0) for key, count in snapshot["hot_keys"]})
    return [
        {
            "key": key,
            "slot": key_slot(key.encode()),
            "requests_per_s": round(count / seconds, 1),
        }
        for key, count in counts.most_common(TASKS_PROFILE_HOT_KEYS)
        if count > 0
    ]


async def _large(it: Opened, hot: list[Json]) -> list[Json]:
    """Return the hot keys that are large: live sync copies the full key after each write."""
    rows: list[Json] = []
    source = it.endpoint(Side.SOURCE)
    for db in sorted((await source.facts()).databases):
        async with await source.connect(db=db, name="exodus-weigh") as leg:
            for row in hot:
                key = row["key"].encode()
                kind, used = await leg.pipeline([("TYPE", key), ("MEMORY", "USAGE", key)])
                if isinstance(used, int) and used >= HEAVY_BYTES:
                    name = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
                    rows.append({**row, "db": db, "type": name, "bytes": used})
    return rows


def _misfits(before: dict[str, Json], after: dict[str, Json]) -> list[Json] | None:
    """Return the requests of the window that a cluster would refuse, most frequent first; None:
    they are not counted, since the target is no cluster.
    """
    if all(snapshot["misfits"] is None for snapshot in after.values()):
        return None
    found: Counter[tuple[str, str]] = Counter()
    for process, snapshot in after.items():
        for sign, rows in ((1, snapshot), (-1, before.get(process, {}))):
            for row in rows.get("misfits") or []:
                found[(row["command"], row["why"])] += sign * row["calls"]
    return [
        {"command": command, "why": why, "calls": calls}
        for (command, why), calls in found.most_common()
        if calls > 0
    ]


def _risks(snapshots: dict[str, Json]) -> dict[str, int]:
    total: dict[str, int] = {}
    for snapshot in snapshots.values():
        for name, count in snapshot["risks"].items():
            total[name] = total.get(name, 0) + count
    return total


def difference(before: dict[str, Json], after: dict[str, Json]) -> list[Json]:
    """Return a row a command: what the gateways counted between two looks.

    Percentiles are of the window. A snapshot counts from the start of its process.
    """
    rows: dict[str, dict[str, Any]] = {}
    latencies: dict[str, Counter[int]] = {}
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
                    "error_codes": {},
                    "write": now["write"],
                    "waits": ROLES.get(name.partition("|")[0].encode()) is Role.BLOCKING,
                    "request_bytes": 0,
                    "reply_bytes": 0,
                    "request_bytes_largest": 0,
                    "reply_bytes_largest": 0,
                },
            )
            for field in ("request_bytes", "reply_bytes"):  # since the gateway began
                row[f"{field}_largest"] = max(row[f"{field}_largest"], now[f"{field}_max"])
            for field in ("calls", "errors", "request_bytes", "reply_bytes"):
                row[field] += now[field] - was.get(field, 0)
            for code, count in now["errors_by_code"].items():
                more = count - was.get("errors_by_code", {}).get(code, 0)
                if more:
                    row["error_codes"][code] = row["error_codes"].get(code, 0) + more
            steps = latencies.setdefault(name, Counter())
            steps.update(dict(map(tuple, now["latency_us_steps"])))
            steps.subtract(dict(map(tuple, was.get("latency_us_steps", []))))
    for name, row in rows.items():
        for share in (50, 99):
            row[f"latency_us_p{share}"] = quantile(latencies[name], share / 100)
    return sorted((row for row in rows.values() if row["calls"]), key=lambda row: -row["calls"])


def _prefixes(before: dict[str, Json], after: dict[str, Json]) -> list[Json]:
    """Return a row a key prefix, the busiest first."""
    rows: dict[str, Counter[str]] = {}
    for process, snapshot in after.items():
        earlier = before.get(process, {}).get("prefixes", {})
        for name, now in snapshot["prefixes"].items():
            row = rows.setdefault(name, Counter())
            row.update(now)
            row.subtract(earlier.get(name, {}))
    found = [{"prefix": name, **row} for name, row in rows.items() if row["calls"]]
    return sorted(found, key=lambda row: -int(row["calls"]))
