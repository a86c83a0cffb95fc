"""What became of the sampled requests, counted. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Intake:
    """How many sampled requests of one sampling reached the control store, and were taken there."""

    before: int = 0  # had been published, by all gateways, when the sampling began
    taken: int = 0
    expired: int = 0  # before they were taken

    def published(self, count: int) -> None:
        """Note how many were published up to now, when none is left to be taken."""
        self.expired = max(self.expired, count - self.before - self.taken)


@dataclass
class Tally:
    """What became of the exchanges of one sampling."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)  # command → outcome → replies
    inconclusive: Counter[str] = field(default_factory=Counter)  # by reason
    not_tried: Counter[str] = field(default_factory=Counter)  # by reason
    # Command → reason → writes that were accepted, and whose replies were not compared
    by_error: dict[str, Counter[str]] = field(default_factory=dict)
    # Command → reason → requests that were not tried, where the reason is a particular one
    why_not: dict[str, Counter[str]] = field(default_factory=dict)

    def row(self, command: bytes) -> Counter[str]:
        """Return the counters of a command."""
        return self.rows.setdefault(_text(command), Counter())

    def undecided(self, row: Counter[str], why: str) -> None:
        """Count a reply that nothing can be said of."""
        row["inconclusive"] += 1
        self.inconclusive[why] += 1

    def unproved(self, command: bytes, why: str) -> None:
        """Count a write whose reply was compared by its error only."""
        self.row(command)["by_error"] += 1
        self.by_error.setdefault(_text(command), Counter())[why] += 1

    def left(self, command: bytes, why: str) -> None:
        """Count a request that was not tried."""
        self.row(command)["not_tried"] += 1
        self.not_tried[why] += 1
        self.why_not.setdefault(_text(command), Counter())[why] += 1


def _text(command: bytes) -> str:
    return command.decode("ascii", "replace")
