"""Who gives an answer: the operating system tells it, and the control store keeps it for the run that reads the answer."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from exodus.cli.context import open_store
from exodus.control import approvers
from exodus.plan.migration_file import MigrationFile

Json = dict[str, Any]
ByOption = Annotated[str | None, typer.Option("--by", help="name for the ledger (default: your user, which the ledger names in any case)")]
WhyOption = Annotated[str, typer.Option("--why", help="kept in the ledger")]


def attest(migration: MigrationFile, asked: Json, answer: Json) -> None:
    """Write down who answers, by the operating system: the form's `decided_by` is what anybody types."""

    async def work() -> None:
        async with await open_store(migration) as store:
            await approvers.attest(store, asked["flow_run_id"], asked["gate"], int(asked["attempt"]), answer)

    asyncio.run(work())
