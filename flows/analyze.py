"""Analyze: is the target and the strategy acceptable?

Applications connect to the gateway, which forwards to the source.
"""

from __future__ import annotations

from collections import Counter

from prefect.client.schemas.objects import State

from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.beside import compare_beside
from tasks.compatibility import check_commands, foresee_strategies, recommend, weigh_hot_keys
from tasks.decision import ask, close_phase, phase_form
from tasks.evidence import artifact_key, evaluate
from tasks.ledger import open_phase
from tasks.probe import check_sides, describe_sides
from tasks.profile import learn_workload

PHASE = Phase.ANALYZE


@phase_flow(PHASE)
def analyze(migration: MigrationName = MIGRATION, seconds: Seconds = SECONDS) -> State[str]:
    """Learn the workload from the gateways for `seconds` and compare it with the target."""
    open_phase(migration, PHASE)
    findings = check_sides(migration)
    facts = describe_sides(migration)
    workload = learn_workload(migration, seconds)
    commands = check_commands(migration, workload["commands"])
    beside = compare_beside(migration, PHASE)
    heavy = weigh_hot_keys(migration, workload["hot_keys"])
    advice = [*recommend(migration, facts, workload), *heavy]
    create_table_artifact(
        key=artifact_key(migration, PHASE, "recommendations"),
        table=advice,
        description="Sizing, strategy and risks",
    )
    foreseen = foresee_strategies(migration) or [{"strategy": "none: no keys", "keys_estimated": 0}]
    create_table_artifact(
        key=artifact_key(migration, PHASE, "dry-run"),
        table=foreseen,
        description="Copy strategies, from a sample of keys",
    )
    checks = [
        {"check": row["check"], "ok": row["severity"] != "fatal", "detail": row["what"]}
        for row in findings
    ]
    through = (
        f"{workload['requests']} requests of {workload['connections']} connections in "
        f"{workload['seconds']} s"
    )
    checks.append(
        {
            "check": "applications send requests through a gateway",
            "ok": bool(commands),
            "detail": through,
        }
    )
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
    evaluate(migration, PHASE, {"commands": commands, "checks": checks}, summary)
    slowest = max(commands, key=lambda row: row["latency_us_p99"])
    by_strategy: Counter[str] = Counter()
    for row in foreseen:
        by_strategy[row["strategy"]] += row["keys_estimated"]
    decision = ask(
        phase_form(),
        migration=migration,
        phase=PHASE,
        gate="strategy",
        question="Is the target and migration strategy acceptable?",
        summary=[
            f"{workload['requests_per_s']:,} requests/s, {len(commands)} commands, all known "
            f"to the target; slowest p99: {slowest['command']}",
            f"{advice[1]['finding']}: {advice[1]['advice']}",
            "dry run: "
            + ", ".join(
                f"{keys:,} keys {strategy}" for strategy, keys in by_strategy.most_common(3)
            )
            + " (artifact dry-run)",
            *(f"{row['finding']}: {row['advice']}" for row in heavy[:3]),
            *beside,
        ],
        evidence=f"evidence.{PHASE}",
    )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
