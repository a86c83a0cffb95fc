"""Waiting for a condition. A failure names what never happened.

No test is about how soon. So each time allowed is for an idle machine, and a busy one gets more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE = 3  # times `within_s`
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.02, 1.0
_PAUSES = 4  # times what a look took


def wait_until(condition: Callable[[], bool], *, within_s: float, otherwise: str) -> None:
    """Block until `condition()`; fail with `otherwise`. The slower a look, the longer the pause."""
    deadline = time.monotonic() + within_s * PATIENCE
    while True:
        looked = time.monotonic()
        if condition():
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise} (within {within_s * PATIENCE} s)")
        # A polled server does the awaited work, too: look for a fifth of the time at most.
        pause_s = _PAUSES * (time.monotonic() - looked)
        time.sleep(min(_PAUSE_MAX_S, max(_PAUSE_MIN_S, pause_s)))


async def until(
    condition: Callable[[], Awaitable[bool]], *, within_s: float, otherwise: str
) -> None:
    """As `wait_until`, for coroutines. The pause stays short: some conditions make the load under
    test.
    """
    deadline = time.monotonic() + within_s * PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise} (within {within_s * PATIENCE} s)")
        await asyncio.sleep(_PAUSE_MIN_S)
