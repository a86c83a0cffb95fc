"""Background tasks of a process. A failed task is logged, counted, and started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from exodus.cancellation import end_all
from exodus.plan.bounds import BACKGROUND_RESTART_S, BACKGROUND_TOLD_S

log = logging.getLogger(__name__)


class BackgroundTasks:
    """The tasks of one process."""

    def __init__(self, process: str) -> None:
        """`process` names the kind of process in the log."""
        self._process = process
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0  # of tasks that were started again
        self._last: tuple[float, str] = (0.0, "")  # when and how one failed

    @property
    def why(self) -> str:
        """Return how a task failed in the last `BACKGROUND_TOLD_S`, or nothing."""
        at, said = self._last
        return said if time.monotonic() - at < BACKGROUND_TOLD_S else ""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task and keep a reference to it. If it fails, that is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def keep_running(self, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        """Start a task that is started again if it fails, until it returns or is cancelled.

        A bug in it must not end the journal or live sync, nor stop a process from following the
        route.
        """
        return self.spawn(self._repeat(work))

    async def _repeat(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            try:
                return await work()
            except Exception as exc:  # logged, counted, and shown by the heartbeat
                log.exception("a task of the %s failed and is started again", self._process)
                self._failed(exc)
            except asyncio.CancelledError as exc:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody cancelled this task: it was let out of another one
                log.exception("a task of the %s failed and is started again", self._process)
                self._failed(exc)
            await asyncio.sleep(BACKGROUND_RESTART_S)

    def _failed(self, exc: BaseException) -> None:
        self.failures += 1
        said = f"an error of Exodus: {type(exc).__name__}: {exc} (its log has more)"
        self._last = time.monotonic(), said

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the %s failed", self._process, exc_info=task.exception())

    async def end(self) -> None:
        """Cancel all tasks and wait until each has ended."""
        await end_all(list(self._tasks))
