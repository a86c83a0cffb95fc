"""Tasks end, and their cleanup is done before."""

from __future__ import annotations

import asyncio

import pytest

from exodus import cancellation
from exodus.cancellation import end_all


async def test_a_cleanup_is_not_cancelled_by_a_second_request() -> None:
    """`asyncio.gather` cancels its tasks and ends with the first; the others are ended again."""
    cleaned: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.03 * number)
            cleaned.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(3)]

    async def owner() -> None:
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_all(tasks)

    running = asyncio.create_task(owner())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(cleaned) == [0, 1, 2]


async def test_a_task_that_swallows_a_cancellation_ends_nevertheless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancellation, "CANCEL_AGAIN_S", 0.01)
    swallowed = 0

    async def work() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await end_all([task, None])
    assert (task.cancelled(), swallowed) == (True, 3)
