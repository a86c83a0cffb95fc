"""Marks: written keys and barriers, on their way to the control store.

Several writes of a key make one mark, since a syncer copies the key's state. While only sampled
keys are journalled, each write makes a mark. Compare counts them, and so knows whether it saw every
write of a key.
"""

from __future__ import annotations

from collections.abc import Callable

from exodus.control.changes import Barrier, Key


class Marks:
    """Sessions add to it for every answered write; the journaler empties it."""

    __slots__ = ("_awake", "_barriers", "_keys", "_wake", "_writes", "coalesced", "each")

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is called at the first mark after a `sleep`."""
        self._wake = wake
        self._awake = False
        self._keys: dict[Key, None] = {}
        self._barriers: dict[Barrier, None] = {}
        self._writes: list[Key] = []  # of `each`
        self.each = False  # a key is marked for each of its writes
        self.coalesced = 0  # marks of keys that were marked already

    def add(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Add what a write changed, after the authority has answered it."""
        if self.each:
            self._writes.extend(keys)
        else:
            marked = self._keys
            before = len(marked)
            for key in keys:
                marked[key] = None
            self.coalesced += before + len(keys) - len(marked)
        if barrier is not None:
            self._barriers[barrier] = None
        if not self._awake:
            self._awake = True
            self._wake()

    def take(self) -> tuple[list[Key], list[Barrier]]:
        """Remove all marks and return them."""
        keys, barriers = [*self._keys, *self._writes], list(self._barriers)
        self._keys, self._barriers, self._writes = {}, {}, []
        return keys, barriers

    def sleep(self) -> None:
        """Call `wake` at the next mark."""
        self._awake = False

    def __len__(self) -> int:
        return len(self._keys) + len(self._writes) + len(self._barriers)
