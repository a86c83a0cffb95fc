"""Open a migration inside a task: the plan with its secrets, and the control store."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import uvloop
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError
from redis.exceptions import RedisError

from blocks import Migration
from exodus.cancellation import beside
from exodus.control.store import ControlStore
from exodus.errors import ControlStoreError, OperatorError, SourceError, TargetError
from exodus.net.client import answered
from exodus.plan.address import Address
from exodus.plan.bounds import TASKS_AGAIN_S, TASKS_FAILOVER_S, TASKS_STORE_AWAY_S
from exodus.plan.in_place import in_place as plan_in_place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.safe_text import mask_logs
from exodus.topology.endpoint import Endpoint
from exodus.topology.watch import TopologyWatch

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Json = dict[str, Any]
log = logging.getLogger(__name__)
mask_logs()


def live_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a task whose answer is true only now.

    After a decision a kept answer (`tasks/kept.py`) would pass for a new one. This task runs again
    each time the flow runs from the top, so also between an approval and its effect.
    """
    return task(name=name, persist_result=False, cache_policy=NO_CACHE)


@dataclass(frozen=True)
class Opened:
    """A migration that a task has opened."""

    plan: Plan  # the registered plan
    store: ControlStore
    proposed: Plan  # the block's plan, which a phase registers when it begins

    def endpoint(self, side: Side) -> Endpoint:
        """Return one side."""
        return Endpoint(side, self.plan.address(side))


def load(migration: str) -> Migration:
    """Return the block of a migration.

    Raises:
        OperatorError: the block does not exist, or a field has an impossible value.
    """
    try:
        return cast("Migration", Migration.load(migration))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise OperatorError(
            f"the Migration block {migration} cannot be used: {field}: {first['msg'].lower()}",
            why="it was saved in the Prefect UI, which does not check fields against each other",
            next_step=f"correct {field or 'it'} in the UI, or: exodus apply migration.yaml",
        ) from None  # its text has values of the block
    except ValueError as exc:
        raise OperatorError(
            f"there is no Migration block {migration}",
            why=str(exc),
            next_step="exodus apply migration.yaml, or save the block in the Prefect UI",
        ) from exc


@asynccontextmanager
async def opened(migration: str, *, beginning: bool = False) -> AsyncIterator[Opened]:
    """Load the block, connect to the control store, and close it afterwards.

    With `beginning`, the plan is the block's, which is about to be registered. A store that
    restarts or fails over is away for seconds; a phase waits for it, and its end is recorded all
    the same.

    Raises:
        ControlStoreError: the store did not come back within `TASKS_STORE_AWAY_S`.
    """
    block = await asyncio.to_thread(load, migration)
    proposed = block.plan()
    async with await connect(block.control_store.address("control_store"), proposed.name) as store:
        registered = None if beginning else await registered_plan(store)
        plan = proposed if registered is None else in_place(registered, proposed)
        watch = TopologyWatch(plan, store)
        async with beside(watch.run()):
            yield Opened(plan, store, proposed)


async def registered_plan(store: ControlStore) -> Plan | None:
    """Return the plan in the control store, or None."""
    return await store.plan() if await answered(store.client.exists(store.keys.plan)) else None


def in_place(registered: Plan, block: Plan) -> Plan:
    """Return the registered plan with the logins, secrets, files and workers of the block.

    A block that changed in the UI counts from the next phase on, which checks and registers it.

    Raises:
        OperatorError: the block names another server, so its password is for that server.
    """
    return plan_in_place(registered, block, named="the Migration block")


def opens_migration(
    function: Callable[Concatenate[Opened, P], Awaitable[R]],
) -> Callable[Concatenate[str, P], R]:
    """Make an asynchronous function of an opened migration a plain function of its name.

    Prefect's tasks are plain functions. Their first parameter is `migration`, the block's name.
    """
    first, *others = inspect.signature(function).parameters.values()
    signature = inspect.Signature([first.replace(name="migration", annotation=str), *others])

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(signature.bind(*args, **kwargs).arguments)

        async def work() -> R:
            async with opened(given.pop("migration")) as it:
                do = cast("Callable[..., Awaitable[R]]", function)
                return await _through_failovers(it.plan, lambda: do(it, **given))

        return run(work())

    plain.__signature__ = signature  # type: ignore[attr-defined]
    return cast("Callable[Concatenate[str, P], R]", plain)


async def _through_failovers(plan: Plan, work: Callable[[], Awaitable[R]]) -> R:
    """Do a task's work; repeat it where a side behind Sentinel fails over meanwhile.

    A task is repeatable: a flow runs it again after a crash as well.

    Raises:
        SourceError, TargetError: the side did not come back within `TASKS_FAILOVER_S`.
    """
    deadline = 0.0
    while True:
        try:
            return await work()
        except (SourceError, TargetError) as exc:
            side = Side.SOURCE if isinstance(exc, SourceError) else Side.TARGET
            now = time.monotonic()
            deadline = deadline or now + TASKS_FAILOVER_S
            if isinstance(plan.address(side), Address) or now > deadline:
                raise
            log.warning("the %s may fail over, the task is repeated: %s", side, exc.why)
        await asyncio.sleep(TASKS_AGAIN_S)


@opens_migration
async def plan_of(it: Opened) -> Plan:
    """Return the registered plan, for a flow's own code."""
    return it.plan


@functools.lru_cache(maxsize=8)
def _place(migration: str, run_id: str) -> tuple[Address, str]:
    """Return a run's control store and the migration's name there. Prefect is asked once."""
    del run_id
    block = load(migration)
    return block.control_store.address("control_store"), block.migration


async def in_store(migration: str, run_id: str, work: Callable[[ControlStore], Awaitable[T]]) -> T:
    """Do work in the control store of a run; repeat it if the store went away meanwhile.

    The work must be repeatable.

    Raises:
        ControlStoreError: the store did not come back within `TASKS_STORE_AWAY_S`.
    """
    address, name = await asyncio.to_thread(_place, migration, run_id)
    deadline = time.monotonic() + TASKS_STORE_AWAY_S
    while True:
        async with await connect(address, name) as store:
            try:
                return await work(store)
            except (RedisError, OSError) as exc:
                if time.monotonic() > deadline:
                    raise ControlStoreError(
                        "the control store lost a request",
                        why=str(exc),
                        next_step="check that it runs and has free memory",
                    ) from exc
        await asyncio.sleep(TASKS_AGAIN_S)


async def connect(address: Address, migration: str) -> ControlStore:
    """Connect to a control store, which may be away for a while.

    Raises:
        ControlStoreError: the store did not come back within `TASKS_STORE_AWAY_S`.
    """
    deadline = time.monotonic() + TASKS_STORE_AWAY_S
    while True:
        try:
            return await ControlStore.connect(address, migration)
        except ControlStoreError as exc:
            if time.monotonic() > deadline:
                raise
            log.warning(
                "waiting for the control store, at most %.0f s in all: %s",
                TASKS_STORE_AWAY_S,
                exc.why,
            )
            await asyncio.sleep(TASKS_AGAIN_S)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a task's asynchronous work. Tasks themselves are plain functions."""
    return uvloop.run(work)
