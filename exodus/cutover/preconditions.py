"""The preconditions of a switch, checked again by the switch itself.

Hours or days may pass between the form and the switch. So the switch checks three times: when it
begins, right before it holds writes, and under the hold, right before the authority changes. It
takes nothing from the form, from stored results, or from an earlier check.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass

from exodus.control import freshness, registry
from exodus.control.gap_reasons import SCRIPTS
from exodus.control.gaps import open_gaps
from exodus.control.store import ControlStore
from exodus.cutover.beside_keys import compare, required
from exodus.cutover.rehearsal_report import check_rehearsal
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.net.leg import Leg
from exodus.plan.bounds import FRESH_LOOK_S, FRESH_WAIT_S, PRECONDITIONS_NAMED
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Approved:
    """What a person approved, beside the switch itself. The default asks for nothing: a way back
    must not wait.
    """

    plan_digest: str = ""  # of the plan that the form was about
    fresh: bool = False  # that both sides are verified as far as the plan asks for


NOTHING_MORE = Approved()


async def plan_digest(store: ControlStore) -> str:
    """SHA-256 of the registered plan."""
    return hashlib.sha256(await answered(store.client.get(store.keys.plan)) or b"").hexdigest()


async def check_standing(
    store: ControlStore,
    plan: Plan,
    to: Side,
    approved: Approved,
    *,
    authority: Leg | None,
    follower: Leg | None,
    scripts_later: bool = True,
) -> str:
    """Check everything that a switch to `to` stands on; return when it was rehearsed, in words.

    Without connections to the sides, because a fence keeps Exodus out, what is beside their keys is
    left for a later check.

    Raises:
        DecisionRefused: something of it does not hold; nothing was changed.
    """
    await check_gaps(store, scripts_later=scripts_later)
    if approved.plan_digest and await plan_digest(store) != approved.plan_digest:
        raise DecisionRefused(
            "the plan was changed since the cutover was approved",
            why="another plan was applied while the decision was open",
            next_step="exodus start commit, and decide on the new plan",
        )
    if approved.fresh:
        await check_fresh(store, plan)
    if to is Side.SOURCE:
        return ""  # the way back must not wait for a rehearsal or for code
    if authority is not None and follower is not None:
        await _check_beside(plan, authority, follower)
        await _check_renamed(store, follower)
    reached = [leg for leg in (authority, follower) if leg is not None]
    return await check_rehearsal(store, plan, *reached)


async def check_gaps(store: ControlStore, *, scripts_later: bool = False) -> None:
    """Check that no write is uncovered and no key was left behind.

    Args:
        scripts_later: gaps of scripts are closed under the hold (`held.py`).

    Raises:
        DecisionRefused: there are open gaps or dead letters.
    """
    gaps = {name: str(gap.get("why")) for name, gap in (await open_gaps(store)).items()}
    gaps = {name: why for name, why in gaps.items() if not (scripts_later and why == SCRIPTS)}
    dead = int(await answered(store.client.hlen(store.keys.dead)))
    if gaps:
        raise DecisionRefused(
            f"{len(gaps)} open gap(s): {', '.join(list(gaps)[:PRECONDITIONS_NAMED])}",
            why="; ".join(list(dict.fromkeys(gaps.values()))[:PRECONDITIONS_NAMED]),
            next_step="exodus verify --repair, which closes gaps when it ends clean",
        )
    if dead:
        raise DecisionRefused(
            f"{dead} key(s) could not be carried",
            why="they are listed as dead letters with their reasons",
            next_step="exodus repair, or exodus status --json to see them",
        )


async def check_fresh(store: ControlStore, plan: Plan) -> freshness.Freshness:
    """Return how much is verified since its last write; what scripts may have written is verified
    under the hold.

    Raises:
        DecisionRefused: keys were never verified, or less is than the plan asks for.
    """
    fresh = await _read_fresh(store, plan)
    if not _suffices(fresh, plan):
        raise DecisionRefused(
            f"too little is verified for a cutover: {fresh}",
            why=f"the plan asks for {plan.verified_share_min * 100:.2f} % verified since their "
            "last write, all once, no gap open",
            next_step="exodus verify --repair, then start commit again",
        )
    return fresh


async def wait_until_fresh(store: ControlStore, plan: Plan) -> None:
    """Wait up to FRESH_WAIT_S while only recent writes are not verified; `check_fresh` judges then.

    Live sync verifies each write a few seconds later. So a short burst of writes needs no person.
    """
    loop = asyncio.get_running_loop()
    deadline, told = loop.time() + FRESH_WAIT_S, False
    while loop.time() < deadline:
        fresh = await _read_fresh(store, plan)
        known = fresh.pass_age_s is not None and not fresh.gaps and not fresh.overflowed
        if _suffices(fresh, plan) or not known:
            return
        if not told:
            log.info("wait up to %.0f s until recent writes are verified: %s", FRESH_WAIT_S, fresh)
            told = True
        await asyncio.sleep(FRESH_LOOK_S)


async def _read_fresh(store: ControlStore, plan: Plan) -> freshness.Freshness:
    fresh = await freshness.read_freshness(store, plan.partitions)
    return fresh.model_copy(update={"gaps": tuple(why for why in fresh.gaps if why != SCRIPTS)})


def _suffices(fresh: freshness.Freshness, plan: Plan) -> bool:
    return (
        fresh.pass_age_s is not None
        and not fresh.never
        and not fresh.gaps
        and fresh.share >= plan.verified_share_min
    )


async def _check_beside(plan: Plan, authority: Leg, follower: Leg) -> None:
    must = required(await compare(plan, authority, follower))
    if must:
        raise DecisionRefused(
            f"{len(must)} thing(s) beside the keys must be mended before the cutover: "
            f"{', '.join(row.what for row in must[:PRECONDITIONS_NAMED])}",
            why="; ".join(f"{row.what}: {row.means}" for row in must[:PRECONDITIONS_NAMED]),
            next_step=f"{'; '.join(dict.fromkeys(row.remedy for row in must))}; then start commit "
            "again",
        )


async def _check_renamed(store: ControlStore, follower: Leg) -> None:
    """Check that the follower knows every command by the name that applications use
    (rename-command).
    """
    names = sorted(
        {
            name
            for beat in await registry.heartbeats(store, "gateway")
            for name in beat.facts.renamed_commands
        }
    )
    replies = (
        await follower.pipeline([("COMMAND", "INFO", name) for name in names]) if names else []
    )
    lacking = [
        name
        for name, reply in zip(names, replies, strict=True)
        if isinstance(reply, list) and (not reply or reply[0] is None)
    ]
    if lacking:
        raise DecisionRefused(
            f"the {follower.side} does not know {len(lacking)} command(s) that applications use: "
            f"{', '.join(lacking[:PRECONDITIONS_NAMED])}",
            why="the other side calls commands by names of its own (rename-command)",
            next_step=f"rename them on the {follower.side} in the same way, or change the "
            "applications; then start commit again",
        )
