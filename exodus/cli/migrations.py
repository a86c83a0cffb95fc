"""`exodus migrations` and `archive`: list migrations, and remove one that has ended."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from exodus.cli.attesting import ByOption, WhyOption
from exodus.cli.context import (
    FileOption,
    HomeOption,
    JsonOption,
    evidence_folder,
    home_at,
    migration_at,
    of_block,
    open_store,
    plan_of,
)
from exodus.cli.output import say, show, show_json, show_table
from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.closing.archive import archive as put_away
from exodus.closing.archive import archived, check_may_be_archived
from exodus.control.approvers import of_this_process
from exodus.errors import ExodusError
from exodus.plan.migration_file import MigrationFile
from exodus.safe_text import when

Json = dict[str, Any]
log = logging.getLogger(__name__)


def _row(block: Json, api: PrefectApi) -> Json:
    """Return the row of one migration, or the reason why it cannot be read."""
    row: Json = {
        "migration": block["name"],
        "state": "not known",
        "authority": "",
        "says": "",
        "source": "",
        "target": "",
    }
    try:
        file = of_block(block)
        row.update(source=file.plan.source.url, target=file.plan.target.url)
        status = asyncio.run(read_status(file, api))
    except ExodusError as exc:
        return {**row, "says": f"{exc.what}: {exc.why}"}
    return {
        **row,
        "state": status["state"],
        "authority": status["authority"],
        "says": status["why_waiting"],
    }


async def _archived(files: list[MigrationFile]) -> list[Json]:
    """Return the archived migrations of some control stores; each store is asked once."""
    found: list[Json] = []
    for file in {file.control_store.url: file for file in files}.values():
        try:
            async with await open_store(file) as store:
                found += await archived(store)
        except ExodusError as exc:
            say(f"warning: {exc.what}: {exc.why}; {exc.next_step}")
    return found


def _files(blocks: list[Json]) -> list[MigrationFile]:
    """Return the migrations of all readable blocks."""
    found = []
    for block in blocks:
        try:
            found.append(of_block(block))
        except ExodusError as exc:
            log.info("archive not read: %s", exc.what)
    return found


def _here(file: Path | None, home: Path | None) -> list[MigrationFile]:
    """Return the migration of this folder, if there is one. It may have no block any more."""
    if (
        file is None
        and not home_at(home).migration_file.exists()
        and not Path("migration.yaml").exists()
    ):
        return []
    return [migration_at(file, home)]


def migrations(file: FileOption = None, home: HomeOption = None, json: JsonOption = False) -> None:
    """List registered and archived migrations. Example: exodus migrations"""
    api = PrefectApi.find(home_at(home))
    blocks = api.migrations()
    rows = [_row(block, api) for block in blocks]
    away = asyncio.run(_archived([*_here(file, home), *_files(blocks)]))
    if json:
        show_json({"migrations": rows, "archived": away})
        return
    for row in rows:
        at = f"authority {row['authority']} · " if row["authority"] else ""
        show(
            f"{row['migration']}: {row['state']} · {at}{row['source']} → {row['target']}",
            f"    {row['says']}",
        )
    if away:
        told = [
            (
                note["migration"],
                note["ended"],
                when(note["archived_ms"]),
                note["by"],
                note["folder"],
            )
            for note in away
        ]
        show_table("Archived", ["Migration", "Ended", "When", "By", "Evidence"], told)
    if not rows:
        show("no migration is registered: exodus apply migration.yaml")


def archive(
    why: WhyOption,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="new folder for the evidence bundle (default: beside the other bundles)"
        ),
    ] = None,
    by: ByOption = None,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Archive a migration that has ended: write a bundle, then remove its keys and blocks.

    Example: exodus archive --why "orders moved in March"
    """
    migration = migration_at(file, home)
    api = PrefectApi.find(home_at(home))
    name = migration.plan.name

    async def work() -> Json:
        async with await open_store(migration) as store:
            plan = await plan_of(store, migration)
            await check_may_be_archived(store)
            api.migrations()  # whether Prefect answers, before anything is removed
            folder = to or evidence_folder(home_at(home)) / name / f"archive-{await store.now_ms()}"
            return await put_away(
                store, plan, folder.absolute(), by=by or of_this_process().person, why=why
            )

    note = asyncio.run(work())
    api.remove_migration(name)
    show(f"{name} is archived ({note['ended']}): {note['folder']}, head {note['head']}")
    show(f"check: exodus evidence check {note['folder']} --head {note['head']}")
