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

from exodus.config import JOURNAL_RETAIN_MS, REPAIR_SECONDS_MAX, RESERVED_PREFIX
from exodus.control import freshness, journal, letters
from exodus.control.changes import Key
from exodus.control.checkpoint import PassProgress, Walk, forget_pass, load_pass, save_pass
from exodus.control.store import ControlStore, Json, answered
from exodus.ending import end_all
from exodus.endpoint import Endpoint
from exodus.errors import TargetError
from exodus.sync import native
from exodus.sync.comparison import Comparison, Divergence, Tally, open_comparison, open_surplus
from exodus.sync.engine import Engine
from exodus.sync.pace import Pace
from exodus.sync.read import Batch
from exodus.sync.scan import scan_once, without_own

_BATCH_KEYS = 500
_LISTED_MAX = 1_000
_KEEP_EVERY_S = 0.5
_COUNTS = ("keys_authority", "keys_follower", "keys_spared", "keys_left_behind", "keys_with_ttl", "ttl_drift_ms_max")


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
    resumed: int = 0  # times a process went on where another had ended
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
            "resumed": self.resumed,
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
    under_way: UnderWay | None = None,
) -> VerificationReport:
    """Compare every key of both sides.

    Args:
        settle_s: pause before keys that differ are looked at again, doubled each time.
        attempts: how often in all a key may differ before it is called a divergence; fewer, but three, where all that differ are dirty.
        known: keys that could not be carried and are listed as such; where they differ they are counted apart.
        on_progress: called with keys seen so far and an upper bound of all.
        under_way: where the pass begins and keeps how far it has come; without it, it begins at the beginning and keeps nothing.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    began = time.monotonic()
    way = under_way or UnderWay()
    report, suspects = way.report, way.suspects
    moving: set[Key] = set()
    total = sum(engine.authority_facts.databases.values()) + sum(engine.follower_facts.databases.values())
    comparison = await open_comparison(engine)

    async def note(found: Sequence[Divergence]) -> None:
        del found  # they are among the suspects
        if on_progress is not None:
            on_progress(report.keys_authority + report.keys_follower, total)
        await way.keep()

    try:
        await _look(engine, comparison, way, note)
        report.looked_at_again = len(suspects)
        for attempt in range(attempts - 1):
            if not suspects:
                break
            await asyncio.sleep(settle_s * 2**attempt)
            synced = await engine.feed.synced()
            suspects = await _again(comparison, list(suspects), report)
            # A key with an entry that was not synced when we looked is dirty, not divergent: its copy is on the way.
            moving = set((await engine.feed.changes_since(synced)).keys) if engine.route.sync else set()
            if attempt and all(key in moving or key in known for key in suspects):
                break  # a key that is written all the time would be dirty in every look; freshness compares it after each of its writes
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


class UnderWay:
    """What a pass has found so far and how far it has come, at any moment between two batches. `kept` is where it stands in the control store."""

    def __init__(self, store: ControlStore | None = None, name: str = "", kept: PassProgress | None = None) -> None:
        self.report = VerificationReport()
        self.suspects: dict[Key, Divergence] = {}
        self.forwards, self.backwards = Walk(), Walk()
        self._store, self._name, self._kept = store, name, kept
        self._saved = time.monotonic()
        if kept is not None:
            self.forwards, self.backwards = kept.forwards, kept.backwards
            self.suspects = {(db, bytes.fromhex(key)): Divergence(db, bytes.fromhex(key), kind, text) for db, key, kind, text in kept.suspects}
            for field_name, count in kept.counts.items():
                setattr(self.report, field_name, count)
            self.report.by_type.update(kept.by_type)
            self.report.excluded.update(kept.excluded)
            self.report.resumed = kept.resumed

    def add(self, walk: Walk, cursor: int, tally: Tally, found: Sequence[Divergence], **counts: int) -> None:
        """A batch was looked at; `cursor` is where its walk goes on, 0 at the end of a database. All at once: nothing is counted twice or lost."""
        report = self.report
        for name, count in counts.items():
            setattr(report, name, getattr(report, name) + count)
        report.by_type.update(tally.by_type)
        report.excluded.update(tally.excluded)
        report.keys_with_ttl += tally.keys_with_ttl
        report.ttl_drift_ms_max = max(report.ttl_drift_ms_max, tally.ttl_drift_ms_max)
        self.suspects.update({(divergence.db, divergence.key): divergence for divergence in found})
        walk.cursor = cursor
        if not cursor:
            walk.databases = (walk.databases or [])[1:]

    async def keep(self) -> None:
        """Write it down now and then, where that is wanted."""
        store, kept = self._store, self._kept
        if store is None or kept is None or time.monotonic() - self._saved < _KEEP_EVERY_S or len(self.suspects) > _LISTED_MAX:
            return  # with so many differences it is not worth going on with
        self._saved = time.monotonic()
        kept.at_ms = await store.now_ms()
        kept.counts = {name: getattr(self.report, name) for name in _COUNTS}
        kept.by_type, kept.excluded = dict(self.report.by_type), dict(self.report.excluded)
        kept.suspects = [(found.db, found.key.hex(), found.kind, found.detail) for found in self.suspects.values()]
        kept.forwards, kept.backwards = self.forwards, self.backwards
        await save_pass(store, self._name, kept)


async def _look(engine: Engine, comparison: Comparison, way: UnderWay, note: Callable[[Sequence[Divergence]], Awaitable[None]]) -> None:
    """Look at every key once, in both directions; `note` is told what differs, a batch and database at a time."""
    pace = Pace(engine.store, engine.authority, engine.plan.budget, what="verification")

    async def forwards() -> None:
        walk = way.forwards
        if walk.databases is None:
            walk.databases = await _databases(engine.authority)
        while walk.databases:
            db = walk.databases[0]
            async for cursor, seen, theirs, tally in _side_by_side(comparison, db, walk.cursor):
                await pace.turn()
                found = await comparison.compare_batch(db, seen, theirs, tally)
                there = len(seen.keys) - (seen.kinds.count(b"none") if engine.scope else 0)
                way.add(walk, cursor, tally, found, keys_authority=there)
                await note(found)

    async def backwards() -> None:
        # Keys that both sides have are compared forwards; only those that should not be there are of interest.
        walk = way.backwards
        if walk.databases is None:
            walk.databases = await _databases(engine.follower)
        surplus = await open_surplus(engine, name="exodus-verify")
        try:
            async with await (await engine.follower.nodes())[0].connect(name="exodus-verify") as leg:
                while walk.databases:
                    db = walk.databases[0]
                    await leg.select(db)
                    cursor, scanned = await scan_once(leg, walk.cursor, _BATCH_KEYS)
                    await pace.turn()
                    # SCAN may give a key twice in one call while the table grows.
                    keys = without_own(list(dict.fromkeys(scanned)))
                    before = surplus.spared, surplus.left_behind
                    found = [found for _, found in await surplus.among(db, keys)]
                    spared, left_behind = surplus.spared - before[0], surplus.left_behind - before[1]
                    way.add(walk, cursor, Tally(), found, keys_follower=len(keys), keys_spared=spared, keys_left_behind=left_behind)
                    await note(found)
        finally:
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
    way, marked = UnderWay(), 0
    comparison = await open_comparison(engine)

    async def mark(found: Sequence[Divergence]) -> None:
        nonlocal marked
        await engine.feed.mark([(divergence.db, divergence.key) for divergence in found])
        marked += len(found)
        way.suspects.clear()

    try:
        await _look(engine, comparison, way, mark)
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


async def _side_by_side(comparison: Comparison, db: int, cursor: int) -> AsyncIterator[tuple[int, Batch, Batch, Tally]]:
    """Batches of the authority's keys with the follower's, and the cursor after them; the authority reads the next while the follower reads this."""
    await comparison.select(db)
    tally = Tally()
    cursor, seen = await comparison.scan(db, cursor, _BATCH_KEYS, tally)
    while cursor:
        its_tally = Tally()
        theirs, (after, following) = await asyncio.gather(comparison.follow(db, seen), comparison.scan(db, cursor, _BATCH_KEYS, its_tally))
        yield cursor, seen, theirs, tally
        cursor, seen, tally = after, following, its_tally
    yield 0, seen, await comparison.follow(db, seen), tally


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


async def reconcile(engine: Engine, name: str, *, settle_s: float = 0.5) -> Json:
    """A pass that counts: clean, it closes the gaps that were open before it, and freshness counts from it. Kept as report `verification.NAME`.

    One that was killed is gone on with, as long as live sync goes on and all that changed since it began is in the feed. `settle_s` as in `verify`.

    Raises:
        SourceError, TargetError: a side was lost.
        redis.exceptions.RedisError: the store was.
    """
    store = engine.store
    progress = await _progress(engine, name)
    since_ms, synced = progress.since_ms, {partition: entry_id.encode() for partition, entry_id in progress.synced.items()}
    dead, accepted = await letters.open_letters(store), await letters.accepted_letters(store)
    report = await verify(engine, settle_s=settle_s, known=dead.keys() | accepted.keys(), under_way=UnderWay(store, name, progress))
    await forget_pass(store, name)
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


async def _progress(engine: Engine, name: str) -> PassProgress:
    """Where the pass `name` goes on: what a killed one has left, or the beginning."""
    store, sides = engine.store, (engine.authority_facts, engine.follower_facts)
    of = orjson.dumps([
        engine.route.authority, engine.route.writer_epoch, *[facts.run_id for facts in sides],
        engine.plan.model_dump_json(include={"source", "target", "filters", "renames", "allow_nonempty"}),
    ]).decode()  # fmt: skip
    now_ms, kept = await store.now_ms(), await load_pass(store, name)
    # Without live sync nobody knows what changed since; and who looks again much later does not mean to go on.
    holds = kept is not None and kept.of == of and engine.route.sync and now_ms - kept.at_ms < JOURNAL_RETAIN_MS
    if kept is not None and holds and await journal.covers(store, {partition: entry_id.encode() for partition, entry_id in kept.synced.items()}):
        kept.resumed += 1
        return kept
    synced = await engine.feed.synced()
    return PassProgress(of=of, since_ms=now_ms, at_ms=now_ms, synced={partition: entry_id.decode() for partition, entry_id in synced.items()})


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

    With live sync on the lanes own the follower's keys (race rule 2): they are marked as changed, and the lanes waited for. A replica is written by
    its source alone: where that propagates expiries as the time left, which can be late, it says them once more as absolute times.

    Raises:
        SourceError: the source was lost.
        TargetError: live sync did not come to them within REPAIR_SECONDS_MAX.
    """
    if engine.route.sync:
        if engine.route.native and not engine.authority_facts.capabilities.get("pexpiretime"):
            await native.restate_expiries(engine.plan, keys)
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
        await copy_now(engine, keys)
    wanted = set(keys)
    return [key for key in await dead_letters(engine.store) if key in wanted]


async def copy_now(engine: Engine, keys: Sequence[Key]) -> int:
    """Copy keys to the follower over connections of our own, where no lane has them to do; how many could not be carried and are dead letters.

    Raises:
        EpochEnded: the writers' right to the follower had ended.
        SourceError, TargetError: a side was lost.
    """
    failures = 0
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
                failures += len(broken)
                await engine.keep_failures(report.failed)
                await engine.forget_failures((db, key) for key in part if key not in broken)
    finally:
        await copier.close()
    return failures
