"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.2


async def end_all(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks and wait until each has ended; what they raise is dropped.

    Again and again: in Python 3.11 a cancellation that meets the end of what `asyncio.wait_for` waits for (in redis-py, say) is swallowed
    (python/cpython#86296), and who waits for such a task waits for ever.
    """
    left = [task for task in tasks if task is not None]
    while any(not task.done() for task in left):
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*left, return_exceptions=True)
