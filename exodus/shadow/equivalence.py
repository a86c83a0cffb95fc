"""What a comparison says of all keys: bounds of the share that differs, and how copies converge.
No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
CONFIDENCE = 0.95
_STEPS = 100  # of a bisection: more than a double can tell apart


def share_max(differ: int, keys: int, confidence: float = CONFIDENCE) -> float:
    """Return the highest share of differing keys that fits what was found (Clopper-Pearson).

    With none of n keys it is 1 - (1 - confidence)^(1/n), about 3/n at 95 %: the rule of three.
    """
    if keys <= 0 or differ >= keys:
        return 1.0
    left = 1 - confidence
    if differ == 0:
        return float(-math.expm1(math.log(left) / keys))
    low, high = differ / keys, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_most(differ, keys, middle) > left:
            low = middle
        else:
            high = middle
    return high


def _at_most(differ: int, keys: int, share: float) -> float:
    """Return the probability of so many differing keys or fewer."""
    if share >= 1:
        return 0.0
    yes, no = math.log(share), math.log1p(-share)
    terms = [
        math.lgamma(keys + 1)
        - math.lgamma(count + 1)
        - math.lgamma(keys - count + 1)
        + count * yes
        + (keys - count) * no
        for count in range(differ + 1)
    ]
    return math.fsum(map(math.exp, terms))


def bound_text(differ: int, keys: int, *, healed: int = 0) -> str:
    """Return the bound in one line. `healed` keys differed, and are equal now. A repair says
    nothing of keys outside of the sample, so they still count.
    """
    if not keys:
        return "no key was judged: nothing is known of the others"
    share = share_max(differ, keys) * 100
    since = f" ({healed:,} healed since)" if healed else ""
    return f"{differ:,} of {keys:,} keys differ{since}: at most {share:.2g} % of all, at 95 %"


@dataclass(frozen=True)
class Moment:
    """One look at the comparers."""

    at_s: float  # since the sampling began
    dirty: int  # keys that were written, and whose copies were under way
    pending: int  # differences that were not judged


def convergence(series: Sequence[Moment], lags_ms: Sequence[int]) -> Json:
    """Return how the dirty set developed: slope in keys a second, lag, half-life after the highest
    point (None: it never fell to a half).
    """
    dirty = [moment.dirty for moment in series]
    times = [moment.at_s for moment in series]
    return {
        "dirty_max": max(dirty, default=0),
        "dirty_last": dirty[-1] if dirty else 0,
        "dirty_slope_per_s": round(_slope(times, dirty), 3),
        "lag_ms_p50": _quantile(lags_ms, 0.5),
        "lag_ms_p99": _quantile(lags_ms, 0.99),
        "half_life_s": _half_life(series),
    }


def _slope(times: Sequence[float], values: Sequence[int]) -> float:
    if len(times) < 2:
        return 0.0
    middle, level = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - middle) ** 2 for time in times)
    if not spread:
        return 0.0
    both = zip(times, values, strict=True)
    return sum((time - middle) * (value - level) for time, value in both) / spread


def _quantile(values: Sequence[int], share: float) -> int:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def _half_life(series: Sequence[Moment]) -> float | None:
    if not series:
        return None
    peak = max(range(len(series)), key=lambda at: series[at].dirty)
    highest = series[peak].dirty
    if not highest:
        return 0.0
    for moment in series[peak:]:
        if moment.dirty <= highest / 2:
            return round(moment.at_s - series[peak].at_s, 3)
    return None
