"""Watch a copy of the source's traffic, by MONITOR or from packets, and follow it to its end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from prefect.artifacts import Artifact

from exodus.acceptance.observed import WEIGHED, WORKLOAD
from exodus.commands.table import CommandTable
from exodus.errors import OperatorError
from exodus.gateway.tables import load_table
from exodus.net.info import databases_of
from exodus.net.leg import ReplyError
from exodus.observe.capture import is_capture
from exodus.observe.keyspace import Keyspace, sample_keys
from exodus.observe.traffic_copy import (
    PROBED_PATTERN,
    PROBED_PATTERNS,
    WatchedTraffic,
    watch_monitor,
    watch_packets,
)
from exodus.observe.workload import workload_of
from exodus.plan.bounds import (
    MONITOR_CPU_SHARE_MAX,
    SAMPLE_BUSY_SHARE_MAX,
    TASKS_WATCHING_PATTERNS,
    TASKS_WATCHING_SAMPLE_S,
    TASKS_WATCHING_SAMPLED_KEYS,
)
from exodus.plan.vocabulary import Phase, Side
from exodus.safe_text import markdown
from exodus.topology.node import Node
from tasks.artifacts import create_table_artifact
from tasks.context import Json, Opened, opened, opens_migration, run
from tasks.evidence import artifact_key
from tasks.kept import kept_task

PROFILE = "profile.pre-test"


@kept_task("Watch packets of the source")
@opens_migration
async def watch_by_packets(it: Opened, seconds: float | None) -> Json:
    """Read the packets of the plan's capture folder for some seconds. Keep the profile and the
    workload model as reports; return the first.

    Raises:
        SourceError: the source refuses the probes of the copy.
        OperatorError: the plan names no folder, or it cannot be read, or has no packet of the
            source.
    """
    folder = it.plan.capture_folder
    if folder is None:
        raise OperatorError(
            "capture_folder is not set",
            why="the flow was to read packets",
            next_step="set it in the migration file, or leave it out from the beginning of the "
            "phase on: then MONITOR is used",
        )
    nodes, table = await _source(it)
    return await _keep(
        it,
        await watch_packets(
            nodes,
            table,
            folder,
            seconds=seconds or it.plan.observe_seconds,
            hashed=it.plan.hash_names,
        ),
    )


@kept_task("Watch the source by MONITOR")
@opens_migration
async def watch_by_monitor(it: Opened, seconds: float | None) -> Json:
    """Watch for some seconds, within the budget. Keep and return as `watch_by_packets`.

    Raises:
        SourceError: the source refuses MONITOR, or the probes of the copy.
    """
    nodes, table = await _source(it)
    return await _keep(
        it,
        await watch_monitor(
            nodes,
            table,
            seconds=seconds or it.plan.observe_seconds,
            hashed=it.plan.hash_names,
            cpu_share_max=min(
                it.plan.budget.cpu_share_max or MONITOR_CPU_SHARE_MAX, MONITOR_CPU_SHARE_MAX
            ),
        ),
    )


def watch_copy(migration: str, seconds: float | None, plan: Json) -> Json:
    """Watch a copy of the traffic as the plan says."""
    watch = watch_by_packets if plan["capture_folder"] else watch_by_monitor
    return watch(migration, seconds)


async def _source(it: Opened) -> tuple[Sequence[Node], CommandTable]:
    """Return the source's masters and its commands."""
    table = (await load_table(it.plan)).commands
    return await it.endpoint(Side.SOURCE).each_node(), table


