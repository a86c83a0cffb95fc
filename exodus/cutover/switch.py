"""The switch: the authority goes from one side to the other, and nothing acknowledged is lost.

A switch is a list of typed steps. `explain` tells what each would do, `apply` does them in order and keeps the time of each; so what a
person approves is what runs. The list of a rollback after a cutover is the same with the sides swapped.

    readiness → prepare → let in → pre-drain → go → hold → drain → fence → verify → confirm → close the epoch → open → switch → release
        → kill strays → flow back, with promote after confirm where the target is the source's replica

Until the route has the new authority, any failure or missed time undoes what was done, in reverse, and writes go on at the old side. From
there on the switch is a fact: later failures are repaired forwards. One compare-and-set on the route decides which of the two it is, and
where its outcome cannot be learnt, nothing is undone: the fence stands, and the gateways settle it (`settle.py`).

A process that was frozen in the middle and wakes when others have settled it must change nothing. So each effect is conditional: the route
by its epoch, the fence and the followers' guards by a key on that side whose value names this switch.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from exodus import gc_tuning
from exodus.backfill import migrate
from exodus.control import journal, registry
from exodus.control.changes import Key
from exodus.control.registry import Heartbeat
from exodus.control.route import Route, ask_for_beats, change_route, read_route, say_soon
from exodus.control.schema import guard_key
from exodus.control.store import ControlStore
from exodus.copy.guard import replace_write_grant, replace_write_grant_on
from exodus.cutover.canary_share import end_canary
from exodus.cutover.feed_choice import chosen_feed
from exodus.cutover.fence import Fence, blocks_exodus
from exodus.cutover.functions import carry_functions
from exodus.cutover.held_comparison import verify_held
from exodus.cutover.levers import check_aborted, keep_failed, over, postponed, say
from exodus.cutover.preconditions import NOTHING_MORE, Approved, check_gaps, check_standing
from exodus.cutover.script_loading import load_scripts, unseen
from exodus.cutover.settle import closed, settle
from exodus.engine import open_engine
from exodus.errors import Bug, CutoverAborted, DecisionRefused, ExodusError, SwitchUnknown
from exodus.feeds import replication
from exodus.feeds.feed import feed_of
from exodus.live import server_runs
from exodus.native import replica
from exodus.net.client import answered
from exodus.net.leg import Leg, close_all
from exodus.plan.bounds import HOLD_ACK_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, Feed, FenceKind, Hold, JournalMode, Side, UserRole
from exodus.plan.window import QuietWatch, Window
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import Comparison, open_comparison
from exodus.verify.reconcile import compare_now

_PRE_DRAIN_S = 60.0
_PRE_DRAIN_MS = 500  # what is left then is synced under the hold, in about this time
_SPOT_CHECK_KEYS = 2_000
_POLL_S = 0.002  # while writes are held, where no word comes
_OUTCOME_S = 15.0  # how long the store is asked whether a change of the route was made
_RETRY_S = 0.1
_SOON_S = 1.0  # that gateways get to connect their sessions to the new side beforehand; one that cannot does it under the hold
_LOOK_S = 0.2  # while a person or the window lets it wait
_AFTER_RELEASE_S = 0.1  # gateways work off what they held; the fence stands, so strays can wait
_STEP_S = 15.0  # for a step before writes are held, and for undoing one: a server that does not answer costs no more
_STORE_ERRORS = (RedisError, OSError, TimeoutError)


@dataclass
class Switch:
    """What the steps share."""

    store: ControlStore
    plan: Plan
    to: Side
    route: Route
    window: Window | None = None  # in which it may begin; None: now
    approved: Approved = NOTHING_MORE
    began_ms: int = 0  # by the store's clock
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    timeline: list[dict[str, str | float]] = field(default_factory=list)
    facts: dict[str, str | int | float] = field(default_factory=dict)
    switched: bool = False
    released: bool = False  # writes go on at the new side
    closing: bool = False
    held_until_told: bool = (
        False  # no server would refuse the writes of a gateway that ended its hold alone
    )
    feed: Feed = Feed.GATEWAY  # the change feed of the new side, by which writes flow back
    held_at: float | None = None
    store_run: str = ""  # the control store's, when the hold began
    before_hold: dict[int, bytes] = field(default_factory=dict)
    comparison: Comparison | None = None
    old_grant: bytes | None = None  # the guard's value on the old authority before
    blocks_exodus: bool = (
        False  # the fence on the new side refuses our own writes too, where nobody lets us in
    )
    heard: PubSub | None = (
        None  # gateways announce the heartbeats that a switch waits for; a lost word costs one poll
    )
    legs: dict[Side, Leg] = field(default_factory=dict)
    legs_turn: asyncio.Lock = field(
        default_factory=asyncio.Lock
    )  # of who asks over `legs` beside another task
    scripts_loaded: set[bytes] = field(default_factory=set)  # on the new side, by digest
    while_held: ExitStack = field(default_factory=ExitStack)
    _fences: dict[Side, Fence] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def old(self) -> Side:
        """The side that is the authority when the switch begins."""
        return self.to.other

    def endpoint(self, side: Side) -> Endpoint:
        """One side."""
        return Endpoint(side, self.plan.acting(UserRole.SWITCH).address(side))

    def fence(self, side: Side) -> Fence:
        """The fence of a side, with its connections kept."""
        return self._fences.setdefault(side, Fence(self.store, side, self.plan))

    async def close(self) -> None:
        """Give connections back."""
        self.while_held.close()
        for fence in self._fences.values():
            await fence.close()
        await close_all(self.legs.values())
        if self.comparison is not None:
            await self.comparison.close()
        if self.heard is not None:
            await self.heard.aclose()

    @property
    def holding(self) -> bool:
        """Whether writes wait for us."""
        return self.held_at is not None and not self.released

    @contextmanager
    def timed(self, step: str) -> Iterator[dict[str, str | float]]:
        """A row of the timeline: when it began (UTC; the store's clock at the switch's beginning and a monotonic one since), and its ms."""
        began = time.monotonic()
        at = datetime.fromtimestamp(self.began_ms / 1000 + began - self._began, UTC)
        row: dict[str, str | float] = {"step": step, "at": at.isoformat(timespec="milliseconds")}
        try:
            yield row
        finally:
            row["ms"] = round((time.monotonic() - began) * 1000, 1)
            self.timeline.append(row)

    def left_s(self) -> float:
        """Seconds that writes may still be held. A monotonic clock, which also runs while this process is frozen."""
        if self.held_at is None:
            return self.plan.hold_seconds_max
        return max(0.0, self.held_at + self.plan.hold_seconds_max - time.monotonic())

    def check_time(self) -> None:
        """Raise where the hold's time is over.

        Raises:
            CutoverAborted: the gateways are about to end the hold, or have.
        """
        if not self.left_s():
            raise CutoverAborted(
                f"writes were held for {self.plan.hold_seconds_max} s",
                why="hold_seconds_max is over; the gateways end the hold by themselves",
                next_step="look at the step that took so long in the timeline, then retry",
            )

    async def change(self, **changes: object) -> None:
        """Make the next epoch; where the store fails in the middle, find out whether it was made.

        Raises:
            DecisionRefused: somebody else made another.
            SwitchUnknown: the store did not come back in time.
        """
        before, after = self.route, self.route.next(**changes)  # type: ignore[arg-type]
        deadline = time.monotonic() + _OUTCOME_S
        while True:
            try:
                self.route = await change_route(self.store, before, after)
                return
            except _STORE_ERRORS as exc:
                now = await self._read_route(deadline, exc)
            except DecisionRefused:
                now = await self._read_route(deadline, None)
                if now != after:
                    raise
            if now == after:
                self.route = after
                return
            if now != before:
                self.route = now
                raise DecisionRefused(
                    f"the route is at epoch {now.epoch}",
                    why=f"it was changed meanwhile: {now.why}",
                    next_step="look at `exodus status`",
                )

    async def _read_route(self, deadline: float, cause: BaseException | None) -> Route:
        while True:
            try:
                return await read_route(self.store)
            except _STORE_ERRORS as exc:
                if time.monotonic() > deadline:
                    raise SwitchUnknown(
                        "whether the route was changed is not known",
                        why=f"the control store is away: {type(cause or exc).__name__}",
                        next_step="start the control store: the gateways then settle it; `exodus status` tells which side is the authority",
                    ) from exc
                await asyncio.sleep(_RETRY_S)

    async def hear(self, within_s: float) -> None:
        """Wait for the next word of a gateway or syncer."""
        if self.heard is None:
            await asyncio.sleep(within_s)
        else:
            await self.heard.get_message(ignore_subscribe_messages=True, timeout=within_s)

    async def gateways(
        self, holds: Callable[[Heartbeat], bool], otherwise: str, within_s: float
    ) -> None:
        """Wait for every gateway."""
        await registry.wait_for(
            self.store,
            "gateway",
            holds,
            within_s=within_s,
            otherwise=otherwise,
            woken_by=self.heard,
        )


Act = Callable[[Switch], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """One step: its name, what it does in words, the doing, and what undoes it before the authority has changed."""

    name: str
    text: str
    do: Act
    undo: Act | None = None
    bounded: bool = True  # may be broken off when its time is over; a change of the route may not, since its outcome must be known


async def _read_old_authority(switch: Switch) -> None:
    switch.route = await read_route(switch.store)
    if switch.route.authority is not switch.old:
        raise DecisionRefused(
            f"the {switch.to} is the authority already",
            why=f"the route is at epoch {switch.route.epoch}",
            next_step="look at `exodus status`; there is nothing to switch",
        )


async def _check_lives(switch: Switch) -> None:
    """Refuse where a server restarted since the journal speaks for it; with nothing to copy, live sync may not have noticed."""
    restarted = await server_runs.changed(
        await open_engine(switch.store, switch.plan, switch.route)
    )
    if restarted:
        raise DecisionRefused(
            f"the {restarted[0]} restarted, and may have lost keys",
            why="live sync compares both sides first",
            next_step="wait until `exodus status` shows no open gap, then retry",
        )


async def _readiness(switch: Switch) -> None:
    store = switch.store
    left = await settle(store, switch.plan)
    if left:
        raise DecisionRefused(
            "an earlier switch is not settled",
            why="; ".join(left),
            next_step="wait for it (`exodus status`), or end its hold: exodus release",
        )
    await _read_old_authority(switch)
    await end_canary(
        store, switch.route, "a switch is about to begin: canary reads end"
    )  # a gateway that gives them up later would change the route
    method = await switch.fence(switch.old).check_possible()
    switch.legs[switch.old] = await switch.endpoint(switch.old).connect(name="exodus-switch")
    switch.old_grant = await switch.legs[switch.old].call("GET", guard_key(switch.plan.name))
    await _read_old_authority(
        switch
    )  # once more: rights are taken from what the side said before this
    switch.facts["fence"] = str(method.kind)
    switch.held_until_told = method.kind is FenceKind.PROVIDER
    if not switch.route.sync or switch.route.journal is not JournalMode.ALL:
        raise DecisionRefused(
            "live sync is not on",
            why=f"route: {switch.route.why}",
            next_step="run the migrate phase first: exodus start migrate",
        )
    await _check_lives(switch)
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
    await _check_standing(switch)
    switch.facts["partitions"] = switch.plan.partitions


async def _check_standing(switch: Switch) -> None:
    """See `standing.py`; by connections that are there already, since writes may wait for it."""
    reached = (
        switch.legs
        if switch.holding
        or not await blocks_exodus(switch.store, switch.to)
        or switch.blocks_exodus
        else {}
    )
    if switch.to is Side.TARGET and reached and not switch.holding:
        await carry_functions(
            await open_engine(switch.store, switch.plan, switch.route)
        )  # a release may have loaded others since
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


async def _prepare(switch: Switch) -> None:
    await switch.fence(switch.old).prepare(switch.id)
    if await switch.fence(switch.to).record() is not None:
        await switch.fence(switch.to).connect()
    await _load_scripts(switch)
    await _grant_writes(switch)
    switch.heard = switch.store.client.pubsub()
    await switch.heard.subscribe(switch.store.keys.part_changed)


async def _load_scripts(switch: Switch) -> None:
    async with switch.legs_turn:
        refused = await load_scripts(switch.store, switch.legs[switch.to], switch.scripts_loaded)
    switch.facts["scripts_loaded"] = len(switch.scripts_loaded)
    switch.facts["scripts_unseen"] = unseen(await registry.heartbeats(switch.store, "gateway"))
    if refused:
        switch.facts["scripts_refused"] = "; ".join(refused[:10])


async def _grant_writes(switch: Switch) -> None:
    """Let the writers of the epoch after the switch write to the old authority: before the fence, which may refuse our own writes too.

    Nobody writes there by it yet: whoever copies to a side has a route that names the other one as the authority.
    """
    if not await replace_write_grant_on(
        switch.legs[switch.old],
        switch.plan.name,
        switch.old_grant,
        b"%d" % (switch.route.writer_epoch + 1),
    ):
        raise CutoverAborted(
            f"the writers' epoch on the {switch.old} was changed",
            why="another switch changed it",
            next_step="exodus status",
        )


async def _suspend_fence(switch: Switch) -> None:
    switch.blocks_exodus = await blocks_exodus(switch.store, switch.to)
    await switch.fence(switch.to).suspend()


async def _pre_drain(switch: Switch) -> None:
    """Wait for live sync, as long as it comes nearer: behind a fence that kept us out a journal of days may wait."""
    deadline, nearest = time.monotonic() + _PRE_DRAIN_S, -1
    while (
        age_ms := await journal.oldest_ms(
            switch.store, switch.plan.partitions, await switch.store.now_ms()
        )
    ) > _PRE_DRAIN_MS:
        if switch.blocks_exodus:
            await switch.fence(switch.to).suspend()
            left = await journal.lag_entries(switch.store, switch.plan.partitions)
            if nearest < 0 or left < nearest:
                nearest, deadline = left, time.monotonic() + _PRE_DRAIN_S
        await check_gaps(
            switch.store, scripts_later=True
        )  # a server that restarts meanwhile opens one
        if time.monotonic() > deadline:
            says = [
                beat.why for beat in await registry.heartbeats(switch.store, "syncer") if beat.why
            ]
            raise CutoverAborted(
                f"live sync does not catch up: {age_ms} ms behind after {_PRE_DRAIN_S:.0f} s",
                why="; ".join(dict.fromkeys(says)) or "keys change faster than they are copied",
                next_step="mend what the syncer says"
                if says
                else "start more syncers, or wait for a quieter hour, then retry",
            )
        await check_aborted(switch.store)
        await asyncio.sleep(0.05)
    switch.facts["lag_ms_before_hold"] = age_ms


async def _go(switch: Switch) -> None:
    """Wait for a person who postpones it, and for the window, if one was approved; live sync keeps up meanwhile."""
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
        await asyncio.sleep(_LOOK_S)
    if said:
        switch.facts["waited_for"] = said
        switch.facts["waited_s"] = round(time.monotonic() - began, 1)
        await _pre_drain(switch)
    # Connected, and its scripts known to both sides, before anything waits for the spot check.
    switch.comparison = await open_comparison(
        await open_engine(store, switch.plan.acting(UserRole.VERIFIER), switch.route)
    )
    await compare_now(switch.comparison, [(0, b"exodus: no such key")])
    await _check_standing(switch)  # hours may have passed
    await say_soon(store)
    with suppress(CutoverAborted):
        await switch.gateways(
            lambda beat: bool(beat.facts.get("legs_ready")),
            "a gateway's connections to the new side are not made yet",
            _SOON_S,
        )


async def _hold(switch: Switch) -> None:
    switch.store_run = await _store_run(switch)
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
        lambda beat: beat.epoch == epoch and beat.state == "held",
        "not every gateway could hold its writes",
        min(HOLD_ACK_S, switch.left_s()),
    )


async def _release_old(switch: Switch) -> None:
    switch.route = await read_route(switch.store)
    if switch.route.switch != switch.id or switch.route.hold is Hold.NONE:
        return  # it was not begun, or a gateway has ended it
    await switch.change(
        hold=Hold.NONE,
        writer_epoch=switch.route.writer_epoch
        + int(switch.closing),  # lanes that lost their right do not come back to an old epoch
        why=f"switch {switch.id} to the {switch.to} given up: writes go on at the {switch.old}",
    )
    await replace_write_grant(
        switch.endpoint(switch.to),
        switch.plan.name,
        closed(switch.id),
        b"%d" % switch.route.writer_epoch,
    )
    await replica.reopen(switch.plan, switch.route, closed(switch.id))


async def _drained(switch: Switch) -> None:
    feed = feed_of(
        switch.store, switch.route.feed, switch.plan.partitions, switch.endpoint(switch.old)
    )
    while not await feed.drained():
        if not switch.left_s():
            raise CutoverAborted(
                "the journal did not drain while writes were held",
                why=f"{await journal.lag_entries(switch.store, switch.plan.partitions)} entries are left",
                next_step="look at the syncer in `exodus status`; writes go on at the old side, retry later",
            )
        await switch.hear(_POLL_S)


async def _fence(switch: Switch) -> None:
    if switch.route.native:  # now that writes are held, nobody flushes it away again
        await replica.keep_write_grant(
            switch.legs[switch.old], switch.plan, switch.route.writer_epoch
        )
    proofs = await switch.fence(switch.old).raise_()
    # A gateway ends a hold by itself a second after our own time for it. As long as ours is not over, none has by the time the fence stood.
    switch.check_time()
    switch.facts["fenced_users"] = ", ".join(f"{user}: {proof}" for user, proof in proofs.items())


async def _lower_old(switch: Switch) -> None:
    record = await switch.fence(switch.old).record()
    if (
        record is not None and record.switch == switch.id
    ):  # not another's, where we were frozen meanwhile
        await switch.fence(switch.old).lower(record)


async def _verify(switch: Switch) -> None:
    if switch.comparison is None:
        raise Bug(
            "nothing was made ready to compare with",
            why="the step 'go' was left out",
            next_step="report this; nothing was switched",
        )
    engine = await open_engine(switch.store, switch.plan, switch.route)
    switch.facts.update(
        await verify_held(
            engine, switch.comparison, drained=partial(_drained, switch), left_s=switch.left_s
        )
    )


async def _confirm(switch: Switch) -> None:
    # Said after the fence stood, so that a gateway that released its writes alone meanwhile is noticed.
    epoch, since_ms = switch.route.epoch, await ask_for_beats(switch.store)
    await switch.gateways(
        lambda beat: (
            beat.epoch == epoch
            and beat.state == "held"
            and beat.at_ms >= since_ms
            and not beat.facts["unflushed"] + beat.facts["writes_in_flight"]
        ),
        "a gateway does not hold its writes any more, or has keys that are not in the journal",
        min(HOLD_ACK_S, switch.left_s()),
    )
    await _load_scripts(switch)  # those that were first used since the beginning
    await _drained(switch)
    await check_gaps(
        switch.store
    )  # a gap is in the store before a gateway says that nothing is unflushed
    if await _store_run(switch) != switch.store_run:
        raise CutoverAborted(
            "the control store was restarted while writes were held",
            why="it may have lost the last entries of the journal",
            next_step="wait until `exodus status` shows no gap and no spooled keys, then retry",
        )


async def _store_run(switch: Switch) -> str:
    return str((await answered(switch.store.client.info("server")))["run_id"])


async def _confirm_and_spot_check(switch: Switch) -> None:
    # Side by side: nothing can change any more, and the journal was drained when the fence was put up.
    async with asyncio.TaskGroup() as both:
        both.create_task(_confirm(switch))
        both.create_task(_spot_check(switch))
        both.create_task(_check_standing(switch))


async def _spot_check(switch: Switch) -> None:
    if switch.comparison is None:
        raise Bug(
            "nothing was made ready to compare with",
            why="the step 'go' was left out",
            next_step="report this; nothing was switched",
        )
    changes = await journal.since(switch.store, switch.before_hold)
    keys: list[Key] = list(dict.fromkeys(changes.keys))[-_SPOT_CHECK_KEYS:]
    divergences = await compare_now(switch.comparison, keys)
    switch.facts["spot_checked_keys"] = len(keys)
    if divergences:
        named = ", ".join(f"db{found.db} {found.key!r} ({found.kind})" for found in divergences[:5])
        raise CutoverAborted(
            f"{len(divergences)} of {len(keys)} keys changed last differ between the sides",
            why=named,
            next_step="exodus verify --repair, then retry; writes go on at the old side",
        )


async def _promote(switch: Switch) -> None:
    if not switch.route.native:
        return
    switch.closing = True
    source, target = switch.legs[switch.old], switch.legs[switch.to]
    # The fence was proved: nothing of an application is propagated after this offset.
    switch.facts["offset"] = await replica.wait_reached(source, target, within_s=switch.left_s())
    await replica.promote(target, switch.plan, switch.route.writer_epoch, closed(switch.id))


async def _close_epoch(switch: Switch) -> None:
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
            switch.store, switch.legs[switch.to], guard_key(switch.plan.name), closed(switch.id)
        )
    if switch.plan.strategy is CopyStrategy.MIGRATE:
        await migrate.end_users(switch.legs[switch.to], switch.plan.name)


async def _open_new(switch: Switch) -> None:
    fence = switch.fence(switch.to)
    record = await fence.record()
    if record is not None:
        await fence.open(
            record
        )  # before the sessions come: a transaction that is replayed there may hold writes


async def _close_new(switch: Switch) -> None:
    fence = switch.fence(switch.to)
    record = await fence.record()
    if (
        record is not None and (await read_route(switch.store)).authority is switch.old
    ):  # not where another switch came there meanwhile
        await fence.resume(record)


async def _switch(switch: Switch) -> None:
    switch.check_time()
    await switch.change(
        authority=switch.to,
        sync=False,
        native=False,
        journal=JournalMode.ALL,
        feed=switch.feed,
        writer_epoch=switch.route.writer_epoch + 1,
        why=f"switch {switch.id}: the {switch.to} is the authority",
    )
    switch.switched = True
    epoch = switch.route.epoch
    try:
        await switch.gateways(
            lambda beat: beat.epoch >= epoch,
            "a gateway did not confirm the switch",
            max(min(HOLD_ACK_S, switch.left_s()), 0.5),
        )
    except CutoverAborted as exc:
        # The fence stands, so a gateway that is behind can lose nothing; it follows as soon as it reads the route.
        switch.facts["late_gateways"] = exc.why


async def _release(switch: Switch) -> None:
    try:
        await switch.change(
            hold=Hold.NONE, why=f"switch {switch.id}: writes go on at the {switch.to}"
        )
    except DecisionRefused:
        switch.route = await read_route(switch.store)  # the gateways have ended the hold
    switch.released = True
    switch.while_held.close()
    if switch.held_at is not None:
        switch.facts["hold_ms"] = round((time.monotonic() - switch.held_at) * 1000, 1)


async def _kill_strays(switch: Switch) -> None:
    await asyncio.sleep(_AFTER_RELEASE_S)
    switch.facts["strays_killed"] = await switch.fence(switch.old).kill_strays()


async def _flow_back(switch: Switch) -> None:
    left = await settle(switch.store, switch.plan)
    switch.route = await read_route(switch.store)
    if left:
        raise ExodusError(
            f"changes do not flow back to the {switch.old} yet",
            why="; ".join(left),
            next_step="the gateways go on trying",
        )


_FENCES = {
    FenceKind.AUTO: "make the {old} refuse writes of everybody but Exodus, by the strongest means that it allows",
    FenceKind.ACL: "take the right to write on the {old} from every user but Exodus's",
    FenceKind.MIN_REPLICAS: "make the {old} refuse every write (min-replicas-to-write)",
    FenceKind.REPLICA: "make the {old} a replica of nobody, which refuses every write",
    FenceKind.PROVIDER: "rely on the person who let nobody but gateways and Exodus reach the {old}",
}


def _promotion(plan: Plan, to: Side) -> list[Step]:
    if plan.strategy is not CopyStrategy.NATIVE or to is Side.SOURCE:
        return []
    text = f"if the {to} is the {to.other}'s replica: wait until it has applied all, and make it a server of its own"
    return [
        Step("promote", text, _promote)
    ]  # undone with the hold: syncers make it a replica again, in a new epoch


def steps(plan: Plan, to: Side) -> list[Step]:
    """The steps of a switch to `to`, in order."""
    old = to.other
    return [
        Step(
            "readiness",
            "check that no earlier switch is open, live sync, rehearsal, open gaps, dead letters, libraries, gateways, syncers",
            _readiness,
        ),
        Step(
            "prepare",
            f"look up what may write to the {old}, so that a fence can be put up in one step",
            _prepare,
        ),
        Step(
            "let in",
            f"where the fence on the {to} keeps Exodus out too: lift it, so that live sync can catch up",
            _suspend_fence,
            _close_new,
        ),
        Step(
            "pre-drain",
            f"wait until live sync is at most {_PRE_DRAIN_MS} ms behind (writes go on)",
            _pre_drain,
            bounded=False,
        ),
        Step(
            "go",
            f"wait as long as a person postpones it (exodus hold), and for the window, if one is approved; let gateways connect to the {to}",
            _go,
            bounded=False,
        ),
        Step(
            "hold",
            f"hold writes in every gateway (reads go on), at most {plan.hold_seconds_max:.0f} s in all",
            _hold,
            _release_old,
            bounded=False,
        ),
        Step("drain", f"wait until every journalled key is equal on the {to}", _drained),
        Step(
            "fence",
            f"{_FENCES[plan.fence.of(old)].format(old=old)}, and prove it",
            _fence,
            _lower_old,
        ),
        Step(
            "verify",
            "if scripts ran whose writes no feed reports: compare every key, and copy what differs",
            _verify,
        ),
        Step(
            "confirm",
            "hear from every gateway that it still holds, see the journal drained, check again all that readiness checked, "
            f"compare up to {_SPOT_CHECK_KEYS} of the keys changed last",
            _confirm_and_spot_check,
        ),
        *_promotion(plan, to),
        Step("close the epoch", f"end every syncer's right to write to the {to}", _close_epoch),
        Step(
            "open",
            f"let applications write to the {to} again, if it was fenced",
            _open_new,
            _close_new,
        ),
        Step(
            "switch",
            f"make the {to} the authority; gateways take their sessions there",
            _switch,
            bounded=False,
        ),
        Step("release", f"let writes go on at the {to}", _release, bounded=False),
        Step(
            "kill strays",
            f"end what is still connected to the {old} as an application",
            _kill_strays,
        ),
        Step("flow back", f"let changes flow back to the {old}", _flow_back),
    ]


def explain(plan: Plan, to: Side) -> list[str]:
    """What `apply` would do, a line a step."""
    return [f"{number}. {step.name}: {step.text}" for number, step in enumerate(steps(plan, to), 1)]


Tell = Callable[[Switch, Step], None]


def _silent(switch: Switch, step: Step) -> None:
    del switch, step


async def apply(
    store: ControlStore,
    plan: Plan,
    to: Side,
    *,
    window: Window | None = None,
    approved: Approved = NOTHING_MORE,
    tell: Tell = _silent,
) -> Switch:
    """Do the switch, in `window` where one is given; `tell` hears of each step before it is done, and must not wait.

    What it stands on is checked by itself, whatever was checked before: see `standing.py`.

    Raises:
        DecisionRefused: a precondition does not hold; nothing was changed.
        CutoverAborted: it was given up before the authority changed; everything was undone, writes go on at the old side.
        SwitchUnknown: the control store went away while it was done; nothing was undone, the gateways settle it.
    """
    switch = Switch(
        store,
        plan,
        to,
        await read_route(store),
        window=window,
        approved=approved,
        began_ms=await store.now_ms(),
    )
    done: list[Step] = []
    try:
        for step in steps(plan, to):
            tell(switch, step)
            if not switch.holding:  # writes would wait for it
                await say(store, step.name)
            done.append(step)
            with switch.timed(step.name) as row:
                try:
                    async with asyncio.timeout(_limit_s(switch) if step.bounded else None):
                        await _do(step, switch)
                except (ExodusError, *_STORE_ERRORS) as exc:
                    row["failed"] = str(exc) or type(exc).__name__
                    failure: BaseException | None = exc
                else:
                    failure = None
            if failure is None:
                continue
            if isinstance(failure, SwitchUnknown):
                raise failure
            if not switch.switched:
                await _undo(switch, done)
                raise _given_up(switch, step, failure) from failure
            # The authority has changed: what is left is done by the gateways when the hold's time is over (`settle`).
            switch.facts["unfinished"] = (
                f"{step.name}: {failure.why if isinstance(failure, ExodusError) else type(failure).__name__}"
            )
    except ExodusError as exc:
        await keep_failed(
            store,
            switch.id,
            {"to": str(to), "failed": str(exc), "timeline": switch.timeline, "facts": switch.facts},
        )
        raise
    finally:
        await over(store)
        await switch.close()
    return switch


async def _do(step: Step, switch: Switch) -> None:
    try:
        await step.do(switch)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group  # of two that were done side by side


def _limit_s(switch: Switch) -> float:
    return _STEP_S if switch.switched or switch.held_at is None else switch.left_s()


def _given_up(switch: Switch, step: Step, exc: BaseException) -> ExodusError:
    if isinstance(exc, DecisionRefused | CutoverAborted):
        return exc
    return CutoverAborted(
        f"the switch to the {switch.to} was given up at '{step.name}'",
        why=str(exc) or "it took too long",
        next_step="writes go on at the old side; retry",
    )


async def _undo(switch: Switch, done: list[Step]) -> None:
    """Undo steps in reverse; one that fails does not keep the others from being undone, and the gateways do it again."""
    for step in reversed(done):
        if step.undo is None:
            continue
        with switch.timed(f"undo {step.name}") as row:
            try:
                async with asyncio.timeout(_STEP_S):
                    await step.undo(switch)
            except (ExodusError, *_STORE_ERRORS) as exc:
                row["failed"] = str(exc) or type(exc).__name__
