"""The switch, its rehearsal, the forced way back, the evidence bundle, and what ends a migration: finalising and cleaning up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from exodus.config import RESERVED_PREFIX, Hold, JournalMode, Phase, Side
from exodus.control import ledger, registry
from exodus.control.ledger import LedgerEntry
from exodus.control.route import change_route, read_route
from exodus.control.store import answered, fence_guard_key, guard_key, lane_guard_key
from exodus.cutover import bundle, finalising, forced, switch
from exodus.cutover.collect import collect, dirty_keys, what_is_left
from exodus.cutover.fence import Fence
from exodus.cutover.levers import end_hold
from exodus.cutover.rehearsal import rehearse
from exodus.cutover.settle import settle
from exodus.cutover.window import Window
from exodus.endpoint import OWNED, Endpoint
from exodus.leg import Leg
from exodus.scope import Key
from exodus.sync.backfill import CHUNK_KEYS
from exodus.sync.guard import set_writer_epoch
from exodus.sync.scan import scan_once
from tasks.context import Json, Opened, opened, run
from tasks.evidence import artifact_key, prepare

_FOLLOW_S = 15.0
_CLOSED = -1
_LISTED = 1_000  # of the keys that stay, by name
_FOLDER = "EXODUS_EVIDENCE_DIR"


@task(name="rehearse the switch", persist_result=True)
def rehearse_switch(migration: str) -> Json:
    """Switch the reserved prefix to the target and back, under writes."""

    async def work() -> Json:
        async with opened(migration) as it:
            found = await rehearse(it.store, it.plan, it.plan.gateway.host, it.plan.gateway.port)
            await it.store.save_report("rehearsal", found)
            return found

    return run(work())


@task(name="explain the switch", persist_result=True)
def explain_switch(migration: str, to: str) -> list[str]:
    """The steps that `switch_authority` would do."""

    async def work() -> list[str]:
        async with opened(migration) as it:
            return switch.explain(it.plan, Side(to))

    return run(work())


@task(name="switch the authority to the {to}", task_run_name="switch the authority to the {to}", persist_result=True)
def switch_authority(migration: str, phase: str, to: str, window: Json | None = None) -> Json:
    """Do the switch, in a window where one was approved; once: where the route has it already, put right what is left, and say so.

    Raises:
        DecisionRefused, CutoverAborted: it was not done, and everything is as before.
    """
    log = get_run_logger()

    def tell(at: switch.Switch, step: switch.Step) -> None:
        log.info("%s: %s", step.name, step.text) if at.held_at is None or at.switched else log.debug("%s", step.name)

    async def work() -> Json:
        async with opened(migration) as it:
            side = Side(to)
            route = await read_route(it.store)
            if route.authority is side and route.hold is Hold.NONE:
                left = await settle(it.store, it.plan)
                return {"authority": to, "epoch": route.epoch, "already": True, "timeline": [], "facts": {"not_settled": "; ".join(left)}}
            if phase == Phase.ROLLBACK:
                await end_hold(it.store, it.plan, "a rollback takes the place of the switch that was under way")
            done = await switch.apply(it.store, it.plan, side, window=None if window is None else Window.model_validate(window), tell=tell)
            prepare()  # not before: it would take processor time from the hold
            facts: dict[str, Any] = dict(done.facts)
            report = {"authority": to, "epoch": done.route.epoch, "already": False, "timeline": done.timeline, "facts": facts, "switch": done.id}
            await it.store.save_report(f"switch.{phase}", report)
            await ledger.record(
                it.store,
                LedgerEntry(
                    at_ms=await it.store.now_ms(),
                    phase=Phase(phase),
                    event="switched",
                    verdict=to,
                    flow_run_id=str(flow_run.get_id() or ""),
                    facts={"epoch": done.route.epoch, "hold_ms": facts.get("hold_ms")},
                ),
            )
            return report

    return run(work())


@task(name="look whether the target is alive", persist_result=True)
def look_at_target(migration: str) -> Json:
    """Whether the target answers; where it does not, what was written there and has not flowed back, key by key."""

    async def work() -> Json:
        async with opened(migration) as it:
            dead = await forced.why_dead(it.plan, Side.TARGET)
            keys, total = await dirty_keys(it.store, it.plan, _LISTED) if dead is not None else ([], 0)
            report = {"dead": dead, "keys_total": total, "keys": [{"db": db, "key": key.decode("utf-8", "backslashreplace")} for db, key in keys]}
            await it.store.save_report("rollback.left", report)
            return report

    return run(work())


@task(name="force the authority back to the source", persist_result=True)
def force_back(migration: str) -> Json:
    """Back to the source although the target is dead.

    Raises:
        DecisionRefused: the target answers.
    """

    async def work() -> Json:
        async with opened(migration) as it:
            route = await read_route(it.store)
            if route.authority is Side.SOURCE:
                return {"epoch": route.epoch, "already": True}
            done = await forced.force_back(it.store, it.plan)
            await it.store.save_report("switch.rollback", {"authority": "source", "forced": True, **done})
            await ledger.record(
                it.store,
                LedgerEntry(
                    at_ms=await it.store.now_ms(),
                    phase=Phase.ROLLBACK,
                    event="switched",
                    verdict="source, forced",
                    flow_run_id=str(flow_run.get_id() or ""),
                    facts={"epoch": done["epoch"]},
                ),
            )
            return done

    return run(work())


@task(name="check that the source may be given up", persist_result=True)
def why_not_finalise(migration: str, decided_by: str, attempt: int) -> str | None:
    """Why the business decision cannot be taken now, or None. Kept for each answer, so that an answer once refused stays refused."""
    del attempt

    async def work() -> str | None:
        async with opened(migration) as it:
            problems = await finalising.problems(it.store, it.plan, decided_by)
            return "; ".join(problems) or None

    return run(work())


@task(name="keep the evidence", persist_result=True)
def keep_evidence(migration: str, phase: str) -> Json:
    """Write everything that is known into a hash-chained folder, and the head of its chain into the ledger."""
    under = Path(os.environ.get(_FOLDER, "exodus-evidence")).absolute() / migration

    async def work() -> Json:
        async with opened(migration) as it:
            run_id = str(flow_run.get_id() or "")
            now_ms = await it.store.now_ms()
            folder = under / f"{phase}-{now_ms}"
            head = bundle.write(folder, await collect(it.store, it.plan))
            facts: dict[str, str | int | float | bool | None] = {"folder": str(folder), "head": head}
            await ledger.record(
                it.store,
                LedgerEntry(at_ms=now_ms, phase=Phase(phase), event="noted", gate="evidence", verdict=head, flow_run_id=run_id, facts=facts),
            )
            create_markdown_artifact(
                key=artifact_key(migration, phase, "bundle"),
                markdown=f"`{folder}`\n\nhead `{head}`\n\n`exodus evidence check {folder} --head {head}`",
                description="the evidence bundle",
            )
            return facts

    return run(work())


async def _stop(it: Opened, why: str) -> int:
    """Journal and live sync off; nobody of ours writes to the follower any more."""
    route = await read_route(it.store)
    await set_writer_epoch(Endpoint(route.follower, it.plan.address(route.follower)), it.plan.name, _CLOSED)
    route = await change_route(
        it.store, route, route.next(why=why, journal=JournalMode.OFF, sync=False, hold=Hold.NONE, writer_epoch=route.writer_epoch + 1)
    )
    for kind in ("gateway", "syncer"):
        await registry.wait_for(
            it.store, kind, lambda beat: beat.epoch >= route.epoch, within_s=_FOLLOW_S, otherwise=f"a {kind} did not follow the route"
        )
    return route.epoch


@task(name="stop live sync", persist_result=True)
def stop_live_sync(migration: str, why: str) -> Json:
    """End copying without a switch: the authority stays what it is. Journal and ledger are kept for investigation."""

    async def work() -> Json:
        async with opened(migration) as it:
            return {"epoch": await _stop(it, why), "authority": str((await read_route(it.store)).authority)}

    return run(work())


@task(name="finalise", persist_result=True)
def finalise(migration: str) -> Json:
    """Close the way back: reverse sync and journal off, Exodus's own keys removed from both sides. The old source stays fenced."""

    async def work() -> Json:
        async with opened(migration) as it:
            # Taken while changes still flow back: the last state of the source that is known to be the target's.
            report = await finalising.checklist(it.store, it.plan)
            report["epoch"] = await _stop(it, "finalised: the target is the authority for good")
            await _remove_own_keys(it, keep_fence_of=Side.SOURCE)
            report.update(source_fenced=await Fence(it.store, Side.SOURCE, it.plan.source).up(), journal="off", reverse_sync="off")
            await it.store.save_report("finalised", report)
            return report

    return run(work())


