"""Turn live sync on and off, and verify that both sides are equal."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import unmapped

from exodus.backfill import migrate, runs
from exodus.backfill.progress import ProgressSample
from exodus.backfill.progress_view import count_keys, look_at_verification
from exodus.control import freshness, journal, letters, registry
from exodus.control.changes import Barrier, Key
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.cutover.feed_choice import choose_feeds, chosen_feed
from exodus.cutover.fence import blocks_exodus, read_record
from exodus.cutover.fence_cluster import fence_for
from exodus.cutover.preconditions import check_fresh, wait_until_fresh
from exodus.cutover.rehearsal_report import check_rehearsal
from exodus.engine import open_engine
from exodus.errors import DecisionRefused
from exodus.feeds.feed import JournalFeed, begin_feed, prove, prove_nodes
from exodus.live import server_runs
from exodus.live.costly_keys import text_of
from exodus.live.rescan import rescan
from exodus.native import possible, replica
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.bounds import (
    TASKS_LIVE_SYNC_FOLLOW_S,
    TASKS_LIVE_SYNC_PROOF_S,
    TASKS_LIVE_SYNC_REPAIR_ROUNDS,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import (
    CopyStrategy,
    Feed,
    JournalMode,
    Phase,
    Side,
    UserRole,
    WorkersKind,
)
from exodus.rehearsal.journal_proof import prove_listeners
from exodus.rehearsal.nodes import find_nodes
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import empty_database
from exodus.verify.parts import Found, VerifyPart, merge_parts, plan_parts, read_part
from exodus.verify.reconcile import KEPT, dead_letters, keys_of, mark_differing, reconcile, repair
from tasks.budget import budget_heard
from tasks.context import Json, Opened, live_task, opens_migration
from tasks.kept import kept_task
from tasks.native import REPORT as NATIVE_REPORT
from tasks.progress import telling, watched
from tasks.workers import workers_of


async def _everybody(it: Opened, epoch: int) -> None:
    for kind in ("gateway", "syncer"):
        await registry.wait_for(
            it.store,
            kind,
            lambda beat: beat.epoch >= epoch,
            within_s=TASKS_LIVE_SYNC_FOLLOW_S,
            otherwise=f"a {kind} did not follow the route",
            at_least=int(kind == "syncer" or it.plan.has_gateways),
        )


async def _any_alive(it: Opened, kind: str) -> bool:
    now_ms = await it.store.now_ms()
    return any(not beat.stale(now_ms) for beat in await registry.heartbeats(it.store, kind))


@kept_task("Start live sync")
@opens_migration
async def start_live_sync(it: Opened) -> Json:
    """Turn the journal on in every gateway, start the syncers, and prove the feed with a probe key.

    It runs before the first copy (race rule 3).

    Raises:
        DecisionRefused: the target is the authority, or the feed does not work.
    """
    route = await read_route(it.store)
    if route.authority is not Side.SOURCE:
        raise DecisionRefused(
            "the target is already the authority",
            why=f"route epoch {route.epoch}",
            next_step="exodus start rollback, or exodus start commit",
        )
    await _suspend_fence(it)
    before = await runs.current(it.store)
    if not route.sync:
        # From here on Exodus may replace the target's keys, also when this phase starts
        # again.
        writer = route.writer_epoch + 1
        by_replica = it.plan.strategy is CopyStrategy.NATIVE
        if by_replica:
            await possible.check_possible(it.plan, it.store)
        if it.plan.strategy is CopyStrategy.MIGRATE:
            await migrate.check_possible(it.plan)
        await runs.begin(it.store, it.plan, epoch=route.epoch, writer_epoch=writer)
        await server_runs.begin(
            it.store,
            {side: (await it.endpoint(side).facts()).life for side in Side},
        )
        feeds = await choose_feeds(it.store, it.plan)
        await begin_feed(it.store, it.plan, feeds[Side.SOURCE].feed)
        await freshness.forget_pass(it.store)
        # A new copy may succeed: accept them again
        await answered(it.store.client.delete(it.store.keys.accepted))
        if by_replica:
            await replica.grant_writes(it.plan, writer)
            await it.store.save_report(NATIVE_REPORT, {"at_ms": await it.store.now_ms()})
        else:
            await set_writer_epoch(Endpoint(Side.TARGET, it.plan.target), it.plan.name, writer)
        on = route.next(
            why="migrate: live sync",
            journal=JournalMode.ALL,
            sync=True,
            native=by_replica,
            writer_epoch=writer,
            feed=feeds[Side.SOURCE].feed,
        )
        route = await change_route(it.store, route, on)
    await _everybody(it, route.epoch)
    if route.native:
        await replica.attach(it.plan, route.writer_epoch)
    elif before is not None:
        engine = await open_engine(it.store, it.plan, route)
        # Keys that an earlier attempt copied and that were deleted since: no scan of the
        # source finds them.
        if await server_runs.may_remove(engine):
            await rescan(engine, Barrier("flushall"))
    if it.plan.strategy is CopyStrategy.MIGRATE:
        await migrate.prove(await open_engine(it.store, it.plan, route))
    key = await _prove(it, route)
    now = await runs.current(it.store) or await runs.begin(
        it.store, it.plan, epoch=route.epoch, writer_epoch=route.writer_epoch
    )
    kept = before is not None and before.run == now.run
    return {
        "epoch": route.epoch,
        "writer_epoch": route.writer_epoch,
        "feed": str(route.feed),
        "feeds": [(await chosen_feed(it.store, it.plan, side)).text(side) for side in Side],
        "proved_by": key,
        "run": now.run,
        "kept": kept and not route.native,
        "native": route.native,
    }


async def _prove(it: Opened, route: Route) -> str:
    """Prove the change feed in force; return the probe keys that came."""
    feed = JournalFeed(it.store, it.plan.partitions)
    prefix, within_s = it.plan.rehearsal_prefix, TASKS_LIVE_SYNC_PROOF_S
    source = it.endpoint(Side.SOURCE)
    if source.cluster is not None:
        found = (
            await prove_listeners(
                feed, it.plan, await find_nodes(it.store, it.plan), within_s=within_s
            )
            if route.feed is Feed.GATEWAY
            else await prove_nodes(feed, source, prefix, within_s=within_s)
        )
        return ", ".join(found)
    # The gateway's journal sees what passes a gateway. The login is Exodus's own, which the
    # source checks.
    through = it.plan.through_gateway(Side.SOURCE) if route.feed is Feed.GATEWAY else it.plan.source
    undeclared = route.feed is not Feed.GATEWAY
    client = make_side_client(
        through, field="source", db=await empty_database(source) if undeclared else 0
    )
    try:
        return await prove(feed, client, prefix, within_s=within_s, undeclared=undeclared)
    finally:
        await client.aclose()


async def _suspend_fence(it: Opened) -> None:
    """Lift a fence on the target that blocks Exodus too. After a rollback it protects nothing."""
    record = await read_record(it.store, Side.TARGET)
    if record is not None and await blocks_exodus(it.store, Side.TARGET):
        async with fence_for(it.store, Side.TARGET, it.plan) as fence:
            await fence.lower(record)


@live_task(name="Prove the change feed of the way back")
@opens_migration
async def prove_way_back(it: Opened) -> str:
    """Choose and prove the feed of the way back; return its description."""
    if (await read_route(it.store)).authority is Side.SOURCE:
        await choose_feeds(it.store, it.plan, [Side.TARGET])
    return (await chosen_feed(it.store, it.plan, Side.TARGET)).text(Side.TARGET)


@kept_task("Mark keys that changed while live sync was off")
@opens_migration
async def mark_changed_meanwhile(it: Opened) -> int:
    """Compare every key of a kept copy after live sync was off; mark those that differ.

    It returns their number.

    It runs after the slices are done.
    """
    kept = await runs.current(it.store)
    if kept is None or not kept.to_compare:
        return 0
    # A replica was filled again.
    marked = (
        0
        if (await read_route(it.store)).native
        else (await mark_differing(await open_engine(it.store, it.plan))).marked
    )
    await runs.compared(it.store, kept)
    return marked


@kept_task("Wait for live sync")
@opens_migration
async def wait_caught_up(it: Opened, within_s: float = 60.0) -> Json:
    """Wait until the present content of the journal is synced.

    Applications write on, so it may never be empty.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def compares() -> str:
        return f"waiting for live sync: {await server_runs.left(it.store, only_comparing=True)}"

    async with telling(compares):
        while await server_runs.left(it.store, only_comparing=True) and await _any_alive(
            it, "syncer"
        ):
            await asyncio.sleep(0.1)
    goal = await journal.ends(it.store, it.plan.partitions)
    began = loop.time()

    async def how_far() -> str:
        return (
            "waiting for live sync: "
            f"{await journal.lag_entries(it.store, it.plan.partitions)} entries left"
        )

    async with telling(how_far):
        while (
            not (caught_up := await journal.reached(it.store, goal))
            and loop.time() - began < within_s
        ):
            await asyncio.sleep(0.1)
    lag = await journal.lag_entries(it.store, it.plan.partitions)
    return {
        "caught_up": caught_up,
        "lag_entries": lag,
        "seconds": round(loop.time() - began, 2),
    }


