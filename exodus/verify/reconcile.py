"""Verification of both sides, in both directions.

Keys are compared in batches, and large ones in chunks, so memory does not grow with the keyspace. A
difference is looked at again after a pause, since live sync may be about to copy it. Only then is
it a divergence. A divergence names the key and the kind, never a value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from exodus.control import freshness, journal, letters
from exodus.control.changes import Key
from exodus.control.checkpoint import PassProgress, forget_pass, load_pass
from exodus.control.run_ids import note_run_ids
from exodus.control.store import ControlStore, Json
from exodus.engine import Engine
from exodus.errors import SourceError, TargetError
from exodus.native import expiries
from exodus.net.client import answered
from exodus.net.leg import Leg, close_all
from exodus.plan.bounds import (
    EXPIRIES_RESTATEMENTS,
    JOURNAL_RETAIN_MS,
    MARKED_AHEAD_ENTRIES_MAX,
    RECONCILE_EXTRA_KEPT,
    RECONCILE_NAMED,
    RECONCILE_POLL_S,
    REPAIR_SECONDS_MAX,
    VERIFY_BATCH_KEYS,
    VERIFY_LISTED_MAX,
)
from exodus.plan.own_keys import is_own
from exodus.verify.comparison import (
    Comparison,
    ComparisonCounts,
    Depth,
    Divergence,
    entered,
    open_comparison,
)
from exodus.verify.only import Only
from exodus.verify.passes import PassState, VerificationReport, look


async def verify(
    engine: Engine,
    *,
    settle_s: float = 0.5,
    attempts: int = 5,
    known: Collection[Key] = (),
    on_progress: Callable[[int, int], None] | None = None,
    under_way: PassState | None = None,
) -> VerificationReport:
    """Compare every key of both sides.

    Args:
        settle_s: pause before keys that differ are looked at again, doubled each time.
        attempts: how often in all a key may differ before it is called a divergence; fewer, but
            three, where all that differ are dirty.
        known: keys that could not be carried and are listed as such; where they differ they are
            counted apart.
        on_progress: called with keys seen so far and an upper bound of all.
        under_way: where the pass begins and keeps how far it has come; without it, it begins at the
            beginning and keeps nothing.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    began = time.monotonic()
    way = under_way or PassState()
    report, suspects = way.report, way.suspects
    moving: set[Key] = set()
    total = sum(engine.authority_facts.databases.values()) + sum(
        engine.follower_facts.databases.values()
    )

    async def note(found: Sequence[Divergence]) -> None:
        del found  # they are among the suspects
        if on_progress is not None:
            on_progress(report.keys_authority + report.keys_follower, total)
        await way.keep()

    await look(engine, way, note)
    report.looked_at_again = len(suspects)
    if suspects:
        comparison = await open_comparison(engine, depth=report.depth)
        try:
            for attempt in range(attempts - 1):
                await asyncio.sleep(settle_s * 2**attempt)
                synced = await engine.feed.synced()
                suspects = await _again(comparison, list(suspects), report)
                # A key with an entry that was not synced when we looked is dirty, not divergent:
                # its copy is on the way.
                moving = (
                    set((await engine.feed.changes_since(synced)).keys)
                    if engine.route.sync
                    else set()
                )
                if not suspects or (
                    attempt and all(key in moving or key in known for key in suspects)
                ):
                    # A key that is written all the time would be dirty in every look; freshness
                    # compares it after each of its writes
                    break
        finally:
            await comparison.close()
    dirty = {key: found for key, found in suspects.items() if key in moving and key not in known}
    report.keys_not_carried = sum(key in known for key in suspects)
    divergences = {
        key: found for key, found in suspects.items() if key not in moving and key not in known
    }
    report.dirty_total, report.dirty = len(dirty), list(dirty.values())[:VERIFY_LISTED_MAX]
    report.divergences_total, report.divergences = (
        len(divergences),
        list(divergences.values())[:VERIFY_LISTED_MAX],
    )
    report.keys_verified = report.keys_authority - sum(
        found.kind != "extra" for found in suspects.values()
    )
    report.seconds = time.monotonic() - began
    return report


