"""What the seven phases' flows have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import Flow, flow

from exodus.config import Phase
from tasks.runs import note_end


def phase_flow(phase: Phase) -> Callable[[Callable[..., Any]], Flow[..., Any]]:
    """Make a function the flow of `phase`: resumable from its stored results, and never ending unnoticed."""
    return flow(
        name=str(phase),
        flow_run_name="{migration}: " + phase,
        persist_result=True,
        on_failure=[note_end],
        on_crashed=[note_end],
        on_cancellation=[note_end],
    )