@kept_task("Plan the verification")
@opens_migration
async def plan_verification(it: Opened, name: str) -> list[Json]:
    """Begin a verification in parts for the plan's workers.

    No parts with threads, or if live sync is off.
    """
    workers = it.plan.workers
    if workers.kind is WorkersKind.THREADS or not (await read_route(it.store)).sync:
        return []
    engine = await open_engine(it.store, it.plan.acting(UserRole.VERIFIER))
    return [part.model_dump(mode="json") for part in await plan_parts(engine, name, it.plan.slices)]


@kept_task("Compare part", run_name="Compare {part[name]}", retries=2, retry_delay_seconds=2)
@opens_migration
async def compare_part(it: Opened, part: Json) -> Json:
    """Compare the slices of one part, on the worker that takes it."""
    async with budget_heard(it.store):
        engine = await open_engine(it.store, it.plan.acting(UserRole.VERIFIER))
        found = await read_part(engine, VerifyPart.model_validate(part))
        return {
            **found.model_dump(mode="json"),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }


def _look_at(name: str) -> Callable[[ControlStore, Plan], Awaitable[ProgressSample | None]]:
    totals: list[int] = []

    async def look(store: ControlStore, plan: Plan) -> ProgressSample | None:
        if not totals:
            totals.append(await count_keys(plan, Side.SOURCE, Side.TARGET))
        return await look_at_verification(store, name, totals[0])

    return look


