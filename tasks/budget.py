"""The impact budget from a Prefect variable: where there is one it holds, and may be changed in the UI while a backfill or a verification runs."""

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

BUDGET_VARIABLE = "exodus_budget"
EVERY_S = 20.0


@asynccontextmanager
async def budget_heard(store: ControlStore, *, every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Take the variable's budget at once, and again every `every_s` seconds while the context is open.

    That Prefect does not answer is logged and delays nothing: the budget that was set last goes on to hold. So is a value that comes to be none
    later on.

    Raises:
        OperatorError: the variable is no budget at the beginning; names the field and the value.
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
        get_run_logger().warning("the variable %s could not be read, the budget stays as it is: %s", BUDGET_VARIABLE, exc)
        return
    if asked is not None:
        await set_budget(store, parse_budget(json.dumps(asked)))


def _asked() -> Any:
    return cast("Any", Variable).get(BUDGET_VARIABLE)
