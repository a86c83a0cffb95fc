"""Canary reads: before a cutover, a share of the reads is asked of the follower too, and the client waits for its answer.

The rule, from which it follows that nobody can read an old value: a follower's answer is used only where it is, byte for byte, what the authority
answered to the same request, in the same place of the same connection. Every read goes to the authority as if there were no canary, so whatever
is written meanwhile, by whatever client, through whatever gateway or past all of them, by a script, by expiry, is in the answer that decides. A key
that is not clean, or was never copied right, shows as a difference and is served from the authority. Nothing has to be told to other gateways
before a write is acknowledged, no clock and no list of keys is relied on, and the authority's answer is at hand when the follower fails.

What it does not do: take load from the authority. What it shows is what a cutover would: whether the target bears the applications' reads, and how
long they wait for it.

    the authority answers ──▶ an error ──▶ refused: that, and the follower is not asked
                          ──▶ else: the follower is asked
                                  ──▶ answered ──▶ served       its bytes, equal to the authority's
                                               ──▶ not fresh    they differ: the authority's
                                               ──▶ failed       an error, or its connection is lost: the authority's
                                  ──▶ its time is over ──▶ late  the authority's
                                  ──▶ not asked: it does not speak the session's protocol

The follower is asked as Exodus, which may read more than the client. So it hears nothing that the authority has not answered without an error
first: a client without a login costs it nothing. A canary read takes the sum of both answers' times in exchange, not the longer one.

`failed` and `late` are bad. With more than `bad_max` among the last 100 the gateway asks no more, at once, and the route returns to the authority for
every gateway.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

from exodus.telemetry.histogram import Histogram

_WINDOW = 100  # reads that the limit looks back at
_SALT = 0x63616E61  # another share of the keys than Compare's


class Outcome(StrEnum):
    """What became of one read."""

    SERVED = "served"
    NOT_FRESH = "not fresh"
    FAILED = "failed"
    REFUSED = "refused"
    LATE = "late"
    UNASKED = "not asked"


BAD = frozenset({Outcome.FAILED, Outcome.LATE})


class CanaryRead:
    """One read that both sides are asked. The follower's answer, or its absence, decides it."""

    __slots__ = ("done", "failed", "found", "frame", "late", "refused", "unasked")

    def __init__(self) -> None:
        self.done = False  # the follower answered, failed, or let its time pass
        self.found = b""  # its answer
        self.failed = False
        self.late = False
        self.unasked = False
        self.frame: bytes | None = None  # the authority's answer
        self.refused = False  # which is an error

    def answered(self, found: bytes, *, error: bool) -> None:
        """The follower said this."""
        self.done, self.found, self.failed = True, found, error

    def lost(self) -> None:
        """It will not answer."""
        self.done = self.failed = True

    def gave_up(self) -> None:
        """Its time is over."""
        self.done = self.late = True

    def left_out(self) -> None:
        """It cannot be asked this, and that is no fault of it."""
        self.done = self.unasked = True

    def outcome(self) -> Outcome:
        """What it came to; `done`, and the authority has answered."""
        if self.late or self.unasked:
            return Outcome.LATE if self.late else Outcome.UNASKED
        if self.found == self.frame:
            return Outcome.SERVED
        if self.refused:
            return Outcome.REFUSED
        return Outcome.FAILED if self.failed else Outcome.NOT_FRESH

    def reply(self) -> bytes:
        """What the client gets: one and the same, whichever side it is taken from."""
        return self.found if self.found == self.frame else self.frame or b""


class Canary:
    """What became of the reads of one process, and the limit. Sans-IO: `gave_up` is called once, with the reason."""

    def __init__(self, bad_max: int, gave_up: Callable[[str], None]) -> None:
        self.counts: Counter[Outcome] = Counter()
        self.answer_us = Histogram()  # of the follower, from the question
        self._bad_max = bad_max
        self._gave_up = gave_up
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._bad = 0

    def restart(self) -> None:
        """A share was chosen: what was before does not count against it."""
        self.counts.clear()
        self.answer_us = Histogram()
        self._recent.clear()
        self._bad = 0

    def note(self, outcome: Outcome) -> None:
        """Count one read."""
        self.counts[outcome] += 1
        if len(self._recent) == _WINDOW:
            self._bad -= self._recent[0]
        bad = outcome in BAD
        self._recent.append(bad)
        self._bad += bad
        if bad and self._bad == self._bad_max + 1:
            failed, late = self.counts[Outcome.FAILED], self.counts[Outcome.LATE]
            self._gave_up(
                f"{self._bad} of the last {len(self._recent)} reads were not answered in time or with an error ({failed} failed, {late} late)"
            )


def chosen(key: bytes, below: int) -> bool:
    """Whether a key is in the share `below` of 2**32: a larger share has all the keys of a smaller one, and every gateway has the same."""
    return zlib.crc32(key, _SALT) < below
