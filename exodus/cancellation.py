"""Running the tasks of a process until it is told to stop, and ending them for certain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from exodus.plan.bounds import CANCEL_AGAIN_S


async def end_all(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks and wait until each has ended; what they raise is dropped.

    Again and again: in Python 3.11 a cancellation that meets the end of what `asyncio.wait_for`
    waits for (in redis-py, say) is swallowed (python/cpython#86296), and who waits for such a task
    waits for ever.

    A task that is being cancelled already, as by `asyncio.gather` around it, gets its time first: a
    second cancellation would end its cleanup, and leave connections open.
    """
    left = [task for task in tasks if task is not None]
    for task in left:
        if not task.cancelling():
            task.cancel()
    while any(not task.done() for task in left):
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        for task in left:
            task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something as long as the context is open."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end_all([task])


async def until_stopped(stopping: asyncio.Event, *works: Coroutine[Any, Any, None]) -> None:
    """Run them side by side until `stopping`. The first that ends by itself ends all, and what it
    raised is raised.
    """
    tasks = [asyncio.create_task(work) for work in works]
    waiting = asyncio.create_task(stopping.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        await end_all((*tasks, waiting))


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, this long at most; return whether it is set.

    Not `asyncio.wait_for`: in Python 3.11 it swallows a cancellation that arrives together with the
    result.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