@dataclass
class Marked:
    """What a full comparison marked as changed, and what it left alone."""

    marked: int = 0
    extra: int = 0  # keys that only the follower has, and that were not marked
    extra_keys: list[Key] = field(default_factory=list)  # `RECONCILE_EXTRA_KEPT` of those
    keys: int = 0  # of the authority

    @property
    def names(self) -> str:
        """Return some of the keys that only the follower has."""
        return ", ".join(
            f"{db}:{key.decode('utf-8', 'backslashreplace')}"
            for db, key in self.extra_keys[:RECONCILE_NAMED]
        )


async def mark_differing(
    engine: Engine,
    *,
    remove_extra: bool = True,
    gently: bool = False,
    only: Only | None = None,
) -> Marked:
    """Mark every key that differs as changed, so that live sync copies it. For what changed while
    no journal told of it.

    Args:
        remove_extra: mark keys that only the follower has, too; live sync removes them.
        gently: wait where live sync has much to copy already, so that the control store stays
            small.
        only: the keys to compare; None: all.

    Where slots of a cluster move meanwhile, everything is compared once more.

    Raises:
        SourceError, TargetError: a side was lost; what was marked is marked.
    """
    way, done, layout = PassState(), Marked(), await _layout(engine)

    async def mark(found: Sequence[Divergence]) -> None:
        way.suspects.clear()
        # Exodus's own, of the rehearsal and the lag probe
        probes = engine.plan.rehearsal_prefix.encode()
        extra = (
            []
            if remove_extra
            else [
                each for each in found if each.kind == "extra" and not each.key.startswith(probes)
            ]
        )
        room = RECONCILE_EXTRA_KEPT - len(done.extra_keys)
        done.extra_keys += [(each.db, each.key) for each in extra[:room]]
        done.extra += len(extra)
        while gently and await _behind(engine):
            await asyncio.sleep(RECONCILE_POLL_S)
        await engine.feed.mark(
            [(divergence.db, divergence.key) for divergence in found if divergence not in extra]
        )
        done.marked += len(found) - len(extra)

    await look(engine, way, mark, only)
    while (now := await _layout(engine)) != layout:  # a key that moved may not have been seen
        layout, way, done.extra, done.extra_keys = now, PassState(), 0, []
        await look(engine, way, mark, only)
    done.keys = way.report.keys_authority
    return done


