"""What the benchmarks of the sync engine share: servers with data, and an engine that may write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis

from exodus.config import CopyStrategy, JournalMode, Plan, Side
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.endpoint import Endpoint
from exodus.stack.servers import Server
from exodus.sync.backfill import copy_slice
from exodus.sync.engine import Engine, open_engine
from exodus.sync.guard import set_writer_epoch
from exodus.sync.scan import Slice, plan_slices

VALUE_BYTES = 100
SLICES_AT_A_TIME = 3
_TIMED_SHARE = 5


def load(source: redis.Redis, keys: int) -> None:
    """Random values, a fifth of them with an expiry."""
    draw = random.Random(1)  # noqa: S311 - reproducible, not secret
    pipe = source.pipeline(transaction=False)
    for number in range(keys):
        expiry_ms = 3_600_000 + number if number % _TIMED_SHARE == 0 else None
        pipe.set(b"key:%d" % number, draw.randbytes(VALUE_BYTES), px=expiry_ms)
        if number % 10_000 == 0:
            pipe.execute()
    pipe.execute()


@asynccontextmanager
async def engine_of(source: Server, target: Server, control: Server, *, strategy: CopyStrategy = CopyStrategy.KEYS) -> AsyncIterator[Engine]:
    """The engine of a new epoch, with the journal on."""
    plan = Plan(name="bench", source=source.address(), target=target.address(), strategy=strategy)
    async with await ControlStore.connect(control.address(), plan.name) as store:
        await store.save_plan(plan)
        route = await read_route(store)
        route = await change_route(store, route, route.next(why="benchmark", journal=JournalMode.ALL, sync=True, writer_epoch=route.writer_epoch + 1))
        await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, route.writer_epoch)
        yield await open_engine(store, plan, route)


async def backfill(engine: Engine, run: str) -> None:
    """Every slice, some at a time, as the threads of a flow run do it: while we handle one's batch, the source reads another's."""
    turn = asyncio.Semaphore(SLICES_AT_A_TIME)

    async def copy(piece: Slice) -> None:
        async with turn:
            progress = await copy_slice(engine, run, piece, budget_s=600)
        if progress.keys_failed or not progress.done:
            raise AssertionError(f"slice {piece.slice_id} did not end well: {progress}")

    async with asyncio.TaskGroup() as group:
        for piece in await plan_slices(engine.authority, engine.plan.slices):
            group.create_task(copy(piece))
