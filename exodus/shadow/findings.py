"""Findings of Compare that a person has to look at. Each has a name, by which the decision accepts
it. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from exodus.control.accepted_names import names_in, why_not_all
from exodus.plan.bounds import COMPARE_EFFECTS_MIN, FINDINGS_MAX
from exodus.shadow.divergences import is_open, name_of

Json = dict[str, Any]
NOTHING_COMPARED = "nothing compared"
EFFECT = " effect"  # how the name of a finding ends that is of a command's effect


def findings(
    rows: Sequence[Json], divergences: Sequence[Json], other_states: Mapping[str, int] | None = None
) -> list[Json]:
    """Return the findings, each with its name, what it is, its cause and its remedy.

    Args:
        rows: what was compared, command by command.
        divergences: the rows of the ledger; healed and accepted ones are no findings.
        other_states: command → writes that led to another state when they were run again.
    """
    found = [
        {
            "name": name_of(row),
            "finding": row["kind"],
            "cause": row["cause"] or "not judged to the end",
            "detail": row.get("detail", ""),
            "remedy": row.get("remedy", ""),
        }
        for row in divergences
        if is_open(row)
    ]
    proved = {row["command"] for row in rows if row.get("by_reply")}
    found += [
        {
            "name": command + EFFECT,
            "finding": f"{count} writes led to another state on the target, and none to the same",
            "cause": "the command has another effect there, or each time another write passed the "
            "gateways",
            "detail": "",
            "remedy": "try the command on both servers; connect every writer to the gateway",
        }
        for command, count in (other_states or {}).items()
        if count >= COMPARE_EFFECTS_MIN and command not in proved
    ]
    if not sum(row["compared"] for row in rows):
        found.append(
            {
                "name": NOTHING_COMPARED,
                "finding": "no request of a sampled key was compared",
                "cause": "the applications asked for none meanwhile, or only for what is not "
                "compared",
                "detail": "",
                "remedy": "watch for longer (--seconds), or raise sample",
            }
        )
    return list({row["name"]: row for row in found}.values())


def of_checks(rows: Sequence[Json]) -> list[Json]:
    """Return the findings of checks that do not hold; each row has its cause."""
    return [
        {
            "name": row["check"],
            "finding": row["detail"],
            "cause": row["cause"],
            "detail": row["why"],
            "remedy": row["next_step"],
        }
        for row in rows
        if not row["ok"] and row["level"] == "should"
    ]


def setup_lines(rows: Sequence[Json]) -> list[str]:
    """Return the line of the decision's form that counts these checks."""
    asked = [row for row in rows if row["level"] == "should"]
    what = "settings, modules, logins and function libraries of the target"
    if not asked:
        return [f"{what} were not checked: test_checks has them off"]
    return [f"{what}: {sum(row['ok'] for row in asked)} of {len(asked)} checks hold"]


def kept(found: Sequence[Json], divergences: Sequence[Json]) -> dict[str, list[Json]]:
    """Return what the evidence keeps of the findings and of the ledger's rows, the open ones
    first: as many as a person can review. The ledger has the others.
    """
    first = sorted(divergences, key=lambda row: not is_open(row))
    return {"findings": list(found[:FINDINGS_MAX]), "divergences": first[:FINDINGS_MAX]}


def why_not_accepted(found: Sequence[Json], text: str, *, still_open: Set[str]) -> str | None:
    """Return why names, one a line, do not accept every open finding and nothing else; None: they
    do. A finding that was healed since may be named, and need not.

    Nobody reviews more than `FINDINGS_MAX`: of more none is accepted.
    """
    listed = {row["name"] for row in found}
    if len(listed & still_open) > FINDINGS_MAX:
        return (
            f"{len(listed & still_open):,} findings are open, and one answer accepts at most "
            f"{FINDINGS_MAX:,} by name: repair them (exodus repair) and answer again, or "
            "reject, remove their cause, and start Compare again"
        )
    names = names_in(text, listed)
    healed = listed - still_open
    return why_not_all(
        "\n".join(name for name in names if name not in healed),
        listed & still_open,
        field="accept_findings",
        noun="finding",
        resolved="resolved",
        resolve="resolve them",
    )


def summary_lines(found: Json, summary: Json, open_findings: Sequence[Json]) -> list[str]:
    """Return the lines of the decision's form.

    Args:
        found: what the comparison returned.
        summary: single figures of the phase.
        open_findings: what is neither healed nor accepted.
    """
    compared, figures = summary["replies_compared"], found["figures"]
    inconclusive = summary["replies_inconclusive"]
    share = inconclusive / compared * 100 if compared else 0.0
    why = max(figures["inconclusive_why"].items(), key=lambda each: each[1], default=("", 0))[0]
    left = sum(row["calls"] > 0 and not row["compared"] for row in found["coverage"])
    half = figures["half_life_s"]
    by_error = sum(row.get("by_error", 0) for row in found["rows"])
    by_reply = sum(row.get("by_reply", 0) for row in found["rows"])
    lines = [
        found["bound"],
        f"accepted: {compared:,} requests of {len(found['rows'])} commands were tried; "
        f"{left} observed commands were not compared (artifact coverage)",
        f"inconclusive: {inconclusive:,} replies ({share:.1f} %)" + (f", {why}" if why else ""),
        f"judged: {by_reply:,} by their reply, {by_error:,} writes by their error only",
        f"dropped: {summary['samples_dropped']:,} sampled requests, {figures['rows_lost']:,} rows; "
        f"no comparer ran for {figures['away_ms'] / 1000:.1f} s",
        f"converging: lag p99 {figures['lag_ms_p99']} ms, at most {figures['dirty_max']:,} keys "
        f"dirty, {figures['dirty_slope_per_s']:+g} a second, half of a burst gone after "
        + ("more than the run" if half is None else f"{half:g} s"),
        f"{summary['sampled_keys']:,} sampled keys, {summary['keys_inconclusive']} of them written "
        "all the time",
    ]
    if again := figures.get("keys_copied_again", 0):
        lines.append(
            f"{again:,} keys were copied again: a server restarted, or another one took over"
        )
    if len(open_findings) > FINDINGS_MAX:
        lines.insert(
            0,
            f"TOO MANY TO REVIEW: one answer accepts at most {FINDINGS_MAX:,} findings by "
            "name. An approval is refused until so many are left: repair them (exodus repair), or "
            "reject and remove their cause",
        )
    if open_findings:
        lines.insert(
            0,
            f"{len(open_findings):,} FINDING(S): resolve them, or accept each by name: "
            + ", ".join(f"{row['name']} ({row['cause']})" for row in open_findings[:10]),
        )
    return lines
