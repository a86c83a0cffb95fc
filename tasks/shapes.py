"""Analyze's proof of compatibility: each observed kind of request, tried on the target."""

from __future__ import annotations

from exodus.acceptance.observed import observed_workload
from exodus.control import registry
from exodus.cutover.script_loading import load_scripts, unseen
from exodus.plan.bounds import TASKS_COMPATIBILITY_NAMED, TASKS_PROOFS_PLAYED_MIN
from exodus.plan.vocabulary import Side
from exodus.shadow.rules import Rules
from exodus.shadow.shape_proofs import ShapeVerdict, prove_on, shapes_of, worst_of
from exodus.topology.endpoint import Endpoint
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task
from tasks.trials import trying


@kept_task("Prove each observed kind of request")
@opens_migration
async def prove_shapes(it: Opened, commands: list[Json]) -> list[Json]:
    """Try what Pre-test and the gateways observed on scratch keys; a row a kind of request.

    It runs on each node of the target, and with `prove_on_source` also on the source.
    """
    shapes = shapes_of(await observed_workload(it.store), commands)
    source = Endpoint(Side.SOURCE, trying(it, Side.SOURCE)) if it.plan.prove_on_source else None
    rules = Rules(it.plan.compare_rules)
    nodes = await Endpoint(Side.TARGET, trying(it, Side.TARGET)).each_node()
    return worst_of([(node.where, await prove_on(shapes, node, source, rules)) for node in nodes])


@kept_task("Load the observed scripts on the target")
@opens_migration
async def try_scripts(it: Opened) -> Json:
    """Load every script whose text the gateways saw on the target, as the cutover will again."""
    loaded: set[bytes] = set()
    async with await it.endpoint(Side.TARGET).connect(name="exodus-prove") as leg:
        refused = await load_scripts(it.store, leg, loaded)
    beats = await registry.heartbeats(it.store, "gateway")
    return {"scripts": len(loaded), "refused": refused, "unseen": unseen(beats)}


def judge_shapes(rows: list[Json]) -> list[Json]:
    """Return the checks of the proofs."""
    found = {
        verdict: [row for row in rows if row["verdict"] == verdict]
        for verdict in map(str, ShapeVerdict)
    }
    total = sum(row["calls"] for row in rows)
    unproved = sum(row["calls"] for row in found[ShapeVerdict.NOT_PROVABLE])
    proved = 1 - unproved / total if total else 0.0
    counts = ", ".join(f"{len(each)} {verdict}" for verdict, each in found.items() if each)
    return [
        check(
            "the target takes every observed kind of request",
            not found[ShapeVerdict.MISSING],
            _named(found[ShapeVerdict.MISSING]) or counts or "nothing was observed",
            why="applications would get an error for it after the cutover",
            next_step="choose a target that has it, or change the applications",
        ),
        check(
            "the target answers as the source does",
            not found[ShapeVerdict.DIFFERS],
            _named(found[ShapeVerdict.DIFFERS]) or counts,
            level=Level.SHOULD,
            why="applications would get another reply after the cutover",
            next_step="read the artifact shapes, and compare with what the applications expect",
        ),
        check(
            "most observed requests could be tried",
            proved >= TASKS_PROOFS_PLAYED_MIN,
            f"{proved:.1%} of {total:,} requests"
            + (f"; not tried: {_named(found[ShapeVerdict.NOT_PROVABLE])}" if unproved else ""),
            level=Level.SHOULD,
            why="nobody knows how the target answers the others",
            next_step="try these by the applications' own tests; where a right is missing, name an "
            "application's user in compare_user",
        ),
    ]


def judge_scripts(tried: Json) -> list[Json]:
    """Return the check of the scripts."""
    refused = tried["refused"]
    return [
        check(
            "the target takes every script that was seen",
            not refused,
            "; ".join(refused[:TASKS_COMPATIBILITY_NAMED]) or f"{tried['scripts']} scripts",
            why="calls of it would fail after the cutover",
            next_step="correct the script, or let Exodus's user run SCRIPT LOAD on the target",
        ),
        check(
            "the text of every called script was seen",
            not tried["unseen"],
            f"{tried['unseen']} scripts are called by EVALSHA whose text no gateway has seen",
            level=Level.SHOULD,
            why="the target does not have them: calls inside transactions fail after the cutover",
            next_step="load them on the target (SCRIPT LOAD), or let the applications connect anew",
        ),
    ]


def _named(rows: list[Json]) -> str:
    return "; ".join(
        row["shape"] + (f" ({row['how']})" if row["how"] else "")
        for row in rows[:TASKS_COMPATIBILITY_NAMED]
    )
