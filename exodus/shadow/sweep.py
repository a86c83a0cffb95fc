"""The sweep: states of sampled keys compared round and round, since replies do not show everything.

No reply shows a consumer group that is missing, a field's expiry, or a key that nobody reads. A key
whose states differ is looked at again after each pause. It is confirmed only if the journal did not
name it meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exodus.control.changes import Key
from exodus.copy.impact import Turn
from exodus.plan.bounds import COMPARE_STATES_PER_S_MAX, SWEEP_EVERY_S
from exodus.shadow.copies import SampledCopies
from exodus.shadow.investigation import Investigation
from exodus.shadow.lives import Lives
from exodus.shadow.reports import Reporter


@dataclass
class Suspect:
    """A key whose states differ."""

    due: float
    version: int
    looks: int = 1


class Sweep:
    """Compares a bounded number of keys a second."""

    def __init__(
        self,
        copies: SampledCopies,
        investigation: Investigation,
        reporter: Reporter,
        lives: Lives,
        now: Callable[[], float],
        looks_s: Sequence[float],
        turn: Turn,
    ) -> None:
        """A state that differs is read again after each pause of `looks_s`. `turn` is waited for
        before states are read.
        """
        self._copies = copies
        self._investigation = investigation
        self._reporter = reporter
        self._lives = lives
        self._now = now
        self._looks_s = looks_s
        self._turn = turn
        self._round: deque[Key] = deque()
        self._suspects: dict[Key, Suspect] = {}
        self._at = now()
        self._compared = 0

    @property
    def suspects(self) -> int:
        """Return the number of keys that differ and are looked at again."""
        return len(self._suspects)

    def taken(self) -> int:
        """Return how many states were compared since the last call."""
        count, self._compared = self._compared, 0
        return count

    async def step(self) -> None:
        """Compare the next keys, if it is time."""
        now = self._now()
        if now - self._at < SWEEP_EVERY_S:
            return
        self._at = now
        await self._copies.keep_up()
        due = [key for key, suspect in self._suspects.items() if suspect.due <= now]
        for key in due:
            await self._turn()
            await self._look(key, self._suspects[key])
        await self._next_ones(int(COMPARE_STATES_PER_S_MAX * SWEEP_EVERY_S))

    async def _next_ones(self, count: int) -> None:
        if not self._round:
            self._round.extend(self._copies.settled())
        keys = [self._round.popleft() for _ in range(min(count, len(self._round)))]
        keys = [key for key in keys if key not in self._suspects and key in self._copies]
        if not keys:
            return
        await self._turn()
        versions = {key: self._copies.version(key) for key in keys}
        self._compared += len(keys)
        differ = {(found.db, found.key) for found in await self._investigation.differences(keys)}
        for key in keys:
            if key in differ:
                self._suspects[key] = Suspect(self._now() + self._looks_s[0], versions[key])
            else:
                self._copies.state.judge([key])
                await self._reporter.state_is_equal(key)
        await self._copies.learn(key for key in keys if key not in differ)

    async def _look(self, key: Key, suspect: Suspect) -> None:
        found = await self._investigation.differences([key])
        if not found or self._copies.version(key) != suspect.version or key not in self._copies:
            del self._suspects[key]
            return
        if suspect.looks < len(self._looks_s):
            suspect.due = self._now() + self._looks_s[suspect.looks]
            suspect.looks += 1
            return
        del self._suspects[key]
        await self._lives.check()
        await self._copies.keep_up()
        if self._copies.version(key) == suspect.version and self._copies.caught_up(key):
            self._copies.state.judge([key])
            await self._reporter.state_differs(found[0])
