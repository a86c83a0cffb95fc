"""Which keys of a pattern get how much of its requests, in memory of a fixed size.

Keys are numbers of this process (`Event.key`), so no name of a key is kept. The hottest and their
counts come from a frequent-items sketch, which is exact up to 3,072 keys and then
errs by 0.09 % of all requests at most, downwards; the number of keys from a
HyperLogLog sketch with a standard error of 1.6 %. Both are of Apache
DataSketches, as in `exodus/telemetry/sketches.py`.
"""

from __future__ import annotations

from collections import Counter
from math import log
from typing import NamedTuple

from datasketches import frequent_items_error_type, frequent_strings_sketch, hll_sketch

from exodus.plan.bounds import (
    SKEW_BATCH_KEYS,
    SKEW_EXPONENT_MAX,
    SKEW_EXPONENT_STEPS,
    SKEW_LG_BUCKETS,
    SKEW_LG_KEYS,
    SKEW_RANKS_SUMMED_MAX,
    SKEW_TOP_KEYS,
)


class Skew(NamedTuple):
    """How requests spread over the keys of a pattern."""

    distinct: int
    top_shares: list[float]  # of all requests, the hottest key first
    exponent: float  # of the Zipf distribution that gives these keys the same share; 0: evenly


class KeyCounts:
    """The keys of one pattern."""

    __slots__ = ("_hot", "_keys", "_waiting", "total")

    def __init__(self) -> None:
        self.total = 0
        self._hot = frequent_strings_sketch(SKEW_LG_KEYS)
        self._keys = hll_sketch(SKEW_LG_BUCKETS)
        self._waiting: list[int] = []

    def record(self, key: int) -> None:
        """Count one request of a key."""
        self._waiting.append(key)
        if len(self._waiting) >= SKEW_BATCH_KEYS:
            self._take_in()

    def _take_in(self) -> None:
        for key, count in Counter(self._waiting).items():
            text = str(key)
            self._hot.update(text, count)
            self._keys.update(text)
        self.total += len(self._waiting)
        self._waiting.clear()

    def skew(self) -> Skew:
        """Return the distribution as it is now."""
        self._take_in()
        if not self.total:
            return Skew(0, [], 0.0)
        found = self._hot.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)
        # The lower bounds: the estimates would give keys that are used evenly a skew
        counts = sorted((int(lower) for _, _, lower, _ in found if lower), reverse=True)
        distinct = max(len(counts), round(float(self._keys.get_estimate())))
        shares = [count / self.total for count in counts]
        return Skew(
            distinct,
            [round(share, 6) for share in shares[:SKEW_TOP_KEYS]],
            zipf_exponent(shares, distinct),
        )


def zipf_exponent(shares: list[float], distinct: int) -> float:
    """Fit a Zipf distribution over `distinct` keys: the exponent at which the `SKEW_TOP_KEYS`
    hottest get the share that they have.
    """
    top = min(SKEW_TOP_KEYS, len(shares), distinct)
    wanted = sum(shares[:top])
    if top >= distinct:  # all keys are known: the slope of the ranks themselves
        return _slope(shares[:top])
    low, high = 0.0, SKEW_EXPONENT_MAX
    for _ in range(SKEW_EXPONENT_STEPS):
        middle = (low + high) / 2
        if zipf_sum(middle, top) / zipf_sum(middle, distinct) < wanted:
            low = middle
        else:
            high = middle
    return round(low, 3)


def zipf_sum(exponent: float, ranks: int) -> float:
    """Return the sum of 1/rank**exponent over the first ranks."""
    exact = min(ranks, SKEW_RANKS_SUMMED_MAX)
    total: float = sum(rank**-exponent for rank in range(1, exact + 1))
    if ranks > exact:
        begin, end = exact + 0.5, ranks + 0.5
        if abs(exponent - 1) < 1e-9:
            total += log(end / begin)
        else:
            total += (end ** (1 - exponent) - begin ** (1 - exponent)) / (1 - exponent)
    return float(total)


def _slope(shares: list[float]) -> float:
    """Return the negative slope of log(share) over log(rank), each rank weighted by its share."""
    points = [(log(rank), log(share), share) for rank, share in enumerate(shares, 1) if share > 0]
    weight = sum(share for _, _, share in points)
    if len(points) < 2:
        return 0.0
    x = sum(share * a for a, _, share in points) / weight
    y = sum(share * b for _, b, share in points) / weight
    spread = sum(share * (a - x) ** 2 for a, _, share in points)
    slope = sum(share * (a - x) * (b - y) for a, b, share in points) / spread
    return round(min(max(-slope, 0.0), SKEW_EXPONENT_MAX), 3)
