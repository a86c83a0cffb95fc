"""Which keys are hot, and how many there are, in memory of a fixed size: sketches of Apache DataSketches.

Keys come in from every request, so they wait in a short list and are taken in together. Both sketches see a sample of what goes by, one chosen
so that the estimate stays straight: hot keys see every `_HOT_SAMPLE`-th request with that weight, the distinct count sees the keys whose hash
is divisible by `_DISTINCT_SAMPLE` and is multiplied by it. The hash is the same in all processes, so that their sketches merge.
"""

from __future__ import annotations

import zlib
from collections import Counter

from datasketches import frequent_items_error_type, frequent_strings_sketch, hll_sketch

_HOT_SAMPLE = 8
_DISTINCT_SAMPLE = 16
_HOT_LG_KEYS = 10  # 2**10 counters, three quarters of them in use: an error of at most 0.35 % of all requests
_HLL_LG_BUCKETS = 12  # 2**12 buckets: a relative error of 1.6 % (one standard deviation)
_WAITING_MAX = 512
KEY_BYTES_MAX = 1024  # a longer key is counted by its beginning


class KeySketches:
    """Hot keys and the number of distinct ones, of one process since it began."""

    __slots__ = ("_distinct", "_hot", "_turn", "_waiting")

    def __init__(self) -> None:
        self._hot = frequent_strings_sketch(_HOT_LG_KEYS)
        self._distinct = hll_sketch(_HLL_LG_BUCKETS)
        self._waiting: list[bytes] = []
        self._turn = 0

    def see(self, key: bytes) -> None:
        """A request named this key."""
        self._waiting.append(key if len(key) <= KEY_BYTES_MAX else key[:KEY_BYTES_MAX])
        if len(self._waiting) >= _WAITING_MAX:
            self.take_in()

    def take_in(self) -> None:
        """Hand what waits to the sketches."""
        keys, self._waiting = self._waiting, []
        sampled = keys[self._turn :: _HOT_SAMPLE]
        self._turn = (self._turn - len(keys)) % _HOT_SAMPLE
        for key, count in Counter(sampled).items():
            self._hot.update(key.decode("latin-1"), count * _HOT_SAMPLE)
        for key in set(keys):
            if zlib.crc32(key) % _DISTINCT_SAMPLE == 0:
                self._distinct.update(key.decode("latin-1"))

    def distinct(self) -> int:
        """About how many different keys were named."""
        self.take_in()
        return round(float(self._distinct.get_estimate()) * _DISTINCT_SAMPLE)

    def hot(self, at_most: int) -> list[tuple[bytes, int]]:
        """The keys that were named most often, with about how often."""
        self.take_in()
        found = self._hot.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)
        return [(text.encode("latin-1"), int(estimate)) for text, estimate, *_ in found[:at_most]]