async def forget_deleted(engine: Engine, found: Marked) -> None:
    """Forget those of the extra keys that the follower does not have any more.

    Their deletion was under way while both sides were compared. To be called once the feed has
    delivered it.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    left = [
        (each.db, each.key)
        for each in await spot_check(engine, found.extra_keys)
        if each.kind == "extra"
    ]
    found.extra -= len(found.extra_keys) - len(left)
    found.extra_keys = left


async def _behind(engine: Engine) -> bool:
    at_most = MARKED_AHEAD_ENTRIES_MAX
    return (
        await journal.lag_entries(engine.store, engine.plan.partitions, at_most=at_most) >= at_most
    )


async def _again(
    comparison: Comparison, keys: Sequence[Key], tally: ComparisonCounts
) -> dict[Key, Divergence]:
    by_db: dict[int, list[bytes]] = {}
    for db, key in keys:
        by_db.setdefault(db, []).append(key)
    suspects: dict[Key, Divergence] = {}
    for db, members in by_db.items():
        await comparison.select(db)
        for start in range(0, len(members), VERIFY_BATCH_KEYS):
            for found in await comparison.differences(
                db, members[start : start + VERIFY_BATCH_KEYS], tally
            ):
                suspects[(db, found.key)] = found
    return suspects


async def spot_check(engine: Engine, keys: Sequence[Key], *, slack_ms: int = 0) -> list[Divergence]:
    """Compare some keys now, without a second look. Expiries may differ by `slack_ms`."""
    comparison = await open_comparison(engine, slack_ms=slack_ms)
    try:
        return await compare_now(comparison, keys)
    finally:
        await comparison.close()


async def compare_now(comparison: Comparison, keys: Sequence[Key]) -> list[Divergence]:
    """Return the same over connections that are open already."""
    wanted = [key for key in keys if not is_own(key[1])]
    return list((await _again(comparison, wanted, ComparisonCounts())).values())


async def reconcile(
    engine: Engine,
    name: str,
    *,
    settle_s: float = 0.5,
    depth: Depth = Depth.FULL,
    share: float = 1.0,
    progress: PassProgress | None = None,
) -> Json:
    """Run a pass and keep it as report `verification.NAME`. A clean pass over all keys and values
    closes the gaps that were open before it, and freshness counts from it.

    One that was killed is gone on with, as long as live sync goes on and all that changed since it
    began is in the feed.

    Args:
        settle_s: as in `verify`.
        depth: what is compared of each key.
        share: of all keys, the same ones each time.
        progress: what several processes have looked at already (`parts.py`), of all keys and their
            values.

    Raises:
        SourceError, TargetError: a side was lost, or slots of a cluster moved meanwhile.
        redis.exceptions.RedisError: the store was.
    """
    store = engine.store
    progress = progress or await _progress(engine, name, f"{depth} of {share}")
    since_ms, synced = (
        progress.since_ms,
        {partition: entry_id.encode() for partition, entry_id in progress.synced.items()},
    )
    dead, accepted = await letters.open_letters(store), await letters.accepted_letters(store)
    way = PassState(store, name, progress, depth=depth, share=share)
    report = await verify(
        engine, settle_s=settle_s, known=dead.keys() | accepted.keys(), under_way=way
    )
    await forget_pass(store, name)
    if await _layout(engine) != progress.layout:
        raise SourceError(
            "slots moved, or a node failed over, while both sides were compared",
            why="a key that moved may not have been seen",
            next_step="wait for the end of the reshard, then verify again",
        )
    if report.clean and report.speaks_for_all:
        await note_run_ids(store, engine.run_ids)
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


async def begin_pass(engine: Engine, name: str) -> PassProgress:
    """Return the beginning of a pass over all keys and their values, which several processes do."""
    await forget_pass(engine.store, name)
    return await _progress(engine, name, f"{Depth.FULL} of 1.0")


async def _progress(engine: Engine, name: str, what: str) -> PassProgress:
    """Return where the pass `name` continues: after a killed one, or at the beginning."""
    store, sides = engine.store, (engine.authority_facts, engine.follower_facts)
    of = orjson.dumps(
        [
            engine.route.authority,
            engine.route.writer_epoch,
            *[facts.life for facts in sides],
            what,
            engine.plan.model_dump_json(
                include={"source", "target", "filters", "renames", "allow_nonempty", "slices"}
            ),
        ]
    ).decode()
    layout = await _layout(engine)
    now_ms, kept = await store.now_ms(), await load_pass(store, name)
    # Without live sync nobody knows what changed since; and who looks again much later does not
    # mean to go on.
    holds = (
        kept is not None
        and (kept.of, kept.layout) == (of, layout)
        and engine.route.sync
        and now_ms - kept.at_ms < JOURNAL_RETAIN_MS
    )
    if (
        kept is not None
        and holds
        and await journal.covers(
            store, {partition: entry_id.encode() for partition, entry_id in kept.synced.items()}
        )
    ):
        kept.resumed += 1
        return kept
    synced = await engine.feed.synced()
    return PassProgress(
        of=of,
        layout=layout,
        since_ms=now_ms,
        at_ms=now_ms,
        synced={partition: entry_id.decode() for partition, entry_id in synced.items()},
    )


async def _layout(engine: Engine) -> str:
    """Return which node has which slots on both sides; nothing where there is no cluster."""
    return " / ".join(
        filter(None, [await engine.authority.layout(), await engine.follower.layout()])
    )


async def _listed(store: ControlStore, name: str) -> list[Json]:
    return [orjson.loads(raw) for raw in (await answered(store.client.hgetall(name))).values()]


async def _close_gaps(store: ControlStore, since_ms: int) -> None:
    """Close the gaps that a clean pass over all keys covers, and the gaps of gateways that have
    ended.
    """
    for name, raw in (await answered(store.client.hgetall(store.keys.gap))).items():
        if orjson.loads(raw)["at_ms"] < since_ms:
            await answered(store.client.hdel(store.keys.gap, name))


def keys_of(report: Json) -> list[Key]:
    """Return the keys that a report of `reconcile` lists as divergent."""
    return [(row["db"], bytes.fromhex(row["key_hex"])) for row in report["divergences"]]


async def dead_letters(store: ControlStore) -> list[Key]:
    """Return the keys that could not be carried, and that nobody has accepted."""
    return list(await letters.open_letters(store))


KEPT = "only the {side} has it, and it is kept: exodus repair --remove-extra removes it"


async def keys_only_on_follower(engine: Engine, keys: Sequence[Key]) -> set[Key]:
    """Return those keys that the follower has and the authority does not: to copy them would remove
    the only copy.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    wanted = [key for key in keys if engine.scope.name_conflict(*key) is None]
    authority, follower = await engine.authority_leg(name="exodus-repair"), None
    try:
        follower = await engine.follower.connect(name="exodus-repair")
        lacking = set(wanted) - await _there(authority, {key: key for key in wanted})
        return await _there(follower, {key: engine.scope.target_key(*key) for key in lacking})
    finally:
        await close_all((authority, follower))