def verify_all(migration: str, name: str) -> Json:
    """Compare every key in both directions with the plan's workers. Call it from a flow.

    The report is kept as `verification.NAME`; `workers` names the workers.
    """
    parts = plan_verification(migration, name)
    if not parts:
        return verify_sides(migration, name)
    compare: Any = compare_part
    with workers_of(migration) as workers, watched(migration, name, "verification", _look_at(name)):
        futures = workers.map(compare, {"part": parts, "migration": unmapped(migration)})
        found = [future.result() for future in futures]
    return verify_sides(migration, name, found)


@kept_task("Verify both sides", but=("found",))
def verify_sides(migration: str, name: str, found: list[Json] | None = None) -> Json:
    """Compare every key in both directions, or combine the results of parts.

    Differences are checked again.

    The report is kept as `verification.NAME`: evidence for a form, with its time.
    """
    if found:
        return _verified(migration, name, found)
    with watched(migration, name, "verification", _look_at(name)):
        return _verified(migration, name, [])


@opens_migration
async def _verified(it: Opened, name: str, found: list[Json]) -> Json:
    async with budget_heard(it.store):
        engine = await open_engine(it.store, it.plan.acting(UserRole.VERIFIER))
        if not found:
            return await reconcile(engine, name)
        parts = [
            Found.model_validate({key: part[key] for key in Found.model_fields}) for part in found
        ]
        report = await reconcile(engine, name, progress=await merge_parts(it.store, name, parts))
        report["workers"] = sorted({part["worker"] for part in found})
        await it.store.save_report(f"verification.{name}", report)
        return report


@kept_task("Wait until written keys are compared")
@opens_migration
async def wait_compared(it: Opened, within_s: float = 60.0) -> Json:
    """Wait until every key written before now was found equal.

    With the last clean pass this covers all keys.

    Returns:
        `equal`: false if there is no clean pass, or a key still differed at the end of the time.
        Then only a pass over all keys can tell.
    """
    began = time.monotonic()

    async def how_far() -> str:
        return (
            "waiting until written keys are compared: "
            f"{await freshness.read_freshness(it.store, it.plan.partitions)}"
        )

    async with telling(how_far):
        while True:
            elapsed = time.monotonic() - began
            fresh = await freshness.read_freshness(it.store, it.plan.partitions)
            equal = (
                fresh.pass_age_s is not None
                and not fresh.never
                and not fresh.gaps
                and fresh.oldest_dirty_s < elapsed
            )
            if equal or fresh.pass_age_s is None or fresh.overflowed or elapsed > within_s:
                return {"equal": equal, "text": str(fresh), "seconds": round(elapsed, 1)}
            await asyncio.sleep(0.2)


