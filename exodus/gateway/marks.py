"""What was written and is not on its way to the control store yet: keys and barriers, each once."""

from __future__ import annotations

from collections.abc import Callable

from exodus.control.changes import Barrier, Key


class Marks:
    """Filled by sessions for every answered write, emptied by the journaler."""

    __slots__ = ("_awake", "_barriers", "_keys", "_wake", "coalesced")

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is called at the first mark after a `sleep`."""
        self._wake = wake
        self._awake = False
        self._keys: dict[Key, None] = {}
        self._barriers: dict[Barrier, None] = {}
        self.coalesced = 0  # marks of keys that were marked already

    def add(self, keys: list[Key], barrier: Barrier | None) -> None:
        """After the authority has answered."""
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
        """All of them, which are not here any more."""
        keys, barriers = list(self._keys), list(self._barriers)
        self._keys, self._barriers = {}, {}
        return keys, barriers

    def sleep(self) -> None:
        """Ask to be woken."""
        self._awake = False

    def __len__(self) -> int:
        return len(self._keys) + len(self._barriers)
