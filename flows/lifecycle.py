"""Lifecycle: starts the phase that the ledger calls for, and ends. By hand, by a schedule, or by a phase's approval (`advance: auto`)."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from flows.phase import MIGRATION, MigrationName
from tasks.ledger import find_due


@flow(name="lifecycle", flow_run_name="{migration}: lifecycle")
def lifecycle(migration: MigrationName = MIGRATION) -> str:
    """Start what is due. Idempotent: a phase that runs or waits is not started again."""
    due = find_due(migration, by_itself=False)
    if due is None:
        return "nothing is due: a decision is open, the last one was a rejection, or the migration has ended"
    return start(migration, due)


def go_on(migration: str) -> None:
    """At the end of a phase: start what is due, if the plan lets phases follow each other."""
    due = find_due(migration, by_itself=True)
    if due is not None:
        start(migration, due)


def start(migration: str, phase: str) -> str:
    """Start a phase's deployment once for the run that calls; says which run it is."""
    run: Any = run_deployment(
        f"{phase}/exodus",
        parameters={"migration": migration},
        timeout=0,
        as_subflow=False,  # a subflow could not suspend for its decision
        idempotency_key=f"{flow_run.get_id()}-{phase}",
        tags=[f"migration:{migration}"],
    )
    return f"started {phase}: {run.name}"
