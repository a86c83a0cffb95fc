"""Coverage: per command, how much of what applications sent was compared, and why the rest was not.
No I/O.
"""

from __future__ import annotations

from collections import Counter
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
    by_error: Iterable[Mapping[str, Mapping[str, int]]] = (),
    why_not_tried: Iterable[Mapping[str, Mapping[str, int]]] = (),
) -> list[Json]:
    """Return a row for each command that was observed, those with the most calls first.

    Args:
        calls: of each command while keys were sampled, over all gateways.
        rows: what the comparers counted: command, compared, by_reply, and the outcomes.
        left_out: of each gateway, command -> reason -> requests of sampled keys.
        by_error: of each comparer, command -> reason -> writes whose reply was compared by its
            error only.
        why_not_tried: likewise, requests that were not tried for a reason of their own.
    """
    compared = {row["command"]: row for row in rows}
    reasons, only = _summed([*left_out]), _summed([*by_error])
    particular = _summed([*why_not_tried])
    found: list[Json] = []
    for name in sorted({*calls, *compared, *reasons}):
        row, why_not = compared.get(name, {}), Counter(reasons.get(name, {}))
        mine = particular.get(name, Counter())
        why_not.update(mine)
        for outcome, why in NOT_COMPARED.items():
            others = mine.total() if outcome == "not_tried" else 0
            if row.get(outcome, 0) > others:
                why_not[why] += row[outcome] - others
        decided, left = row.get("compared", 0), why_not.total()
        found.append(
            {
                "command": name,
                "calls": calls.get(name, 0),
                "compared": decided,
                "by_reply": row.get("by_reply", 0),
                "by_error": row.get("by_error", 0),
                "not_sampled": max(0, calls.get(name, 0) - decided - left),
                "left_out": left,
                "why_by_error": _text(only.get(name, {})),
                "why_not": _text(why_not),
            }
        )
    return sorted(found, key=lambda row: (-row["calls"], row["command"]))


def _summed(several: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, Counter[str]]:
    """Add up command -> reason -> count."""
    found: dict[str, Counter[str]] = {}
    for one in several:
        for command, counts in one.items():
            found.setdefault(command, Counter()).update(counts)
    return found


def _text(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return "; ".join(f"{why}: {count}" for why, count in ordered)
