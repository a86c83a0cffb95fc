"""Histories: the writes of a sampled key between two moments at which its state is known. No I/O.

A reply to a write can be compared only on the state that the write found. The comparer's copy of
the key is that state, if nobody wrote the key between the copy and the write:

1. The journal names a key that was quiet for COMPARE_QUIET_MS after it was copied. Its copy is the
   state before: the history *begins*.
2. The shadow stream brings the writes. The key is copied again.
3. The key is quiet again for as long. Its new copy is the state after: the history *ends*.
4. The journal named the key as often as these writes did, so no other write is among them. What
   happened is then a `HistoryStep`: a state, the writes, and the state that they led to.

Anything else gives the writes up, each with its reason. Times are of the control store's clock, in
milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from exodus.control.changes import Key
from exodus.plan.bounds import (
    COMPARE_HISTORIES_MAX,
    COMPARE_HISTORY_WRITES_MAX,
    COMPARE_QUIET_MS,
    COMPARE_STATE_BYTES_MAX,
    COMPARE_STEPS_MAX,
)
from exodus.shadow.exchange import Exchange

UNSETTLED = "the key was written shortly before"
MANY = "the key is written without a pause"
UNSEEN = "the journal names writes of the key that were not sampled"
LARGE = "the key is larger than is kept"
LATE = "more keys were written than can be tried"
CROWDED = "too many keys were written at once"
CHANGED = "the key's copy was another one than was copied"
EXPIRES = "the key expires about then"
OUTSIDE = "it names keys that are not sampled"
TOGETHER = "other writes of its keys came with it"
NOT_TRIED = "a write before it was not tried"
FAILED_OVER = "a server restarted, or another one took over"


@dataclass(frozen=True)
class Snapshot:
    """A key's state as the follower dumps it; without a payload it is not there."""

    payload: bytes | None
    expiry_ms: int = 0  # absolute; 0: none


@dataclass(eq=False)
class Write:
    """A write, and how often it names each of its keys."""

    exchange: Exchange
    keys: Mapping[Key, int]
    told: bool = False  # its outcome is known


@dataclass(frozen=True)
class HistoryStep:
    """Writes of the same keys, the states that they found, and the states that they led to."""

    writes: tuple[Write, ...]
    before: Mapping[Key, Snapshot]
    after: Mapping[Key, Snapshot]
    at_ms: int  # when the last of these states was read

    @property
    def keys(self) -> list[Key]:
        """Return the keys, in the order in which the writes name them."""
        return list(self.before)


@dataclass(slots=True)
class _History:
    before: Snapshot | None = None
    after: Snapshot | None = None
    begun: bool = False  # the state before is noted, or why it is not known
    first_ms: int = 0  # when the journal named it first
    why: str = ""  # why nothing can be concluded
    marks: int = 0  # how often the journal named the key
    named: int = 0  # how often its writes did
    writes: list[Write] = field(default_factory=list)
    at_ms: int = 0  # the last that happened to it

    def quiet(self, until_ms: int) -> bool:
        return self.at_ms + COMPARE_QUIET_MS <= until_ms


