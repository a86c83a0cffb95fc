"""The checks of Test as tasks: each at the level that the migration file gives to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from prefect import Task

from exodus.acceptance import (
    business,
    commands,
    delivery,
    failures,
    latency,
    load,
    logins,
    standing,
    trial_copy,
)
from exodus.acceptance.rows import FAILURES, Checked, broken, not_done, told
from exodus.cutover.rehearsal_report import REPORT
from exodus.plan.gate_checks import CheckLevel
from exodus.rehearsal.rehearse import rehearse
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

_LEVELS = {CheckLevel.REQUIRED: Level.MUST, CheckLevel.ADVISORY: Level.SHOULD}
Work = Callable[[Opened], Awaitable[Sequence[Checked]]]


def _gate_check(name: str, title: str) -> Callable[[Work], Task[[str], list[Json]]]:
    """Make a check a task; `name` is its field in `test_checks`.

    A check that cannot be run to its end has failed.
    """

    def make(work: Work) -> Task[[str], list[Json]]:
        async def rows(it: Opened) -> list[Json]:
            level: CheckLevel = getattr(it.plan.test_checks, name)
            if level is CheckLevel.OFF:
                off = told(
                    f"{name}: not run",
                    "off in test_checks",
                    line=f"{name}: not run, since test_checks has it off",
                )
                return [_row(off, Level.INFO)]
            try:
                found = await work(it)
            except FAILURES as exc:
                found = [broken(name, exc)]
            return [_row(each, _level_of(each, _LEVELS[level])) for each in found]

        made: Task[[str], list[Json]] = kept_task(title)(opens_migration(rows))
        return made

    return make


def _level_of(found: Checked, level: Level) -> Level:
    if found.by_name:
        return Level.SHOULD
    return level if found.judged else Level.INFO


def _row(found: Checked, level: Level) -> Json:
    facts = asdict(found)
    row = check(
        found.check,
        found.ok,
        found.detail,
        level=level,
        why=facts["why"],
        next_step=facts["next_step"],
    )
    return {**row, "line": found.line}


@_gate_check("logins", "Check logins and rights")
async def check_logins(it: Opened) -> list[Checked]:
    """Check every user's login and rights on the target."""
    return await logins.check_logins(it.plan, it.store)


@_gate_check("commands", "Try every observed kind of request")
async def check_commands(it: Opened) -> list[Checked]:
    """Try each kind of request that was observed on scratch keys of the target."""
    return await commands.check_commands(it.plan, it.store)


@_gate_check("delivery", "Try transactions, scripts and subscriptions")
async def check_delivery(it: Opened) -> list[Checked]:
    """Try what a plain read or write does not show."""
    return await delivery.check_delivery(it.plan, it.store)


@_gate_check("settings", "Check settings and modules")
async def check_settings(it: Opened) -> list[Checked]:
    """Check settings, memory, persistence and modules of the target."""
    return await standing.check_settings(it.plan)


@_gate_check("replicas", "Check replicas")
async def check_replicas(it: Opened) -> list[Checked]:
    """Check that the target has as many replicas as the source, and that they keep up."""
    return await standing.check_replicas(it.plan)


@_gate_check("latency", "Measure latency from each gateway")
async def check_latency(it: Opened) -> list[Checked]:
    """Let each gateway measure how long both sides take to answer it."""
    return await latency.check_latency(it.plan, it.store)


@_gate_check("data", "Copy a sample and verify it")
async def check_data(it: Opened) -> list[Checked]:
    """Copy a sample of keys into an empty database of the target, and compare it in full."""
    if (why := await trial_copy.why_not_now(it.store)) is not None:
        return [not_done("trial copy", why, "exodus verify")]
    trial = await trial_copy.copy_trial(it.plan, it.store)
    return await trial_copy.verify_trial(it.plan, it.store, trial)


@_gate_check("load", "Play the observed load")
async def check_load(it: Opened) -> list[Checked]:
    """Play the observed workload on scratch keys of the target, up to its knee."""
    return await load.check_load(it.plan, it.store)


@_gate_check("business", "Run business checks")
async def check_business(it: Opened) -> list[Checked]:
    """Run the checks of the plan's folder and webhook on both sides."""
    return await business.check_business(it.plan, it.proposed, it.store)


