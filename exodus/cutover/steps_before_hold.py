"""The steps of a switch before writes are held. Applications notice none of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from exodus.control import journal, registry
from exodus.control.route import read_route, say_soon
from exodus.copy.guard import read_write_grants_on, regain_write_grants_on
from exodus.cutover.canary_share import end_canary
from exodus.cutover.context import Switch
from exodus.cutover.feed_choice import chosen_feed
from exodus.cutover.fence import blocks_exodus
from exodus.cutover.functions import carry_functions
from exodus.cutover.levers import check_aborted, postponed, say
from exodus.cutover.listeners_check import check_listeners
from exodus.cutover.preconditions import check_gaps, check_standing, wait_until_fresh
from exodus.cutover.script_loading import load_scripts, unseen
from exodus.cutover.settle import settle
from exodus.cutover.topology_check import look_at_servers
from exodus.engine import open_engine
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.live import server_runs
from exodus.native import replica
from exodus.plan.bounds import SWITCH_LOOK_S, SWITCH_PRE_DRAIN_MS, SWITCH_PRE_DRAIN_S, SWITCH_SOON_S
from exodus.plan.vocabulary import FenceKind, JournalMode, Side, UserRole
from exodus.plan.window import QuietWatch
from exodus.verify.comparison import open_comparison
from exodus.verify.reconcile import compare_now


async def _read_old_authority(switch: Switch) -> None:
    switch.route = await read_route(switch.store)
    if switch.route.authority is not switch.old:
        raise DecisionRefused(
            f"the {switch.to} is the authority already",
            why=f"the route is at epoch {switch.route.epoch}",
            next_step="look at `exodus status`; there is nothing to switch",
        )


async def _check_server_runs(switch: Switch) -> None:
    """Refuse where a server restarted since the journal speaks for it; with nothing to copy, live
    sync may not have noticed.
    """
    restarted = await server_runs.changed(
        await open_engine(switch.store, switch.plan, switch.route)
    )
    if restarted:
        raise DecisionRefused(
            f"the {restarted[0]} restarted, and may have lost keys",
            why="live sync compares both sides first",
            next_step="wait until `exodus status` shows no open gap, then retry",
        )


async def readiness(switch: Switch) -> None:
    """Check that the switch may begin, and connect to both sides.

    Raises:
        DecisionRefused: a precondition fails; nothing was changed.
    """
    store = switch.store
    left = await settle(store, switch.plan)
    if left:
        raise DecisionRefused(
            "an earlier switch is not settled",
            why="; ".join(left),
            next_step="wait for it (`exodus status`), or end its hold: exodus release",
        )
    await _read_old_authority(switch)
    # A gateway that gives them up later would change the route
    await end_canary(store, switch.route, "a switch is about to begin: canary reads end")
    switch.standing = await look_at_servers(switch.plan)
    switch.listeners = await check_listeners(store, switch.plan)
    method = await switch.fence(switch.old).check_possible()
    switch.legs[switch.old] = await switch.endpoint(switch.old).connect(name="exodus-switch")
    switch.old_grants = await read_write_grants_on(switch.legs[switch.old], switch.plan.name)
    # Once more: rights are taken from what the side said before this
    await _read_old_authority(switch)
    switch.facts["fence"] = str(method.kind)
    switch.held_until_told = method.kind is FenceKind.PROVIDER
    if not switch.route.sync or switch.route.journal is not JournalMode.ALL:
        raise DecisionRefused(
            "live sync is not on",
            why=f"route: {switch.route.why}",
            next_step="run the migrate phase first: exodus start migrate",
        )
    await _check_server_runs(switch)
    for kind in ("gateway", "syncer"):
        await registry.wait_for(
            store,
            kind,
            lambda beat: beat.epoch == switch.route.epoch,
            within_s=5,
            otherwise=f"not every {kind} follows the route",
        )
    if switch.route.native:
        await replica.check_filled(switch.plan)
    switch.feed = (await chosen_feed(store, switch.plan, switch.to)).feed
    await check_aborted(store)
    switch.legs[switch.to] = await switch.endpoint(switch.to).connect(name="exodus-switch")
    await check_again(switch)
    switch.facts["partitions"] = switch.plan.partitions


async def check_again(switch: Switch) -> None:
    """Check the preconditions over open connections, since writes may wait for it."""
    reached = (
        switch.legs
        if switch.holding
        or not await blocks_exodus(switch.store, switch.to)
        or switch.blocks_exodus
        else {}
    )
    if switch.to is Side.TARGET and reached and not switch.holding:
        # A release may have loaded others since
        await carry_functions(await open_engine(switch.store, switch.plan, switch.route))
    if switch.approved.fresh and not switch.holding:
        await wait_until_fresh(switch.store, switch.plan)
    async with switch.legs_turn:
        rehearsed = await check_standing(
            switch.store,
            switch.plan,
            switch.to,
            switch.approved,
            authority=reached.get(switch.old),
            follower=reached.get(switch.to),
        )
    if rehearsed:
        switch.facts["rehearsal"] = rehearsed


async def prepare(switch: Switch) -> None:
    """Prepare the fence on the old side, and load what the new side needs."""
    await switch.fence(switch.old).prepare(switch.id)
    if await switch.fence(switch.to).record() is not None:
        await switch.fence(switch.to).connect()
    await load_client_scripts(switch)
    await _grant_writes(switch)
    switch.heard = switch.store.client.pubsub()
    await switch.heard.subscribe(switch.store.keys.part_changed)


async def load_client_scripts(switch: Switch) -> None:
    """Load the applications' scripts on the new side."""
    async with switch.legs_turn:
        refused = await load_scripts(switch.store, switch.legs[switch.to], switch.scripts_loaded)
    switch.facts["scripts_loaded"] = len(switch.scripts_loaded)
    switch.facts["scripts_unseen"] = unseen(await registry.heartbeats(switch.store, "gateway"))
    if refused:
        switch.facts["scripts_refused"] = "; ".join(refused[:10])


