"""One row of the comparison of the state beside the keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

Json = dict[str, Any]


class StateOutcome(StrEnum):
    """How one thing stands."""

    SAME = "same"
    DIFFERS = "differs"
    REQUIRED = "must be mended before the cutover"
    NOT_PROVABLE = "not provable"


@dataclass(frozen=True)
class BesideRow:
    """One thing beside the keys, on both sides."""

    what: str
    outcome: StateOutcome
    authority: str = ""
    follower: str = ""
    means: str = ""  # for applications, after the cutover; or why it cannot be read
    remedy: str = ""

    def as_json(self) -> Json:
        """Return the row for tables and reports."""
        return {**asdict(self), "outcome": str(self.outcome)}
