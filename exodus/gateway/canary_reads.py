"""Canary reads: before a cutover, a share of the reads goes to the follower too.

The client waits for both answers. It gets the follower's answer only if that equals the
authority's, byte for byte, for the same request at the same place of the same connection. So no
client can read an old value. Every read goes to the authority first, and the authority's answer
decides: it contains whatever was written meanwhile, by any client, script or expiry, through any
gateway or past all of them. A key that is dirty, or was never copied right, shows as a difference
and is served from the authority. No gateway is told anything before a write is acknowledged; no
clock and no list of keys is relied on.

Canary reads take no load from the authority. They show what a cutover would show: whether the
target bears the applications' reads, and how long they wait for it.

    the authority answers ──▶ an error ──▶ refused: the client gets it, no question to the follower
                          ──▶ else: the follower is asked
                                  ──▶ answers ──▶ served     equal to the authority's answer
                                              ──▶ not fresh  they differ: the authority's answer
                                              ──▶ failed     an error, or its connection is lost
                                  ──▶ its time is over ──▶ late
                                  ──▶ not asked: it does not speak the session's protocol

The follower runs the read as Exodus, which may read more than the client. So it is asked only
after the authority answered without an error: a client without a login costs it nothing. A canary
read takes the sum of both times, not the longer one.

`failed` and `late` are bad. With more than `bad_max` bad reads among the last 100, the gateway
stops canary reads at once, and the route ends them for every gateway.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

from exodus.plan.bounds import CANARY_WINDOW_READS
from exodus.plan.share import in_share
from exodus.telemetry.histogram import Histogram

_SALT = 0x63616E61  # picks another share of the keys than the comparer's


class CanaryOutcome(StrEnum):
    """The outcome of one canary read."""

    SERVED = "served"
    NOT_FRESH = "not fresh"
    FAILED = "failed"
    REFUSED = "refused"
    LATE = "late"
    UNASKED = "not asked"


BAD = frozenset({CanaryOutcome.FAILED, CanaryOutcome.LATE})


class CanaryRead:
    """One read that both sides are asked. It is decided when the follower answers or fails."""

    __slots__ = ("done", "failed", "found", "frame", "key", "late", "refused", "unasked")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.done = False  # the follower answered, failed or was too late
        self.found = b""  # the follower's answer
        self.failed = False
        self.late = False
        self.unasked = False
        self.frame: bytes | None = None  # the authority's answer
        self.refused = False  # the authority's answer is an error

    def answered(self, found: bytes, *, error: bool) -> None:
        """Take the follower's answer."""
        self.done, self.found, self.failed = True, found, error

    def lost(self) -> None:
        """Fail: the follower will not answer."""
        self.done = self.failed = True

    def gave_up(self) -> None:
        """Stop waiting for the follower: its time is over."""
        self.done = self.late = True

    def left_out(self) -> None:
        """Do not ask the follower: it cannot be asked, through no fault of its own."""
        self.done = self.unasked = True

    def outcome(self) -> CanaryOutcome:
        """Return the outcome. The read must be `done`, and the authority must have answered."""
        if self.late or self.unasked:
            return CanaryOutcome.LATE if self.late else CanaryOutcome.UNASKED
        if self.found == self.frame:
            return CanaryOutcome.SERVED
        if self.refused:
            return CanaryOutcome.REFUSED
        return CanaryOutcome.FAILED if self.failed else CanaryOutcome.NOT_FRESH

    def reply(self) -> bytes:
        """Return what the client gets. It is the same for both sides."""
        return self.found if self.found == self.frame else self.frame or b""


class Canary:
    """Counts the canary reads of one process and applies the limit, without I/O.

    `gave_up` is called with the reason, each time that the limit is passed.
    """

    def __init__(self, bad_max: int, gave_up: Callable[[str], None]) -> None:
        self.counts: Counter[CanaryOutcome] = Counter()
        self.answer_us = Histogram()  # of the follower, from the question
        self._bad_max = bad_max
        self._gave_up = gave_up
        self._recent: deque[bool] = deque(maxlen=CANARY_WINDOW_READS)
        self._bad = 0

    def restart(self) -> None:
        """Forget earlier reads: a new share was chosen."""
        self.counts.clear()
        self.answer_us = Histogram()
        self._recent.clear()
        self._bad = 0

    def note(self, outcome: CanaryOutcome) -> None:
        """Count one read."""
        self.counts[outcome] += 1
        if len(self._recent) == CANARY_WINDOW_READS:
            self._bad -= self._recent[0]
        bad = outcome in BAD
        self._recent.append(bad)
        self._bad += bad
        if bad and self._bad == self._bad_max + 1:
            failed, late = self.counts[CanaryOutcome.FAILED], self.counts[CanaryOutcome.LATE]
            self._gave_up(
                f"{self._bad} of the last {len(self._recent)} reads were not answered in time "
                f"or with an error ({failed} failed, {late} late)"
            )


def chosen(key: bytes, below: int) -> bool:
    """Tell whether a key is in the canary's share. Every gateway chooses the same keys."""
    return in_share(key, below, _SALT)
