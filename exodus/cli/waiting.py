"""`--wait`: return when a phase asks a question or has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from exodus.cli.output import show
from exodus.cli.prefect_api import PrefectApi
from exodus.cli.runs import OPEN
from exodus.errors import DecisionRefused
from exodus.plan.bounds import WAITING_EVERY_S
from exodus.plan.migration_file import MigrationFile

Json = dict[str, Any]
ReadStatus = Callable[[MigrationFile, PrefectApi], Coroutine[Any, Any, Json]]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="wait until the phase asks its next question or has ended; exit status 1 if it "
        "failed, or asks again",
    ),
]


def wait_asked(
    migration: MigrationFile,
    api: PrefectApi,
    run_id: str,
    read_status: ReadStatus,
    *,
    after: tuple[str, int] | None = None,
) -> None:
    """Wait until a run asks a question or has ended, and print which.

    Args:
        migration: the migration of the run.
        api: its Prefect server.
        run_id: the run.
        read_status: reads the status of a migration.
        after: gate and attempt of the question that was just answered.

    Raises:
        DecisionRefused: the run failed, or the answer did not count. The reason is the one that
            `status` shows.
    """
    while True:
        found = asyncio.run(read_status(migration, api))
        mine = [
            (name, state)
            for name, state in found["phases"].items()
            if state.get("flow_run_id") == run_id
        ]
        name, state = mine[0] if mine else ("", {})
        now = state.get("state")
        if (
            now == "waiting"
            and (state["gate"], int(state["attempt"])) != after
            and api.asks(run_id)
        ):
            if after is not None and state["gate"] == after[0] and state.get("asked_again"):
                raise DecisionRefused(
                    f"{name} asks again: {state['question']}",
                    why=state["asked_again"],
                    next_step="exodus answer shows the decision; answer it again",
                )
            show(f"{name} asks: {state['question']}")
            return
        if now == "failed":
            raise DecisionRefused(
                f"{name} failed",
                why=str(state.get("why", "")),
                next_step=f"look at {api.run_url(run_id)}",
            )
        if now is not None and now not in OPEN:
            show(f"{name}: {now}")
            return
        time.sleep(WAITING_EVERY_S)
