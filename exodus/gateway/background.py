"""Background tasks of the gateway: they may fail, wait or fall behind, and no session notices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from exodus.cancellation import end_all
from exodus.plan.bounds import BACKGROUND_RESTART_S

log = logging.getLogger(__name__)


class BackgroundTasks:
    """The tasks of one process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0  # of tasks that were started again

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task and keep a reference to it. If it fails, that is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def keep_running(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start a task that is started again if it fails.

        A bug in it must not end the journal, nor stop the gateway from following the route.
        """
        self.spawn(self._repeat(work))

    async def _repeat(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # logged, counted, and shown by the heartbeat
                log.exception("a gateway task failed and is started again; the relay goes on")
                self.failures += 1
                await asyncio.sleep(BACKGROUND_RESTART_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a gateway task failed; the relay goes on", exc_info=task.exception())

    async def end(self) -> None:
        """Cancel all tasks and wait until each has ended."""
        await end_all(list(self._tasks))