class Histories:
    """The histories of all keys that are being written. Bounded in number and in bytes."""

    def __init__(self) -> None:
        self._by_key: dict[Key, _History] = {}
        self.steps: deque[HistoryStep] = deque()  # what ended and is not tried yet
        self.tries = 0  # of the first one
        self.given_up: list[tuple[Exchange, str]] = []  # writes, each with its reason

    def __len__(self) -> int:
        return len(self._by_key) + sum(len(step.before) for step in self.steps)

    @property
    def waiting(self) -> list[Exchange]:
        """Return the writes whose outcome is not known."""
        open_ = [each for one in self._by_key.values() for each in one.writes]
        ended = [each for step in self.steps for each in step.writes]
        return [each.exchange for each in dict.fromkeys(open_ + ended) if not each.told]

    def wants(self, key: Key) -> bool:
        """Return whether the key's copy, as it is now, is the state before its next write."""
        found = self._by_key.get(key)
        return found is None or not found.begun

    def begin(self, key: Key, before: Snapshot | None, why: str = "", *, first_ms: int = 0) -> None:
        """Note the state before the writes that begin at `first_ms`; without one, why it is not
        known.
        """
        found = self._of(key)
        if found is None:
            return
        found.begun, found.first_ms = True, first_ms
        if before is not None and len(before.payload or b"") > COMPARE_STATE_BYTES_MAX:
            before, why = None, LARGE
        found.before = found.after = before  # it is not copied again where it was only read
        if before is None:
            self._spoil(found, why)

    def marked(self, key: Key, count: int) -> None:
        """Note that the journal named a key."""
        found = self._of(key)
        if found is not None:
            found.marks += count

    def copied(self, key: Key, after: Snapshot | None, at_ms: int) -> None:
        """Note the state that a copy made; None: it is not known."""
        found = self._by_key.get(key)
        if found is not None:
            large = after is None or len(after.payload or b"") > COMPARE_STATE_BYTES_MAX
            found.after = None if large else after
            found.at_ms = max(found.at_ms, at_ms)
            if large:
                self._spoil(found, LARGE)

    def wrote(
        self, exchange: Exchange, keys: Mapping[Key, int], *, why_not: str = "", told: bool = False
    ) -> None:
        """Note a write, in the order in which gateways tell of them.

        Args:
            exchange: the write and its reply.
            keys: how often the journal names each of its keys for it; 0: it only reads the key.
            why_not: why its reply is not to be compared. Those around it are not either.
            told: its outcome is known.
        """
        write = Write(exchange, keys, told=told)
        size = sum(map(len, exchange.args)) + len(exchange.reply)
        why_not = why_not or (LARGE if size > COMPARE_STATE_BYTES_MAX else "")
        if why_not:
            self._give_up(write, why_not)
        for key, count in keys.items():
            found = self._of(key)
            if found is None:
                self._give_up(write, CROWDED)
                continue
            found.named += count
            found.at_ms = max(found.at_ms, exchange.at_ms)
            if why_not:
                self._spoil(found, NOT_TRIED)
            elif found.why:
                self._give_up(write, found.why)
            elif len(found.writes) >= COMPARE_HISTORY_WRITES_MAX:
                self._give_up(write, MANY)
                self._spoil(found, MANY)
            else:
                found.writes.append(write)

    def forget(self, keys: Iterable[Key], why: str = OUTSIDE) -> None:
        """Drop what is known of keys; `why` nothing can be concluded of their writes."""
        for key in keys:
            found = self._by_key.pop(key, None)
            if found is not None:
                self._spoil(found, why)

    def end(self, until_ms: int) -> None:
        """Put what happened to the keys that are quiet into `steps`; the journal was read up to
        `until_ms`.

        Writes of which nothing can be concluded go to `given_up`.
        """
        for key, found in list(self._by_key.items()):
            if key not in self._by_key or not found.quiet(until_ms):
                continue
            group = self._group(key, found)
            if not all(each.quiet(until_ms) for each in group.values()):
                continue
            for one in group:
                del self._by_key[one]
            step = self._step(group, until_ms)
            if step is not None:
                self.steps.append(step)

    def _group(self, key: Key, found: _History) -> dict[Key, _History]:
        """Return the history, and those of the other keys that its writes name."""
        keys = {key: found}
        for write in found.writes:
            for other in write.keys:
                if other in self._by_key:
                    keys.setdefault(other, self._by_key[other])
        return keys

    def _step(self, group: Mapping[Key, _History], until_ms: int) -> HistoryStep | None:
        writes = list(dict.fromkeys(each for one in group.values() for each in one.writes))
        why = next((why for one in group.values() if (why := _why_not(one, until_ms))), "")
        several = len(group) > 1 or any(each.keys.keys() != group.keys() for each in writes)
        if not why and several and len(writes) > 1:
            why = TOGETHER  # their order is known for each key alone
        if not why and any(each.told or each.keys.keys() != group.keys() for each in writes):
            why = NOT_TRIED  # of another key of it nothing can be concluded
        if not why and len(self.steps) >= COMPARE_STEPS_MAX:
            why = LATE
        if why:
            for each in writes:
                self._give_up(each, why)
        if why or not writes:
            return None
        return HistoryStep(
            tuple(writes),
            {key: one.before for key, one in group.items() if one.before is not None},
            {key: one.after for key, one in group.items() if one.after is not None},
            max(one.at_ms for one in group.values()),
        )

    def _of(self, key: Key) -> _History | None:
        """Return a key's history, a new one if it has none; None: there are too many."""
        found = self._by_key.get(key)
        if found is None and len(self._by_key) < COMPARE_HISTORIES_MAX:
            found = self._by_key[key] = _History()
        return found

    def _spoil(self, found: _History, why: str) -> None:
        """Conclude nothing of this history, and give its writes up."""
        found.why = found.why or why
        found.before = found.after = None
        writes, found.writes = found.writes, []
        for write in writes:
            self._give_up(write, found.why)

    def _give_up(self, write: Write, why: str) -> None:
        if not write.told:
            write.told = True
            self.given_up.append((write.exchange, why))


def _why_not(found: _History, until_ms: int) -> str:
    """Return why nothing can be concluded of a history that ended; empty: something can."""
    if found.why or not found.writes:
        return found.why
    # A request of before may be told late, in place of one that is not told yet.
    late = any(
        write.exchange.at_ms < found.first_ms - COMPARE_QUIET_MS // 2 for write in found.writes
    )
    if found.before is None or found.after is None or found.marks != found.named or late:
        return UNSEEN
    # The write may have found it expired already, or the trial would.
    expires = 0 < found.before.expiry_ms <= until_ms + COMPARE_QUIET_MS
    return EXPIRES if expires else ""
