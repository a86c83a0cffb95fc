"""The state of a phase, as the control store holds it. The start of a phase decides on it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class PhaseStatus(StrEnum):
    """Where a phase stands."""

    RUNNING = "running"
    WAITING = "waiting"  # for a person's decision
    APPROVED = "approved"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PhaseState(BaseModel):
    """The last run of a phase. Times are by the store's clock, in ms."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: PhaseStatus
    flow_run_id: str | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    why: str | None = None  # why it failed, or was cancelled
    gate: str | None = None  # of the last decision that was asked for
    question: str | None = None
    evidence: str | None = None
    attempt: int | None = None  # of asking, from 1 on
    asked_again: str | None = None  # why the last answer did not count
    waiting_since_ms: int | None = None
    decision: str | None = None  # the verdict of the last decision
    decided_by: str | None = None
    decided_ms: int | None = None

    @property
    def open(self) -> bool:
        """Return whether the phase has not ended, as far as its run recorded it."""
        return self.state in (PhaseStatus.RUNNING, PhaseStatus.WAITING)

    def now(self, state: PhaseStatus, **changes: Any) -> PhaseState:
        """Return the same run of the phase in another state."""
        return PhaseState.model_validate({**self.as_json(), **changes, "state": state})

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return self.model_dump(mode="json", exclude_none=True)
