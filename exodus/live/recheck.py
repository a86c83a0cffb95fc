"""Comparing the keys that the lanes copied since the last verification.

A key is listed from its journal entry until a comparison finds it equal with no newer entry. A
complete pass removes the keys it covers at once. The comparison runs beside the lanes, a batch a
second, and without a pause while more keys wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from exodus.control import journal
from exodus.control.changes import Changes, Key, id_order
from exodus.control.freshness import PartitionState, Pass, last_pass, save_partitions
from exodus.engine import Engine
from exodus.plan.bounds import (
    DIRTY_KEYS_MAX,
    RECHECK_BACK_ENTRIES_MAX,
    RECHECK_BATCH_KEYS,
    RECHECK_EVERY_S,
    RECHECK_PAUSE_S,
)
from exodus.verify.comparison import Comparison, ComparisonCounts, open_comparison


class DirtyKeys:
    """One partition's keys that were written since the pass and not compared since. Bounded; the
    oldest stands first.
    """

    def __init__(self, since: Pass | None) -> None:
        self.since = since
        self.overflow = False
        self.keys: dict[Key, bytes] = {}  # → its last entry

    def note(self, changes: Changes) -> None:
        """Entries were read, and their keys are being synced."""
        if self.since is None or changes.last_id is None:
            return
        for key in changes.keys:
            self.keys.pop(key, None)
            self.keys[key] = changes.last_id
        if changes.barriers or changes.gap or len(self.keys) > DIRTY_KEYS_MAX:
            # A flush marks keys through entries of their own; until those came, nothing is known
            self.overflow = True
        if self.overflow:
            self.keys.clear()

    def settle(self, compared: Mapping[Key, bytes], equal: Iterable[Key]) -> None:
        """Some keys were compared, each as of an entry, and these were equal."""
        for key in equal:
            if self.keys.get(key) == compared[key]:
                del self.keys[key]

    def restart(self, newest: Pass, partition: int) -> None:
        """Count from a newer pass; what it speaks for is not dirty any more."""
        spoken_for = id_order(newest.positions.get(partition, "0-0").encode())
        self.since = newest
        self.keys = {
            key: entry_id for key, entry_id in self.keys.items() if id_order(entry_id) > spoken_for
        }

    def state(self, now_ms: int) -> PartitionState:
        """Return the state as the control store holds it."""
        oldest = next(iter(self.keys.values()), b"0-0")
        return PartitionState(
            at_ms=now_ms,
            pass_ms=self.since.at_ms if self.since is not None else 0,
            dirty=len(self.keys),
            oldest_ms=id_order(oldest)[0],
            overflow=self.overflow,
        )


class Keeper:
    """The dirty keys of all partitions that a process holds, and the task that compares them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self.partitions: dict[int, DirtyKeys] = {}

    def note(self, changes: Mapping[int, Changes]) -> None:
        """See `DirtyKeys.note`."""
        for partition, each in changes.items():
            if partition in self.partitions:
                self.partitions[partition].note(each)

    async def hold(self, partitions: Mapping[int, bytes]) -> None:
        """Keep these partitions, each synced up to a position; what others did since the pass is
        read again from the journal.
        """
        for gone in self.partitions.keys() - partitions.keys():
            del self.partitions[gone]
        for partition, position in partitions.items():
            if partition not in self.partitions:
                self.partitions[partition] = await self._since_pass(
                    await last_pass(self._store), partition, position
                )

    async def _since_pass(self, newest: Pass | None, partition: int, position: bytes) -> DirtyKeys:
        dirty = DirtyKeys(newest)
        if newest is not None:
            start = newest.positions.get(partition, "0-0").encode()
            changes = await journal.since(
                self._store, {partition: start}, until=position, at_most=RECHECK_BACK_ENTRIES_MAX
            )
            changes.last_id = position
            dirty.note(changes)
        return dirty

    async def run(self) -> None:
        """Compare, report, look for a newer pass; until cancelled."""
        comparison: Comparison | None = None
        try:
            while True:
                began = time.monotonic()
                await self._follow_pass()
                batch = self._batch()
                if batch:
                    if comparison is None:
                        comparison = await open_comparison(self._engine)
                    await self._compare(comparison, batch)
                now_ms = await self._store.now_ms()
                await save_partitions(
                    self._store,
                    {
                        partition: dirty.state(now_ms)
                        for partition, dirty in self.partitions.items()
                    },
                )
                more = len(batch) == RECHECK_BATCH_KEYS
                await asyncio.sleep(
                    RECHECK_PAUSE_S
                    if more
                    else max(RECHECK_PAUSE_S, began + RECHECK_EVERY_S - time.monotonic())
                )
        finally:
            if comparison is not None:
                await comparison.close()

    async def _follow_pass(self) -> None:
        newest = await last_pass(self._store)
        if newest is None:
            return
        for partition, dirty in list(self.partitions.items()):
            if dirty.since is not None and dirty.since.at_ms == newest.at_ms:
                continue
            if dirty.since is not None and not dirty.overflow:
                dirty.restart(newest, partition)
            else:
                synced = (await journal.positions(self._store)).get(partition, b"0-0")
                self.partitions[partition] = await self._since_pass(newest, partition, synced)

    def _batch(self) -> dict[Key, bytes]:
        found: dict[Key, bytes] = {}
        for dirty in self.partitions.values():
            for key, entry_id in dirty.keys.items():
                found[key] = entry_id
                if len(found) >= RECHECK_BATCH_KEYS:
                    return found
        return found

    async def _compare(self, comparison: Comparison, batch: Mapping[Key, bytes]) -> None:
        by_db: dict[int, list[bytes]] = {}
        for db, key in batch:
            by_db.setdefault(db, []).append(key)
        differ: set[Key] = set()
        for db, keys in by_db.items():
            await comparison.select(db)
            differ |= {
                (db, found.key)
                for found in await comparison.differences(db, keys, ComparisonCounts())
            }
        equal = [key for key in batch if key not in differ]
        for dirty in self.partitions.values():
            dirty.settle(batch, equal)
