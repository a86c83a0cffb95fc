"""The switch, its rehearsal, the forced way back, the evidence bundle, and what ends a migration: finalising and cleaning up."""

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
from exodus.control.approvers import Identity
from exodus.control.ledger import LedgerEntry
from exodus.control.route import read_route
from exodus.cutover import forced_rollback, switch
from exodus.cutover.fence import blocks_exodus, record_confirmation
from exodus.cutover.levers import end_hold
from exodus.cutover.preconditions import Approved
from exodus.cutover.rehearsal import rehearse
from exodus.cutover.settle import settle
from exodus.errors import DecisionRefused
from exodus.plan.vocabulary import Hold, Phase, Side
from exodus.plan.window import Window
from tasks.artifacts import create_markdown_artifact
from tasks.context import Json, opened, run
from tasks.evidence import artifact_key, prepare
from tasks.kept import kept_task
from tasks.progress import shown
from tasks.runs import why_rollback_is_open

_FOLLOW_S = 15.0
_CLOSED = -1
_LISTED = 1_000  # of the keys that stay, by name
_FOLDER = "EXODUS_EVIDENCE_DIR"
_KEY = "EXODUS_EVIDENCE_KEY"  # file with the Ed25519 private key that signs bundles; without it none is signed


@kept_task("rehearse the switch")
def rehearse_switch(migration: str) -> Json:
    """Switch the reserved prefix to the target and back, under writes."""

    async def work() -> Json:
        async with opened(migration) as it:
            return await rehearse(it.store, it.plan)

    return run(work())


@kept_task("explain the switch")
def explain_switch(migration: str, to: str) -> list[str]:
    """The steps that `switch_authority` would do."""

    async def work() -> list[str]:
        async with opened(migration) as it:
            return switch.explain(it.plan, Side(to))

    return run(work())


@kept_task("switch the authority to the {to}", run_name="switch the authority to the {to}")
def switch_authority(migration: str, phase: str, to: str, window: Json | None = None, plan_digest: str = "") -> Json:
    """Do the switch, in a window where one was approved; once: where the route has it already, put right what is left, and say so.

    With the digest of the plan that was approved, the switch also asks for that plan and for fresh verification.

    Raises:
        DecisionRefused, CutoverAborted: it was not done, and everything is as before.
    """

    async def work() -> Json:
        async with opened(migration) as it:
            side = Side(to)
            route = await read_route(it.store)
            if route.authority is side and route.hold is Hold.NONE:
                left = await settle(it.store, it.plan)
                facts: dict[str, Any] = {"not_settled": "; ".join(left)}
                flows = not await blocks_exodus(it.store, side.other)
                return {"authority": to, "epoch": route.epoch, "already": True, "timeline": [], "facts": facts, "flows_back": flows}
            if phase == Phase.ROLLBACK:
                await end_hold(it.store, it.plan, "a rollback takes the place of the switch that was under way")
            names = [step.name for step in switch.steps(it.plan, side)]
            async with shown(migration, phase, names, it.store) as artifact:
                when = None if window is None else Window.model_validate(window)
                approved = Approved(plan_digest, fresh=bool(plan_digest))
                done = await switch.apply(it.store, it.plan, side, window=when, approved=approved, tell=artifact.tell)
            prepare()  # not before: it would take processor time from the hold
            facts = dict(done.facts)
            report = {
                "authority": to, "epoch": done.route.epoch, "already": False, "timeline": done.timeline, "facts": facts, "switch": done.id,
                "flows_back": not await blocks_exodus(it.store, side.other),
            }  # fmt: skip
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


@kept_task("keep the word of who closed the way to the {side}")
def confirm_fence(migration: str, side: str, by: str) -> None:
    """A person says that only gateways and Exodus reach a side: `provider` fences rely on it, for one switch."""

    async def work() -> None:
        async with opened(migration) as it:
            await record_confirmation(it.store, it.plan, Side(side), by)

    run(work())


