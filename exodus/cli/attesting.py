"""Record who answers a decision, as the operating system knows it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from exodus.cli.context import open_store
from exodus.control import approvers
from exodus.plan.migration_file import MigrationFile

Json = dict[str, Any]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by", help="your name in the ledger (default: your user name, which is always recorded)"
    ),
]
WhyOption = Annotated[str, typer.Option("--why", help="reason, kept in the ledger")]


def attest(migration: MigrationFile, asked: Json, answer: Json) -> None:
    """Record the operating-system user who answers: anybody can type the form's `decided_by`."""

    async def work() -> None:
        async with await open_store(migration) as store:
            await approvers.attest(
                store, asked["flow_run_id"], asked["gate"], int(asked["attempt"]), answer
            )

    asyncio.run(work())
