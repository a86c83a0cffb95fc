"""Keys whose copies cost far more than the writes that caused them, such as a growing list that is
copied whole after each write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from exodus.control.changes import Key
from exodus.plan.bounds import (
    COSTLY_KEYS_COPIES_MIN,
    COSTLY_KEYS_SHOWN,
    COSTLY_KEYS_TOLD_BYTES,
    HEAVY_KEYS_MAX,
)

log = logging.getLogger(__name__)


class HeavyKeys:
    """What one process has copied of keys over `HEAVY_BYTES`, in memory of a fixed size."""

    def __init__(self) -> None:
        self._copied: dict[Key, tuple[int, int]] = {}  # copies, bytes of all of them
        self._told: set[Key] = set()

    def add(self, db: int, copied: Iterable[tuple[bytes, int]]) -> None:
        """Count copies; a key that costs much is warned of once."""
        for name, size in copied:
            key = (db, name)
            copies, total = self._copied.pop(key, (0, 0))
            if len(self._copied) >= HEAVY_KEYS_MAX:
                self._copied.pop(min(self._copied, key=lambda each: self._copied[each][1]))
            self._copied[key] = copies + 1, total + size
            if key not in self._told and self._costs_much(key) and len(self._told) < HEAVY_KEYS_MAX:
                self._told.add(key)
                log.warning("%s", text_of(self._row(key)))

    def _costs_much(self, key: Key) -> bool:
        copies, total = self._copied[key]
        return copies >= COSTLY_KEYS_COPIES_MIN and total >= COSTLY_KEYS_TOLD_BYTES

    def _row(self, key: Key) -> dict[str, object]:
        copies, total = self._copied[key]
        return {
            "db": key[0],
            "key": key[1].decode("utf-8", "backslashreplace"),
            "copies": copies,
            "bytes": total,
        }

    def rows(self) -> list[dict[str, object]]:
        """Return the keys that cost most, as JSON; none where none costs much."""
        costly = sorted(
            filter(self._costs_much, self._copied), key=lambda key: -self._copied[key][1]
        )
        return [self._row(key) for key in costly[:COSTLY_KEYS_SHOWN]]


def text_of(row: dict[str, object]) -> str:
    """Return what an operator needs to know of such a key."""
    size, copies = int(str(row["bytes"])), int(str(row["copies"]))
    return (
        f"key {row['key']!r} of database {row['db']} was copied whole {copies:,} times, "
        f"{size / 1e6:,.0f} MB in all: each write of a key "
        "copies all of it; trim it, split it, write it less often, or set strategy: native"
    )
