"""Analyze: is the target and the strategy acceptable?

Applications connect to the gateway, which forwards to the source.
"""

from __future__ import annotations

from typing import NamedTuple

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.advice import find_provider_risks, judge_provider, recommend
from tasks.beside import find_beside, judge_beside
from tasks.capacity import check_rights, measure_capacity, try_libraries
from tasks.checks import any_fatal, frames, open_findings, summary_lines, why_not_accepted
from tasks.clients import direct_clients
from tasks.cluster_fit import judge_cluster_fit
from tasks.compatibility import (
    advice_lines,
    check_commands,
    foresee_strategies,
    heavy_rows,
    judge_workload,
    risk_rows,
    strategy_line,
    workload_line,
)
from tasks.context import Json
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.predictions import keep_predictions
from tasks.probe import check_sides, describe_sides
from tasks.profile import learn_workload
from tasks.shapes import judge_scripts, judge_shapes, prove_shapes, try_scripts
from tasks.sizing import judge_size, measure_size
from tasks.weighing import weigh_workload

PHASE = Phase.ANALYZE


class _Tried(NamedTuple):
    """What trials on the target said: advice, lists, frames, and the dry run in one line."""

    advice: list[Json]
    lists: dict[str, list[Json]]
    frames: dict[str, list[Json]]
    foreseen: str


@phase_flow(PHASE)
def analyze(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Learn the workload from the gateways for `seconds` and compare it with the target."""
    began = open_phase(migration, PHASE)
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    facts = describe_sides(migration)
    workload = learn_workload(migration, seconds)
    direct = direct_clients(migration)
    commands = check_commands(migration, workload["commands"])
    risks = find_provider_risks(migration, workload["commands"])
    beside = find_beside(migration, PHASE)
    checks = [
        *sides,
        *judge_workload(workload, commands, direct),
        *judge_cluster_fit(workload, facts["target"]["database_count"]),
        *judge_provider(risks),
        *judge_beside(beside),
        *check_rights(migration),
        *try_libraries(migration),
    ]
    tried = _try_on_target(migration, began["plan"], facts, workload, checks)
    advice = [*tried.advice, *risk_rows(workload), *heavy_rows(workload)]
    summary = {
        key: workload[key]
        for key in (
            "seconds",
            "requests",
            "requests_per_s",
            "writes",
            "errors",
            "connections",
            "gateways",
        )
    }
    lists = {
        "recommendations": advice,
        "provider-risks": risks,
        "changes": workload["changes"],
        "prefixes": workload["prefixes"],
        "hot-keys": workload["hot_keys"],
        "clients": workload["clients"],
        "clients-of-the-day": workload["clients_day"],
        "cluster-misfits": workload["misfits"] or [],
        "direct-clients": direct,
        "beside": beside,
        **tried.lists,
    }
    frame_of = {"commands": commands, "rates": workload["rates"], **tried.frames}
    shown = {**frames(checks), **{name: rows for name, rows in frame_of.items() if rows}}
    evaluate(migration, PHASE, shown, summary, lists)
    decision = ask(
        findings_form(findings=bool(open_findings(checks))),
        migration=migration,
        phase=PHASE,
        gate="strategy",
        question="Is the target and migration strategy acceptable?",
        summary=[
            *advice_lines(advice),
            *summary_lines(checks),
            workload_line(workload, commands),
            tried.foreseen,
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(checks, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended


def _try_on_target(
    migration: str, plan: Json, facts: Json, workload: Json, checks: list[Json]
) -> _Tried:
    """Try requests, scripts and a sample of keys on the target; add what they say to `checks`."""
    shapes = prove_shapes(migration, workload["commands"])
    scripts = try_scripts(migration)
    size = measure_size(migration, workload)
    weighed = weigh_workload(migration)
    capacity = measure_capacity(migration)
    foreseen = foresee_strategies(migration)
    predicted = keep_predictions(migration, size, workload)
    checks += [
        *judge_shapes(shapes),
        *judge_scripts(scripts),
        *judge_size(size),
        *weighed["checks"],
        *capacity["checks"],
    ]
    return _Tried(
        advice=recommend(plan, facts, size, checks, predicted, capacity["steps"]),
        lists={
            "shards": size["shards"],
            "workload-model": weighed["rows"],
            "capacity": capacity["steps"],
            "predictions": predicted,
            "dry-run": foreseen,
        },
        frames={"shapes": shapes, "sizing": size["rows"]},
        foreseen=strategy_line(foreseen),
    )