@kept_task("Remove the trial copy")
@opens_migration
async def remove_trial_copy(it: Opened, when: str) -> int:
    """Remove what a trial copy left on the target, `before` or `after` the checks.

    Before them, figures of an earlier run are forgotten too: they are not this run's.
    """
    if when == "before":
        for report in (load.REPORT, business.REPORT):
            await it.store.drop_report(report)
    return await trial_copy.remove_trial(it.plan, it.store)


@_gate_check("failures", "Try a slow, full and restarted target")
async def check_failures(it: Opened) -> list[Checked]:
    """Try failures of the target on a disposable server."""
    return await failures.check_failures(it.plan, it.store)


@_gate_check("rehearsal", "Rehearse the switch")
async def rehearse_rounds(it: Opened) -> list[Checked]:
    """Switch the rehearsal's prefix to the target and back, under writes, in rounds."""
    if not it.plan.has_gateways:
        return [
            not_done(
                "rehearsal of the switch",
                "cutover: own, so applications pass no gateway that could switch them",
                "rehearse the move of the applications by means of your own",
            )
        ]
    found = await rehearse(it.store, it.plan)
    return judge_rehearsal(found)


def judge_rehearsal(found: dict[str, Any]) -> list[Checked]:
    """Return the rows of a rehearsal."""
    written = found["acknowledged_writes"]
    killed = found["killed"]
    death = (
        f"a gateway was killed at '{killed['step']}' to the {killed['to']}"
        if killed["done"]
        else f"no gateway was killed: {killed['why']}"
    )
    figures = (
        f"stall p50 {found['stall_ms_p50']}, p99 {found['stall_ms_p99']}, max "
        f"{found['stall_ms_max']} ms"
    )
    line = (
        f"rehearsed {found['rounds']} times there and back under writes: {found['lost_writes']} of "
        f"{written:,} lost, {found['resurrected_writes']} resurrected; {figures}; {death}"
    )
    again = "read the gateways' logs and the artifact rehearsal, then exodus start test"
    fences = "; ".join(dict.fromkeys(row["fence"] for row in found["switches"] if row["fence"]))
    return [
        Checked(
            "the rehearsal lost no write",
            not found["lost_writes"],
            f"{found['lost_writes']} of {written:,} lost",
            "a write that was acknowledged was missing afterwards",
            again,
            line=line,
        ),
        Checked(
            "the rehearsal resurrected no write",
            not found["resurrected_writes"],
            f"{found['resurrected_writes']} of {written:,}",
            "a key that was removed was there again, or a job came twice",
            again,
        ),
        Checked(
            "the rehearsal met no error",
            not found["error_count"],
            "; ".join(found["errors"][:3]) or "none",
            "an application's request would fail at the cutover",
            again,
        ),
        Checked(
            "the rehearsal was under writes",
            written > 0,
            f"{written:,} acknowledged",
            "without writes it shows nothing",
            "look whether a gateway serves the plan's gateway address",
        ),
        *_nodes_written(found),
        told("the rehearsal's stalls", f"{figures}; without a switch {found['quiet_ms_max']} ms"),
        told("the rehearsal's killed gateway", death),
        told("the rehearsal's fence", fences),
    ]


def _nodes_written(found: dict[str, Any]) -> list[Checked]:
    """Return the row of the nodes of clusters; none where no side is one."""
    if not found["clusters"]:
        return []
    silent = {
        f"{node} of the {row['authority']}"
        for row in found["switches"]
        for node in row["nodes_not_written"]
    }
    counts = {row["authority"]: row["nodes"] for row in found["switches"]}
    silent |= {f"no switch came to the {side}" for side in found["clusters"] if side not in counts}
    return [
        Checked(
            "the rehearsal wrote to every node",
            not silent,
            "; ".join(sorted(silent))
            or ", ".join(f"{count} of the {side}" for side, count in sorted(counts.items())),
            "sessions did not get there through the gateway after a switch",
            "compare the listeners in `exodus status` with CLUSTER SLOTS of that side; then "
            "exodus start test",
        )
    ]


@kept_task("Read rehearsal, load and business rows")
@opens_migration
async def read_tables(it: Opened) -> dict[str, list[Json]]:
    """Return the rehearsal's switches, the load's steps, and what business checks found wrong."""
    rehearsal = await it.store.report(REPORT) or {}
    found = await it.store.report(business.REPORT) or {}
    played = await it.store.report(load.REPORT) or {}
    return {
        "rehearsal": rehearsal.get("switches", []),
        "load": played.get("steps", []),
        "business": found.get("rows", []),
    }
