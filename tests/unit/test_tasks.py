"""Tasks and what Prefect keeps of them: a flow runs from the top again after each decision, so each task says whether its answer is kept."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE

import tasks
from flows import commit

_TASKS = {
    task.name: task
    for module in pkgutil.iter_modules(tasks.__path__)
    for task in vars(importlib.import_module(f"tasks.{module.name}")).values()
    if isinstance(task, Task)
}


@pytest.mark.parametrize("name", sorted(_TASKS))
def test_every_task_says_whether_its_answer_is_kept(name: str) -> None:
    """Without a word it inherits from the flow, which keeps everything, whatever the task's docstring says."""
    assert _TASKS[name].persist_result is not None


@pytest.mark.parametrize(
    "name", ["look how old the rehearsal is", "look how fresh the verification is", "carry function libraries", "find what is due"]
)
def test_what_is_true_now_only_is_looked_at_again_after_a_decision(name: str) -> None:
    task = _TASKS[name]
    assert (task.persist_result, task.cache_policy) == (False, NO_CACHE)


def test_commit_looks_at_them_before_it_acts() -> None:
    names = {task.name for task in vars(commit).values() if isinstance(task, Task)}
    assert {"look how old the rehearsal is", "look how fresh the verification is", "carry function libraries"} <= names
