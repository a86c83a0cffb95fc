"""A histogram in the layout of HdrHistogram with two significant digits: counts by magnitude, then
by 128 steps of it.

hdrhistogram's `record_value` costs more than all other counting of a request
(docs/design/gateway-speed.md). The layout is the same, so tests compare every quantile with the
library's.
"""

from __future__ import annotations

from array import array

_HALF = 128  # steps of one magnitude: a value is known to within 1/128 of itself
_BITS = 7
_SIZE = (27 - _BITS) * _HALF  # up to VALUE_MAX
VALUE_MAX = (1 << 26) - 1  # 67 s in µs, 64 MiB in bytes; what is larger counts as this much


class Histogram:
    """Counts of positive integers."""

    __slots__ = ("counts", "total", "value_max")

    def __init__(self) -> None:
        # Of machine numbers, which the compiled form counts up without making an object of each
        self.counts = array("q", bytes(8 * _SIZE))
        self.total = 0
        self.value_max = 0

    def record(self, value: int) -> None:
        """Count one value."""
        self.value_max = max(self.value_max, value)
        rest = value if value > 0 else 1
        rest = min(rest, VALUE_MAX)
        magnitude = 0
        while rest >= 2 * _HALF:
            rest >>= 1
            magnitude += 1
        self.counts[magnitude * _HALF + rest] += 1
        self.total += 1

    def quantile(self, share: float) -> int:
        """Return the smallest value (rounded up within its step) that `share` of all, rounded to a
        whole number, do not exceed; 0 where there are none.
        """
        wanted = max(1, int(share * self.total + 0.5))
        seen = 0
        for index in range(
            _SIZE
            # By index: the compiled form makes no object of a count, and every beat asks this of
            # every command
        ):
            seen += self.counts[index]
            if seen >= wanted:
                return _highest(index)
        return 0

    def steps(self) -> list[tuple[int, int]]:
        """Return each value seen (the highest of its step) and its count. Histograms add up by
        it.
        """
        found = []
        left = self.total
        for index in range(_SIZE):  # by index, as above: a window asks this of every key prefix
            if not left:
                break
            if self.counts[index]:
                found.append((_highest(index), self.counts[index]))
                left -= self.counts[index]
        return found

    def eighths(self) -> list[tuple[int, int]]:
        """Return the steps in eighths of an octave, small enough to be sent every second."""
        found: dict[int, int] = {}
        for value, count in self.steps():
            low = max(0, value.bit_length() - 4)
            high = ((value >> low) + 1 << low) - 1
            found[high] = found.get(high, 0) + count
        return list(found.items())


def _highest(index: int) -> int:
    magnitude = max(0, index // _HALF - 1)
    return ((index - magnitude * _HALF + 1) << magnitude) - 1
