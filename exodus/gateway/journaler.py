"""From written keys to the journal: coalesced in a window of milliseconds, appended in batches, spooled while the store is away.

Nothing here is waited for by a session. `unflushed` tells a route's follower when all that was written is safe in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from exodus.config import JOURNAL_BATCH_KEYS, JOURNAL_WINDOW_S
from exodus.control import journal
from exodus.control.changes import Barrier, Key
from exodus.control.store import ControlStore
from exodus.gateway.intents import IntentLog
from exodus.gateway.marks import Marks
from exodus.gateway.pipe import StorePipe, StoreRefused
from exodus.gateway.spool import Spool

log = logging.getLogger(__name__)
_RETRY_S = 0.25


@dataclass
class Gap:
    """What no journal covers, for one reason: how many times, when, and in which part of the key hashes (CRC-32, as for partitions)."""

    count: int = 0
    since: datetime | None = None
    until: datetime | None = None
    hash_from: int = 2**32 - 1
    hash_to: int = 0

    def add(self, at: datetime, keys: Iterable[Key] | None) -> None:
        """Once more; without keys it may be any."""
        self.count += 1
        self.since = self.since or at
        self.until = at
        hashes = [zlib.crc32(key, db) for db, key in keys] if keys is not None else [0, 2**32 - 1]
        self.hash_from = min(self.hash_from, *hashes)
        self.hash_to = max(self.hash_to, *hashes)

    def as_json(self) -> dict[str, int | str | None]:
        """For the control store."""
        return {
            "count": self.count,
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "hash_from": self.hash_from,
            "hash_to": self.hash_to,
        }


class Journaler:
    """One a gateway process. `intend` and `mark` never wait."""

    def __init__(self, store: ControlStore, partitions: int, folder: Path) -> None:
        self._store = store
        self._partitions = partitions
        self._intents = IntentLog(folder, partial(self.gap, "the intent log is full"))
        self._spool = Spool(folder)
        self._in_flight = 0
        self._wake = asyncio.Event()
        self._marks = Marks(self._wake.set)
        self._pipe = StorePipe(store)
        self._old_segment: int | None = None  # segments below may go once all that was marked before is flushed
        self._flushed = asyncio.Event()
        self.hurry = asyncio.Event()  # somebody waits for everything to be in the store
        self.entries = 0
        self.store_away_since: float | None = None
        self.gaps: dict[str, Gap] = {}  # by why; each is open until a verification pass has closed it
        # Called by sessions for every write, so without a stop here: before it is forwarded, and after the authority has answered.
        self.intend: Callable[[list[Key], Barrier | None], None] = self._intents.append
        self.mark: Callable[[list[Key], Barrier | None], None] = self._marks.add

    def gap(self, why: str, keys: Iterable[Key] | None = None) -> None:
        """Something was written that no journal covers; `keys` where they are known."""
        self.gaps.setdefault(why, Gap()).add(datetime.now(UTC), keys)

    # ---- for heartbeats and the route

    async def next_flush(self, within_s: float) -> None:
        """Wait until a batch was taken to the store, or could not be; look at `unflushed` then."""
        self._flushed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._flushed.wait()

    @property
    def unflushed(self) -> int:
        """Keys and barriers that are not in the control store yet."""
        return len(self._marks) + self._in_flight + self._spool.keys + (1 if self._spool else 0)

    @property
    def coalesced(self) -> int:
        """Marks of keys that were marked already."""
        return self._marks.coalesced

    @property
    def spooled(self) -> int:
        """Keys on disk because the store is away."""
        return self._spool.keys

    @property
    def segments(self) -> int:
        """Segments of the intent log."""
        return self._intents.segments

    # ---- the task

    async def run(self) -> None:
        """Carry marks to the store until cancelled; first those of a crashed predecessor."""
        keys, barriers = self._intents.recover()
        if keys or barriers:
            log.warning("journalling %d keys and %d barriers that an earlier process of this id had under way", len(keys), len(barriers))
            self.mark(keys, None)
            for barrier in barriers:
                self.mark([], barrier)
            self._old_segment = self._intents.roll()
        while True:
            if not (self._marks or self._spool or self._old_segment):
                self._wake.clear()
                self._marks.sleep()
                await self._wake.wait()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOURNAL_WINDOW_S):  # the coalescing window
                    await self.hurry.wait()
            await self._flush()

    async def _flush(self) -> None:
        if self._spool and not await self._replay():
            self._to_spool()
            await asyncio.sleep(_RETRY_S)
            self._wake.set()
            return
        old = self._old_segment  # all that was marked before this moment is in this batch or in an earlier one
        keys, barriers = self._marks.take()
        self._in_flight = len(keys) + len(barriers)
        try:
            for start in range(0, len(keys) or bool(barriers), JOURNAL_BATCH_KEYS):
                await self._append(keys[start : start + JOURNAL_BATCH_KEYS], barriers if not start else ())
                self.entries += 1
            self._back()
        except (StoreRefused, OSError, TimeoutError) as exc:
            self._away(exc)
            # Again from the start: entries only mark keys, so a part that did get in does no harm.
            if not self._spool.append(keys, barriers):
                self.gap("the spool is full", keys or None)
            self._wake.set()
        finally:
            self._in_flight = 0
            self._flushed.set()
        if old is not None:
            self._intents.retire_before(old)
            self._old_segment = None

    async def _append(self, keys: list[Key], barriers: Iterable[Barrier]) -> None:
        found = journal.commands(self._store.keys, keys, self._partitions, barriers)
        if found:
            await self._pipe.transaction(found)

    def _to_spool(self) -> None:
        keys, barriers = self._marks.take()
        if not keys and not barriers:
            return
        if not self._spool.append(keys, barriers):
            self.gap("the spool is full", keys or None)

    async def _replay(self) -> bool:
        try:
            for keys, barriers in self._spool.batches():
                await self._append(keys, barriers)
        except (StoreRefused, OSError, TimeoutError) as exc:
            self._away(exc)
            return False
        log.info("the control store is back: %d spooled keys were journalled", self._spool.keys)
        self._spool.clear()
        self._back()
        return True

    def _away(self, exc: Exception) -> None:
        if self.store_away_since is None:
            self.store_away_since = time.monotonic()
            log.warning("the control store does not take the journal (%s): spooling; applications are not affected", type(exc).__name__)

    def _back(self) -> None:
        self.store_away_since = None

    def rotate(self, log_pending: Callable[[], None]) -> None:
        """Begin a new segment where the present one has grown, so that the old ones can go.

        `log_pending` is called to log again what is under way: it may stand in the old segments only.
        """
        if self._old_segment is None and (self._intents.segments > 1 or self._intents.used_bytes > 64 * 1024):
            self._old_segment = self._intents.roll()
            log_pending()
            self._wake.set()

    def close(self) -> None:
        """At the end of the process."""
        self._pipe.close()
        self._intents.close()
