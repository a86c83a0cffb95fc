"""Tasks and what Prefect keeps of them: a flow runs from the top after each decision, so each task
declares whether its result is kept.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE

import tasks
from flows import commit
from tasks.kept import kept

_TASKS = {
    task.name: task
    for module in pkgutil.iter_modules(tasks.__path__)
    for task in vars(importlib.import_module(f"tasks.{module.name}")).values()
    if isinstance(task, Task)
}


@pytest.mark.parametrize("name", sorted(_TASKS))
def test_prefect_keeps_nothing_of_a_task_on_the_worker(name: str) -> None:
    """What a run must find again is in the control store, which every worker reaches
    (tasks/kept.py).
    """
    task = _TASKS[name]
    assert (task.persist_result, task.cache_policy) == (False, NO_CACHE)


@pytest.mark.parametrize(
    "name",
    [
        "Check rehearsal age",
        "Check verification freshness",
        "Copy function libraries",
        "Find the phase that is due",
    ],
)
def test_what_is_true_now_only_is_looked_at_again_after_a_decision(name: str) -> None:
    assert not kept(_TASKS[name])


def test_most_tasks_are_done_once() -> None:
    assert sum(map(kept, _TASKS.values())) > 30


def test_commit_looks_at_them_before_it_acts() -> None:
    names = {task.name for task in vars(commit).values() if isinstance(task, Task)}
    assert {
        "Check rehearsal age",
        "Check verification freshness",
        "Copy function libraries",
    } <= names
