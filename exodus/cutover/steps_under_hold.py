"""The steps of a switch while writes are held, up to the change of the authority."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from exodus import gc_tuning
from exodus.backfill import migrate
from exodus.control import journal
from exodus.control.changes import Key
from exodus.control.heartbeats import ProcessState
from exodus.control.route import ask_for_beats, read_route
from exodus.copy.guard import replace_write_grant, replace_write_grant_on
from exodus.cutover.context import Switch
from exodus.cutover.held_comparison import verify_held
from exodus.cutover.listeners_check import lacks
from exodus.cutover.preconditions import check_gaps
from exodus.cutover.settle import closed
from exodus.cutover.steps_before_hold import check_again, load_client_scripts
from exodus.engine import open_engine
from exodus.errors import Bug, CutoverAborted
from exodus.feeds import replication
from exodus.feeds.feed import feed_of
from exodus.native import replica
from exodus.net.client import answered
from exodus.plan.bounds import HOLD_ACK_S, SWITCH_HELD_POLL_S, SWITCH_HELD_SPOT_CHECK_KEYS
from exodus.plan.vocabulary import CopyStrategy, Feed, Hold
from exodus.verify.reconcile import compare_now


async def hold(switch: Switch) -> None:
    """Hold the writes in every gateway."""
    switch.store_run = await store_run(switch)
    switch.before_hold = await journal.ends(switch.store, switch.plan.partitions)
    switch.while_held.enter_context(gc_tuning.rest())
    switch.held_at = time.monotonic()
    await switch.change(
        hold=Hold.WRITES,
        hold_until_told=switch.held_until_told,
        switch=switch.id,
        why=f"switch {switch.id} to the {switch.to}: hold",
    )
    epoch = switch.route.epoch
    await switch.gateways(
        lambda beat: beat.epoch == epoch and switch.held(beat),
        "not every gateway could hold its writes",
        min(HOLD_ACK_S, switch.left_s()),
    )


async def release_old(switch: Switch) -> None:
    """Undo the hold: let writes go on at the old side, in a new epoch of writers."""
    switch.route = await read_route(switch.store)
    if switch.route.switch != switch.id or switch.route.hold is Hold.NONE:
        return  # it was not begun, or a gateway has ended it
    await switch.change(
        hold=Hold.NONE,
        writer_epoch=switch.route.writer_epoch
        + int(switch.closing),  # lanes that lost their right do not come back to an old epoch
        why=f"switch {switch.id} to the {switch.to} given up: writes go on at the {switch.old}",
    )
    befores = [closed(switch.id)]
    if switch.closing:  # it may have closed some nodes of a cluster and not others
        befores.append(b"%d" % (switch.route.writer_epoch - 1))
    for before in befores:
        await replace_write_grant(
            switch.endpoint(switch.to),
            switch.plan.name,
            before,
            b"%d" % switch.route.writer_epoch,
        )
    await replica.reopen(switch.plan, switch.route, closed(switch.id))


async def drain(switch: Switch) -> None:
    """Wait until every journalled key is equal on the new side.

    Raises:
        CutoverAborted: the hold's time is over.
    """
    feed = feed_of(
        switch.store, switch.route.feed, switch.plan.partitions, switch.endpoint(switch.old)
    )
    while not await feed.drained():
        if not switch.left_s():
            raise CutoverAborted(
                "the journal did not drain while writes were held",
                why=f"{await journal.lag_entries(switch.store, switch.plan.partitions)} entries "
                "are left",
                next_step="look at the syncer in `exodus status`; writes go on at the old side, "
                "retry later",
            )
        await switch.hear(SWITCH_HELD_POLL_S)


async def raise_fence(switch: Switch) -> None:
    """Make the old side refuse writes, and prove it."""
    if switch.route.native:  # now that writes are held, nobody flushes it away again
        await replica.keep_write_grant(
            switch.legs[switch.old], switch.plan, switch.route.writer_epoch
        )
    proofs = await switch.fence(switch.old).raise_()
    # A gateway ends a hold by itself a second after our own time for it. As long as ours is not
    # over, none has by the time the fence stood.
    switch.check_time()
    switch.facts["fenced_users"] = ", ".join(f"{user}: {proof}" for user, proof in proofs.items())


async def lower_old(switch: Switch) -> None:
    """Undo the fence on the old side."""
    record = await switch.fence(switch.old).record()
    # Not another's, where we were frozen meanwhile
    if record is not None and record.switch == switch.id:
        await switch.fence(switch.old).lower(record)


async def verify_scripts(switch: Switch) -> None:
    """Compare every key, where scripts ran whose writes no change feed reports."""
    if switch.comparison is None:
        raise Bug(
            "nothing was made ready to compare with",
            why="the step 'go' was left out",
            next_step="report this; nothing was switched",
        )
    engine = await open_engine(switch.store, switch.plan, switch.route)
    switch.facts.update(
        await verify_held(
            engine, switch.comparison, drained=partial(drain, switch), left_s=switch.left_s
        )
    )


async def _confirm(switch: Switch) -> None:
    # Said after the fence stood, so that a gateway that released its writes alone meanwhile is
    # noticed.
    epoch, since_ms = switch.route.epoch, await ask_for_beats(switch.store)
    await switch.gateways(
        lambda beat: (
            beat.epoch == epoch
            and beat.state is ProcessState.HELD
            and beat.at_ms >= since_ms
            and not lacks(beat, switch.listeners)
            and not beat.facts.unflushed + beat.facts.writes_in_flight
        ),
        "a gateway does not hold its writes any more, has keys that are not in the journal, or has "
        "no listener for a node",
        min(HOLD_ACK_S, switch.left_s()),
    )
    await load_client_scripts(switch)  # those that were first used since the beginning
    await drain(switch)
    # A gap is in the store before a gateway says that nothing is unflushed
    await check_gaps(switch.store)
    if await store_run(switch) != switch.store_run:
        raise CutoverAborted(
            "the control store was restarted while writes were held",
            why="it may have lost the last entries of the journal",
            next_step="wait until `exodus status` shows no gap and no spooled keys, then retry",
        )


async def store_run(switch: Switch) -> str:
    """Return the control store's run id."""
    return str((await answered(switch.store.client.info("server")))["run_id"])


