"""Show live progress in the Prefect UI.

A switch has a progress artifact with its current step and its reason for waiting. A task beside the
switch updates it, and rests while writes are held: a call to Prefect would take processor time from
the hold. Other long work writes its progress into the run's log.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from redis.exceptions import RedisError

from exodus.backfill.progress import REPORT, ProgressMeter, ProgressSample
from exodus.cancellation import beside, end_all
from exodus.control.store import ControlStore
from exodus.cutover.context import Switch
from exodus.cutover.levers import NOW
from exodus.cutover.switch import Step
from exodus.errors import ExodusError
from exodus.plan.bounds import PROGRESS_EVERY_S, TASKS_PROGRESS_LOOK_S, TASKS_PROGRESS_TELL_S
from exodus.plan.plan import Plan
from tasks.context import connect, load, plan_of
from tasks.evidence import artifact_key


class ProgressThread(threading.Thread):
    """Shows the progress of bulk work every `PROGRESS_EVERY_S`.

    It appears in an artifact, in the run's log, and in the control store for `exodus status`.

    It is a thread with its own connection, because the work blocks the flow. A failure here does
    not fail the work.
    """

    def __init__(
        self,
        migration: str,
        phase: str,
        what: str,
        look: Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]],
    ) -> None:
        super().__init__(name=f"progress of {what}", daemon=True)
        self._plan, self._address = (
            plan_of(migration),
            load(migration).control_store.address("control_store"),
        )
        self._context = copy_context()  # with the run's Prefect client
        self._look = look
        self._meter = ProgressMeter(what)
        self._log = get_run_logger()
        self._ending = threading.Event()
        self._failing = ""
        self._told = "done"  # shown at the end
        key = artifact_key(migration, phase, what)
        self._artifact: Any = create_progress_artifact(
            progress=0.0, key=key, description=f"{what} begins"
        )

    def run(self) -> None:
        """Work until `end`."""
        self._context.run(asyncio.run, self._run())

    def end(self, *, done: bool) -> None:
        """Read the progress once more, and show the end."""
        self._ending.set()
        self.join()
        if done:
            self._show(100.0, self._told)

    async def _run(self) -> None:
        while True:
            try:
                async with await connect(self._address, self._plan.name) as store:
                    await self._follow(store)
            except (ExodusError, RedisError, OSError, PrefectException, httpx.HTTPError) as exc:
                self._fails(f"{type(exc).__name__}: {exc}")
            if await asyncio.to_thread(self._ending.wait, PROGRESS_EVERY_S):
                return

    async def _follow(self, store: ControlStore) -> None:
        while True:
            ended = self._ending.is_set()
            found = await self._look(store, self._plan)
            if found is not None:
                progress = self._meter.look(time.monotonic(), found, await store.now_ms())
                # The last report has time 0: `exodus status` shows only running work.
                await store.save_report(
                    REPORT,
                    {
                        **progress.model_dump(),
                        "text": progress.text,
                        **({"at_ms": 0} if ended else {}),
                    },
                )
                self._told = progress.text_when_done
                self._log.info("%s", progress.text)
                await asyncio.to_thread(self._show, progress.percent, progress.text)
            self._failing = ""
            if ended:
                return
            await asyncio.to_thread(self._ending.wait, PROGRESS_EVERY_S)

    def _show(self, percent: float, text: str) -> None:
        try:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, description=text)
        except (PrefectException, httpx.HTTPError, OSError) as exc:
            self._fails(f"{type(exc).__name__}: {exc}")

    def _fails(self, why: str) -> None:
        if not self._failing:
            self._log.warning("progress cannot be shown: %s", why)
        self._failing = why


@contextmanager
def watched(
    migration: str,
    phase: str,
    what: str,
    look: Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]],
) -> Iterator[None]:
    """Show the progress of bulk work while the context is open."""
    watching = ProgressThread(migration, phase, what, look)
    watching.start()
    try:
        yield
    except BaseException:
        watching.end(done=False)
        raise
    watching.end(done=True)


class Shown:
    """What the artifact says."""

    def __init__(self, migration: str, phase: str, steps: list[str]) -> None:
        self._steps = steps
        self._log = get_run_logger()
        self._switch: Switch | None = None
        self._said = ""
        self._turn = threading.Lock()
        self._artifact: Any = create_progress_artifact(
            progress=0.0,
            key=artifact_key(migration, phase, "switch"),
            description="Switch: about to begin",
        )

    def tell(self, switch: Switch, step: Step) -> None:
        """Take note of a step before it runs."""
        self._switch = switch
        self._log.debug("%s", step.name) if switch.holding else self._log.info(
            "%s: %s", step.name, step.text
        )

    def say(self, progress: float, text: str) -> None:
        """Show a text once. Calls run one after the other, and no failure here fails the switch."""
        with self._turn:
            if text == self._said:
                return
            self._said = text
            try:
                update_progress_artifact(
                    artifact_id=self._artifact, progress=progress, description=text
                )
            except (PrefectException, httpx.HTTPError, OSError) as exc:
                self._log.warning("the artifact was not updated to %r: %s", text, exc)

    async def look(self, store: ControlStore) -> None:
        """Show the switch's current step."""
        now = await store.report(NOW)
        if (
            self._switch is None
            or self._switch.holding
            or now is None
            or now["step"] not in self._steps
        ):
            return
        number = self._steps.index(now["step"])
        waits = f": waiting, {now['waits_for']}" if now["waits_for"] else ""
        text = f"step {number + 1} of {len(self._steps)}, {now['step']}{waits}"
        await asyncio.to_thread(self.say, 100.0 * number / len(self._steps), text)


@asynccontextmanager
async def shown(
    migration: str, phase: str, steps: list[str], store: ControlStore
) -> AsyncIterator[Shown]:
    """Show the progress of a switch while the context is open, and its outcome at the end."""
    artifact = Shown(migration, phase, steps)

    async def watch() -> None:
        while True:
            await asyncio.sleep(TASKS_PROGRESS_LOOK_S)
            await artifact.look(store)

    watching = asyncio.create_task(watch())
    try:
        yield artifact
    except Exception as exc:
        await end_all([watching])
        artifact.say(0.0, f"given up: {str(exc).splitlines()[0]}")
        raise
    await end_all([watching])
    artifact.say(100.0, "done")


@asynccontextmanager
async def telling(how_far: Callable[[], Awaitable[str]]) -> AsyncIterator[None]:
    """Log the progress of some work every few seconds while the context is open."""
    log = get_run_logger()

    async def tell() -> None:
        while True:
            await asyncio.sleep(TASKS_PROGRESS_TELL_S)
            log.info("%s", await how_far())

    async with beside(tell()):
        yield
