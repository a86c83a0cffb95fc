"""The parameters and the decorator that all phases share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from prefect import Flow, flow
from pydantic import Field

from exodus.plan.vocabulary import Phase
from tasks.runs import note_end
from tasks.turn import phase_turn

# Prefect's forms show a default's description and title, and check a type's bounds.
MigrationName = Annotated[str, Field(min_length=1, max_length=40)]
MIGRATION: Any = Field(
    default="demo",
    description="Name of the Migration block",
    json_schema_extra={"title": "Migration"},
)
Seconds = Annotated[float | None, Field(gt=0, le=86_400)]
SECONDS: Any = Field(
    default=None,
    description="Seconds to watch the traffic, at most 86400; empty: observe_seconds of the plan",
    json_schema_extra={"title": "Watch for (s)"},
)
Words = Annotated[str, Field(max_length=2_000)]
BY: Any = Field(
    default="",
    description="Your name. With a name and a reason, traffic returns to the source without "
    "a question",
    json_schema_extra={"title": "Decided by"},
)
WHY: Any = Field(
    default="",
    description="Reason for the return to the source; kept in the ledger",
    json_schema_extra={"title": "Why"},
)


def phase_flow(phase: Phase) -> Callable[[Callable[..., Any]], Flow[..., Any]]:
    """Make a function the flow of `phase`: one process at a time runs it, and its end is recorded.

    Prefect persists nothing: the control store keeps the results of tasks (tasks/kept.py).
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
