"""The progress of bulk work: keys, bytes, rates, and the expected end. No I/O, no clock."""

from __future__ import annotations

from collections import deque

from pydantic import BaseModel, ConfigDict

from exodus.plan.bounds import PROGRESS_SHARE_MIN, PROGRESS_WINDOW_S

REPORT = "progress"


class ProgressSample(BaseModel):
    """What one look found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: int
    keys_total: int  # as the servers counted them when the work began; it may grow
    payload_bytes: int = 0
    why: str = ""  # why it is slow or waits


class Progress(ProgressSample):
    """The same with rates."""

    what: str
    at_ms: int = 0  # by the control store's clock
    keys_per_s: float = 0.0
    bytes_per_s: float = 0.0
    eta_s_min: int | None = None  # at the faster of the two rates
    eta_s_max: int | None = None  # at the slower one

    @property
    def percent(self) -> float:
        """Return how much is done; 100 is told by the end only."""
        return min(99.9, 100.0 * self.keys / self.keys_total) if self.keys_total else 0.0

    @property
    def text(self) -> str:
        """Return one line for artifact, log, and status."""
        # The source may have more keys by now than when the work began.
        total = max(self.keys, self.keys_total)
        parts = [
            f"{self.what}: {self.keys:,} of {total:,} keys, {self.percent:.1f} %",
            *([f"{self.payload_bytes / 1e6:,.1f} MB"] if self.payload_bytes else []),
            f"{self.keys_per_s:,.0f} keys/s",
            *([f"{self.bytes_per_s / 1e6:,.1f} MB/s"] if self.payload_bytes else []),
            _end(self.eta_s_min, self.eta_s_max),
            *([self.why] if self.why else []),
        ]
        return " · ".join(parts)

    @property
    def text_when_done(self) -> str:
        """Return the line of work that has ended."""
        moved = f" · {self.payload_bytes / 1e6:,.1f} MB" if self.payload_bytes else ""
        return f"{self.what}: {self.keys:,} keys{moved} · {self.keys_per_s:,.0f} keys/s · done"


class ProgressMeter:
    """From looks to progress."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._first: tuple[float, ProgressSample] | None = None
        self._recent: deque[tuple[float, ProgressSample]] = deque()

    def look(self, now_s: float, found: ProgressSample, at_ms: int = 0) -> Progress:
        """Take a look's figures. Rates are of this meter's time: what was done before it is not
        counted.
        """
        if self._first is None:
            self._first = now_s, found
        self._recent.append((now_s, found))
        while now_s - self._recent[0][0] > PROGRESS_WINDOW_S:
            self._recent.popleft()
        overall, recent = (
            _rates(since, (now_s, found)) for since in (self._first, self._recent[0])
        )
        left = max(0, found.keys_total - found.keys)
        rates = [rate for rate, _ in (overall, recent) if rate > 0]
        known = bool(rates) and found.keys >= PROGRESS_SHARE_MIN * found.keys_total
        return Progress(
            **found.model_dump(),
            what=self._what,
            at_ms=at_ms,
            keys_per_s=round(recent[0], 1),
            bytes_per_s=round(recent[1], 1),
            eta_s_min=round(left / max(rates)) if known else None,
            eta_s_max=round(left / min(rates)) if known else None,
        )


def _rates(
    since: tuple[float, ProgressSample], now: tuple[float, ProgressSample]
) -> tuple[float, float]:
    (before_s, before), (now_s, found) = since, now
    elapsed = now_s - before_s
    if elapsed <= 0:
        return 0.0, 0.0
    return (
        max(0, found.keys - before.keys) / elapsed,
        max(0, found.payload_bytes - before.payload_bytes) / elapsed,
    )


def _span(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def _end(least: int | None, most: int | None) -> str:
    if least is None or most is None:
        return "its end is not known yet"
    return (
        f"ends in {_span(least)}"
        if _span(least) == _span(most)
        else f"ends in {_span(least)} to {_span(most)}"
    )