async def _remove_own_keys(it: Opened, *, keep_fence_of: Side | None = None) -> None:
    names = [guard_key(it.plan.name), *(lane_guard_key(it.plan.name, partition) for partition in range(it.plan.partitions))]
    for side in Side:
        also = [] if side is keep_fence_of else [fence_guard_key(it.plan.name)]
        async with await (await it.endpoint(side).nodes())[0].connect(name="exodus-clean") as leg:
            await leg.call("UNLINK", *names, *also)


@task(name="clean up an abandoned migration", persist_result=True)
def abandon(migration: str, *, clean_target: bool) -> Json:
    """Live sync off, fences lifted, Exodus's own keys removed, and, where asked, every key that the target holds of the source."""

    async def work() -> Json:
        async with opened(migration) as it:
            await _stop(it, "abandoned: the source stays the authority")
            for side in Side:
                fence = Fence(it.store, side, it.plan.address(side))
                try:
                    await fence.lower()
                finally:
                    await fence.close()
            await _remove_own_keys(it)
            removed, left = await _remove_copied(it) if clean_target else (0, [])
            await answered(it.store.client.delete(it.store.keys.dead, it.store.keys.accepted, it.store.keys.divergence, it.store.keys.report(OWNED)))
            report = {
                "authority": "source",
                "target_keys_removed": removed,
                "clean_target": clean_target,
                "target_keys_left": len(left),
                "left": [repr(key) for key in left[:_LISTED]],
                "left_by_exodus": await what_is_left(it.store, it.plan),
            }
            await it.store.save_report("abandoned", report)
            return report

    return run(work())