async def _grant_writes(switch: Switch) -> None:
    """Let the writers of the epoch after the switch write to the old authority: before the fence,
    which may refuse our own writes too.

    Nobody writes there by it yet: whoever copies to a side has a route that names the other one as
    the authority.
    """
    if not await regain_write_grants_on(
        switch.legs[switch.old],
        switch.old_grants,
        b"%d" % (switch.route.writer_epoch + 1),
    ):
        raise CutoverAborted(
            f"the writers' epoch on the {switch.old} was changed",
            why="another switch changed it",
            next_step="exodus status",
        )


async def suspend_fence(switch: Switch) -> None:
    """Let Exodus write to the new side, where that side's fence blocks Exodus too."""
    switch.blocks_exodus = await blocks_exodus(switch.store, switch.to)
    await switch.fence(switch.to).suspend()


async def pre_drain(switch: Switch) -> None:
    """Wait for live sync, as long as it comes nearer: behind a fence that kept us out a journal of
    days may wait.
    """
    deadline, nearest = time.monotonic() + SWITCH_PRE_DRAIN_S, -1
    while (
        age_ms := await journal.oldest_ms(
            switch.store, switch.plan.partitions, await switch.store.now_ms()
        )
    ) > SWITCH_PRE_DRAIN_MS:
        if switch.blocks_exodus:
            await switch.fence(switch.to).suspend()
            left = await journal.lag_entries(switch.store, switch.plan.partitions)
            if nearest < 0 or left < nearest:
                nearest, deadline = left, time.monotonic() + SWITCH_PRE_DRAIN_S
        # A server that restarts meanwhile opens one
        await check_gaps(switch.store, scripts_later=True)
        if time.monotonic() > deadline:
            says = [
                beat.why for beat in await registry.heartbeats(switch.store, "syncer") if beat.why
            ]
            raise CutoverAborted(
                f"live sync does not catch up: {age_ms} ms behind after {SWITCH_PRE_DRAIN_S:.0f} s",
                why="; ".join(dict.fromkeys(says)) or "keys change faster than they are copied",
                next_step="mend what the syncer says"
                if says
                else "start more syncers, or wait for a quieter hour, then retry",
            )
        await check_aborted(switch.store)
        await asyncio.sleep(0.05)
    switch.facts["lag_ms_before_hold"] = age_ms


async def go(switch: Switch) -> None:
    """Wait for a person who postpones it, and for the window, if one was approved; live sync keeps
    up meanwhile.
    """
    store, lookout = switch.store, QuietWatch(switch.window) if switch.window is not None else None
    began, said = time.monotonic(), ""
    while True:
        await check_aborted(store)
        waits_for = await postponed(store)
        if lookout is not None:
            now_ms = await store.now_ms()
            not_yet = lookout.look(
                now_ms, await journal.oldest_ms(store, switch.plan.partitions, now_ms)
            )
            waits_for = waits_for or not_yet
        if switch.blocks_exodus:
            await switch.fence(switch.to).suspend()
        if waits_for is None:
            break
        if waits_for != said:
            said = waits_for
            await say(store, "go", waits_for)
        await asyncio.sleep(SWITCH_LOOK_S)
    if said:
        switch.facts["waited_for"] = said
        switch.facts["waited_s"] = round(time.monotonic() - began, 1)
        await pre_drain(switch)
    # Connected, and its scripts known to both sides, before anything waits for the spot check.
    switch.comparison = await open_comparison(
        await open_engine(store, switch.plan.acting(UserRole.VERIFIER), switch.route)
    )
    await compare_now(switch.comparison, [(0, b"exodus: no such key")])
    await check_again(switch)  # hours may have passed
    await say_soon(store)
    with suppress(CutoverAborted):
        await switch.gateways(
            lambda beat: beat.facts.legs_ready,
            "a gateway's connections to the new side are not made yet",
            SWITCH_SOON_S,
        )
