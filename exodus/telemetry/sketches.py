"""Hot keys and the number of distinct keys, in memory of a fixed size: sketches of Apache
DataSketches.

Both see a sample. Hot keys see one request in `HOT_SAMPLE` with that weight. The distinct count
sees keys whose hash is divisible by `DISTINCT_SAMPLE` and is multiplied by it. The hash is Python's
own and differs between processes, so the results of two processes can be shown side by side and not
be merged.
"""

from __future__ import annotations

from collections import Counter

from datasketches import frequent_items_error_type, frequent_strings_sketch, hll_sketch

from exodus.plan.bounds import (
    DISTINCT_SAMPLE,
    HOT_SAMPLE,
    KEY_BYTES_MAX,
    SKETCHES_DISTINCT_LG_BUCKETS,
    SKETCHES_HOT_LG_KEYS,
)


def _text(key: bytes) -> str:
    return key[:KEY_BYTES_MAX].decode("latin-1")


class KeySketches:
    """Hot keys and the number of distinct ones, of one process since it began."""

    __slots__ = ("_distinct", "_hot")

    def __init__(self) -> None:
        self._hot = frequent_strings_sketch(SKETCHES_HOT_LG_KEYS)
        self._distinct = hll_sketch(SKETCHES_DISTINCT_LG_BUCKETS)

    def take_in(self, hot: list[bytes], distinct: list[bytes]) -> None:
        """See `counters.Keys`."""
        for key, count in Counter(hot).items():
            self._hot.update(_text(key), count * HOT_SAMPLE)
        for key in set(distinct):
            self._distinct.update(_text(key))

    def distinct(self) -> int:
        """See `counters.Keys`."""
        return round(float(self._distinct.get_estimate()) * DISTINCT_SAMPLE)

    def hot(self, at_most: int) -> list[tuple[bytes, int]]:
        """See `counters.Keys`."""
        found = self._hot.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)
        return [(text.encode("latin-1"), int(estimate)) for text, estimate, *_ in found[:at_most]]
