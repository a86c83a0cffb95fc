"""A comparer in the test's own process, or in one of its own; its counts and findings."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from exodus.control.heartbeats import ComparerFacts, ComparerHeartbeat
from exodus.control.registry import heartbeats
from exodus.control.route import read_route
from exodus.net.client import answered
from exodus.plan.vocabulary import JournalMode
from exodus.shadow.comparer import Comparer
from exodus.stack.processes import Started, start
from tests.support.local_migration import LocalMigration
from tests.support.process import migration_file
from tests.support.wait import until

LOOKS_S = (0.05, 0.5, 2.0)  # The last look of the product comes 5 s later: tests would wait for it.


@asynccontextmanager
async def comparing(local: LocalMigration) -> AsyncIterator[None]:
    await local.gateway()
    comparer = Comparer(local.store, local.plan, "comparer-1", looks_s=LOOKS_S)
    task = asyncio.create_task(comparer.run())
    try:
        await local.start_live_sync()
        await local.change(journal=JournalMode.SAMPLE, sync=False, shadow_rate=1.0, shadow_salt=7)

        async def follows() -> bool:
            return any(
                beat.state == "comparing" and not beat.why
                for beat in await heartbeats(local.store, "comparer")
            )

        await until(follows, within_s=10, otherwise="the comparer did not begin")
        yield
    finally:
        comparer.stop()
        await task


class ComparerProcesses:
    """Comparers as processes of their own, one after the other."""

    def __init__(self, local: LocalMigration) -> None:
        self._local = local
        self._file = migration_file(local)
        self._running: list[Started] = []

    async def begin(self) -> None:
        command = [sys.executable, "-m", "exodus.cli.app", "comparer", "--file", str(self._file)]
        name = f"comparer-{len(self._running)}"
        started = start(
            name, [*command, "--id", "comparer"], log=Path(self._local.folder / f"{name}.log")
        )
        self._running.append(started)

        async def compares() -> bool:
            return any(
                beat.pid == started.process.pid and beat.state == "comparing" and not beat.why
                for beat in await heartbeats(self._local.store, "comparer")
            )

        await until(compares, within_s=30, otherwise="the comparer did not begin")

    async def kill(self) -> None:
        """Kill it (-9) once it has stored its position."""
        process = self._running[-1].process
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 10)

    def end(self) -> None:
        for started in self._running:
            if started.process.poll() is None:
                started.process.terminate()
                started.process.wait(20)


@asynccontextmanager
async def comparing_apart(
    local: LocalMigration, rate: float = 1.0
) -> AsyncIterator[ComparerProcesses]:
    """A comparer as a process of its own, over a gateway in the test's process."""
    await local.store.save_plan(local.plan)
    await local.gateway()
    await local.start_live_sync()
    await local.change(journal=JournalMode.SAMPLE, sync=False, shadow_rate=rate, shadow_salt=7)
    comparers = ComparerProcesses(local)
    try:
        await comparers.begin()
        yield comparers
    finally:
        comparers.end()


async def comparer_follows(local: LocalMigration) -> None:
    epoch = (await read_route(local.store)).epoch

    async def follows() -> bool:
        return any(
            beat.epoch == epoch and beat.state == "comparing"
            for beat in await heartbeats(local.store, "comparer")
        )

    await until(follows, within_s=10, otherwise="the comparer did not follow")


async def beat_of(local: LocalMigration) -> ComparerFacts:
    """Return what the comparer says of itself."""
    (beat,) = await heartbeats(local.store, "comparer")
    assert isinstance(beat, ComparerHeartbeat)
    return beat.facts


async def row_of(local: LocalMigration, command: str, outcome: str, count: int = 1) -> None:
    async def seen() -> bool:
        return (await counted(local, command)).get(outcome, 0) >= count

    try:
        await until(seen, within_s=15, otherwise=f"no {command} was counted as {outcome}")
    except AssertionError as exc:
        raise AssertionError(exc, await heartbeats(local.store, "comparer")) from exc


async def quiet(local: LocalMigration) -> None:
    """Wait until the comparer has judged everything, and sees no recent write of its keys.

    Then no journal entry in flight makes it copy a key again. Some outcome of the test's requests
    must have been seen before.
    """

    async def settled() -> bool:
        facts = await beat_of(local)
        return not facts.behind and not facts.pending and not facts.keys_unsettled

    await until(settled, within_s=30, otherwise="the comparer did not come to an end")


async def counted(local: LocalMigration, command: str) -> dict[str, int]:
    """Return outcome -> replies of one command."""
    return (await beat_of(local)).rows.get(command, {})


async def ledger(local: LocalMigration) -> list[dict[str, Any]]:
    """Return the rows of the ledger of divergences."""
    raw = await answered(local.store.client.hgetall(local.store.keys.divergence))
    return [orjson.loads(row) for row in raw.values()]
