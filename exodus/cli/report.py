"""`exodus report`: the evidence of a phase, as tables or as one HTML page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from exodus.cli.context import FileOption, HomeOption, JsonOption, migration_at, open_store
from exodus.cli.output import show, show_json, show_table
from exodus.closing.report import render_evidence
from exodus.errors import OperatorError
from exodus.plan.bounds import CLI_REPORT_ROWS_MAX
from exodus.plan.vocabulary import Phase
from exodus.private_files import write_private

_CHECKS = ("check", "ok", "level", "detail")


def report(
    phase: Annotated[
        str | None, typer.Argument(help="pre-test, analyze, compare, test, migrate, or commit")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="write one page with tables and plots")
    ] = None,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Show the evidence that a phase's decision was asked with; without a phase, which there is.

    Example: exodus report analyze --html analyze.html
    """
    migration = migration_at(file, home)

    async def work() -> dict[str, dict[str, Any]]:
        async with await open_store(migration) as store:
            kept = {str(each): await store.report(f"evidence.{each}") for each in Phase}
            return {name: found for name, found in kept.items() if found is not None}

    kept = asyncio.run(work())
    if phase is None:
        _list(kept, as_json=json)
        return
    if phase not in kept:
        raise OperatorError(
            f"there is no evidence of {phase!r}",
            why=f"there is some of: {', '.join(kept) or 'no phase'}",
            next_step="exodus start PHASE, then exodus report PHASE",
        )
    found = kept[phase]
    if html is not None:
        page = render_evidence(migration.plan.name, phase, found)
        try:
            write_private(html, page)
        except OSError as exc:
            raise OperatorError(
                f"--html: {html} cannot be written",
                why=exc.strerror or str(exc),
                next_step="name a file in a folder that exists and that you may write",
            ) from exc
        show(str(html))
    elif json:
        show_json(found)
    else:
        _show(phase, found)


def _list(kept: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    rows = [
        {
            "phase": phase,
            "passed": found["passed"],
            "checks": sum(len(rows) for rows in found["frames"].values()),
            "plots": len(found.get("plots", {})),
        }
        for phase, found in kept.items()
    ]
    if as_json:
        show_json(rows)
    else:
        columns = ("phase", "passed", "checks", "plots")
        show_table("Evidence", columns, [[row[name] for name in columns] for row in rows])


def _show(phase: str, found: dict[str, Any]) -> None:
    show(*(f"{name}: {value}" for name, value in found["summary"].items()))
    for name, rows in {**found["frames"], **found["lists"]}.items():
        if not rows:
            continue
        columns = _CHECKS if set(_CHECKS) <= set(rows[0]) else tuple(rows[0])
        shown = [[str(row.get(column, "")) for column in columns] for row in rows]
        show_table(f"{phase}: {name}", columns, shown[:CLI_REPORT_ROWS_MAX])
        if len(rows) > CLI_REPORT_ROWS_MAX:
            show(f"… and {len(rows) - CLI_REPORT_ROWS_MAX} more (--json, or --html)")
    docs = found.get("data_docs") or {}  # evidence of an older version has none
    if docs:
        show(f"data docs, on the worker's machine: {docs.get('index') or docs['why']}")
