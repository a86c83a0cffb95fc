"""What is waited for, live in the Prefect UI.

A switch has a progress artifact that says which step it is at, and what it waits for. It is looked after by a task beside the switch, which rests
while writes are held: a call to Prefect would take processor time from the hold. Whatever else takes long says in its run's log how far it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from exodus.control.store import ControlStore
from exodus.cutover.levers import NOW
from exodus.cutover.switch import Step, Switch
from exodus.ending import beside, end_all
from tasks.evidence import artifact_key

_LOOK_S = 0.3
_TELL_S = 5.0


class Shown:
    """What the artifact says."""

    def __init__(self, migration: str, phase: str, steps: list[str]) -> None:
        self._steps = steps
        self._log = get_run_logger()
        self._switch: Switch | None = None
        self._said = ""
        self._turn = threading.Lock()
        self._artifact: Any = create_progress_artifact(
            progress=0.0, key=artifact_key(migration, phase, "switch"), description="the switch is about to begin"
        )

    def tell(self, switch: Switch, step: Step) -> None:
        """Hear of a step before it is done."""
        self._switch = switch
        self._log.debug("%s", step.name) if switch.holding else self._log.info("%s: %s", step.name, step.text)

    def say(self, progress: float, text: str) -> None:
        """Show it, unless it is shown already. One after the other, and never what a switch fails for."""
        with self._turn:
            if text == self._said:
                return
            self._said = text
            try:
                update_progress_artifact(artifact_id=self._artifact, progress=progress, description=text)
            except (PrefectException, httpx.HTTPError, OSError) as exc:
                self._log.warning("Prefect was not told that the switch is at %r: %s", text, exc)

    async def look(self, store: ControlStore) -> None:
        """Show where the switch says that it is."""
        now = await store.report(NOW)
        if self._switch is None or self._switch.holding or now is None or now["step"] not in self._steps:
            return
        number = self._steps.index(now["step"])
        waits = f": waits, {now['waits_for']}" if now["waits_for"] else ""
        text = f"step {number + 1} of {len(self._steps)}, {now['step']}{waits}"
        await asyncio.to_thread(self.say, 100.0 * number / len(self._steps), text)


@asynccontextmanager
async def shown(migration: str, phase: str, steps: list[str], store: ControlStore) -> AsyncIterator[Shown]:
    """Show the switch that is done meanwhile; at its end, whether it came to it."""
    artifact = Shown(migration, phase, steps)

    async def watch() -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
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
    """Say in the run's log, every few seconds as long as it lasts, how far something is."""
    log = get_run_logger()

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            log.info("%s", await how_far())

    async with beside(tell()):
        yield
