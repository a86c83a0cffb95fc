"""The window in which a switch may begin by itself: hours of the day, and how quiet it must be. No
I/O; the clock is an argument.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

_DAY_MIN = 24 * 60


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


class Window(BaseModel):
    """Hours in UTC in which a switch may begin. A window may cross midnight; equal hours mean
    always.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    opens: str = Field(
        default="00:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="HH:MM, UTC, in quotes"
    )
    closes: str = Field(
        default="00:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="HH:MM, UTC, in quotes"
    )
    lag_ms_max: int = Field(
        default=60_000,
        ge=1,
        description="milliseconds by which live sync may be behind; 100 in a plan",
    )
    quiet_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="seconds for which it must have been no further behind; 300 in a plan",
    )

    def is_open(self, now_ms: int) -> bool:
        """Return whether a switch may begin now."""
        opens, closes, now = _minutes(self.opens), _minutes(self.closes), self._now(now_ms)
        return opens <= now < closes if opens < closes else now >= opens or now < closes

    def opens_in_minutes(self, now_ms: int) -> int:
        """Minutes until it opens next."""
        return (_minutes(self.opens) - self._now(now_ms)) % _DAY_MIN

    @staticmethod
    def _now(now_ms: int) -> int:
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        return now.hour * 60 + now.minute

    def text(self) -> str:
        """Return the window as forms and the evidence show it."""
        return (
            f"between {self.opens} and {self.closes} UTC, when lag ≤ {self.lag_ms_max} ms for "
            f"{self.quiet_seconds:.0f} s"
        )


class QuietWatch:
    """Watches for the moment; `look` is told the clock and the lag, again and again."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._quiet_since_ms: int | None = None

    def look(self, now_ms: int, lag_ms: int) -> str | None:
        """Return why the switch may not begin yet, or None: now."""
        window = self._window
        if lag_ms > window.lag_ms_max:
            self._quiet_since_ms = None
            return f"live sync is {lag_ms} ms behind, {window.lag_ms_max} ms are allowed"
        if self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms
        if not window.is_open(now_ms):
            return (
                f"the window opens at {window.opens} UTC, in {window.opens_in_minutes(now_ms)} min"
            )
        quiet_ms = now_ms - self._quiet_since_ms
        if quiet_ms < window.quiet_seconds * 1000:
            return (
                f"live sync has kept up for {quiet_ms / 1000:.0f} s, "
                f"{window.quiet_seconds:.0f} s are asked for"
            )
        return None
