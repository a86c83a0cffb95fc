"""Opening a migration inside a task: the plan with its secrets, and the control store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import uvloop
from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import Migration
from exodus.config import Plan, Side
from exodus.control.store import ControlStore
from exodus.endpoint import Endpoint

T = TypeVar("T")

# A task whose answer is true now only. A flow persists results, its tasks inherit that, and after a decision a kept answer would be taken
# for a new one: this one is executed again each time the flow runs from the top, so also between an approval and what it approves.
live_task = partial(task, persist_result=False, cache_policy=NO_CACHE)
Json = dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A migration as a task works with it."""

    plan: Plan
    store: ControlStore

    def endpoint(self, side: Side) -> Endpoint:
        """One side."""
        return Endpoint(side, self.plan.address(side))


def load(migration: str) -> Migration:
    """The block of a migration."""
    return cast("Migration", Migration.load(migration))


@asynccontextmanager
async def opened(migration: str) -> AsyncIterator[Opened]:
    """Load the block, connect to the control store, close it afterwards."""
    block = await asyncio.to_thread(load, migration)
    plan = block.plan()
    async with await ControlStore.connect(block.control_store.address("control_store"), plan.name) as store:
        yield Opened(plan, store)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a task's asynchronous work; tasks themselves are plain functions."""
    return uvloop.run(work)
