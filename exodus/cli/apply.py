"""`exodus apply`: check a migration file, show its changes, register all or nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from exodus.cli.asking import YesOption, confirm
from exodus.cli.context import HomeOption, home_at, migration_at, open_store
from exodus.cli.doctor import warn_of_open_prefect
from exodus.cli.output import say, show
from exodus.cli.prefect_api import PrefectApi
from exodus.control import ledger
from exodus.control.approvers import of_this_process
from exodus.control.phase_order import due_phase
from exodus.errors import OperatorError
from exodus.net.client import answered
from exodus.plan.migration_file import MigrationFile
from exodus.plan.vocabulary import Phase
from exodus.registration import Examined, examine, register

SecretsOption = Annotated[
    bool,
    typer.Option(
        "--with-secrets",
        help="store passwords in the blocks, not the names of their files or variables",
    ),
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="check and show changes; register nothing")
]


def apply(
    file: Annotated[Path, typer.Argument(help="migration file")],
    with_secrets: SecretsOption = False,
    check: CheckOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Check a migration file, show what changes, and register all of it or nothing.

    Example: exodus apply migration.yaml
    """
    migration = migration_at(file, home)
    api = PrefectApi.find(home_at(home))
    api.check()
    warn_of_open_prefect(api)
    examined = asyncio.run(examine(migration))
    _show(examined)
    if examined.fatal:
        first, *others = examined.fatal
        for finding in others:
            say(f"error: {finding.what}", f"  why:  {finding.why}", f"  next: {finding.next_step}")
        raise OperatorError(
            first.what, why=f"{first.why}; nothing was registered", next_step=first.next_step
        )
    if check:
        show("nothing was registered (--check)")
        return
    if examined.voids:
        confirm("Register the changed plan?", yes=yes)
    due = asyncio.run(_register(migration, examined, api, file, with_secrets=with_secrets))
    show(f"registered {migration.plan.name}: {f'exodus start {due}' if due else 'exodus status'}")


def _show(examined: Examined) -> None:
    for finding in examined.findings:
        if finding.severity == "warning":
            say(f"warning: {finding.what}: {finding.why}; {finding.next_step}")
    for change in examined.changes:
        show(f"changed: {change.field}: {change.before} → {change.after}")
    if examined.registered and not examined.changes:
        show("the registered plan is unchanged")
    if examined.voids:
        show(f"void: {', '.join(examined.voids)}. Repeat and approve them again.")


async def _register(
    migration: MigrationFile, examined: Examined, api: PrefectApi, file: Path, *, with_secrets: bool
) -> Phase | None:
    """Save the plan and write the blocks; restore the plan if that fails.

    Return the phase that is due.
    """
    async with await open_store(migration) as store:
        before = await answered(store.client.get(store.keys.plan))
        await store.save_plan(migration.plan)
        status = 1
        try:
            status = _write_blocks(api, file, with_secrets=with_secrets)
        finally:
            if status and before is None:
                await answered(store.client.delete(store.keys.plan))
            elif status:
                await answered(store.client.set(store.keys.plan, before))
        if status:
            say("nothing was registered; the plan in the control store is unchanged")
            raise typer.Exit(status)
        await register(store, migration.plan, examined, of_this_process())
        return due_phase(await ledger.read(store), migration.plan)


def _write_blocks(api: PrefectApi, file: Path, *, with_secrets: bool) -> int:
    """Write Prefect's blocks in another process, because the engine does not import Prefect.

    Returns:
        The exit status of that process.
    """
    command = [
        sys.executable,
        "-m",
        "blocks.register",
        "--blocks-only",
        "--migration-file",
        str(file.absolute()),
    ]
    login = {"PREFECT_API_AUTH_STRING": api.login} if api.login else {}
    done = subprocess.run(  # noqa: S603 - a module of Exodus
        [*command, *(["--with-secrets"] if with_secrets else [])],
        env={**os.environ, "PREFECT_API_URL": api.url, **login},
        check=False,
    )
    return done.returncode
