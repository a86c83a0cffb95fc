"""A background task that fails is reported, counted, and started again. One that is cancelled
ends.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus import background
from exodus.background import BackgroundTasks


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BACKGROUND_RESTART_S", 0)


@pytest.mark.parametrize("failure", [IndexError("no such place"), asyncio.CancelledError("stray")])
async def test_a_task_that_fails_is_started_again(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where another task's cancellation escapes from it."""
    tasks, starts, works = BackgroundTasks("syncer"), [], asyncio.Event()

    async def work() -> None:
        starts.append(1)
        if len(starts) < 3:
            raise failure
        works.set()
        await asyncio.Event().wait()

    task = tasks.keep_running(work)
    await works.wait()
    assert tasks.failures == 2
    assert type(failure).__name__ in tasks.why
    assert "a task of the syncer failed and is started again" in caplog.text
    await tasks.end()
    assert task.cancelled()
    assert len(starts) == 3


async def test_a_task_that_returns_is_not_started_again() -> None:
    tasks, starts = BackgroundTasks("syncer"), []

    async def work() -> None:
        starts.append(1)

    await tasks.keep_running(work)
    assert (len(starts), tasks.failures, tasks.why) == (1, 0, "")
