"""Live sync of the reserved keys in one direction of a rehearsal.

The probe clients are in this process, so what they changed is known without a journal. A key of
theirs is copied by the same `sync(key)` as any other, under a guard of the rehearsal's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from exodus.control.changes import Key
from exodus.copy.key import Copier
from exodus.engine import Engine
from exodus.errors import CutoverAborted
from exodus.plan.bounds import LANES_CADENCE_S
from exodus.rehearsal.clients import ProbeClients


class ReservedSync:
    """Copies what the probe clients change, until `finish`."""

    def __init__(self, engine: Engine, copier: Copier, clients: list[ProbeClients]) -> None:
        self._engine = engine
        self._copier = copier
        self._clients = clients
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.took_ms = 0.0  # the last copy: a change waits so long at most

    async def start(self) -> None:
        """Copy every key of the clients once, then what changes."""
        await self._copy({key for each in self._clients for key in each.touched})
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            await self._copy(self._changes())
            self.took_ms = (time.monotonic() - began) * 1000
            with contextlib.suppress(TimeoutError):  # the end of it does not wait for the cadence
                async with asyncio.timeout(LANES_CADENCE_S):
                    await self._ending.wait()

    def _changes(self) -> set[bytes]:
        return {key for each in self._clients for key in each.changes()}

    async def finish(self, *, everything: bool = False) -> list[Key]:
        """Copy what is left, now that writes are held; the keys that were copied.

        Raises:
            CutoverAborted: a key could not be copied.
            SourceError, TargetError: a side was lost.
        """
        self._ending.set()
        if self._task is not None:
            task, self._task = self._task, None
            await task
        keys = self._changes()
        if everything:
            keys |= {key for each in self._clients for key in each.touched}
        await self._copy(keys)
        return [(0, key) for key in sorted(keys)]

    async def _copy(self, keys: set[bytes]) -> None:
        if not keys:
            return
        report = await self._copier.sync_keys(0, list(keys))
        if report.failed:
            raise CutoverAborted(
                f"{len(report.failed)} keys of the rehearsal could not be carried to the "
                f"{self._engine.route.follower}",
                why="; ".join(sorted({failure.reason for failure in report.failed})),
                next_step="mend what the reason says, then rehearse again",
            )

    async def close(self) -> None:
        """End at once, and give the connections back."""
        self._ending.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._copier.close()
