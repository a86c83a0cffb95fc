"""The bundle as one HTML page: decisions, people, proofs, and switches. No script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from exodus.plan.bounds import REPORT_CELL_MAX, REPORT_ROWS_MAX
from exodus.safe_text import html, when

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 "
    "1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid "
    "#ccc;padding:.25rem .6rem;text-align:left;vertical-align:top}"
    "td{overflow-wrap:anywhere}td:first-child{min-width:12rem}"
    "th{background:#f3f3f3}h2{margin-top:2rem}.no{color:#a00}"
)
_EPOCH_MS = 10**12  # a number of milliseconds from there on is a time, below it a duration
Json = dict[str, Any]


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html(name)}</th>" for name in head), "</tr>"]
    for number, row in enumerate(rows):
        if number == REPORT_ROWS_MAX:
            lines.append("<tr><td>… the rest stands in the JSON files</td></tr>")
            break
        lines += [
            "<tr>",
            *(f"<td>{html('' if cell is None else cell)}</td>" for cell in row),
            "</tr>",
        ]
    return "".join([*lines, "</table>"])


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
    return (
        text
        if len(text) <= REPORT_CELL_MAX
        else f"{text[:REPORT_CELL_MAX]} … (the rest stands in the JSON files)"
    )


def _section(title: str, value: object) -> list[str]:
    """Return what a document holds: its single values in one table, and a table for each of its
    parts; of nothing, nothing.
    """
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(each, Mapping) for each in value.values())
    ):
        return _rows(title, [{"name": name, **each} for name, each in value.items()])
    if isinstance(value, Mapping):
        single = {
            name: each for name, each in value.items() if not isinstance(each, Mapping | list)
        }
        pairs = [(name, _cell(name, each)) for name, each in single.items()]
        parts = [f"<h3>{html(title)}</h3>" + _table(("what", "value"), pairs)] if pairs else []
        for name, each in value.items():
            if name not in single:
                parts += _section(f"{title} · {name}", each)
        return parts
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return _rows(title, value)
    if isinstance(value, list) and value:
        return [
            f"<h3>{html(title)}</h3>" + _table(("value",), ((_cell("", each),) for each in value))
        ]
    return []


def _rows(title: str, rows: list[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [
        f"<h3>{html(title)}</h3>"
        + _table(columns, ([_cell(column, row.get(column)) for column in columns] for row in rows))
    ]


def _event(entry: Json) -> tuple[object, ...]:
    return (
        when(entry["at_ms"]),
        entry["phase"],
        entry["event"],
        entry["verdict"],
        entry["decided_by"],
        _cell("facts", entry["facts"]),
    )


def render(documents: Mapping[str, object]) -> str:
    """Return the page."""
    plan = cast("Json", documents.get("plan") or {})
    ledger = cast("list[Json]", (cast("Json", documents.get("ledger") or {})).get("entries") or [])
    decided = [
        (
            when(entry["at_ms"]),
            entry["phase"],
            entry["gate"],
            entry["verdict"],
            entry["decided_by"],
            entry["why"],
            f"{entry['evidence']} ({entry['evidence_digest'][:12]})",
        )
        for entry in ledger
        if entry["event"] == "decided"
    ]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Exodus: '
        f"{html(str(plan.get('name')))}</title><style>{_STYLE}</style>",
        f"<h1>Migration {html(plan.get('name'))}</h1>",
        *_titled(
            "Decisions",
            [
                _table(
                    ("when", "phase", "gate", "verdict", "by", "why", "evidence (digest)"), decided
                )
            ]
            if decided
            else [],
        ),
        *_titled(
            "What happened",
            [_table(("when", "phase", "event", "outcome", "by", "facts"), map(_event, ledger))]
            if ledger
            else [],
        ),
    ]
    for name, document in sorted(documents.items()):
        if name not in ("plan", "ledger"):
            parts += _titled(name, _section(name, document))
    return "\n".join([*parts, *_titled("Configuration", _section("plan", plan)), "</html>"])


def _titled(title: str, parts: list[str]) -> list[str]:
    return [f"<h2>{html(title)}{'' if parts else ': none'}</h2>", *parts]
