"""The switch and its rehearsal, the forced way back, evidence, and the end of a migration."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from exodus.closing import bundle, bundle_store, ends, finalise_checks
from exodus.closing.collect import collect, dirty_keys
from exodus.control import ledger
from exodus.control.approvers import PersonIdentity
from exodus.control.ledger import LedgerEntry
from exodus.control.route import read_route
from exodus.cutover import forced_rollback, switch
from exodus.cutover.fence import blocks_exodus, record_confirmation
from exodus.cutover.levers import end_hold
from exodus.cutover.preconditions import Approved
from exodus.cutover.settle import settle
from exodus.errors import DecisionRefused
from exodus.plan.bounds import TASKS_CUTOVER_LISTED
from exodus.plan.vocabulary import Hold, Phase, Side
from exodus.plan.window import Window
from exodus.private_files import evidence_folder
from exodus.rehearsal.rehearse import rehearse
from tasks.artifacts import create_markdown_artifact
from tasks.context import Json, Opened, opened, opens_migration, run
from tasks.evidence import artifact_key
from tasks.gates import prepare
from tasks.kept import kept_task
from tasks.progress import shown
from tasks.runs import why_rollback_is_open

_CLOSED = -1
# File with the Ed25519 private key that signs bundles. Without it bundles are unsigned.
_KEY = "EXODUS_EVIDENCE_KEY"


@kept_task("Read the authority")
@opens_migration
async def read_authority(it: Opened, after: str) -> Json:
    """Return the authority as the route names it now; `after` names what was done."""
    del after
    route = await read_route(it.store)
    return {"authority": str(route.authority), "epoch": route.epoch}


@kept_task("Renew the rehearsal")
@opens_migration
async def rehearse_switch(it: Opened) -> Json:
    """Switch the rehearsal's prefix to the target and back, under writes."""
    return await rehearse(it.store, it.plan)


@kept_task("List the steps of the switch")
@opens_migration
async def explain_switch(it: Opened, to: str) -> list[str]:
    """Return the steps that `switch_authority` would do."""
    return switch.explain(it.plan, Side(to))


@kept_task("Switch the authority", run_name="Switch the authority to the {to}")
def switch_authority(
    migration: str, phase: str, to: str, window: Json | None = None, plan_digest: str = ""
) -> Json:
    """Do the switch once, in a window if one was approved.

    If the route has switched already, settle the rest.

    With the digest of the approved plan, the switch also requires that plan and a fresh
    verification.

    Raises:
        DecisionRefused, CutoverAborted: the switch was not done, and nothing has changed.
    """

    async def work() -> Json:
        async with opened(migration) as it:
            side = Side(to)
            route = await read_route(it.store)
            if route.authority is side and route.hold is Hold.NONE:
                left = await settle(it.store, it.plan)
                facts: dict[str, Any] = {"not_settled": "; ".join(left)}
                flows = not await blocks_exodus(it.store, side.other)
                return {
                    "authority": to,
                    "epoch": route.epoch,
                    "already": True,
                    "timeline": [],
                    "facts": facts,
                    "flows_back": flows,
                }
            if phase == Phase.ROLLBACK:
                await end_hold(it.store, it.plan, "a rollback replaces the switch in progress")
            names = [step.name for step in switch.steps(it.plan, side)]
            async with shown(migration, phase, names, it.store) as artifact:
                when = None if window is None else Window.model_validate(window)
                approved = Approved(plan_digest, fresh=bool(plan_digest))
                done = await switch.apply(
                    it.store, it.plan, side, window=when, approved=approved, tell=artifact.tell
                )
            prepare()  # not before the switch: it would take processor time from the hold
            facts = dict(done.facts)
            report = {
                "authority": to,
                "epoch": done.route.epoch,
                "already": False,
                "timeline": done.timeline,
                "facts": facts,
                "switch": done.id,
                "flows_back": not await blocks_exodus(it.store, side.other),
            }
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


@kept_task("Record the firewall confirmation")
@opens_migration
async def confirm_fence(it: Opened, side: str, by: str) -> None:
    """Record that a person confirmed that only gateways and Exodus reach a side, for one switch."""
    await record_confirmation(it.store, it.plan, Side(side), by)


@kept_task("Check that the target answers")
@opens_migration
async def look_at_target(it: Opened) -> Json:
    """Return whether the target is dead, and then the keys that have not flowed back from it."""
    dead = await forced_rollback.why_dead(it.plan, Side.TARGET)
    keys, total = (
        await dirty_keys(it.store, it.plan, TASKS_CUTOVER_LISTED) if dead is not None else ([], 0)
    )
    report = {
        "dead": dead,
        "keys_total": total,
        "keys": [{"db": db, "key": key.decode("utf-8", "backslashreplace")} for db, key in keys],
    }
    await it.store.save_report("rollback.left", report)
    return report


