"""The bundle as one HTML page: decisions, people, proofs, and switches. No script, no network.

`templates/report.html.j2` is the page. This module turns documents into its sections and tables.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exodus.plan.bounds import REPORT_CELL_MAX, REPORT_ROWS_MAX
from exodus.safe_text import plain, when

if TYPE_CHECKING:
    from jinja2 import Template

_EPOCH_MS = 10**12  # a number of milliseconds from there on is a time, below it a duration
_DECISION = ("when", "phase", "gate", "verdict", "by", "why", "evidence (digest)")
_EVENT = ("when", "phase", "event", "outcome", "by", "facts")
_REASONS = ("why", "next_step")
Json = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One table of the page."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


@dataclass(frozen=True)
class Section:
    """One document of the bundle. Without tables the page says that there is none."""

    title: str
    tables: list[Table]
    plots: list[str] = field(default_factory=list)  # SVG, written by tasks/plots.py
    page: str = ""  # path of a page on the worker's machine


@cache
def _template() -> Template:
    from jinja2 import (  # 28 ms, and only a bundle needs it
        Environment,
        PackageLoader,
        StrictUndefined,
    )

    pages = Environment(
        loader=PackageLoader("exodus.closing"), autoescape=True, undefined=StrictUndefined
    )
    pages.filters["address"] = lambda path: Path(path).as_uri()
    pages.filters["shown"] = lambda value: "" if value is None else plain(value)
    return pages.get_template("report.html.j2")


def _cell(name: str, value: object) -> str:
    """Return a value as a person reads it: times as times, and what has parts as its parts."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("_ms") and value >= _EPOCH_MS:
        return when(value)
    if isinstance(value, Mapping):
        text = "; ".join(
            f"{inner} {_cell(str(inner), each)}".rstrip() for inner, each in value.items()
        )
    elif isinstance(value, list | tuple):
        text = ", ".join(_cell(name, each) for each in value)
    else:
        text = str(value)
    if len(text) <= REPORT_CELL_MAX:
        return text
    return f"{text[:REPORT_CELL_MAX]} … (the rest is in the JSON files)"


def _tables(title: str, value: object) -> list[Table]:
    """Return a document's tables: one of its single values, and one of each part."""
    if isinstance(value, Mapping) and value:
        if all(isinstance(each, Mapping) for each in value.values()):
            return [_rows(title, [{"name": name, **each} for name, each in value.items()])]
        single = {
            name: each for name, each in value.items() if not isinstance(each, Mapping | list)
        }
        pairs: list[tuple[object, ...]] = [
            (name, _cell(name, each)) for name, each in single.items()
        ]
        found = [Table(title, ("what", "value"), pairs)] if pairs else []
        for name, each in value.items():
            if name not in single:
                found += _tables(f"{title} · {name}", each)
        return found
    if isinstance(value, list) and value:
        if all(isinstance(each, Mapping) for each in value):
            return [_rows(title, value)]
        return [Table(title, ("value",), [(_cell("", each),) for each in value])]
    return []


def _rows(title: str, rows: list[Mapping[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    return Table(
        title,
        columns,
        [tuple(_cell(column, row.get(column)) for column in columns) for row in rows],
    )


def _decided(entry: Json) -> tuple[object, ...]:
    return (
        when(entry["at_ms"]),
        entry["phase"],
        entry["gate"],
        entry["verdict"],
        entry["decided_by"],
        entry["why"],
        f"{entry['evidence']} ({entry['evidence_digest'][:12]})",
    )


def _event(entry: Json) -> tuple[object, ...]:
    return (
        when(entry["at_ms"]),
        entry["phase"],
        entry["event"],
        entry["verdict"],
        entry["decided_by"],
        _cell("facts", entry["facts"]),
    )


def _plots_of(document: object) -> list[str]:
    """Return the plots of a phase's evidence, as addresses of images: nothing in them can run."""
    plots = document.get("plots") if isinstance(document, Mapping) else None
    return [
        f"data:image/svg+xml;base64,{base64.b64encode(str(svg).encode()).decode()}"
        for svg in (plots or {}).values()
    ]


def _without_plots(document: object) -> object:
    if not isinstance(document, Mapping):
        return document
    return {name: part for name, part in document.items() if name != "plots"}


def _open_reasons(rows: list[Json]) -> list[Json]:
    """Return checks with reason and remedy where they do not hold; elsewhere these mislead."""
    return [
        {
            name: "" if row.get("ok") is True and name in _REASONS else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _data_docs(docs: Json) -> Section:
    return Section("Data docs", _tables("", docs), page=docs.get("index", ""))


def render_evidence(name: str, phase: str, evidence: Mapping[str, object]) -> str:
    """Return the evidence of one phase as a page: the checks first, then plots and rows."""
    frames = cast("Json", evidence.get("frames") or {})
    sections = [
        Section("Summary", _tables("", evidence.get("summary") or {})),
        Section("Plots", [], _plots_of(evidence)),
        *(Section(frame, _tables("", _open_reasons(rows))) for frame, rows in frames.items()),
        *(
            Section(title, _tables("", rows))
            for title, rows in cast("Json", evidence.get("lists") or {}).items()
            if rows
        ),
        Section("Gates", _tables("", evidence.get("gates") or [])),
        _data_docs(cast("Json", evidence.get("data_docs") or {})),
    ]
    return _template().render(name=f"{name}: {phase}", sections=sections, rows_max=REPORT_ROWS_MAX)


def render(documents: Mapping[str, object]) -> str:
    """Return the page."""
    plan = cast("Json", documents.get("plan") or {})
    ledger = cast("list[Json]", (cast("Json", documents.get("ledger") or {})).get("entries") or [])
    decisions = [_decided(entry) for entry in ledger if entry["event"] == "decided"]
    sections = [
        Section("Decisions", [Table("", _DECISION, decisions)] if decisions else []),
        Section("What happened", [Table("", _EVENT, list(map(_event, ledger)))] if ledger else []),
        *(
            Section(name, _tables(name, _without_plots(document)), _plots_of(document))
            for name, document in sorted(documents.items())
            if name not in ("plan", "ledger")
        ),
        Section("Configuration", _tables("plan", plan)),
    ]
    return _template().render(name=plan.get("name"), sections=sections, rows_max=REPORT_ROWS_MAX)
