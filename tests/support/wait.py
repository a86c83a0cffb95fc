"""Waiting for a condition. A failure names what never happened.

No test is about how soon. So each time allowed is for an idle machine, and a busy one gets more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE = 3  # times `within_s`


def wait_until(condition: Callable[[], bool], *, within_s: float, otherwise: str) -> None:
    """Block until `condition()`; fail with `otherwise`."""
    deadline = time.monotonic() + within_s * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise} (within {within_s * PATIENCE} s)")
        time.sleep(0.02)


async def until(
    condition: Callable[[], Awaitable[bool]], *, within_s: float, otherwise: str
) -> None:
    """As `wait_until`, for coroutines."""
    deadline = time.monotonic() + within_s * PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise} (within {within_s * PATIENCE} s)")
        await asyncio.sleep(0.02)
