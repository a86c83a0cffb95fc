"""Marks: written keys and barriers, each once, on their way to the control store."""

from __future__ import annotations

from collections.abc import Callable

from exodus.control.changes import Barrier, Key


class Marks:
    """Sessions add to it for every answered write; the journaler empties it."""

    __slots__ = ("_awake", "_barriers", "_keys", "_wake", "coalesced")

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is called at the first mark after a `sleep`."""
        self._wake = wake
        self._awake = False
        self._keys: dict[Key, None] = {}
        self._barriers: dict[Barrier, None] = {}
        self.coalesced = 0  # marks of keys that were marked already

    def add(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Add what a write changed, after the authority has answered it."""
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
        keys, barriers = list(self._keys), list(self._barriers)
        self._keys, self._barriers = {}, {}
        return keys, barriers

    def sleep(self) -> None:
        """Call `wake` at the next mark."""
        self._awake = False

    def __len__(self) -> int:
        return len(self._keys) + len(self._barriers)
