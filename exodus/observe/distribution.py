"""A distribution of positive integers that can be added up, written as JSON, and drawn from.

The layout is that of `exodus/telemetry/histogram.py` (HdrHistogram with two significant digits),
kept as a dictionary: there is one for each shape and key pattern, and most see few values.
"""

from __future__ import annotations

from collections.abc import Iterable

_HALF = 128
_BITS = 8


def _highest(index: int) -> int:
    magnitude = max(0, index // _HALF - 1)
    return ((index - magnitude * _HALF + 1) << magnitude) - 1


def step_of(value: int) -> int:
    """Return the number of the step that a value falls into."""
    value = max(value, 1)
    magnitude = value.bit_length() - _BITS
    return value if magnitude <= 0 else magnitude * _HALF + (value >> magnitude)


class Distribution:
    """Counts by value, each value known to within 1/128 of itself."""

    __slots__ = ("_steps", "total")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with (value, count) pairs, as `pairs` returns them."""
        self._steps: dict[int, int] = {}
        self.total = 0
        for value, count in pairs:
            step = step_of(value)
            self._steps[step] = self._steps.get(step, 0) + count
            self.total += count

    def record(self, value: int) -> None:
        """Count one value; below 1 counts as 1."""
        if value < _HALF:
            step = value if value > 0 else 1
        else:
            magnitude = value.bit_length() - _BITS
            step = value if magnitude <= 0 else magnitude * _HALF + (value >> magnitude)
        steps = self._steps
        steps[step] = steps.get(step, 0) + 1
        self.total += 1

    def add(self, other: Distribution) -> None:
        """Add another one up."""
        for step, count in other._steps.items():
            self._steps[step] = self._steps.get(step, 0) + count
        self.total += other.total

    def pairs(self) -> list[tuple[int, int]]:
        """Return each value (the highest of its step) with its count, in order."""
        return [(_highest(step), count) for step, count in sorted(self._steps.items())]

    def quantile(self, share: float) -> int:
        """Return the smallest value that `share` of all do not exceed; 0 where there are none."""
        wanted = max(1, int(share * self.total + 0.5))
        seen = 0
        for value, count in self.pairs():
            seen += count
            if seen >= wanted:
                return value
        return 0

    @property
    def value_max(self) -> int:
        """The highest value; 0 where there are none."""
        return _highest(max(self._steps)) if self._steps else 0

    @property
    def mean(self) -> float:
        """The mean; 0 where there are none."""
        if not self.total:
            return 0.0
        return sum(value * count for value, count in self.pairs()) / self.total