@kept_task("Force the authority back to the source")
@opens_migration
async def force_back(it: Opened) -> Json:
    """Return the authority to the source although the target is dead.

    Raises:
        DecisionRefused: the target answers.
    """
    route = await read_route(it.store)
    if route.authority is Side.SOURCE:
        return {"epoch": route.epoch, "already": True}
    done = await forced_rollback.force_back(it.store, it.plan)
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


@kept_task("Check that the source may be given up")
def why_not_finalise(migration: str, decided_by: Json, attempt: int) -> str | None:
    """Return why the source may not be given up now, or None.

    Kept for each answer: a refused answer stays refused.
    """
    del attempt
    rollback = _why_rollback_is_open(migration)
    return "; ".join([*filter(None, [rollback]), *_problems(migration, decided_by)]) or None


@opens_migration
async def _problems(it: Opened, decided_by: Json) -> list[str]:
    return await finalise_checks.problems(
        it.store, it.plan, PersonIdentity.model_validate(decided_by)
    )


def _why_rollback_is_open(migration: str) -> str | None:
    return why_rollback_is_open(migration, _switched_ms(migration))


@opens_migration
async def _switched_ms(it: Opened) -> int:
    return await finalise_checks.switched_ms(it.store)


@kept_task("Write the evidence bundle")
def keep_evidence(migration: str, phase: str) -> Json:
    """Write a hash-chained bundle of everything known, and the head of its chain into the ledger.

    The bundle goes to the control store, which outlives this worker, and to a folder here.
    """
    under = evidence_folder() / migration
    signs = os.environ.get(_KEY)

    async def work() -> Json:
        async with opened(migration) as it:
            run_id = str(flow_run.get_id() or "")
            now_ms = await it.store.now_ms()
            name = f"{phase}-{now_ms}"
            folder = under / name
            documents = await collect(it.store, it.plan)
            files, head = bundle.make(documents, private_key=Path(signs) if signs else None)
            bundle.put(folder, files)
            lost = await bundle_store.keep(it.store, name, files)
            if lost:
                get_run_logger().warning("the bundle is on this worker only: %s", lost)
            host = socket.gethostname()
            facts: dict[str, str | int | float | bool | None] = {
                "folder": str(folder),
                "host": host,
                "head": head,
                "name": "" if lost else name,
            }
            await ledger.record(
                it.store,
                LedgerEntry(
                    at_ms=now_ms,
                    phase=Phase(phase),
                    event="noted",
                    gate="evidence",
                    verdict=head,
                    flow_run_id=run_id,
                    facts=facts,
                ),
            )
            fetch = "" if lost else f"\n\n`exodus evidence fetch {name} --name {name}`"
            create_markdown_artifact(
                key=artifact_key(migration, phase, "bundle"),
                text=f"`{folder}` on `{host}`{fetch}\n\nhead `{head}`\n\n`exodus evidence "
                f"check {name if fetch else folder} --head {head}`",
                description="Evidence bundle",
            )
            return facts

    return run(work())


@kept_task("Stop live sync")
@opens_migration
async def stop_live_sync(it: Opened, why: str) -> Json:
    """End copying without a switch: the authority stays.

    Journal and ledger are kept for investigation.
    """
    stopped = await ends.stop(it.store, it.plan, why)
    return {**stopped, "authority": str((await read_route(it.store)).authority)}


@kept_task("Finalise")
def finalise(migration: str, decided_by: Json) -> Json:
    """Close the way back: reverse sync and journal off, Exodus's keys removed.

    The source stays fenced.

    Raises:
        DecisionRefused: a condition of the decision does not hold any more.
    """
    rollback = _why_rollback_is_open(migration)
    if rollback is not None:
        raise DecisionRefused(
            "the source may not be given up",
            why=rollback,
            next_step="answer the rollback; then retry the run of commit",
        )
    return _finalised(migration, decided_by)


@opens_migration
async def _finalised(it: Opened, decided_by: Json) -> Json:
    await finalise_checks.check(it.store, it.plan, PersonIdentity.model_validate(decided_by))
    report = await ends.finalise(it.store, it.plan)
    await it.store.save_report("finalised", report)
    return report


@kept_task("Clean up the abandoned migration")
@opens_migration
async def abandon(it: Opened, *, clean_target: bool) -> Json:
    """Turn live sync off, lift fences, and remove Exodus's keys.

    With `clean_target` the copied keys of the target go too.
    """
    report = await ends.abandon(it.store, it.plan, clean_target=clean_target)
    await it.store.save_report("abandoned", report)
    return report
