"""Compare: turn shadowing on and off, and read the comparer's results."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

import orjson

from exodus.acceptance import trial_copy
from exodus.control import registry
from exodus.control.changes import Key, unpack
from exodus.control.heartbeats import ComparerHeartbeat
from exodus.control.route import change_route, read_route
from exodus.copy.guard import set_writer_epoch
from exodus.engine import open_engine
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.net.leg import Leg
from exodus.plan.bounds import (
    COMPARE_LOOKS_S,
    COMPARISONS_KEPT,
    TASKS_COMPARISON_EXPIRY_STEP_MS,
    TASKS_COMPARISON_FOLLOW_S,
    TASKS_COMPARISON_LOOK_S,
    TASKS_COMPARISON_LOOKS_MAX,
    TASKS_COMPARISON_POLL_S,
    TASKS_COMPARISON_SETTLE_S,
)
from exodus.plan.vocabulary import JournalMode, Side
from exodus.shadow import divergences
from exodus.shadow.causes import Cause
from exodus.shadow.coverage import coverage
from exodus.shadow.equivalence import Moment, bound_text, convergence
from exodus.shadow.findings import why_not_accepted
from exodus.shadow.investigation import expiry_slack_ms
from exodus.shadow.write_replies import OTHER_STATE
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import spot_check
from tasks.capacity import setup_rows
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task
from tasks.profile import difference, snapshots

_JUDGED_S = sum(COMPARE_LOOKS_S) + 2.0
_OUTCOMES = (
    "compared",
    "by_reply",
    "by_error",
    "equal",
    "inconclusive",
    "not_comparable",
    "not_tried",
    "too_slow",
    "infrastructure",
    "excluded",
    "divergences",
)


def no_row() -> Json:
    """Return the row for a comparison without requests: an empty table has no columns to judge."""
    return {"command": "none", **dict.fromkeys(_OUTCOMES, 0)}


async def _wait(it: Opened, epoch: int) -> None:
    for kind in ("gateway", "comparer"):
        await registry.wait_for(
            it.store,
            kind,
            lambda beat: beat.epoch >= epoch,
            within_s=TASKS_COMPARISON_FOLLOW_S,
            otherwise=f"a {kind} did not follow the route",
        )


async def _dropped(it: Opened) -> int:
    """Return how many sampled requests were not published, since the gateways began, or expired
    before they were taken, in this sampling.
    """
    gateways = await registry.heartbeats(it.store, "gateway")
    comparers = await registry.heartbeats(it.store, "comparer")
    return sum(beat.facts.shadow_dropped for beat in gateways) + sum(
        beat.facts.expired for beat in comparers
    )


async def _watch(it: Opened, seconds: float) -> list[Moment]:
    """Look at the comparers for some seconds, a bounded number of times."""
    loop = asyncio.get_running_loop()
    began, series = loop.time(), []
    while (passed := loop.time() - began) < seconds:
        beats = await registry.heartbeats(it.store, "comparer")
        series.append(
            Moment(
                round(passed, 1),
                sum(beat.facts.dirty for beat in beats),
                sum(beat.facts.pending for beat in beats),
            )
        )
        await asyncio.sleep(
            min(
                max(TASKS_COMPARISON_LOOK_S, seconds / TASKS_COMPARISON_LOOKS_MAX),
                max(0.0, seconds - passed),
            )
        )
    return series


async def _figures(it: Opened, series: list[Moment]) -> Json:
    """Return what this run says of all keys, and what all runs say that are not too old."""
    beats = await registry.heartbeats(it.store, "comparer")
    now_ms, route = await it.store.now_ms(), await read_route(it.store)
    oldest_ms = now_ms - it.plan.evidence_hours_max * 3_600_000
    rows = await divergences.rows(it.store)
    open_keys = {divergences.key_of(row) for row in rows if divergences.is_open(row)}
    unequal, healed = divergences.differed(rows, oldest_ms)
    inconclusive: Counter[str] = Counter()
    for beat in beats:
        inconclusive.update(beat.facts.inconclusive)
    figures = {
        "at_ms": now_ms,
        "salt": route.shadow_salt,
        "keys_judged": sum(beat.facts.keys_judged for beat in beats),
        "keys_open": len(open_keys),
        "divergences_open": sum(map(divergences.is_open, rows)),
        "states_compared": sum(beat.facts.states_compared for beat in beats),
        "away_ms": sum(beat.facts.away_ms for beat in beats),
        "rows_lost": sum(beat.facts.divergences_lost for beat in beats),
        "keys_copied_again": sum(beat.facts.copied_again for beat in beats),
        "inconclusive_why": dict(inconclusive),
        **convergence(series, [lag for beat in beats for lag in beat.facts.lags_ms]),
    }
    pipe = it.store.client.pipeline(transaction=True)
    pipe.rpush(it.store.keys.comparisons, orjson.dumps(figures))
    pipe.ltrim(it.store.keys.comparisons, -COMPARISONS_KEPT, -1)
    await pipe.execute()
    runs = [
        orjson.loads(raw)
        for raw in await answered(it.store.client.lrange(it.store.keys.comparisons, 0, -1))
    ]
    recent = [run for run in runs if run["at_ms"] >= oldest_ms]
    keys = await answered(
        it.store.client.pfcount(*{it.store.keys.judged(run["salt"]) for run in recent})
    )
    return {
        "figures": figures,
        "series": [asdict(moment) for moment in series],
        "runs": recent,
        "bound": bound_text(len(unequal), max(int(keys), len(unequal)), healed=len(healed)),
    }


async def _judged(it: Opened) -> None:
    """Wait until the comparers have judged what was sampled; applications may sample on."""
    deadline = asyncio.get_running_loop().time() + _JUDGED_S
    while asyncio.get_running_loop().time() < deadline:
        beats = await registry.heartbeats(it.store, "comparer")
        if not any(beat.facts.pending for beat in beats):
            return
        await asyncio.sleep(TASKS_COMPARISON_POLL_S)


async def _rows(it: Opened) -> list[Json]:
    """Return command by command what the comparers counted, those with the most replies first."""
    counted: dict[str, Counter[str]] = {}
    for beat in await registry.heartbeats(it.store, "comparer"):
        for name, row in beat.facts.rows.items():
            counted.setdefault(name, Counter()).update(row)
    rows = [
        {"command": name, **{field: row.get(field, 0) for field in _OUTCOMES}}
        for name, row in counted.items()
    ]
    return sorted(rows, key=lambda row: -int(row["compared"]))


def _other_states(comparers: Iterable[ComparerHeartbeat]) -> dict[str, int]:
    """Return command → writes that led to another state when they were run again."""
    found: Counter[str] = Counter()
    for beat in comparers:
        for command, reasons in beat.facts.by_error.items():
            found[command] += reasons.get(OTHER_STATE, 0)
    return dict(found)


@kept_task("Compare sampled requests")
@opens_migration
async def shadow(it: Opened, seconds: float | None) -> Json:
    """Copy sampled keys to the target, compare their requests there, return the rows.

    Raises:
        DecisionRefused: the target has keys of the migration, or is the authority.
    """
    # The route is read first: a change of it after this look refuses ours.
    route = await read_route(it.store)
    if (why := await trial_copy.why_not_now(it.store)) is not None:
        raise DecisionRefused(
            "no sample can be compared now", why=why, next_step="exodus verify compares both sides"
        )
    await set_writer_epoch(Endpoint(Side.TARGET, it.plan.target), it.plan.name, route.writer_epoch)
    salt = route.epoch + 1
    route = await change_route(
        it.store,
        route,
        route.next(
            why="compare",
            journal=JournalMode.SAMPLE,
            shadow_rate=it.plan.sample,
            shadow_salt=salt,
            shadow_include=it.plan.sample_include,
            shadow_exclude=it.plan.sample_exclude,
            shadow_scripts=it.plan.compare_scripts,
        ),
    )
    try:
        await _wait(it, route.epoch)
        before = await snapshots(it)
        dropped = await _dropped(it)
        series = await _watch(it, seconds or it.plan.observe_seconds)
        await _judged(it)
        rows = await _rows(it)
        converged = await _convergence(it)
        gateways = await registry.heartbeats(it.store, "gateway")
        comparers = await registry.heartbeats(it.store, "comparer")
        calls = difference(before, await snapshots(it))
        return {
            "rows": rows,
            "coverage": coverage(
                {row["command"]: row["calls"] for row in calls},
                rows,
                [beat.facts.shadow_left_out for beat in gateways],
                [beat.facts.by_error for beat in comparers],
                [beat.facts.why_not_tried for beat in comparers],
            ),
            "other_states": _other_states(comparers),
            "dropped": await _dropped(it) - dropped,
            "convergence": converged,
            **await _figures(it, series),
        }
    finally:
        await _end(it, salt)


async def _end(it: Opened, salt: int) -> None:
    """End the sampling of this salt. Another phase may have ended it, and have begun its own."""
    now = await read_route(it.store)
    if now.shadow_salt != salt or now.journal is not JournalMode.SAMPLE:
        return
    over = now.next(
        why="compare is over", journal=JournalMode.OFF, shadow_rate=0.0, shadow_scripts=False
    )
    after = await change_route(it.store, now, over)
    await _wait(it, after.epoch)


async def _convergence(it: Opened) -> Json:
    """Read the states of the sampled keys on both sides: are writes converging?

    A key that is written all the time differs at any one look. So the verdict is of keys that stood
    still: what did not change at the authority from the beginning of a pause to its end has to be
    on the target by then.
    """
    # Of a key that a sampled request only names too, the journal did not tell.
    sampled = (await read_route(it.store)).sample.test()
    keys = [key for key in await _listed(it, it.store.keys.seeded) if sampled(*key)]
    engine = await open_engine(it.store, it.plan)
    slack_ms = expiry_slack_ms(engine)
    async with await engine.authority_leg(name="exodus-compare") as leg:
        differ, written = await spot_check(engine, keys, slack_ms=slack_ms), set()
        for pause in (1, 2, 4):
            if not differ:
                break
            suspects = [(found.db, found.key) for found in differ]
            before = await _fingerprints(leg, suspects)
            await asyncio.sleep(TASKS_COMPARISON_SETTLE_S * pause)
            differ = await spot_check(engine, suspects, slack_ms=slack_ms)
            after = await _fingerprints(leg, [(found.db, found.key) for found in differ])
            written = {key for key, fingerprint in after.items() if fingerprint != before[key]}
    known = await divergences.open_rows(it.store)
    for found in differ:
        key = (found.db, found.key)
        if key not in written and divergences.row_id(key, divergences.STATE) not in known:
            await divergences.note(
                it.store,
                key,
                divergences.STATE,
                kind=f"the state differs: {found.kind}",
                cause=Cause.UNKNOWN,
                detail=found.detail,
            )
    return {
        "sampled_keys": len(keys),
        "differ": [found.as_json() for found in differ if (found.db, found.key) not in written],
        "inconclusive": [found.as_json() for found in differ if (found.db, found.key) in written],
    }


async def _fingerprints(leg: Leg, keys: list[Key]) -> dict[Key, object]:
    """Return a digest of value and expiry of each key.

    It stays the same while nobody writes the key.
    """
    found: dict[Key, object] = {}
    for db in {db for db, _ in keys}:
        await leg.select(db)
        names = [name for at, name in keys if at == db]
        now_ms = await leg.call("TIME")
        at_ms = int(now_ms[0]) * 1000 + int(now_ms[1]) // 1000
        for name, dump, left_ms in zip(
            names,
            await leg.pipeline([("DUMP", name) for name in names]),
            await leg.pipeline([("PTTL", name) for name in names]),
            strict=True,
        ):
            expires = (
                round((at_ms + left_ms) / TASKS_COMPARISON_EXPIRY_STEP_MS)
                if isinstance(left_ms, int) and left_ms > 0
                else left_ms
            )
            found[(db, name)] = (
                hashlib.sha256(dump).digest() if isinstance(dump, bytes) else None,
                expires,
            )
    return found


@kept_task("List divergences")
@opens_migration
async def list_divergences(it: Opened) -> list[Json]:
    """Return the ledger of divergences: open, healed and accepted rows."""
    return await divergences.rows(it.store)


async def _unlink(it: Opened, keys: Iterable[Key]) -> None:
    """Remove keys of the target, given with their places there."""
    by_db: dict[int, list[bytes]] = {}
    for db, key in keys:
        by_db.setdefault(db, []).append(key)
    target = it.endpoint(Side.TARGET)
    for db, names in by_db.items():
        async with await target.connect(db=db, name="exodus-compare") as leg:
            for start in range(0, len(names), 500):
                await leg.call("UNLINK", *names[start : start + 500])


async def _listed(it: Opened, name: str) -> list[Key]:
    packed = await answered(it.store.client.smembers(name))
    return [key for one in packed for key in unpack(one)]


@kept_task("Remove the sample from the target")
@opens_migration
async def remove_sample(it: Opened) -> int:
    """Remove the keys that Compare copied to the target; return their number.

    A comparer that was killed leaves scratch copies behind. They are removed too.
    """
    names = it.store.keys
    seeded, scratch = await _listed(it, names.seeded), await _listed(it, names.scratch)
    await _unlink(it, [it.plan.scope.target_key(*key) for key in seeded] + scratch)
    await answered(
        it.store.client.delete(names.seeded, names.seeding, names.sampling, names.scratch)
    )
    return len(seeded)


@kept_task("Check the findings")
@opens_migration
async def why_findings_stand(
    it: Opened, found: list[Json], accepted: str, attempt: int
) -> str | None:
    """Return why an answer with these names is invalid, or None.

    A finding that was healed meanwhile needs no name. Kept for each answer: a refused answer stays
    refused.
    """
    del attempt
    rows = await divergences.rows(it.store)
    open_names = {divergences.name_of(row) for row in rows if divergences.is_open(row)}
    # What is no row of the ledger stands, unless it is a check that holds now.
    beside = {row["name"] for row in found} - {divergences.name_of(row) for row in rows}
    if beside:
        beside -= {row["check"] for row in await setup_rows(it) if row["ok"]}
    return why_not_accepted(found, accepted, still_open=open_names | beside)


@kept_task("Accept findings")
@opens_migration
async def accept_findings(it: Opened, accepted: str, by: str) -> list[str]:
    """Note in the ledger which divergences a person accepted; return their names."""
    return await divergences.accept(it.store, accepted, by)
