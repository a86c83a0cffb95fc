"""What Compare's flow needs under a Prefect server: the block, decisions, and traffic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.control import ledger
from exodus.plan.vocabulary import Phase
from exodus.shadow.comparer import Comparer
from tests.support.comparing import LOOKS_S
from tests.support.local_migration import LocalMigration


async def save_block(local: LocalMigration) -> None:
    """Store what flows know of the migration, with Analyze approved."""
    ends = {}
    for name, box in [*local.servers.items(), ("control_store", local.control)]:
        address = box.address()
        ends[str(name)] = RedisEndpoint(
            url=address.url, username=address.username, password_file=str(address.password_file)
        )
    block = Migration(
        migration=local.plan.name,
        options={
            "gateway": {"host": "127.0.0.1", "port": local.port},
            "rehearsal_hours_max": None,
            "observe_seconds": 1.0,
            "sample": 1.0,
        },
        **ends,
    )
    await asyncio.to_thread(block.save, local.plan.name, overwrite=True)
    local.plan = block.plan()
    await local.store.save_plan(local.plan)
    for phase in (Phase.PRE_TEST, Phase.ANALYZE):
        await approve(local, phase)


async def approve(local: LocalMigration, phase: Phase) -> None:
    """Write into the ledger what an approval does."""
    now_ms = await local.store.now_ms()
    decided = ledger.LedgerEntry(at_ms=now_ms, phase=phase, event="decided", verdict="approve")
    await ledger.record(local.store, decided)


@asynccontextmanager
async def traffic(
    local: LocalMigration, keys: Sequence[str] = ("k",), *, read: str = ""
) -> AsyncIterator[None]:
    """A gateway, a comparer, and an application that writes these keys, and reads another."""
    if not local.gateways:
        await local.gateway()
    comparer = Comparer(local.store, local.plan, "comparer-1", looks_s=LOOKS_S)
    running, stop = asyncio.create_task(comparer.run()), asyncio.Event()

    async def work() -> None:
        app = local.app()
        while not stop.is_set():
            for key in keys:
                await app.set(key, "v")
                await app.get(key)
            if read:
                await app.get(read)
            await asyncio.sleep(0.02)

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        stop.set()
        await working
        comparer.stop()
        await running
