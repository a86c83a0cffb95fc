"""Which migration a command is about: a migration file, else that of the local stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from exodus.config import MigrationFile, load_migration
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.stack.home import Home

HomeOption = Annotated[Path | None, typer.Option("--home", help="folder of the local stack (default .exodus, or $EXODUS_HOME)")]
FileOption = Annotated[Path | None, typer.Option("--file", help="migration file (default: the local stack's, else ./migration.yaml)")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


def home_at(path: Path | None) -> Home:
    """The local stack's folder."""
    return Home(path or Path(os.environ.get("EXODUS_HOME") or ".exodus"))


def migration_at(file: Path | None, home: Path | None) -> MigrationFile:
    """The migration that a command is about.

    Raises:
        OperatorError: none is named and none is here.
    """
    if file is not None:
        return load_migration(file)
    for path in (home_at(home).migration_file, Path("migration.yaml")):
        if path.exists():
            return load_migration(path)
    raise OperatorError(
        "no migration is named", why="there is no stack here and no migration.yaml", next_step="exodus up, or name one with --file migration.yaml"
    )


async def open_store(file: MigrationFile) -> ControlStore:
    """Its control store, proved to answer."""
    return await ControlStore.connect(file.control_store, file.plan.name)