@kept_task("look whether the target is alive")
def look_at_target(migration: str) -> Json:
    """Whether the target answers; where it does not, what was written there and has not flowed back, key by key."""

    async def work() -> Json:
        async with opened(migration) as it:
            dead = await forced_rollback.why_dead(it.plan, Side.TARGET)
            keys, total = await dirty_keys(it.store, it.plan, _LISTED) if dead is not None else ([], 0)
            report = {"dead": dead, "keys_total": total, "keys": [{"db": db, "key": key.decode("utf-8", "backslashreplace")} for db, key in keys]}
            await it.store.save_report("rollback.left", report)
            return report

    return run(work())


@kept_task("force the authority back to the source")
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

    return run(work())


@kept_task("check that the source may be given up")
def why_not_finalise(migration: str, decided_by: Json, attempt: int) -> str | None:
    """Why the business decision cannot be taken now, or None. Kept for each answer, so that an answer once refused stays refused."""
    del attempt

    async def work() -> list[str]:
        async with opened(migration) as it:
            return await finalise_checks.problems(it.store, it.plan, Identity.model_validate(decided_by))

    rollback = _why_rollback_is_open(migration)
    return "; ".join(([rollback] if rollback else []) + run(work())) or None


def _why_rollback_is_open(migration: str) -> str | None:
    async def work() -> int:
        async with opened(migration) as it:
            return await finalise_checks.switched_ms(it.store)

    return why_rollback_is_open(migration, run(work()))


@kept_task("keep the evidence")
def keep_evidence(migration: str, phase: str) -> Json:
    """Write everything that is known as a hash-chained bundle, and the head of its chain into the ledger.

    The bundle is written to the control store, which outlives this worker, and to a folder here.
    """
    # Never the working directory: a worker runs each flow in a temporary one, and removes it afterwards.
    under = Path(os.environ.get(_FOLDER) or Path.home() / "exodus-evidence").absolute() / migration
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
                "folder": str(folder), "host": host, "head": head, "name": "" if lost else name,
            }  # fmt: skip
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
                text=f"`{folder}` on `{host}`{fetch}\n\nhead `{head}`\n\n`exodus evidence check {name if fetch else folder} --head {head}`",
                description="the evidence bundle",
            )
            return facts

    return run(work())


@kept_task("stop live sync")
def stop_live_sync(migration: str, why: str) -> Json:
    """End copying without a switch: the authority stays what it is. Journal and ledger are kept for investigation."""

    async def work() -> Json:
        async with opened(migration) as it:
            stopped = await ends.stop(it.store, it.plan, why)
            return {**stopped, "authority": str((await read_route(it.store)).authority)}

    return run(work())


@kept_task("finalise")
def finalise(migration: str, decided_by: Json) -> Json:
    """Close the way back: reverse sync and journal off, Exodus's own keys removed from both sides. The old source stays fenced.

    Raises:
        DecisionRefused: what it was decided on does not hold any more.
    """
    rollback = _why_rollback_is_open(migration)
    if rollback is not None:
        raise DecisionRefused("the source may not be given up", why=rollback, next_step="answer the rollback; then retry the run of commit")

    async def work() -> Json:
        async with opened(migration) as it:
            await finalise_checks.check(it.store, it.plan, Identity.model_validate(decided_by))
            report = await ends.finalise(it.store, it.plan)
            await it.store.save_report("finalised", report)
            return report

    return run(work())


@kept_task("clean up an abandoned migration")
def abandon(migration: str, *, clean_target: bool) -> Json:
    """Live sync off, fences lifted, Exodus's own keys removed, and, where asked, every key that the target holds of the source."""

    async def work() -> Json:
        async with opened(migration) as it:
            report = await ends.abandon(it.store, it.plan, clean_target=clean_target)
            await it.store.save_report("abandoned", report)
            return report

    return run(work())
