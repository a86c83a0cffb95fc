"""Verification: both sides, both directions.

Keys are compared in batches, and large ones piece by piece, so memory does not grow with the keyspace. What differs is looked at again after a
pause, since live sync may be on its way, and only then called a divergence. A divergence names key and kind, never a value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import orjson

from exodus.config import REPAIR_SECONDS_MAX, RESERVED_PREFIX
from exodus.control import freshness, journal, letters
from exodus.control.changes import Key
from exodus.control.store import ControlStore, Json, answered
from exodus.ending import end_all
from exodus.endpoint import Endpoint, Node
from exodus.errors import TargetError
from exodus.sync.comparison import Comparison, Divergence, Tally, open_comparison, open_surplus
from exodus.sync.engine import Engine
from exodus.sync.pace import Pace
from exodus.sync.read import Batch
from exodus.sync.scan import scan_once

_BATCH_KEYS = 500
_LISTED_MAX = 1_000


@dataclass
class VerificationReport(Tally):
    """What a pass found.

    keys_authority = keys_verified + keys_dirty + those among `divergences` and dead letters that the authority has. What the rules leave out
    (`excluded`) is in none of these.
    """

    keys_authority: int = 0
    keys_follower: int = 0
    keys_verified: int = 0
    keys_spared: int = 0  # of others, on the follower
    keys_left_behind: int = 0  # on the source after a cutover, by the rules
    keys_not_carried: int = 0  # differ, and are dead letters
    divergences: list[Divergence] = field(default_factory=list)
    divergences_total: int = 0
    dirty: list[Divergence] = field(default_factory=list)  # differ, and were written while they were looked at: live sync has them
    dirty_total: int = 0
    looked_at_again: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return self.divergences_total == 0

    def as_json(self) -> Json:
        """For reports and artifacts."""
        return {
            "keys_authority": self.keys_authority,
            "keys_follower": self.keys_follower,
            "keys_verified": self.keys_verified,
            "keys_excluded": self.excluded.total(),
            "excluded": dict(self.excluded),
            "keys_spared": self.keys_spared,
            "keys_left_behind": self.keys_left_behind,
            "keys_not_carried": self.keys_not_carried,
            "divergences": [divergence.as_json() for divergence in self.divergences],
            "divergences_total": self.divergences_total,
            "dirty": [divergence.as_json() for divergence in self.dirty],
            "keys_dirty": self.dirty_total,
            "looked_at_again": self.looked_at_again,
            "ttl_drift_ms_max": self.ttl_drift_ms_max,
            "keys_with_ttl": self.keys_with_ttl,
            "seconds": round(self.seconds, 3),
            "by_type": dict(self.by_type),
        }


async def verify(
    engine: Engine,
    *,
    settle_s: float = 0.5,
    attempts: int = 5,
    known: Collection[Key] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> VerificationReport:
    """Compare every key of both sides.

    Args:
        settle_s: pause before keys that differ are looked at again, doubled each time.
        attempts: how often in all a key may differ before it is called a divergence.
        known: keys that could not be carried and are listed as such; where they differ they are counted apart.
        on_progress: called with keys seen so far and an upper bound of all.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    began = time.monotonic()
    report = VerificationReport()
    suspects: dict[Key, Divergence] = {}
    moving: set[Key] = set()
    total = sum(engine.authority_facts.databases.values()) + sum(engine.follower_facts.databases.values())
    comparison = await open_comparison(engine)

    async def note(db: int, found: Sequence[Divergence]) -> None:
        suspects.update({(db, divergence.key): divergence for divergence in found})
        if on_progress is not None:
            on_progress(report.keys_authority + report.keys_follower, total)

    try:
        await _look(engine, comparison, report, note)
        report.looked_at_again = len(suspects)
        for attempt in range(attempts - 1):
            if not suspects:
                break
            await asyncio.sleep(settle_s * 2**attempt)
            synced = await engine.feed.synced()
            suspects = await _again(comparison, list(suspects), report)
            # A key with an entry that was not synced when we looked is dirty, not divergent: its copy is on the way.
            moving = set((await engine.feed.changes_since(synced)).keys) if engine.route.sync else set()
    finally:
        await comparison.close()
    dirty = {key: found for key, found in suspects.items() if key in moving and key not in known}
    report.keys_not_carried = sum(key in known for key in suspects)
    divergences = {key: found for key, found in suspects.items() if key not in moving and key not in known}
    report.dirty_total, report.dirty = len(dirty), list(dirty.values())[:_LISTED_MAX]
    report.divergences_total, report.divergences = len(divergences), list(divergences.values())[:_LISTED_MAX]
    report.keys_verified = report.keys_authority - sum(found.kind != "extra" for found in suspects.values())
    report.seconds = time.monotonic() - began
    return report


