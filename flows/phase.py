"""What the seven phases' flows have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from prefect import Flow, flow

from exodus.config import Phase
from tasks.runs import note_end
from tasks.turn import phase_turn


def phase_flow(phase: Phase) -> Callable[[Callable[..., Any]], Flow[..., Any]]:
    """Make a function the flow of `phase`: one process at a time runs it, none ends unnoticed.

    Nothing is persisted by Prefect: what tasks returned is kept in the control store (tasks/kept.py).
    """

    def make(function: Callable[..., Any]) -> Flow[..., Any]:
        signature = inspect.signature(function)

        @wraps(function)
        def in_turn(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            with phase_turn(given.arguments["migration"], phase):
                return function(*args, **kwargs)

        return flow(
            name=str(phase),
            flow_run_name="{migration}: " + phase,
            persist_result=False,
            on_failure=[note_end],
            on_crashed=[note_end],
            on_cancellation=[note_end],
        )(in_turn)

    return make
