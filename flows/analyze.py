"""Analyze: is the target and the strategy acceptable?

Applications connect to the gateway, which forwards to the source.
"""

from __future__ import annotations

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.beside import compare_beside
from tasks.checks import any_fatal, frames, open_findings, summary_lines, why_not_accepted
from tasks.clients import direct_clients
from tasks.compatibility import (
    advice_lines,
    check_commands,
    foresee_strategies,
    judge_size,
    judge_workload,
    recommend,
    strategy_line,
    weigh_hot_keys,
    workload_line,
)
from tasks.decision import ask, close_phase, findings_form
from tasks.evidence import evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, describe_sides
from tasks.profile import learn_workload

PHASE = Phase.ANALYZE


@phase_flow(PHASE)
def analyze(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Learn the workload from the gateways for `seconds` and compare it with the target."""
    open_phase(migration, PHASE)
    sides = check_sides(migration)
    if any_fatal(sides):
        evaluate(migration, PHASE, frames(sides), {})
    facts = describe_sides(migration)
    workload = learn_workload(migration, seconds)
    direct = direct_clients(migration)
    commands = check_commands(migration, workload["commands"])
    beside = compare_beside(migration, PHASE)
    advice = [
        *recommend(migration, facts, workload),
        *weigh_hot_keys(migration, workload["hot_keys"]),
    ]
    foreseen = foresee_strategies(migration)
    checks = [*sides, *judge_size(facts), *judge_workload(workload, commands, direct)]
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
        "dry-run": foreseen,
        "prefixes": workload["prefixes"],
        "hot-keys": workload["hot_keys"],
        "clients": workload["clients"],
        "direct-clients": direct,
    }
    shown = {**frames(checks), **({"commands": commands} if commands else {})}
    evaluate(migration, PHASE, shown, summary, lists)
    decision = ask(
        findings_form(findings=bool(open_findings(checks))),
        migration=migration,
        phase=PHASE,
        gate="strategy",
        question="Is the target and migration strategy acceptable?",
        summary=[
            *summary_lines(checks),
            workload_line(workload, commands),
            strategy_line(foreseen),
            *advice_lines(advice),
            *beside,
        ],
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, _: why_not_accepted(checks, answer),
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