async def _look(
    engine: Engine, comparison: Comparison, report: VerificationReport, note: Callable[[int, Sequence[Divergence]], Awaitable[None]]
) -> None:
    """Look at every key once, in both directions; `note` is told what differs, a batch and database at a time."""
    pace = Pace(engine.store, engine.authority, engine.plan.budget, what="verification")

    async def forwards() -> None:
        for db in await _databases(engine.authority):
            async for seen, theirs in _side_by_side(comparison, db, report):
                await pace.turn()
                report.keys_authority += len(seen.keys) - (seen.kinds.count(b"none") if engine.scope else 0)
                await note(db, await comparison.compare_batch(db, seen, theirs, report))

    async def backwards() -> None:
        # Keys that both sides have are compared forwards; only those that should not be there are of interest.
        surplus = await open_surplus(engine, name="exodus-verify")
        try:
            async for db, keys in _batches(engine.follower):
                await pace.turn()
                report.keys_follower += len(keys)
                for at, found in await surplus.among(db, keys):
                    await note(at, [found])
        finally:
            report.keys_spared, report.keys_left_behind = surplus.spared, surplus.left_behind
            await surplus.close()

    async with pace:
        passes = [asyncio.create_task(forwards()), asyncio.create_task(backwards())]
        try:
            await asyncio.gather(*passes)
        finally:
            await end_all(passes)  # the other one, where one failed


async def mark_differing(engine: Engine) -> int:
    """Mark every key that differs as changed, so that live sync copies it; how many. For what was written while no journal was kept.

    Raises:
        SourceError, TargetError: a side was lost; what was marked is marked.
    """
    report, marked = VerificationReport(), 0
    comparison = await open_comparison(engine)

    async def mark(db: int, found: Sequence[Divergence]) -> None:
        nonlocal marked
        await engine.feed.mark([(db, divergence.key) for divergence in found])
        marked += len(found)

    try:
        await _look(engine, comparison, report, mark)
    finally:
        await comparison.close()
    return marked


async def _again(comparison: Comparison, keys: Sequence[Key], report: VerificationReport) -> dict[Key, Divergence]:
    by_db: dict[int, list[bytes]] = {}
    for db, key in keys:
        by_db.setdefault(db, []).append(key)
    suspects: dict[Key, Divergence] = {}
    for db, members in by_db.items():
        await comparison.select(db)
        for start in range(0, len(members), _BATCH_KEYS):
            for found in await comparison.differences(db, members[start : start + _BATCH_KEYS], report):
                suspects[(db, found.key)] = found
    return suspects


async def _databases(endpoint: Endpoint) -> list[int]:
    return sorted({db for node in await endpoint.nodes() for db in (await node.facts()).databases})


async def _side_by_side(comparison: Comparison, db: int, tally: Tally) -> AsyncIterator[tuple[Batch, Batch]]:
    """Batches of the authority's keys with the follower's; the authority reads the next one while the follower reads this one."""
    await comparison.select(db)
    cursor, seen = await comparison.scan(db, 0, _BATCH_KEYS, tally)
    while True:
        if not cursor:
            yield seen, await comparison.follow(db, seen)
            return
        theirs, (cursor, following) = await asyncio.gather(comparison.follow(db, seen), comparison.scan(db, cursor, _BATCH_KEYS, tally))
        yield seen, theirs
        seen = following


async def _batches(endpoint: Endpoint) -> AsyncIterator[tuple[int, list[bytes]]]:
    for node in await endpoint.nodes():
        for db in sorted((await node.facts()).databases):
            async for keys in _node_batches(node, db):
                yield db, keys


async def _node_batches(node: Node, db: int) -> AsyncIterator[list[bytes]]:
    async with await node.connect(db, name="exodus-verify") as leg:
        cursor = -1
        while cursor:
            cursor, found = await scan_once(leg, max(cursor, 0), _BATCH_KEYS)
            # SCAN may give a key twice in one call while the table grows.
            keys = [key for key in dict.fromkeys(found) if not key.startswith(RESERVED_PREFIX)]
            if keys:
                yield keys


