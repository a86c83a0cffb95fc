"""The steps of a switch, narrowed to the reserved keys.

Hold, change of the route, and release are the cutover's own functions. The route's fields are those
of the rehearsal, so a gateway does for the rehearsal's sessions what it does for all sessions at a
cutover. What a cutover does to a whole side is done to something of the rehearsal's own: guard,
fence, keys.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

from exodus.control.changes import Key
from exodus.control.heartbeats import GatewayHeartbeat
from exodus.control.route import ask_for_beats, read_route, say_soon
from exodus.copy.guard import replace_write_grant_on, set_writer_epoch
from exodus.cutover.beside_keys import compare, required
from exodus.cutover.context import Switch
from exodus.cutover.listeners_check import check_listeners, lacks
from exodus.cutover.settle import closed
from exodus.cutover.steps_after_switch import change_authority, release_writes
from exodus.cutover.steps_under_hold import hold, store_run
from exodus.cutover.switch import Step
from exodus.cutover.topology_check import look_at_servers
from exodus.engine import open_engine
from exodus.errors import CutoverAborted
from exodus.feeds.feed import JournalFeed
from exodus.plan.bounds import (
    HOLD_ACK_S,
    REHEARSAL_PRE_DRAIN_S,
    SWITCH_HELD_POLL_S,
    SWITCH_HELD_SPOT_CHECK_KEYS,
    SWITCH_PRE_DRAIN_MS,
    SWITCH_SOON_S,
)
from exodus.plan.vocabulary import Hold
from exodus.rehearsal.clients import ProbeClients
from exodus.rehearsal.copying import ReservedSync
from exodus.rehearsal.fence import RehearsedFence
from exodus.rehearsal.fence_cluster import fence_for_rehearsal
from exodus.verify.comparison import open_comparison
from exodus.verify.reconcile import compare_now

_FIELDS = {"hold": "rehearsal_hold", "authority": "rehearsal_authority"}


@dataclass
class RehearsedSwitch(Switch):
    """A switch of the reserved keys."""

    told: bool = False
    clients: list[ProbeClients] = field(default_factory=list)
    guard_name: str = ""  # of the guard keys, in place of the migration's
    writer: int = 0  # the epoch of the writers in this direction
    sync: ReservedSync | None = None
    fenced: RehearsedFence | None = None
    copied: list[Key] = field(default_factory=list)  # under the hold

    @property
    def fenced_servers(self) -> set[str] | None:
        """Return None: a rehearsal fences a user of its own, and nobody else's writes."""
        return None

    async def change(self, **changes: object) -> None:
        """Make the next epoch, which changes the rehearsal's part of the route only."""
        mine = {_FIELDS[name]: value for name, value in changes.items() if name in _FIELDS}
        await super().change(**mine, why=f"rehearsal: {changes['why']}")

    def held(self, beat: GatewayHeartbeat) -> bool:
        """Return whether a gateway holds the writes of the rehearsal's sessions."""
        return beat.facts.rehearsal_held

    async def close(self) -> None:
        """Give connections back."""
        try:
            if self.sync is not None:
                await self.sync.close()
            if self.fenced is not None:
                await self.fenced.close()
        finally:
            await super().close()


def steps() -> list[Step]:
    """Return the steps of a rehearsed switch. They have the names of a switch's steps."""
    return [
        Step("prepare", "connect, copy the keys, grant the right to write", _prepare),
        Step(
            "pre-drain",
            "wait until a change is copied soon",
            _pre_drain,
        ),
        Step("go", "let gateways connect to the other side", _go, bounded=False),
        Step("hold", "hold the sessions' writes", hold, _release_old, bounded=False),
        Step("drain", "copy what is left", _drain),
        Step("fence", "fence a user of the rehearsal's own, and prove it", _raise_fence),
        Step("confirm", "hear from every gateway again, compare what was copied last", _confirm),
        Step("close the epoch", "end the right to write", _close_epoch),
        Step("switch", "let the sessions' authority change", change_authority, bounded=False),
        Step("release", "let the sessions' writes go on", release_writes, bounded=False),
    ]


def _of(switch: Switch) -> RehearsedSwitch:
    assert isinstance(switch, RehearsedSwitch)
    return switch


async def _prepare(any_switch: Switch) -> None:
    switch = _of(any_switch)
    switch.route = await read_route(switch.store)
    switch.standing = await look_at_servers(switch.plan)
    switch.listeners = await check_listeners(switch.store, switch.plan)
    for side in (switch.old, switch.to):
        switch.legs[side] = await switch.endpoint(side).connect(name="exodus-switch")
    switch.heard = switch.store.client.pubsub()
    await switch.heard.subscribe(switch.store.keys.part_changed)
    own = switch.plan.model_copy(update={"name": switch.guard_name})
    one_way = switch.route.model_copy(
        update={"authority": switch.old, "writer_epoch": switch.writer, "native": False}
    )
    for side, epoch in ((switch.to, switch.writer), (switch.old, switch.writer + 1)):
        await set_writer_epoch(switch.endpoint(side), switch.guard_name, epoch)
    engine = await open_engine(switch.store, own, one_way)
    switch.comparison = await open_comparison(engine)
    await compare_now(switch.comparison, [(0, b"exodus: no such key")])
    copier = await engine.copier(engine.guard(), name="exodus-rehearsal")
    switch.sync = ReservedSync(engine, copier, switch.clients)
    await switch.sync.start()
    switch.fenced = fence_for_rehearsal(switch.plan, switch.legs[switch.old], switch.guard_name)
    await switch.fenced.prepare(switch.store, switch.plan, switch.old, switch.id)


