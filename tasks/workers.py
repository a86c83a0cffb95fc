"""Choose the workers of a backfill by the plan's `workers`: threads, processes, or Dask."""

from __future__ import annotations

from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from exodus.errors import OperatorError
from exodus.plan.settings import Workers
from exodus.plan.vocabulary import WorkersKind
from tasks.context import plan_of


def workers_of(migration: str) -> TaskRunner[Any]:
    """Return the plan's task runner, a context manager.

    Raises:
        OperatorError: the plan requires Dask, which is not installed.
    """
    return task_runner(plan_of(migration).workers)


def task_runner(workers: Workers) -> TaskRunner[Any]:
    """Return the task runner for `workers`; see `workers_of`."""
    if workers.kind is WorkersKind.THREADS:
        return (
            ThreadPoolTaskRunner(max_workers=workers.count)
            if workers.count
            else ThreadPoolTaskRunner()
        )
    if workers.kind is WorkersKind.PROCESSES:
        return ProcessPoolTaskRunner(max_workers=workers.count)
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as exc:
        raise OperatorError(
            "workers.kind: dask needs Prefect's Dask task runner",
            why=str(exc),
            next_step="install prefect-dask (constraints.txt) for flow runs and for Dask's "
            "workers, or set workers.kind: processes",
        ) from exc
    if workers.dask_scheduler is not None:
        return DaskTaskRunner(address=workers.dask_scheduler)
    # One slice at a time in each process: threads share one core. Dask's own port may be taken.
    cluster = {
        "n_workers": workers.count,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "host": "127.0.0.1",
    }
    return DaskTaskRunner(cluster_kwargs=cluster)
