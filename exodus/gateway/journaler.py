"""The journaler carries written keys to the journal in the control store.

It coalesces marks in a window of milliseconds, appends them in batches, and spools them while the
store is away. No session waits for it. `unflushed` tells a hold when everything is in the store.

No exception drops a batch. A batch counts as unflushed until it is in the journal, in the spool or
a gap. A gap counts as unflushed until it is in the control store
(tests/fault/test_journal_losses.py).

A store that acknowledged a batch may still lose it: its AOF was not fsynced yet, or its replica was
behind. So intents are kept until the store has fsynced, and a loss is noticed (durability.py). Then
everything that the intent log still holds is journalled again. If it may not hold all of it, that
is a gap.
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

import orjson
from redis.exceptions import RedisError

from exodus.cancellation import end_all
from exodus.control import journal
from exodus.control.changes import Barrier, Key
from exodus.control.store import ControlStore
from exodus.gateway.durability import Durability, TailLost
from exodus.gateway.intents import IntentLog
from exodus.gateway.marks import Marks
from exodus.gateway.pipe import StorePipe, StoreRefused
from exodus.gateway.spool import Spool
from exodus.net.client import answered
from exodus.plan.bounds import (
    HEARTBEAT_S,
    JOURNAL_BATCH_KEYS,
    JOURNAL_WINDOW_S,
    JOURNALER_RETRY_S,
    JOURNALER_ROTATE_BYTES,
    JOURNALER_ROTATE_S,
    SAMPLE_WINDOW_S,
)

log = logging.getLogger(__name__)
_STORE_ERRORS = (StoreRefused, RedisError, OSError, TimeoutError)


@dataclass
class Gap:
    """Writes that no journal covers, for one reason.

    How many times, when, and in which range of key hashes (CRC-32, as for partitions).
    """

    count: int = 0
    since: datetime | None = None
    until: datetime | None = None
    hash_from: int = 2**32 - 1
    hash_to: int = 0

    def add(self, at: datetime, keys: Iterable[Key] | None) -> None:
        """Count once more. Without keys, any key may be concerned."""
        self.count += 1
        self.since = self.since or at
        self.until = at
        hashes = [zlib.crc32(key, db) for db, key in keys] if keys is not None else [0, 2**32 - 1]
        self.hash_from = min(self.hash_from, *hashes)
        self.hash_to = max(self.hash_to, *hashes)

    def as_json(self) -> dict[str, int | str | None]:
        """Return the gap for the control store."""
        return {
            "count": self.count,
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "hash_from": self.hash_from,
            "hash_to": self.hash_to,
        }


class Journaler:
    """The journaler of one gateway process. `intend` and `mark` never wait."""

    def __init__(
        self, store: ControlStore, partitions: int, folder: Path, process: str = "gateway"
    ) -> None:
        self._store = store
        self._partitions = partitions
        self._process = process
        self.gaps: dict[str, Gap] = {}  # by reason; a verification pass closes them
        self._told: dict[str, int] = {}  # the count of each gap in the control store
        self._told_at = 0.0
        self._wake = asyncio.Event()
        self._intents = IntentLog(folder, partial(self.gap, "the intent log is full"))
        self._spool = Spool(folder)
        self._in_flight = 0
        self._marks = Marks(self._wake.set)
        self._pipe = StorePipe(store)
        self._durability = Durability(store, process)
        self._not_fsynced = 0  # the last segment whose batches a store that is away may have lost
        # Segments below go once all that was marked before is flushed and fsynced.
        self._old_segment: int | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._recovered = False
        self._tails_lost = 0  # how often the store lost acknowledged batches
        self._rotated_at = 0.0
        self._flushed = asyncio.Event()
        self.hurry = asyncio.Event()  # a hold waits for everything to be in the store
        self.window_s = JOURNAL_WINDOW_S
        self.entries = 0
        self.store_away_since: float | None = None
        # Sessions call these for every write: before it is forwarded, and after its answer.
        self.intend: Callable[[list[Key], Barrier | None], None] = self._intents.append
        self.mark: Callable[[list[Key], Barrier | None], None] = self._marks.add

    def log_gap(self, why: str) -> None:
        """Log a request that may change unknown keys, before it is forwarded.

        It is a gap if the process crashes before the request is answered.
        """
        if not self._intents.append_gap(why):
            self.gap(why)

    def gap(self, why: str, keys: Iterable[Key] | None = None) -> None:
        """Open a gap: no journal covers a write. `keys`, if they are known."""
        found = self.gaps.setdefault(why, Gap())
        if found.count == self._told.get(why, 0):  # not in the store yet
            self._intents.append_gap(why)
        found.add(datetime.now(UTC), keys)
        self._wake.set()

    # ---- for heartbeats and the route

    async def next_flush(self, within_s: float) -> None:
        """Wait until a batch was stored, or could not be. Look at `unflushed` then."""
        self._flushed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._flushed.wait()

    @property
    def unflushed(self) -> int:
        """Return the number of keys, barriers and gaps that are not in the control store yet."""
        return (
            len(self._marks)
            + self._in_flight
            + self._spool.keys
            + (1 if self._spool else 0)
            + len(self._untold())
        )

    def _untold(self) -> list[str]:
        return [why for why, gap in self.gaps.items() if gap.count != self._told.get(why, 0)]

    @property
    def coalesced(self) -> int:
        """Return the number of marks of keys that were marked already."""
        return self._marks.coalesced

    def sample(self, sampling: bool) -> None:
        """Journal each write of a key, in a longer window: only sampled keys are journalled."""
        self._marks.each = sampling
        self.window_s = SAMPLE_WINDOW_S if sampling else JOURNAL_WINDOW_S

    @property
    def spooled(self) -> int:
        """Return the number of keys on disk, which wait for the store."""
        return self._spool.keys

    @property
    def segments(self) -> int:
        """Return the number of segments of the intent log."""
        return self._intents.segments

    # ---- the task

    async def run(self) -> None:
        """Carry marks to the store until cancelled. A crashed predecessor's marks go first."""
        if not self._recovered:
            self._recovered = True
            self._recover()
        try:
            await self._carry()
        finally:
            if self._retiring is not None:
                await end_all([self._retiring])

    async def _carry(self) -> None:
        while True:
            if not (
                self._marks
                or self._spool
                or self._untold()
                or (self._old_segment is not None and self._retiring is None)
            ):
                self._wake.clear()
                self._marks.sleep()
                await self._wake.wait()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.window_s):  # the coalescing window
                    await self.hurry.wait()
            await self._flush()

    def _recover(self) -> None:
        """Mark what the intent log holds; open a gap for what it should hold and does not."""
        logged = self._intents.recover()
        for why in (*logged.gaps, *logged.damage, *self._spool.damage):
            self.gap(why)
        if self._spool.bytes < logged.spool_bytes:
            relied = f"the {logged.spool_bytes} bytes that were relied on"
            self.gap(f"the spool has {self._spool.bytes} of {relied}")
        if not logged:
            return
        log.warning(
            "journalling %d keys and %d barriers that an earlier process of this id had under way",
            len(logged.keys),
            len(logged.barriers),
        )
        self._mark_all(list(logged.keys), list(logged.barriers))
        self._begin_segment()

    def _mark_all(self, keys: list[Key], barriers: Iterable[Barrier]) -> None:
        self.mark(keys, None)
        for barrier in barriers:
            self.mark([], barrier)

    async def _flush(self) -> None:
        if self._spool and not await self._replay():
            # All that was marked before this moment is in this batch or in an earlier one.
            old = self._old_segment
            self._keep(*self._marks.take())
            self._drop_spooled(old)
            self._flushed.set()
            await asyncio.sleep(JOURNALER_RETRY_S)
            self._wake.set()
            return
        old = self._old_segment
        keys, barriers = self._marks.take()
        self._in_flight = len(keys) + len(barriers)
        try:
            for start in range(0, len(keys) or bool(barriers), JOURNAL_BATCH_KEYS):
                await self._append(
                    keys[start : start + JOURNAL_BATCH_KEYS], barriers if not start else ()
                )
                self.entries += 1
            if self.hurry.is_set() or time.monotonic() - self._told_at > HEARTBEAT_S:
                await self._tell_gaps()
            self._back()
        except asyncio.CancelledError:
            self._mark_all(keys, barriers)
            raise
        except Exception as exc:
            if not isinstance(exc, _STORE_ERRORS):
                log.exception("a batch could not be journalled: it is spooled")
            self._away(exc)
            # All of it, again: a part that was stored only marks keys twice.
            self._keep(keys, barriers)
            if not keys and not barriers:  # gaps stay where they are
                await asyncio.sleep(JOURNALER_RETRY_S)
            self._wake.set()
        finally:
            self._in_flight = 0
            self._flushed.set()
        self._drop_spooled(old)
        if old is not None and self._retiring is None and not self._spool:
            self._retiring = asyncio.get_running_loop().create_task(self._retire(old))

    def _drop_spooled(self, old: int | None) -> None:
        """Drop segments whose writes are in the spool.

        The store may have lost what it acknowledged before it went away. Those intents stay.
        """
        if old is not None and self._spool and self._retiring is None:
            self._intents.retire_before(old, above=self._not_fsynced, spool_bytes=self._spool.bytes)
            self._old_segment = None

    async def _append(self, keys: list[Key], barriers: Iterable[Barrier]) -> None:
        found = journal.commands(self._store.keys, keys, self._partitions, barriers)
        if not found:
            return
        before = (await self._pipe.transaction(self._durability.numbered(found)))[0]
        if not self._durability.complete(before):
            self._tail_lost(before)
        self._durability.acknowledge()

    def _keep(self, keys: list[Key], barriers: list[Barrier]) -> None:
        """Spool a batch that could not be journalled, or else open a gap."""
        if not keys and not barriers:
            return
        try:
            kept, why = self._spool.append(keys, barriers), "the spool is full"
        except Exception as exc:
            log.exception("a batch could not be spooled: it is a gap")
            kept, why = False, f"a batch could not be spooled: {type(exc).__name__}"
        if not kept:
            self.gap(why, keys if keys and not barriers else None)

    async def _replay(self) -> bool:
        """Journal what is in the spool; return False while the store does not take it.

        A batch that fails for a reason of its own would fail for ever. It becomes a gap.
        """
        losses, damage = self._tails_lost, list[str]()
        for keys, barriers in self._spool.batches(damage):
            try:
                await self._append(keys, barriers)
            except _STORE_ERRORS as exc:
                self._away(exc)
                return False
            except Exception as exc:
                log.exception("a spooled batch cannot be journalled: it is a gap")
                self.gap(
                    f"a batch could not be journalled: {type(exc).__name__}",
                    keys if keys and not barriers else None,
                )
        for why in damage:
            self.gap(why)
        try:
            await self._tell_gaps()  # before the damage that they stand for is dropped
            number = await self._durability.fsync()
        except TailLost as exc:
            self._tail_lost(exc.found)
        except _STORE_ERRORS as exc:
            self._away(exc)
            return False
        if losses != self._tails_lost:
            return False  # the first batches may be gone again
        self._durability.safe(number)
        self._not_fsynced = 0
        self._intents.retire_before(0)  # nothing, but the spool is not relied on any more
        log.info("the control store is back: %d spooled keys were journalled", self._spool.keys)
        self._spool.clear()
        self._back()
        return True

    async def _tell_gaps(self) -> None:
        self._told_at = time.monotonic()
        for why in self._untold():
            gap = self.gaps[why]
            count = gap.count
            detail = {
                "process": self._process,
                "why": why,
                "at_ms": await self._store.now_ms(),
                **gap.as_json(),
            }
            await answered(
                self._store.client.hset(
                    self._store.keys.gap, f"{self._process}: {why}", orjson.dumps(detail).decode()
                )
            )
            self._told[why] = count
        if self._spool.damage:
            self._spool.damage.clear()
            self._spool.cut()

    # ---- batches that the store may lose after it has acknowledged them

    async def _retire(self, old: int) -> None:
        """Drop the segments below `old` once the store has fsynced what they stand for."""
        losses = self._tails_lost
        try:
            while losses == self._tails_lost:  # else what was marked again has to be flushed first
                try:
                    number = await self._durability.fsync()
                except TailLost as exc:
                    self._tail_lost(exc.found)
                except _STORE_ERRORS as exc:
                    log.debug(
                        "intents are kept: the control store does not say that it has fsynced: %s",
                        exc,
                    )
                    if self._spool:
                        return  # `_drop_spooled` sees to them as long as the store is away
                    await asyncio.sleep(JOURNALER_RETRY_S)
                else:
                    if losses == self._tails_lost:
                        self._durability.safe(number)
                        self._intents.retire_before(old, spool_bytes=self._spool.bytes)
                        self._old_segment, self._not_fsynced = None, 0
                    return
        finally:
            self._retiring = None
            self._wake.set()

    def look_for_tail(self, found: bytes | None) -> None:
        """Check the number that a heartbeat found in the store: it may be an old one."""
        if not self._durability.complete(found):
            self._tail_lost(found)

    def _tail_lost(self, found: bytes | None) -> None:
        log.error(
            "the control store lost batches that it had acknowledged: "
            "what the intent log holds is journalled again"
        )
        self._tails_lost += 1
        covered = self._durability.covered(found)
        self._durability.forget(found)
        logged = self._intents.recover()
        self._mark_all(list(logged.keys), list(logged.barriers))
        self._told.clear()  # these may be lost too
        for why in self._untold():
            self._intents.append_gap(why)
        if logged.damage or not covered:
            self.gap(
                "the control store lost entries of the journal, "
                "and the intents of some of them are gone"
            )
        self._wake.set()

    @property
    def proof(self) -> tuple[str, int]:
        """See `Durability.proof`."""
        return self._durability.proof

    def rename(self, process: str) -> None:
        """Continue under another name: another process is registered under the old one."""
        self._process = self._durability.process = process
        self._durability.forget(None)
        self._told.clear()

    def _away(self, exc: Exception) -> None:
        if self.store_away_since is None:
            self._not_fsynced = self._intents.number
            self.store_away_since = time.monotonic()
            log.warning(
                "the control store does not take the journal (%s): spooling; "
                "applications are not affected",
                type(exc).__name__,
            )

    def _back(self) -> None:
        self.store_away_since = None

    def rotate(self, log_pending: Callable[[], None]) -> None:
        """Begin a new segment if the present one has grown, so that the old ones can be dropped.

        `log_pending` logs the intents of writes under way again: only the old segments may hold
        them.
        """
        now = time.monotonic()
        grown = self._intents.segments > 1 or self._intents.used_bytes > JOURNALER_ROTATE_BYTES
        if self._old_segment is None and grown and now - self._rotated_at >= JOURNALER_ROTATE_S:
            self._rotated_at = now
            self._begin_segment()
            log_pending()
            self._wake.set()

    def _begin_segment(self) -> None:
        self._old_segment = self._intents.roll()
        for why in self._untold():
            self._intents.append_gap(why)

    def close(self) -> None:
        """Close at the end of the process."""
        self._pipe.close()
        self._intents.close()
