"""Checks of a phase: what must hold, what should hold, and what a person should know.

| level | a check that does not hold |
| --- | --- |
| must | fails the phase |
| should | is a finding: the decision accepts it by name, and the ledger keeps that |
| info | is shown |
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from exodus.control.accepted_names import why_not_all
from tasks.context import Json


class Level(StrEnum):
    """What follows from a check that does not hold."""

    MUST = "must"
    SHOULD = "should"
    INFO = "info"


_LEVELS = {"ok": Level.MUST, "fatal": Level.MUST, "warning": Level.SHOULD}


def check(
    name: str,
    ok: bool,
    detail: str = "",
    *,
    level: Level = Level.MUST,
    why: str = "",
    next_step: str = "",
) -> Json:
    """Return one check. `why` and `next_step` say what it means that it does not hold."""
    return {
        "check": name,
        "ok": ok,
        "level": str(level),
        "detail": detail,
        "why": why,
        "next_step": next_step,
    }


def of_findings(findings: Sequence[Json]) -> list[Json]:
    """Return the pre-flight findings as checks: a fatal one must hold, a warning should."""
    return [
        check(
            row["check"],
            row["severity"] == "ok",
            row["what"],
            level=_LEVELS[row["severity"]],
            why=row["why"],
            next_step=row["next_step"],
        )
        for row in findings
    ]


def failing(checks: Sequence[Json]) -> list[Json]:
    """Return the required checks that do not hold."""
    return [row for row in checks if not row["ok"] and row["level"] == Level.MUST]


def any_fatal(checks: Sequence[Json]) -> bool:
    """Return whether a check fails the phase."""
    return bool(failing(checks))


def frames(checks: Sequence[Json]) -> dict[str, list[Json]]:
    """Return the frames that the gates judge: required checks, and advice where there is some."""
    required = [row for row in checks if row["level"] == Level.MUST]
    advice = [row for row in checks if row["level"] != Level.MUST]
    return {"checks": required, **({"advice": advice} if advice else {})}


def open_findings(checks: Sequence[Json]) -> list[Json]:
    """Return the checks that should hold and do not."""
    return [row for row in checks if not row["ok"] and row["level"] == Level.SHOULD]


def _text(row: Json) -> str:
    return (
        f"{row['check']}: {row['detail']}"
        + (f" ({row['why']})" if row["why"] else "")
        + (f"; {row['next_step']}" if row["next_step"] else "")
    )


def summary_lines(checks: Sequence[Json]) -> list[str]:
    """Return the lines of the decision's form: what fails first, each with its reason, then the
    figures that a check tells in any case.
    """
    lines: list[str] = []
    must, found = failing(checks), open_findings(checks)
    if must:
        lines.append(f"{len(must)} REQUIRED CHECK(S) FAIL: this cannot be approved:")
        lines += map(_text, must)
    if found:
        lines.append(f"{len(found)} FINDING(S): resolve them, or accept each by name:")
        lines += map(_text, found)
    asked = [row for row in checks if row["level"] != Level.INFO]
    told = [row["check"] for row in checks if row["level"] == Level.INFO and not row["ok"]]
    lines.append(
        f"{sum(row['ok'] for row in asked)} of {len(asked)} checks hold"
        + (f"; not required, and not so: {', '.join(told)}" if told else "")
    )
    return lines + [row["line"] for row in checks if row.get("line")]


def why_not_accepted(checks: Sequence[Json], answer: Json) -> str | None:
    """Return why an approval is refused: a required check fails, or a finding is not accepted.

    None: it is not, or it is a rejection.
    """
    if answer["decision"] != "approve":
        return None
    if must := failing(checks):
        return (
            f"{len(must)} required check(s) fail: {', '.join(row['check'] for row in must)}; "
            "reject, correct the cause, and start the phase again"
        )
    return why_not_all(
        answer.get("accept_findings", ""),
        {row["check"] for row in open_findings(checks)},
        field="accept_findings",
        noun="finding",
        resolved="resolved",
        resolve="resolve them",
    )
