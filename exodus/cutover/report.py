"""The bundle as a page for a person: what was decided, by whom, on which proof, and how the switches went. One file, no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from exodus.shown import html, when

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left;vertical-align:top}"
    "th{background:#f3f3f3}h2{margin-top:2rem}.no{color:#a00}"
)
_ROWS_MAX = 200
Json = dict[str, Any]


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html(name)}</th>" for name in head), "</tr>"]
    for number, row in enumerate(rows):
        if number == _ROWS_MAX:
            lines.append("<tr><td>… the rest stands in the JSON files</td></tr>")
            break
        lines += ["<tr>", *(f"<td>{html('' if cell is None else cell)}</td>" for cell in row), "</tr>"]
    return "".join([*lines, "</table>"])


def _pairs(document: Mapping[str, Any]) -> str:
    return _table(("what", "value"), ((name, value) for name, value in document.items() if not isinstance(value, (dict, list))))


def render(documents: Mapping[str, object]) -> str:
    """The page."""
    plan = cast("Json", documents.get("plan") or {})
    ledger = cast("list[Json]", (cast("Json", documents.get("ledger") or {})).get("entries") or [])
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Exodus: {html(str(plan.get("name")))}</title><style>{_STYLE}</style>',
        f"<h1>Migration {html(plan.get('name'))}</h1>",
        "<h2>Decisions</h2>",
        _table(
            ("when", "phase", "gate", "verdict", "by", "why", "evidence (digest)"),
            (
                (
                    when(entry["at_ms"]), entry["phase"], entry["gate"], entry["verdict"], entry["decided_by"], entry["why"],
                    f"{entry['evidence']} ({entry['evidence_digest'][:12]})",
                )
                for entry in ledger
                if entry["event"] == "decided"
            ),
        ),
        "<h2>What happened</h2>",
        _table(
            ("when", "phase", "event", "outcome", "facts"),
            ((when(entry["at_ms"]), entry["phase"], entry["event"], entry["verdict"], entry["facts"] or "") for entry in ledger),
        ),
    ]  # fmt: skip
    for name, document in sorted(documents.items()):
        if name in ("plan", "ledger") or not isinstance(document, dict):
            continue
        parts.append(f"<h2>{html(name)}</h2>{_pairs(document)}")
        for field, rows in document.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                columns = list(dict.fromkeys(column for row in rows for column in row))
                parts.append(f"<h3>{html(field)}</h3>" + _table(columns, ([row.get(column) for column in columns] for row in rows)))
            elif isinstance(rows, dict) and rows:
                parts.append(f"<h3>{html(field)}</h3>" + _pairs(rows))
    parts.append(f"<h2>Configuration</h2>{_pairs(plan)}</html>")
    return "\n".join(parts)