async def _there(leg: Leg, places: Mapping[Key, Key]) -> set[Key]:
    """Return the keys that a side has, each asked for at its place there."""
    found: set[Key] = set()
    for db in sorted({db for db, _ in places.values()}):
        if await entered(leg, db):
            mine = [(key, name) for key, (at, name) in places.items() if at == db]
            for start in range(0, len(mine), VERIFY_BATCH_KEYS):
                part = mine[start : start + VERIFY_BATCH_KEYS]
                exist = await leg.pipeline([("EXISTS", name) for _, name in part])
                found.update(key for (key, _), there in zip(part, exist, strict=True) if there == 1)
    return found


async def repair(
    engine: Engine, keys: Sequence[Key], *, remove_extra: bool = False
) -> dict[Key, str]:
    """Copy keys once more; those that were not mended, each with the reason.

    A key that only the follower has is kept, unless a person says that it may go (`remove_extra`):
    the authority may have lost it, or a write that no journal saw may never have come there.

    With live sync on the lanes own the follower's keys (race rule 2): they are marked as changed,
    and the lanes waited for. A replica is written by its source alone: where that propagates
    expiries as the time left, which can be late, it says them once more as absolute times.

    Raises:
        SourceError: the source was lost.
        TargetError: live sync did not come to them within REPAIR_SECONDS_MAX.
    """
    changing: list[Key] = []
    kept = set() if remove_extra else await keys_only_on_follower(engine, keys)
    keys = [key for key in keys if key not in kept]
    if engine.route.sync:
        if engine.route.native and not engine.authority_facts.capabilities.get("pexpiretime"):
            changing = await expiries.restate_expiries(engine.plan, keys)
        await engine.feed.mark(keys)
        goal = await engine.feed.positions()
        deadline = time.monotonic() + REPAIR_SECONDS_MAX
        while not await journal.reached(engine.store, goal):
            if time.monotonic() > deadline:
                raise TargetError(
                    f"{len(keys)} keys were marked to be copied again, and live sync has not come "
                    "to them",
                    why=f"{await journal.lag_entries(engine.store, engine.plan.partitions)} "
                    "entries are before them",
                    next_step="look at the syncer in `exodus status`, then repair again",
                )
            await asyncio.sleep(0.05)
    else:
        await copy_now(engine, keys)
    wanted = set(keys)
    failing = {
        key: str(letter["reason"])
        for key, letter in (await letters.open_letters(engine.store)).items()
        if key in wanted
    }
    extra = dict.fromkeys(sorted(kept), KEPT.format(side=engine.route.follower))
    return {
        **extra,
        **dict.fromkeys(
            changing,
            f"it changed at each of {EXPIRIES_RESTATEMENTS} tries to say its expiry again",
        ),
        **failing,
    }


async def copy_now(engine: Engine, keys: Sequence[Key]) -> int:
    """Copy keys to the follower over connections of our own, where no lane has them to do; how many
    could not be carried and are dead letters.

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
            for start in range(0, len(members), VERIFY_BATCH_KEYS):
                part = members[start : start + VERIFY_BATCH_KEYS]
                report = await copier.sync_keys(db, part)
                broken = {failure.key for failure in report.failed}
                failures += len(broken)
                await engine.keep_failures(report.failed)
                await engine.forget_failures((db, key) for key in part if key not in broken)
    finally:
        await copier.close()
    return failures
