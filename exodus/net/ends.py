"""Connections that end when their server is no longer the one to be connected to."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Collection, Hashable
from typing import Any


class Ends:
    """How to end each connection, and what it is bound to. The methods are kept weakly."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[Hashable, asyncio.AbstractEventLoop, Any]] = {}
        self._next = 0

    def add(self, bound_to: Hashable, end: Callable[[], None]) -> None:
        """Let `all_but` call `end` (a method), in the event loop of now."""
        self._next += 1
        number = self._next
        method = weakref.WeakMethod(end, lambda _: self._ends.pop(number, None))
        self._ends[number] = (bound_to, asyncio.get_running_loop(), method)

    def all_but(self, now: Collection[Hashable]) -> None:
        """End the connections that are bound to anything else."""
        for number, (bound_to, loop, method) in list(self._ends.items()):
            if bound_to in now:
                continue
            self._ends.pop(number, None)
            end = method()
            if end is not None:
                with contextlib.suppress(RuntimeError):  # its loop has ended, and it with it
                    loop.call_soon_threadsafe(end)