async def _existing(leg: Leg, keys: list[Key]) -> set[Key]:
    """Those of some keys that there are, whatever their databases."""
    found: set[Key] = set()
    for db in {db for db, _ in keys}:
        await leg.select(db)
        names = [name for at, name in keys if at == db]
        found.update((db, name) for name, exists in zip(names, await leg.pipeline([("EXISTS", name) for name in names]), strict=True) if exists == 1)
    return found


async def _remove_copied(it: Opened) -> tuple[int, list[bytes]]:
    """Remove the target's keys; how many, and those that stay.

    A target that had to be empty holds only what was copied. One that held keys before loses those that the source has too.
    """
    removed, left = 0, []
    scope = it.plan.scope
    source = (await it.endpoint(Side.SOURCE).nodes())[0]
    target = (await it.endpoint(Side.TARGET).nodes())[0]
    for db in (await target.facts()).databases:
        async with await target.connect(db, name="exodus-clean") as leg, await source.connect(name="exodus-clean") as there:
            cursor = -1
            while cursor:
                cursor, keys = await scan_once(leg, max(cursor, 0), CHUNK_KEYS)
                keys = [key for key in keys if not key.startswith(RESERVED_PREFIX)]
                ours = keys
                if it.plan.allow_nonempty:
                    origins = {key: origin for key in keys if (origin := scope.origin(db, key)) is not None and scope.left_out(*origin) is None}
                    exist = await _existing(there, list(origins.values()))
                    ours = [key for key in keys if origins.get(key) in exist]
                    left += [key for key in keys if origins.get(key) not in exist]
                if ours:
                    removed += int(await leg.call("UNLINK", *ours))
    return removed, left