async def spot_check(engine: Engine, keys: Sequence[Key]) -> list[Divergence]:
    """Compare some keys now, without a second look."""
    comparison = await open_comparison(engine)
    try:
        return await compare_now(comparison, keys)
    finally:
        await comparison.close()


async def compare_now(comparison: Comparison, keys: Sequence[Key]) -> list[Divergence]:
    """The same over connections that are open already."""
    wanted = [key for key in keys if not key[1].startswith(RESERVED_PREFIX)]
    return list((await _again(comparison, wanted, VerificationReport())).values())


async def reconcile(engine: Engine, name: str) -> Json:
    """A pass that counts: clean, it closes the gaps that were open before it, and freshness counts from it. Kept as report `verification.NAME`.

    Raises:
        SourceError, TargetError: a side was lost.
        redis.exceptions.RedisError: the store was.
    """
    store = engine.store
    since_ms, synced = await store.now_ms(), await engine.feed.synced()
    dead, accepted = await letters.open_letters(store), await letters.accepted_letters(store)
    report = await verify(engine, known=dead.keys() | accepted.keys())
    if report.clean:
        await _close_gaps(store, since_ms)
        await freshness.record_pass(store, since_ms, synced, report.keys_authority)
    found: Json = report.as_json()
    found.update(
        at_ms=since_ms,
        authority=str(engine.route.authority),
        dead_letters=list((await letters.open_letters(store)).values()),
        accepted_letters=list((await letters.accepted_letters(store)).values()),
        open_gaps=await _listed(store, store.keys.gap),
        lag_entries=await journal.lag_entries(store, engine.plan.partitions),
    )
    await store.save_report(f"verification.{name}", found)
    return found


async def _listed(store: ControlStore, name: str) -> list[Json]:
    return [orjson.loads(raw) for raw in (await answered(store.client.hgetall(name))).values()]


async def _close_gaps(store: ControlStore, since_ms: int) -> None:
    """A clean pass over everything closes the gaps that were open before it began, and those of gateways that are gone."""
    for name, raw in (await answered(store.client.hgetall(store.keys.gap))).items():
        if orjson.loads(raw)["at_ms"] < since_ms:
            await answered(store.client.hdel(store.keys.gap, name))


def keys_of(report: Json) -> list[Key]:
    """The keys that a report of `reconcile` lists as divergent."""
    return [(row["db"], bytes.fromhex(row["key_hex"])) for row in report["divergences"]]


async def dead_letters(store: ControlStore) -> list[Key]:
    """The keys that could not be carried, and that nobody has accepted."""
    return list(await letters.open_letters(store))


async def repair(engine: Engine, keys: Sequence[Key]) -> list[Key]:
    """Copy keys once more; those that could not be carried.

    With live sync on the lanes own the follower's keys (race rule 2): they are marked as changed, and the lanes waited for.

    Raises:
        TargetError: live sync did not come to them within REPAIR_SECONDS_MAX.
    """
    if engine.route.sync:
        await engine.feed.mark(keys)
        goal = await engine.feed.positions()
        deadline = time.monotonic() + REPAIR_SECONDS_MAX
        while not await journal.reached(engine.store, goal):
            if time.monotonic() > deadline:
                raise TargetError(
                    f"{len(keys)} keys were marked to be copied again, and live sync has not come to them",
                    why=f"{await journal.lag_entries(engine.store, engine.plan.partitions)} entries are before them",
                    next_step="look at the syncer in `exodus status`, then repair again",
                )
            await asyncio.sleep(0.05)
    else:
        await _copy_again(engine, keys)
    wanted = set(keys)
    return [key for key in await dead_letters(engine.store) if key in wanted]


async def _copy_again(engine: Engine, keys: Sequence[Key]) -> None:
    copier = await engine.copier(engine.guard(), name="exodus-repair")
    try:
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            by_db.setdefault(db, []).append(key)
        for db, members in by_db.items():
            for start in range(0, len(members), _BATCH_KEYS):
                part = members[start : start + _BATCH_KEYS]
                report = await copier.sync_keys(db, part)
                broken = {failure.key for failure in report.failed}
                await engine.keep_failures(report.failed)
                await engine.forget_failures((db, key) for key in part if key not in broken)
    finally:
        await copier.close()
