"""Every observed kind of request, tried on scratch keys of the target.

Analyze proves the same once (`exodus/shadow/shape_proofs.py`). Days may lie between the two. By
now the target may be another version, or have other rights and settings.
"""

from __future__ import annotations

from typing import Any

from exodus.acceptance.observed import LEARNT, observed_workload, tried_as
from exodus.acceptance.rows import Checked, not_done, on_each, told
from exodus.control.store import ControlStore
from exodus.plan.bounds import ACCEPTANCE_NAMED
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.shadow.rules import Rules
from exodus.shadow.shape_proofs import ShapeVerdict, prove_on, shapes_of
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node

_BAD = {
    ShapeVerdict.MISSING: (
        "the target has every observed kind of request",
        "applications would get an error for it after the cutover",
    ),
    ShapeVerdict.DIFFERS: (
        "the target answers every observed kind of request",
        "applications would get another reply, or an error, after the cutover",
    ),
}


async def check_commands(plan: Plan, store: ControlStore) -> list[Checked]:
    """Try each kind of request that Pre-test and the gateways observed."""
    learnt = (await store.report(LEARNT) or {}).get("commands", [])
    shapes = shapes_of(await observed_workload(store), learnt)
    if not shapes:
        what, again = "observed kinds of request", "exodus start analyze while applications work"
        return [not_done(what, "nothing was observed", again)]
    source = Endpoint(Side.SOURCE, plan.source) if plan.prove_on_source else None
    rules = Rules(plan.compare_rules)

    async def tried(node: Node) -> list[Checked]:
        return _judged(await prove_on(shapes, node, source, rules))

    return await on_each(await Endpoint(Side.TARGET, tried_as(plan)).each_node(), tried)


def _judged(rows: list[dict[str, Any]]) -> list[Checked]:
    found = {
        verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ShapeVerdict
    }
    counts = ", ".join(f"{len(each)} {verdict}" for verdict, each in found.items() if each)
    checks = [
        Checked(
            what,
            not found[verdict],
            _named(found[verdict]) or counts,
            why,
            "choose a target that takes it, or change the applications",
        )
        for verdict, (what, why) in _BAD.items()
    ]
    untried = found[ShapeVerdict.NOT_PROVABLE]
    return [*checks, told("kinds of request that were not tried", _named(untried) or "none")]


def _named(rows: list[dict[str, Any]]) -> str:
    return "; ".join(
        row["shape"] + (f" ({row['how']})" if row["how"] else "") for row in rows[:ACCEPTANCE_NAMED]
    )
