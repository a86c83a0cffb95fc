"""Read the impact budget from a Prefect variable, which may change in the UI during bulk work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.variables import Variable
from redis.exceptions import RedisError

from exodus.cancellation import beside
from exodus.control.store import ControlStore
from exodus.copy.impact import parse_budget, set_budget
from exodus.errors import ExodusError
from exodus.plan.bounds import TASKS_BUDGET_EVERY_S

BUDGET_VARIABLE = "exodus_budget"


@asynccontextmanager
async def budget_heard(
    store: ControlStore, *, every_s: float = TASKS_BUDGET_EVERY_S
) -> AsyncIterator[None]:
    """Apply the variable's budget at once, and every `every_s` seconds while the context is open.

    If Prefect does not answer, or the value is no budget later on, the task logs it and the last
    budget stays in force.

    Raises:
        OperatorError: the variable is no budget at the beginning. It names the field and the value.
    """
    await _take(store)

    async def again() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await _take(store)
            except (ExodusError, RedisError, OSError) as exc:
                get_run_logger().warning("%s: %s", BUDGET_VARIABLE, exc)

    async with beside(again()):
        yield


async def _take(store: ControlStore) -> None:
    try:
        # Not aget: its client would leave a connection open in this loop.
        asked = await asyncio.to_thread(_asked)
    except (PrefectException, httpx.HTTPError) as exc:
        get_run_logger().warning(
            "variable %s cannot be read; the budget is unchanged: %s", BUDGET_VARIABLE, exc
        )
        return
    if asked is not None:
        await set_budget(store, parse_budget(json.dumps(asked)))


def _asked() -> Any:
    return cast("Any", Variable).get(BUDGET_VARIABLE)
