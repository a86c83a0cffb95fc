"""Scratch copies: where Compare tries writes, so that no copy of a sampled key is changed by a
trial.

A scratch copy has the key's own name, so that rights by key pattern hold, in a database of the
follower that neither side uses. COPY makes it there from the key's copy, or RESTORE from a state
that was kept. UNLINK removes it when the write was tried. While anything else is in that database,
nothing is tried: it is somebody's. A cluster has one database: see `scratch_cluster.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from exodus.control.changes import Key, pack, unpack
from exodus.control.store import ControlStore
from exodus.engine import Engine
from exodus.net.client import answered
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import LARGE_KEY_BYTES, SCRATCH_STRAYS_MAX
from exodus.shadow.histories import Snapshot
from exodus.shadow.trials import TooSlow, Trials

IN_USE = "the target's unused database is in use"
UNDECLARED = "the script may use keys that it does not declare"


class Names(Enum):
    """Which names a script's scratch copies have, where they have names of their own."""

    LIKE_KEYS = auto()  # they begin like the keys
    OWN = auto()  # they tell nothing of the keys
    HIDDEN = auto()  # the script sees the keys' names


class NoScratch(Exception):
    """A write cannot be tried on a scratch copy; the text is the reason."""


class TextUnknown(NoScratch):
    """A script was to see its keys' names, and nobody tells its text."""


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial led to."""

    replies: list[Reply]  # errors as values
    after: dict[bytes, Snapshot]  # the scratch copies; expiries by their presence alone, as 0 or 1
    misses: int  # keys that were looked for and not there
    strays: int  # keys that the trial wrote and does not name


def scratch_database(engine: Engine) -> int | None:
    """Return the highest database of the follower that neither side uses; None: there is none."""
    used = {0, *engine.authority_facts.databases, *engine.follower_facts.databases}
    used |= {engine.scope.target_key(db, b"")[0] for db in engine.authority_facts.databases}
    free = (db for db in range(engine.follower_facts.database_count - 1, 0, -1) if db not in used)
    return next(free, None)


async def remove_left(store: ControlStore, ours: Leg) -> None:
    """Remove the scratch copies that a killed comparer left on the follower."""
    packed = await answered(store.client.smembers(store.keys.scratch))
    by_db: dict[int, list[bytes]] = {}
    for db, name in (key for one in packed for key in unpack(one)):
        by_db.setdefault(db, []).append(name)
    for db, names in by_db.items():
        await ours.select(db)
        await ours.pipeline([("UNLINK", name) for name in names])


class Scratch:
    """Makes scratch copies, tries requests on them, and removes them."""

    renames = False  # whether copies have other names than their keys

    def __init__(self, engine: Engine, ours: Leg, follower: Trials, into: Leg | None) -> None:
        """`ours` connects as Exodus, `follower` as whoever the requests are tried as. `into` is in
        the database of `scratch_database`; None: there is none.
        """
        self._store = engine.store
        self._ours = ours
        self._follower = follower
        self._into = into
        self._registered: set[Key] = set()
        self._late: set[bytes] = set()  # keys on which a request may still run that took too long
        self._late_script = False

    async def tried(
        self, db: int, keys: Sequence[bytes], requests: list[list[bytes]], *, script: bool
    ) -> list[Reply]:
        """The replies to requests that run on scratch copies of `keys` of the follower's database
        `db`; errors as values.

        Raises:
            NoScratch: there is no place for them, or a key is too large to be copied.
            TooSlow, SourceError, TargetError, OperatorError: as `Trials.ask_all`.
        """
        into = await self._empty(keys)
        await self._ours.select(db)
        sizes = await self._ours.pipeline([("MEMORY", "USAGE", key) for key in keys])
        if any(isinstance(size, int) and size > LARGE_KEY_BYTES for size in sizes):
            raise NoScratch("a key is too large for a scratch copy")
        try:
            # Without REPLACE: whatever came there meanwhile is somebody's.
            made = await self._ours.pipeline([("COPY", key, key, "DB", into.db) for key in keys])
            check_made(made)
            replies = await self._asked(into, keys, requests, script=script)
        finally:
            await into.pipeline([("UNLINK", *keys)])
        if script:
            await self._remove_strays(into)
        return replies

    async def replayed(
        self,
        states: Mapping[bytes, Snapshot],
        requests: list[list[bytes]],
        *,
        script: bool,
        names: Names = Names.LIKE_KEYS,
    ) -> TrialOutcome:
        """Run requests on keys of these states. Of a script, what it looks for and what it writes
        beside these keys is counted. `names` are of its copies (`renames`).

        Raises:
            NoScratch: there is no place for them, or the follower does not take a state.
            TooSlow, SourceError, TargetError, OperatorError: as `Trials.ask_all`.
        """
        del names  # copies have the names of their keys here
        keys = list(states)
        into = await self._empty(keys)
        try:
            check_made(
                await into.pipeline(
                    [
                        ("RESTORE", key, state.expiry_ms, state.payload, "ABSTTL")
                        for key, state in states.items()
                        if state.payload is not None
                    ]
                )
            )
            misses = await _misses(into) if script else 0
            replies = await self._asked(into, keys, requests, script=script)
            misses = await _misses(into) - misses if script else 0
            after = await states_now(into, keys)
        finally:
            await into.pipeline([("UNLINK", *keys)])
        return TrialOutcome(
            replies, after, misses, await self._remove_strays(into) if script else 0
        )

    async def _empty(self, keys: Sequence[bytes]) -> Leg:
        """Return the connection to the database, once it is known to be empty and the keys are
        registered.
        """
        if self._into is None:
            raise NoScratch("the target has no unused database")
        if self._late:
            await self._into.call("UNLINK", *self._late)
            if self._late_script:  # the database was empty before it ran
                await self._remove_strays(self._into)
        (size,) = await self._into.pipeline([("DBSIZE",)])
        if size != 0:
            raise NoScratch(str(size)[:80] if isinstance(size, ReplyError) else IN_USE)
        self._late.clear()
        self._late_script = False
        # A process that dies here leaves the copies: the phase's end removes them by this list.
        await self.register([(self._into.db, key) for key in keys])
        return self._into

    async def _asked(
        self, into: Leg, keys: Sequence[bytes], requests: list[list[bytes]], *, script: bool
    ) -> list[Reply]:
        try:
            return await self._follower.ask_all(into.db, requests, keys[0])
        except TooSlow:
            self._late.update(keys)
            self._late_script = script
            raise

    async def register(self, keys: Sequence[Key]) -> None:
        """Note keys that the phase's end removes, should this process die before it did."""
        new = [key for key in keys if key not in self._registered]
        if new:
            await answered(
                self._store.client.sadd(self._store.keys.scratch, *[pack([key]) for key in new])
            )
            self._registered.update(new)

    async def _remove_strays(self, into: Leg) -> int:
        """Remove what a script wrote beside the copies; the number of keys."""
        found, cursor = 0, b""
        while cursor != b"0":
            cursor, names = await into.call("SCAN", cursor or b"0", "COUNT", SCRATCH_STRAYS_MAX)
            if names:
                await self.register([(into.db, name) for name in names])
                await into.call("UNLINK", *names)
                found += len(names)
        return found


def check_made(made: Sequence[Reply]) -> None:
    """Raise `NoScratch` where a copy was refused."""
    refused = next((reply for reply in made if isinstance(reply, ReplyError)), None)
    if refused is not None:
        raise NoScratch(f"no scratch copy: {str(refused)[:80]}")


async def states_now(leg: Leg, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
    """Return the states of scratch copies; expiries by their presence alone, as 0 or 1."""
    read = await leg.pipeline([part for key in keys for part in (("PTTL", key), ("DUMP", key))])
    return {
        key: Snapshot(
            dump if isinstance(dump, bytes) else None, int(isinstance(left, int) and left >= 0)
        )
        for key, left, dump in zip(keys, read[::2], read[1::2], strict=True)
    }


async def _misses(leg: Leg) -> int:
    (raw,) = await leg.pipeline([("INFO", "stats")])
    return int(info_of(raw).get("keyspace_misses", 0)) if isinstance(raw, bytes) else 0