@kept_task("Repair divergences")
@opens_migration
async def repair_divergences(it: Opened, name: str) -> Json:
    """Copy the divergences and the dead letters again and verify, as long as the number falls."""
    async with budget_heard(it.store):
        engine = await open_engine(it.store, it.plan)
        found = await it.store.report(f"verification.{name}") or await reconcile(engine, name)
        repaired = 0
        left_alone: dict[Key, str] = {}
        for _ in range(TASKS_LIVE_SYNC_REPAIR_ROUNDS):
            before = found["divergences_total"] + len(found["dead_letters"])
            keys = list(dict.fromkeys([*keys_of(found), *await dead_letters(it.store)]))
            left_alone = await repair(engine, keys)
            repaired += len(keys) - len(left_alone)
            found = await reconcile(engine, name)
            left = found["divergences_total"] + len(found["dead_letters"])
            if not left or left >= before:
                break
        kept = [
            key for key, why in left_alone.items() if why == KEPT.format(side=engine.route.follower)
        ]
        if kept and found["divergences_total"]:
            named = ", ".join(
                f"{db}:{key.decode('utf-8', 'backslashreplace')}" for db, key in kept[:10]
            )
            raise DecisionRefused(
                f"{len(kept)} keys exist only on the {engine.route.follower}: {named}",
                why="the other side may have lost them, or an unreported write made "
                "them; Exodus does not remove them without your order",
                next_step="list them with exodus verify, remove them with exodus repair "
                "--remove-extra, then start the phase again",
            )
        return {**found, "repaired": repaired}


@kept_task("Check accepted dead letters")
@opens_migration
async def why_letters_stand(it: Opened, accepted: str, attempt: int) -> str | None:
    """Return why an answer with these names is invalid, or None.

    Kept for each answer: a refused answer stays refused.
    """
    del attempt
    return await letters.why_not_accepted(it.store, accepted)


@kept_task("Accept dead letters")
@opens_migration
async def accept_letters(it: Opened, accepted: str, by: str) -> list[str]:
    """Move dead letters that a person accepted to their own list; return the names."""
    return await letters.accept(it.store, accepted, by)


@kept_task("Count filtered keys")
@opens_migration
async def count_left_behind(it: Opened) -> Json:
    """Return whether the plan has filters, and the filtered keys by rule."""
    found = await it.store.report(f"verification.{Phase.MIGRATE}") or {}
    rules = found.get("excluded", {})
    rows = [{"rule": rule, "keys": count} for rule, count in rules.items()] or [
        {"rule": "none matched a key", "keys": 0}
    ]
    return {"filtered": bool(it.plan.filters), "keys": sum(rules.values()), "rows": rows}


@live_task(name="Find keys that are expensive to copy")
@opens_migration
async def say_heavy_keys(it: Opened) -> list[str]:
    """Return lines about large keys that live sync copies again and again."""
    return [
        text_of(row)
        for beat in await registry.heartbeats(it.store, "syncer")
        for row in beat.facts.heavy
    ]


@live_task(name="Check rehearsal age")
@opens_migration
async def check_rehearsed(it: Opened) -> str:
    """Return when the switch was rehearsed, in words.

    Raises:
        DecisionRefused: it was never rehearsed, too long ago, of something else, or it failed.
    """
    if (await read_route(it.store)).authority is Side.TARGET:
        return "already cut over"  # the flow runs from the top again after its second decision
    async with (
        await it.endpoint(Side.SOURCE).connect(name="exodus-rehearsal") as source,
        await it.endpoint(Side.TARGET).connect(name="exodus-rehearsal") as target,
    ):
        return await check_rehearsal(it.store, it.plan, source, target)


@live_task(name="Check verification freshness")
@opens_migration
async def measure_freshness(it: Opened) -> Json:
    """Return how much is verified since its last write.

    Raises:
        DecisionRefused: keys were never verified, or fewer than the plan requires.
    """
    if (await read_route(it.store)).authority is Side.TARGET:
        # The cutover is done; the switch has checked it
        fresh = await freshness.read_freshness(it.store, it.plan.partitions)
    else:
        await wait_until_fresh(it.store, it.plan)
        fresh = await check_fresh(it.store, it.plan)
    return {**fresh.model_dump(), "share": fresh.share, "text": str(fresh)}
