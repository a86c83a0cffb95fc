"""Scratch copies: where Compare tries writes, so that no copy of a sampled key is changed by a
trial.

A scratch copy has the key's own name, so that rights by key pattern hold, in a database of the
follower that neither side uses. COPY makes it there from the key's copy, and UNLINK removes it when
the write was tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from exodus.control.changes import Key, pack
from exodus.engine import Engine
from exodus.net.client import answered
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import LARGE_KEY_BYTES
from exodus.shadow.trials import TrialConnection


class NoScratch(Exception):
    """A write cannot be tried on a scratch copy; the text is the reason."""


def scratch_database(engine: Engine) -> int | None:
    """Return the highest database of the follower that neither side uses; None: there is none."""
    used = {0, *engine.authority_facts.databases, *engine.follower_facts.databases}
    used |= {engine.scope.target_key(db, b"")[0] for db in engine.authority_facts.databases}
    free = (db for db in range(engine.follower_facts.database_count - 1, 0, -1) if db not in used)
    return next(free, None)


class Scratch:
    """Makes scratch copies, tries requests on them, and removes them."""

    def __init__(self, engine: Engine, ours: Leg, follower: TrialConnection) -> None:
        """`ours` connects as Exodus, `follower` as whoever the requests are tried as."""
        self._store = engine.store
        self._ours = ours
        self._follower = follower
        self.db = scratch_database(engine)
        self._registered: set[Key] = set()

    async def tried(
        self, db: int, keys: Sequence[bytes], requests: list[list[bytes]]
    ) -> list[Reply]:
        """The replies to requests that run on scratch copies of `keys` of the follower's database
        `db`; errors as values.

        Raises:
            NoScratch: there is no place for them, or a key is too large to be copied.
            TooSlow, SourceError, TargetError, OperatorError: as `TrialConnection.ask`.
        """
        if self.db is None:
            raise NoScratch("the target has no unused database")
        # A process that dies here leaves the copies: the phase's end removes them by this list.
        await self._register([(self.db, key) for key in keys])
        try:
            await self._make(db, keys)
            return await self._follower.ask_all(self.db, requests)
        finally:
            await self._ours.select(self.db)
            await self._ours.pipeline([("UNLINK", *keys)])

    async def _register(self, keys: list[Key]) -> None:
        new = [key for key in keys if key not in self._registered]
        if new:
            await answered(
                self._store.client.sadd(self._store.keys.scratch, *[pack([key]) for key in new])
            )
            self._registered.update(new)

    async def _make(self, db: int, keys: Sequence[bytes]) -> None:
        assert self.db is not None
        await self._ours.select(db)
        sizes = await self._ours.pipeline([("MEMORY", "USAGE", key) for key in keys])
        if any(isinstance(size, int) and size > LARGE_KEY_BYTES for size in sizes):
            raise NoScratch("a key is too large for a scratch copy")
        copies = await self._ours.pipeline(
            [("COPY", key, key, "DB", self.db, "REPLACE") for key in keys]
        )
        refused = next((reply for reply in copies if isinstance(reply, ReplyError)), None)
        if refused is not None:
            raise NoScratch(f"no scratch copy: {str(refused)[:80]}")