async def _pre_drain(any_switch: Switch) -> None:
    switch = _of(any_switch)
    assert switch.sync is not None
    deadline = time.monotonic() + REHEARSAL_PRE_DRAIN_S
    while switch.sync.took_ms > SWITCH_PRE_DRAIN_MS:
        if time.monotonic() > deadline:
            raise CutoverAborted(
                f"the rehearsal's keys change faster than they are copied to the {switch.to}",
                why=f"one copy of them takes {switch.sync.took_ms:.0f} ms",
                next_step=f"look at the load of the {switch.to}, then rehearse again",
            )
        await asyncio.sleep(SWITCH_HELD_POLL_S)


async def _go(switch: Switch) -> None:
    await say_soon(switch.store)
    with suppress(CutoverAborted):
        await switch.gateways(
            lambda beat: beat.facts.legs_ready,
            "a gateway's connections to the new side are not made yet",
            SWITCH_SOON_S,
        )


async def _release_old(any_switch: Switch) -> None:
    switch = _of(any_switch)
    switch.route = await read_route(switch.store)
    if switch.route.rehearsal_hold is not Hold.NONE:
        await switch.change(hold=Hold.NONE, why=f"given up: the sessions go on at the {switch.old}")


async def _drain(any_switch: Switch) -> None:
    switch = _of(any_switch)
    assert switch.sync is not None
    if switch.route.sync:
        await live_sync_done(switch)
    switch.copied = await switch.sync.finish(everything=switch.route.sync)
    switch.facts["keys"] = len(switch.copied)


async def live_sync_done(switch: Switch) -> None:
    """Wait until live sync has no change of the prefix left: later it would put an older state over
    what is written at the other side.

    Raises:
        CutoverAborted: the hold's time is over.
    """
    store, prefix = switch.store, switch.plan.rehearsal_prefix.encode()
    feed = JournalFeed(store, switch.plan.partitions)
    # The journal's present end is not enough: a key that changed during its copy is marked again
    # behind it, and a barrier marks every key.
    while (left := await feed.changes_since(await feed.synced())).barriers or any(
        key.startswith(prefix) for _, key in left.keys
    ):
        if not switch.left_s():
            raise CutoverAborted(
                "live sync did not come to the rehearsal's keys",
                why="it is behind",
                next_step="exodus status; rehearse again later",
            )
        await asyncio.sleep(SWITCH_HELD_POLL_S)


async def _raise_fence(any_switch: Switch) -> None:
    switch = _of(any_switch)
    assert switch.fenced is not None
    switch.facts["fence"] = await switch.fenced.raise_()
    switch.check_time()


async def _confirm(any_switch: Switch) -> None:
    switch = _of(any_switch)
    async with asyncio.TaskGroup() as each:
        each.create_task(_held_still(switch))
        each.create_task(_spot_check(switch))
        each.create_task(_look_beside(switch))


async def _held_still(switch: RehearsedSwitch) -> None:
    epoch, since_ms = switch.route.epoch, await ask_for_beats(switch.store)
    await switch.gateways(
        lambda beat: (
            beat.epoch == epoch
            and switch.held(beat)
            and beat.at_ms >= since_ms
            and not lacks(beat, switch.listeners)
        ),
        "a gateway does not hold the rehearsal's writes any more, or has no listener for a node",
        min(HOLD_ACK_S, switch.left_s()),
    )
    if await store_run(switch) != switch.store_run:
        raise CutoverAborted(
            "the control store was restarted while writes were held",
            why="a cutover would be given up here",
            next_step="rehearse again",
        )


async def _spot_check(switch: RehearsedSwitch) -> None:
    assert switch.comparison is not None
    keys = switch.copied[-SWITCH_HELD_SPOT_CHECK_KEYS:]
    found = await compare_now(switch.comparison, keys)
    switch.facts["spot_checked_keys"] = len(keys)
    if found:
        named = ", ".join(f"{each.key!r} ({each.kind})" for each in found[:5])
        raise CutoverAborted(
            f"{len(found)} of {len(keys)} keys of the rehearsal differ between the sides",
            why=named,
            next_step="look for who else writes under rehearsal_prefix, then rehearse again",
        )


async def _look_beside(switch: RehearsedSwitch) -> None:
    """Ask what a cutover asks under the hold; what must be mended is a row of its own."""
    rows = await compare(switch.plan, switch.legs[switch.old], switch.legs[switch.to])
    switch.facts["beside_open"] = len(required(rows))


async def _close_epoch(any_switch: Switch) -> None:
    switch = _of(any_switch)
    before, after = b"%d" % switch.writer, closed(switch.id)
    if not await replace_write_grant_on(switch.legs[switch.to], switch.guard_name, before, after):
        raise CutoverAborted(
            f"the rehearsal's guard on the {switch.to} is not {switch.writer}",
            why="another rehearsal changed it",
            next_step="let one rehearsal end before the next",
        )
