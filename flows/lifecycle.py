"""Lifecycle: start the phase that is due by the ledger, and end.

It runs by hand, by a schedule, or after a phase's approval (`advance: auto`).
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from flows.phase import MIGRATION, MigrationName
from tasks.ledger import find_due


@flow(name="lifecycle", flow_run_name="{migration}: lifecycle")
def lifecycle(migration: MigrationName = MIGRATION) -> str:
    """Start the phase that is due, unless it is running or waiting."""
    due = find_due(migration, by_itself=False)
    if due is None:
        return (
            "no phase is due: a decision is open, the last one was a rejection, or the "
            "migration has ended"
        )
    return start(migration, due)


def go_on(migration: str) -> None:
    """Start the next phase at the end of a phase, if the plan says `advance: auto`."""
    due = find_due(migration, by_itself=True)
    if due is not None:
        start(migration, due)


def start(migration: str, phase: str) -> str:
    """Start a phase's deployment once for the calling run; return the name of the new run."""
    run: Any = run_deployment(
        f"{phase}/exodus",
        parameters={"migration": migration},
        timeout=0,
        as_subflow=False,  # a subflow could not suspend for its decision
        idempotency_key=f"{flow_run.get_id()}-{phase}",
        tags=[f"migration:{migration}"],
    )
    return f"started {phase}: {run.name}"