async def confirm_and_spot_check(switch: Switch) -> None:
    """Check again all that the switch stands on, and compare the keys that changed last."""
    # Side by side: nothing can change any more, and the journal was drained when the fence was put
    # up.
    async with asyncio.TaskGroup() as both:
        both.create_task(_confirm(switch))
        both.create_task(_spot_check(switch))
        both.create_task(check_again(switch))


async def _spot_check(switch: Switch) -> None:
    if switch.comparison is None:
        raise Bug(
            "nothing was made ready to compare with",
            why="the step 'go' was left out",
            next_step="report this; nothing was switched",
        )
    changes = await journal.since(switch.store, switch.before_hold)
    keys: list[Key] = list(dict.fromkeys(changes.keys))[-SWITCH_HELD_SPOT_CHECK_KEYS:]
    divergences = await compare_now(switch.comparison, keys)
    switch.facts["spot_checked_keys"] = len(keys)
    if divergences:
        named = ", ".join(f"db{found.db} {found.key!r} ({found.kind})" for found in divergences[:5])
        raise CutoverAborted(
            f"{len(divergences)} of {len(keys)} keys changed last differ between the sides",
            why=named,
            next_step="exodus verify --repair, then retry; writes go on at the old side",
        )


async def promote(switch: Switch) -> None:
    """Make the target a server of its own, where it is the source's replica."""
    if not switch.route.native:
        return
    switch.closing = True
    source, target = switch.legs[switch.old], switch.legs[switch.to]
    # The fence was proved: nothing of an application is propagated after this offset.
    switch.facts["offset"] = await replica.wait_reached(source, target, within_s=switch.left_s())
    await replica.promote(target, switch.plan, switch.route.writer_epoch, closed(switch.id))


async def close_epoch(switch: Switch) -> None:
    """End every syncer's write grant on the new side."""
    switch.closing = True  # undone with the hold, by a new epoch
    writer = switch.route.writer_epoch
    if not await replace_write_grant_on(
        switch.legs[switch.to], switch.plan.name, b"%d" % writer, closed(switch.id)
    ):
        raise CutoverAborted(
            f"the writers' epoch on the {switch.to} is not {writer}",
            why="another switch changed it",
            next_step="exodus status",
        )
    if switch.feed is Feed.REPLICATION:
        await replication.begin_here(
            switch.store, switch.endpoint(switch.to), switch.legs[switch.to], closed(switch.id)
        )
    if switch.plan.strategy is CopyStrategy.MIGRATE:
        await migrate.end_users(switch.legs[switch.to], switch.plan.name)


async def open_new(switch: Switch) -> None:
    """Lower the new side's fence, so that applications may write there."""
    fence = switch.fence(switch.to)
    record = await fence.record()
    if record is not None:
        # Before the sessions come: a transaction that is replayed there may hold writes
        await fence.open(record)


async def close_new(switch: Switch) -> None:
    """Undo `open_new`: raise the new side's fence again."""
    fence = switch.fence(switch.to)
    record = await fence.record()
    # Not where another switch came there meanwhile
    if record is not None and (await read_route(switch.store)).authority is switch.old:
        await fence.resume(record)
