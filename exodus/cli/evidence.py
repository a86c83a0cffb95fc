"""`exodus evidence write`, `fetch` and `check`: evidence bundles by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from exodus.cli.context import (
    FileOption,
    HomeOption,
    JsonOption,
    choosable,
    migration_at,
    open_store,
)
from exodus.cli.output import show, show_json
from exodus.closing import bundle, bundle_store
from exodus.closing.collect import collect

evidence = typer.Typer(
    help="Write, fetch and check evidence bundles: hash-chained records of a migration.",
    no_args_is_help=True,
)
FolderArgument = Annotated[Path, typer.Argument(help="folder of the bundle")]


SignOption = Annotated[
    Path | None, typer.Option("--sign-with", help="Ed25519 private key (PEM) that signs the head")
]
PublicKeyOption = Annotated[
    Path | None, typer.Option("--public-key", help="Ed25519 public key (PEM) of the signer")
]


@evidence.command()
@choosable
def write(
    folder: FolderArgument,
    sign_with: SignOption = None,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Write a bundle of this moment into a new folder.

    Example: exodus evidence write build/evidence --sign-with key.pem
    """
    migration = migration_at(file, home)

    async def work() -> str:
        async with await open_store(migration) as store:
            return bundle.write(folder, await collect(store, migration.plan), private_key=sign_with)

    show(f"{folder}: head {asyncio.run(work())}")


@evidence.command()
def fetch(
    folder: FolderArgument,
    name: Annotated[
        str | None, typer.Option(help="name of the bundle (default: the newest)")
    ] = None,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Write a bundle from the control store into a folder.

    Example: exodus evidence fetch build/e
    """
    migration = migration_at(file, home)

    async def work() -> str:
        async with await open_store(migration) as store:
            chosen, files = await bundle_store.files_of(store, name)
            bundle.put(folder, files)
            return f"{folder}: bundle {chosen}, {len(files)} files"

    show(asyncio.run(work()))


@evidence.command()
def check(
    folder: FolderArgument,
    head: Annotated[
        str | None, typer.Option(help="expected head, from the ledger or the run's artifact")
    ] = None,
    public_key: PublicKeyOption = None,
    json: JsonOption = False,
) -> None:
    """Check a bundle without any server; exit status 1 if it is not proved.

    Example: exodus evidence check build/evidence --head HASH
    """
    found = bundle.check(folder, head=head, public_key=public_key)
    if json:
        show_json(
            {
                "files": found.files,
                "head": found.head,
                "proved_by": found.proved_by,
                "problems": found.problems,
            }
        )
    else:
        verdict = (
            f"unchanged, proved by {' and '.join(found.proved_by)}"
            if not found.problems
            else "NOT PROVED"
        )
        show(*found.problems, f"{found.files} files, head {found.head}: {verdict}")
    if found.problems:
        raise typer.Exit(1)
