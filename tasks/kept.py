"""Tasks that run once in a flow run: the control store keeps their results.

A flow runs from the top again after each decision, on any worker. Prefect's result files are on the
worker that wrote them, and Prefect silently runs a task again if it cannot read its file. So these
tasks keep their results where every worker reads them, and fail if that is impossible.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import orjson
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from exodus.control import ledger, steps
from exodus.control.store import ControlStore
from tasks.context import in_store, run

R = TypeVar("R")
P = ParamSpec("P")
_KEPT: set[str] = set()


def kept_task(
    name: str,
    *,
    run_name: str | None = None,
    retries: int = 0,
    retry_delay_seconds: float = 0,
    but: Sequence[str] = (),
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a task that runs once in a flow run with the same arguments.

    The function's first parameter is `migration`, and it returns plain JSON. The caller always gets
    the kept result, also the first time. Arguments in `but` may differ the next time.
    """

    def make(function: Callable[P, R]) -> Task[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def once(*args: P.args, **kwargs: P.kwargs) -> R:
            run_id = flow_run.get_id()
            if run_id is None:
                return function(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            told = {key: value for key, value in given.arguments.items() if key not in but}
            step = f"{name} {ledger.digest(told)}"
            migration = str(given.arguments["migration"])
            answer: Any = _kept(migration, run_id, step)
            if answer is None:
                done = orjson.dumps(
                    function(*args, **kwargs), default=str, option=orjson.OPT_NON_STR_KEYS
                )
                answer = run(
                    in_store(migration, run_id, lambda it: steps.keep(it, run_id, step, done))
                )
            value: R = orjson.loads(answer)
            return value

        _KEPT.add(name)
        return task(
            name=name,
            task_run_name=run_name,
            retries=retries,
            retry_delay_seconds=retry_delay_seconds,
            persist_result=False,
            cache_policy=NO_CACHE,
        )(once)

    return make


def kept(task: Task[Any, Any]) -> bool:
    """Return whether a task runs once in a flow run."""
    return task.name in _KEPT


def _kept(migration: str, run_id: str, step: str) -> bytes | None:
    async def look(store: ControlStore) -> bytes | None:
        return await steps.kept(store, run_id, step)

    return run(in_store(migration, run_id, look))
