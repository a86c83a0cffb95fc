"""Findings of Compare that a person has to look at. Each has a name, by which the decision accepts
it. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exodus.control.accepted_names import why_not_all

Json = dict[str, Any]
FINDINGS_MAX = 1_000  # more than a person can look at by name
NOTHING_COMPARED = "nothing compared"


def findings(rows: Sequence[Json], convergence: Json, divergences: Sequence[Json]) -> list[Json]:
    """Return the findings, each with its name, what it is, and why."""
    found = [
        {
            "name": _name(row, row["command"]),
            "finding": row["kind"],
            "cause": row["cause"],
        }
        for row in divergences
    ]
    found += [
        {
            "name": _name(row, "state"),
            "finding": "the state does not converge",
            "cause": f"{row['kind']}: {row['detail']}",
        }
        for row in convergence["differ"]
    ]
    if not sum(row["compared"] for row in rows):
        found.append(
            {
                "name": NOTHING_COMPARED,
                "finding": "no request of a sampled key was compared",
                "cause": "the applications asked for none meanwhile, or only for what is not "
                "compared; watch for longer (--seconds), or raise sample",
            }
        )
    return list({row["name"]: row for row in found}.values())


def _name(row: Mapping[str, Any], what: str) -> str:
    """A name that fits on one line."""
    key = (
        str(row["key"]).encode("unicode_escape").decode()
        if not str(row["key"]).isprintable()
        else str(row["key"])
    )
    return f"{row['db']}:{key} {what}"


def why_not_accepted(found: Sequence[Json], text: str) -> str | None:
    """Return why names, one a line, do not accept every finding and nothing else; None: they do."""
    there = {row["name"] for row in found}
    return why_not_all(
        text,
        there,
        field="accept_findings",
        noun="finding",
        resolved="resolved",
        resolve="resolve them",
    )
