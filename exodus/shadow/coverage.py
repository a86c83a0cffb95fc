"""Coverage: per command, how much of what applications sent was compared, and why the rest was not.
No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]
# An outcome of the comparer that is no verdict -> why it says nothing
NOT_COMPARED = {
    "not_comparable": "its reply differs between healthy servers",
    "not_tried": "not among the commands that Compare may run",
    "too_slow": "it took longer than Compare waits",
    "infrastructure": "a server was in trouble",
    "excluded": "a filter leaves the key out",
}


def coverage(
    calls: Mapping[str, int],
    rows: Iterable[Json],
    left_out: Iterable[Mapping[str, Mapping[str, int]]],
) -> list[Json]:
    """Return a row for each command that was observed, those with the most calls first.

    Args:
        calls: of each command while keys were sampled, over all gateways.
        rows: what the comparers counted: command, compared, and the outcomes.
        left_out: of each gateway, command -> reason -> requests of sampled keys.
    """
    compared = {row["command"]: row for row in rows}
    reasons: dict[str, dict[str, int]] = {}
    for one in left_out:
        for command, counts in one.items():
            mine = reasons.setdefault(command, {})
            for reason, count in counts.items():
                mine[reason] = mine.get(reason, 0) + count
    found: list[Json] = []
    for name in sorted({*calls, *compared, *reasons}):
        row, why_not = compared.get(name, {}), dict(reasons.get(name, {}))
        for outcome, why in NOT_COMPARED.items():
            if row.get(outcome):
                why_not[why] = why_not.get(why, 0) + row[outcome]
        decided, left = row.get("compared", 0), sum(why_not.values())
        found.append(
            {
                "command": name,
                "calls": calls.get(name, 0),
                "compared": decided,
                "not_sampled": max(0, calls.get(name, 0) - decided - left),
                "left_out": left,
                "why_not": "; ".join(
                    f"{why}: {count}"
                    for why, count in sorted(why_not.items(), key=lambda item: -item[1])
                ),
            }
        )
    return sorted(found, key=lambda row: (-row["calls"], row["command"]))