async def _keep(it: Opened, watched: WatchedTraffic) -> Json:
    report = {**watched.report(), "keyspace": []}
    coverage = watched.coverage
    await it.store.drop_report(WEIGHED)  # of the model before this one
    if not watched.profile.on_keys:
        await it.store.drop_report(WORKLOAD)  # the evidence says that nobody worked
    else:
        sampled = await _sampled(it)
        if isinstance(sampled, str):
            report["remarks"] = [*report["remarks"], sampled]
        else:
            report["keyspace"] = [each.model_dump() for each in sampled.groups]
        model = workload_of(
            watched.profile,
            source=watched.source,
            parsed_share=None if coverage is None else coverage.parsed_share,
            lost_bytes=0 if coverage is None else coverage.lost_bytes,
            keyspace=None if isinstance(sampled, str) else sampled,
        )
        await it.store.save_report(WORKLOAD, model.model_dump(mode="json"))
    await it.store.save_report(PROFILE, report)
    return report


async def _sampled(it: Opened) -> Keyspace | str:
    """Return a sample of the source's keys, or why there is none."""
    nodes = await it.endpoint(Side.SOURCE).each_node()
    databases = sorted({db for node in nodes for db in databases_of(await node.info())})
    async with AsyncExitStack() as legs:
        try:
            return await sample_keys(
                [
                    await legs.enter_async_context(await node.connect(name="exodus-sample"))
                    for node in nodes
                ],
                databases,
                keys_max=TASKS_WATCHING_SAMPLED_KEYS,
                seconds_max=TASKS_WATCHING_SAMPLE_S,
                busy_share_max=SAMPLE_BUSY_SHARE_MAX,
                hashed=it.plan.hash_names,
            )
        except ReplyError as exc:
            return f"the workload model has no sample of the keys: {exc}"


@kept_task("Follow an event to its artifact")
def follow_event(migration: str, watched: Json) -> list[Json]:
    """Show the observed key patterns, and read both the stored metric and the artifact again.

    Returns what the copy, the control store, and the artifact have of Exodus's own reads.
    """
    key = artifact_key(migration, Phase.PRE_TEST, "traffic")
    rows = [row for row in watched["patterns"] if row["pattern"] not in PROBED_PATTERNS]
    probed = {"pattern": PROBED_PATTERN, "calls": watched["probes_seen"], "writes": 0}
    create_table_artifact(
        key=key,
        table=[probed, *rows[:TASKS_WATCHING_PATTERNS]],
        description="What the copy shows, by key pattern; the first row is of Exodus's own reads",
    )
    shown = Artifact.get(key)
    data: Any = getattr(shown, "data", None)  # None where there is no such artifact

    async def stored() -> int:
        async with opened(migration) as it:
            report = await it.store.report(PROFILE)
            return int(report["probes_seen"]) if report is not None else 0

    return [
        {"where": "copy", "events": watched["probes_seen"]},
        {"where": "control store", "events": run(stored())},
        {"where": "artifact", "events": events_of(data)},
    ]


def events_of(data: Any) -> int:
    """Return how many of Exodus's own reads a stored artifact shows."""
    rows: list[Json] = json.loads(data) if isinstance(data, str) else data or []
    names = (markdown(PROBED_PATTERN), PROBED_PATTERN)
    return sum(int(row["calls"]) for row in rows if row["pattern"] in names)


@kept_task("Delete old capture files")
@opens_migration
async def expire_captures(it: Opened) -> list[str]:
    """Delete the files of `capture_folder` that are older than `capture_hours_max`; their names.

    Only capture files are deleted: they contain keys and values of production.
    """
    folder, hours = it.plan.capture_folder, it.plan.capture_hours_max
    if folder is None or hours is None:
        return []
    return await asyncio.to_thread(delete_captures, folder, time.time() - hours * 3_600)


def delete_captures(folder: Path, before: float) -> list[str]:
    """Delete capture files that nobody has written since `before` (s since 1970); their names.

    Raises:
        OperatorError: a file cannot be deleted.
    """
    gone = []
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.stat().st_mtime < before and is_capture(path):
                path.unlink()
                gone.append(path.name)
    except OSError as exc:
        raise OperatorError(
            f"capture_folder: {exc.filename or folder} cannot be deleted",
            why=exc.strerror or str(exc),
            next_step="let the worker's user delete files there, or leave capture_hours_max away",
        ) from exc
    return gone
