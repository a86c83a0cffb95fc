"""Find the migration of a command: by name, else by file, else the local stack's."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from exodus import private_files
from exodus.cli.prefect_api import PrefectApi
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.plan.in_place import in_place
from exodus.plan.migration_file import MigrationFile, load_migration, migration_of
from exodus.plan.plan import Plan
from exodus.stack.home import Home

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="folder of the local stack (default: $EXODUS_HOME, else .exodus)"),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file", help="migration file (default: the local stack's, else ./migration.yaml)"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
_NameOption = Annotated[
    str | None,
    typer.Option(
        "--migration",
        envvar="EXODUS_MIGRATION",
        help="name of a migration in Prefect (see exodus migrations), instead of a file",
    ),
]
_chosen: ContextVar[str | None] = ContextVar("migration", default=None)


def choosable(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--migration` to a command; `migration_at` reads it."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def chosen(*arguments: Any, migration: str | None = None, **options: Any) -> None:
        _chosen.set(migration)
        command(*arguments, **options)

    option = inspect.Parameter(
        "migration", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_NameOption
    )
    chosen.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return chosen


def home_at(path: Path | None) -> Home:
    """Return the local stack's folder."""
    return Home(path or Path(os.environ.get("EXODUS_HOME") or ".exodus"))


def evidence_folder(home: Home) -> Path:
    """Return the folder of evidence bundles; the flows of the same stack use it too."""
    return private_files.evidence_folder(
        home.root / "evidence" if home.prefect_env.exists() else None
    )


def migration_at(file: Path | None, home: Path | None) -> MigrationFile:
    """Return the migration of a command.

    Raises:
        OperatorError: no migration is named and none is here, or Prefect has none of this name.
    """
    if file is not None:
        return load_migration(file)
    name = _chosen.get()
    if name:
        return _named(PrefectApi.find(home_at(home)), name)
    for path in (home_at(home).migration_file, Path("migration.yaml")):
        if path.exists():
            return load_migration(path)
    raise OperatorError(
        "no migration is named",
        why="this folder has no stack and no migration.yaml",
        next_step="exodus up; or --file migration.yaml; or --migration NAME (exodus "
        "migrations lists them)",
    )


def _named(api: PrefectApi, name: str) -> MigrationFile:
    blocks = {str(block["name"]): block for block in api.migrations()}
    if name not in blocks:
        raise OperatorError(
            f"--migration: Prefect has no migration {name!r}",
            why=f"{api.url} has: {', '.join(sorted(blocks)) or 'none'}",
            next_step="name one of them, or register it: exodus apply migration.yaml",
        )
    return of_block(blocks[name])


def of_block(block: dict[str, Any]) -> MigrationFile:
    """Return the migration of a Prefect block, checked like a file.

    Raises:
        OperatorError: a field has an impossible value.
    """
    data = block["data"]
    servers = {
        name: {
            field: value
            for field, value in data[name].items()
            if value and not field.startswith("_")  # a block has every field, most of them empty
        }
        for name in ("source", "target", "control_store")
    }
    return migration_of(
        {"name": data["migration"], **servers, **data.get("options", {})},
        f"the Prefect block {block['name']}",
    )


async def open_store(file: MigrationFile) -> ControlStore:
    """Return a migration's control store, after it has answered."""
    return await ControlStore.connect(file.control_store, file.plan.name)


async def plan_of(store: ControlStore, migration: MigrationFile) -> Plan:
    """Return the registered plan with the logins, secrets and files of the migration at hand.

    Raises:
        OperatorError: the registered plan names other servers.
    """
    return in_place(await store.plan(), migration.plan, named="the migration file")
