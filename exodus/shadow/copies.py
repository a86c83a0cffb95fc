"""The sampled keys' copies on the follower, on which requests are tried.

A sampled key is *seeded* at first sight: its state is copied once. From then on only the journal
keeps its copy up, as live sync does in Migrate. So a copy shows what copying made of it, and a
comparison can find a fault of it. With live sync on, the lanes own the follower's keys: nothing is
copied here, and `caught_up` tells whether they have come to a key's last write.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from exodus.control import journal
from exodus.control.changes import Barrier, Changes, Key, id_order, pack, partition_of
from exodus.copy.impact import Turn
from exodus.copy.key import BatchReport, Copier, Failure
from exodus.copy.payload import State
from exodus.engine import Engine
from exodus.net.client import answered
from exodus.net.leg import Leg
from exodus.plan.bounds import (
    COMPARE_COPY_AGAIN,
    COMPARE_KEYS_MAX,
    COMPARE_LAGS_KEPT,
    COMPARE_QUIET_MS,
)
from exodus.plan.own_keys import is_own
from exodus.plan.sample import KeySample
from exodus.plan.vocabulary import Side
from exodus.shadow.histories import CHANGED, FAILED_OVER, UNSETTLED, Histories, Snapshot
from exodus.shadow.lives import lost_by
from exodus.verify.comparison import entered

log = logging.getLogger(__name__)
_ABSENT = 0


@dataclass(slots=True)
class Copied:
    """What is known of one sampled key."""

    version: int = 0  # how often the journal has named it
    at_ms: int = 0  # when it was read last, by the control store's clock
    print_authority: int | None = None  # checksum of the state that was copied last
    print_follower: int | None = None  # of what the follower made of it
    print_before: int | None = None  # of the last other state that a copy made there
    expiry_ms: int = 0  # of the state that was copied last


@dataclass
class CopiesState:
    """What outlasts a lost connection: else each one would copy every key again."""

    positions: dict[int, bytes]  # of the journal, up to which copies are kept up
    keys: dict[Key, Copied] = field(default_factory=dict)
    filtered: set[Key] = field(default_factory=set)  # left out by rules when they were copied last
    judged: set[Key] = field(default_factory=set)  # a reply or the state was compared to the end
    judged_before: int = 0  # those of a comparer before this one, nearly
    untold: list[Key] = field(default_factory=list)  # of those, what the store does not know
    dirty: int = 0  # keys that the journal named last time
    lags_ms: deque[int] = field(default_factory=lambda: deque(maxlen=COMPARE_LAGS_KEPT))
    refused: int = 0  # keys that were not seeded, beyond COMPARE_KEYS_MAX
    histories: Histories = field(default_factory=Histories)
    read_until_ms: int = 0  # the journal was read up to this time of the control store
    again: set[Key] = field(default_factory=set)  # the last copy of these is not known to be whole
    lives: dict[str, str] = field(default_factory=dict)  # side → the servers at the last copies
    copied_again: int = 0  # keys, since a server may have lost some

    def judge(self, keys: Iterable[Key]) -> None:
        """Note that keys were compared to the end."""
        for key in keys:
            if key not in self.judged:
                self.judged.add(key)
                self.untold.append(key)


class SampledCopies:
    """Seeds sampled keys and keeps their copies up."""

    def __init__(
        self,
        engine: Engine,
        copier: Copier,
        ours: Leg,
        state: CopiesState,
        failed: Callable[[Failure], Awaitable[None]],
        sample: KeySample,
        turn: Turn,
    ) -> None:
        """`ours` connects to the follower as Exodus; `failed` is told of keys that failed to
        copy; `turn` is waited for before keys are copied.
        """
        self._engine = engine
        self._copier = copier
        self._ours = ours
        self._failed = failed
        self._turn = turn
        self._synced: dict[int, bytes] = {}
        self.state = state
        self._sampled = sample.test()

    def __contains__(self, key: Key) -> bool:
        return key in self.state.keys

    def joined(self, key: Key) -> bool:
        """Return whether a key is here only because a sampled request names it too.

        The journal says nothing of its writes while only sampled keys are journalled. So it is
        copied again each time such a request is tried, and nothing is concluded from its state.
        """
        return not self._engine.route.sync and not self._sampled(*key)

    async def follow(self, sample: KeySample) -> None:
        """Keep only what is still sampled: the journal tells nothing of the rest any more."""
        self._sampled = sample.test()
        left = [key for key in self.state.keys if self.joined(key)]
        by_db: dict[int, list[bytes]] = {}
        self.state.histories.forget(left)
        for key in left:
            del self.state.keys[key]
            db, name = self._engine.scope.target_key(*key)
            by_db.setdefault(db, []).append(name)
        for db, names in by_db.items():
            if await entered(self._ours, db):
                await self._ours.pipeline([("UNLINK", name) for name in names])
        if left:
            store = self._engine.store
            await answered(store.client.srem(store.keys.seeded, *[pack([key]) for key in left]))

    def settled(self) -> list[Key]:
        """Return the keys whose copies are to be equal: not those that were only named too."""
        left_out = self.state.filtered
        return [key for key in self.state.keys if key not in left_out and not self.joined(key)]

    def version(self, key: Key) -> int:
        """Return a number that is another one after each journalled write of the key."""
        copied = self.state.keys.get(key)
        return 0 if copied is None else copied.version

    async def seed(self, keys: Iterable[Key]) -> None:
        """Copy keys that were not seen before."""
        room = COMPARE_KEYS_MAX - len(self.state.keys)
        wanted = [key for key in dict.fromkeys(keys) if key not in self and not is_own(key[1])]
        self.state.refused += max(0, len(wanted) - room)
        await self.copy(wanted[:room])

    async def keep_up(self) -> None:
        """Copy the keys that the journal named since the last call."""
        store, state = self._engine.store, self.state
        asked_ms = await store.now_ms() if state.histories else state.read_until_ms
        found = await journal.each_since(store, state.positions)
        named: Counter[Key] = Counter()
        first_ms: dict[Key, int] = {}
        for changes in found.values():
            mine = self._named(changes)
            named.update(mine)
            first_ms.update(dict.fromkeys(mine, changes.times_ms[0] if changes.times_ms else 0))
        if not self._engine.route.sync:
            await self.keep_before(named, first_ms)
        again = [key for key in state.again if key not in named and key in state.keys]
        await self.copy([*named, *again])
        named.update(again)
        state.dirty = len(named)
        if named and not self._engine.route.sync:
            now_ms = await store.now_ms()
            times = [at_ms for changes in found.values() for at_ms in changes.times_ms]
            state.lags_ms.extend(max(0, now_ms - at_ms) for at_ms in times[-COMPARE_LAGS_KEPT:])
        for partition, changes in found.items():
            if changes.last_id is not None:
                state.positions[partition] = changes.last_id
        for key, count in named.items():
            if key in state.keys:
                state.keys[key].version += count
            if not self._engine.route.sync:
                state.histories.marked(key, count)
        state.read_until_ms = asked_ms
        if self._engine.route.sync:
            self._synced = await journal.positions(store)

    async def keep_before(self, named: Iterable[Key], first_ms: Mapping[Key, int]) -> None:
        """Begin histories: what the follower has of these keys is the state before their writes,
        unless they were written shortly before `first_ms`, the time of the first write.
        """
        by_place: dict[int, list[tuple[Key, bytes]]] = {}
        for key in named:
            if not self.state.histories.wants(key):
                continue
            copied = self.state.keys.get(key)
            settled = copied is not None and 0 < copied.at_ms <= first_ms[key] - COMPARE_QUIET_MS
            if not settled or self.joined(key) or key in self.state.filtered:
                self.state.histories.begin(key, None, UNSETTLED)
                continue
            to_db, to = self._engine.scope.target_key(*key)
            by_place.setdefault(to_db, []).append((key, to))
        for to_db, part in by_place.items():
            if not await entered(self._ours, to_db):
                continue  # no key is there
            dumps = await self._ours.pipeline([("DUMP", to) for _, to in part])
            for (key, _), dump in zip(part, dumps, strict=True):
                copied = self.state.keys[key]
                if print_of(dump) == copied.print_follower:
                    before = Snapshot(dump if isinstance(dump, bytes) else None, copied.expiry_ms)
                    self.state.histories.begin(key, before, first_ms=first_ms[key])
                else:
                    self.state.histories.begin(key, None, CHANGED)

    def _named(self, changes: Changes) -> list[Key]:
        """The keys that may have changed, as often as the journal names them; of a barrier, each
        sampled key of its databases.
        """
        named = [key for key in changes.keys if not is_own(key[1])]
        barriers = [*changes.barriers, *([Barrier("gap")] if changes.gap else [])]
        for barrier in barriers:
            named += [
                key
                for key in self.state.keys
                if not barrier.databases or key[0] in barrier.databases
            ]
        return named

    def caught_up(self, key: Key) -> bool:
        """Return whether the follower has what the journal had for this key at the last
        `keep_up`.
        """
        if not self._engine.route.sync:
            return True
        partition = partition_of(*key, self._engine.plan.partitions)
        wanted = self.state.positions.get(partition, b"0-0")
        return id_order(self._synced.get(partition, b"0-0")) >= id_order(wanted)

    async def copy(self, keys: Iterable[Key]) -> None:
        """Copy keys now, and write down that the follower has them for Compare alone."""
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            if not is_own(key):
                by_db.setdefault(db, []).append(key)
        for db, names in by_db.items():
            if self._engine.route.sync:
                for name in names:
                    self.state.keys.setdefault((db, name), Copied())
            else:
                await self._copy(db, names)

    async def _copy(self, db: int, names: list[bytes]) -> None:
        await self._turn()
        engine, state = self._engine, self.state
        keys = [(db, name) for name in names]
        fresh = [key for key in keys if key not in state.keys or key in state.again]
        state.again.update(keys)  # until it is done, whatever fails
        packed, store = [pack([key]) for key in fresh], engine.store
        if fresh:
            pipe = store.client.pipeline(transaction=True)
            pipe.sadd(store.keys.seeding, *packed)
            pipe.sadd(store.keys.seeded, *packed)
            await pipe.execute()
            for key in fresh:
                state.keys.setdefault(key, Copied())
        report = BatchReport()
        states = await self._copier.read(db, names, report)
        at_ms = await engine.store.now_ms()
        await self._copier.write(db, states, report)
        if engine.scope:
            state.filtered.difference_update(keys)
            state.filtered.update((db, name) for name in report.filtered_keys)
        await self._note_prints(db, [each for each in states if not each.large], at_ms)
        for each in states:
            if each.large:
                state.keys[(db, each.key)].at_ms = 0  # no state of it is kept
                state.histories.copied((db, each.key), None, at_ms)
        for failure in report.failed:
            await self._failed(failure)
        # A slot that no node serves now is tried again, at the next `keep_up`.
        state.again.difference_update(keys)
        state.again.update((db, name) for name in report.unsettled)
        if fresh:
            await answered(store.client.srem(store.keys.seeding, *packed))

    async def copy_again(self, now: Mapping[Side, str], left_out: Container[Key]) -> None:
        """Copy all keys again where a server may have lost some since they were copied.

        Args:
            now: the lives of both sides.
            left_out: keys that differ and are for a person to look at.
        """
        state, sides = self.state, lost_by(self.state.lives, now)
        if sides and not self._engine.route.sync:
            keys = [key for key in state.keys if key not in left_out]
            log.warning(
                "a server of the %s may have lost keys: %d sampled keys are copied again",
                " and the ".join(sides),
                len(keys),
            )
            state.histories.forget(keys, FAILED_OVER)
            for start in range(0, len(keys), COMPARE_COPY_AGAIN):
                await self.copy(keys[start : start + COMPARE_COPY_AGAIN])
            for key in keys:
                state.keys[key].version += 1
            state.copied_again += len(keys)
        state.lives = {str(side): life for side, life in now.items()}

    async def learn(self, keys: Iterable[Key]) -> None:
        """Note checksums of keys that another comparer copied, and that were seen to be equal."""
        if self._engine.route.sync or self._engine.follower_facts.payload_version is None:
            return
        by_db: dict[int, list[bytes]] = {}
        for key in keys:
            copied = self.state.keys.get(key)
            if copied is not None and copied.print_authority is None and not self.joined(key):
                by_db.setdefault(key[0], []).append(key[1])
        for db, names in by_db.items():
            states = await self._copier.read(db, names, BatchReport())
            at_ms = await self._engine.store.now_ms()
            await self._note_prints(db, [each for each in states if not each.large], at_ms)

    async def _note_prints(self, db: int, states: list[State], at_ms: int) -> None:
        """Note checksums of what was read at `at_ms` and of what the follower made of it."""
        if self._engine.follower_facts.payload_version is None:
            return  # it does not let us see payloads
        by_place: dict[int, list[tuple[State, bytes]]] = {}
        for each in states:
            to_db, to = self._engine.scope.target_key(db, each.key)
            by_place.setdefault(to_db, []).append((each, to))
        for to_db, part in by_place.items():
            if not await entered(self._ours, to_db):
                continue
            dumps = await self._ours.pipeline([("DUMP", to) for _, to in part])
            for (each, _), dump in zip(part, dumps, strict=True):
                copied = self.state.keys[(db, each.key)]
                made = print_of(dump)
                if made != copied.print_follower:  # a copy of the same state says nothing new
                    copied.print_before, copied.print_follower = copied.print_follower, made
                copied.print_authority = print_of_state(each)
                copied.expiry_ms = each.expiry_ms
                copied.at_ms = at_ms
                payload = dump if isinstance(dump, bytes) else None
                after = Snapshot(payload, each.expiry_ms if payload is not None else 0)
                self.state.histories.copied((db, each.key), after, at_ms)


def print_of(dump: object) -> int:
    """Return a checksum of a payload; of a key that is not there, 0."""
    return zlib.crc32(dump) or 1 if isinstance(dump, bytes) else _ABSENT


def print_of_state(state: State) -> int:
    """Return a checksum of a state that was read from the authority; of an absent key, 0."""
    if not state.exists:
        return _ABSENT
    if state.payload is not None:
        return print_of(state.payload)
    return print_of(repr(state.commands).encode())
