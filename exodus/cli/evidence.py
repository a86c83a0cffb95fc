"""`exodus evidence write` and `check`: the bundle by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from exodus.cli.context import FileOption, HomeOption, JsonOption, migration_at, open_store
from exodus.cli.output import show_json
from exodus.cutover import bundle
from exodus.cutover.collect import collect

evidence = typer.Typer(help="Evidence bundles: everything that was decided and proved, hash-chained.", no_args_is_help=True)
FolderArgument = Annotated[Path, typer.Argument(help="the bundle's folder")]


@evidence.command()
def write(folder: FolderArgument, file: FileOption = None, home: HomeOption = None) -> None:
    """Write what is known now into a new folder. Example: exodus evidence write build/evidence"""
    migration = migration_at(file, home)

    async def work() -> str:
        async with await open_store(migration) as store:
            return bundle.write(folder, await collect(store, migration.plan))

    print(f"{folder}: head {asyncio.run(work())}")


@evidence.command()
def check(
    folder: FolderArgument,
    head: Annotated[str | None, typer.Option(help="what the head must be, from the ledger or the run's artifact")] = None,
    json: JsonOption = False,
) -> None:
    """Check a bundle without any server; exit status 1 where anything was edited. Example: exodus evidence check build/evidence"""
    found = bundle.check(folder, head=head)
    if json:
        show_json({"files": found.files, "head": found.head, "problems": found.problems})
    else:
        print("\n".join([*found.problems, f"{found.files} files, head {found.head}: {'EDITED' if found.problems else 'as it was written'}"]))
    if found.problems:
        raise typer.Exit(1)
