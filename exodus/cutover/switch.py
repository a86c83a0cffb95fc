"""The switch: the authority goes from one side to the other, and nothing acknowledged is lost.

A switch is a list of typed steps. `explain` tells what each would do, `apply` does them in order and keeps the time of each; so what a
person approves is what runs. The list of a rollback after a cutover is the same with the sides swapped.

    readiness → pre-drain → hold → drain → fence → drain again → spot check → close the old epoch → switch → kill strays → release

Until the step `switch` has changed the route, any failure or missed time undoes what was done, in reverse, and writes go on at the old
authority. From there on the switch is a fact: later failures are recorded and repaired forwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from exodus.config import Hold, JournalMode, Plan, Side
from exodus.control import journal, registry
from exodus.control.changes import Key
from exodus.control.registry import Heartbeat
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore, answered
from exodus.cutover.fence import Fence
from exodus.endpoint import Endpoint
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError
from exodus.sync.engine import open_engine
from exodus.sync.guard import set_writer_epoch
from exodus.sync.reconcile import spot_check

_PRE_DRAIN_S = 60.0
_PRE_DRAIN_MS = 500  # what is left then is synced under the hold, in about this time
_CLOSED = -1  # no syncer writes with this epoch
_SPOT_CHECK_KEYS = 2_000


@dataclass
class Switch:
    """What the steps share."""

    store: ControlStore
    plan: Plan
    to: Side
    route: Route
    sync_after: bool = True  # writes flow back to the old authority until the migration is finalised
    timeline: list[dict[str, str | float]] = field(default_factory=list)
    facts: dict[str, str | int | float] = field(default_factory=dict)
    switched: bool = False
    held_at: float | None = None
    recent: list[Key] = field(default_factory=list)
    before_hold: dict[int, bytes] = field(default_factory=dict)

    @property
    def old(self) -> Side:
        """The side that is the authority when the switch begins."""
        return self.to.other

    def fence(self, side: Side) -> Fence:
        """The fence of a side."""
        return Fence(self.store, side, self.plan.address(side))

    def left_s(self) -> float:
        """Seconds that writes may still be held."""
        if self.held_at is None:
            return self.plan.hold_seconds_max
        return max(0.0, self.held_at + self.plan.hold_seconds_max - time.monotonic())

    async def change(self, **changes: object) -> None:
        """Make the next epoch."""
        self.route = await change_route(self.store, self.route, self.route.next(**changes))  # type: ignore[arg-type]

    async def gateways(self, holds: Callable[[Heartbeat], bool], otherwise: str, within_s: float) -> None:
        """Wait for every gateway."""
        await registry.wait_for(self.store, "gateway", holds, within_s=within_s, otherwise=otherwise)


Act = Callable[[Switch], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """One step: its name, what it does in words, the doing, and what undoes it before the authority has changed."""

    name: str
    text: str
    do: Act
    undo: Act | None = None


async def _readiness(switch: Switch) -> None:
    store, plan = switch.store, switch.plan
    if switch.route.authority is not switch.old:
        raise DecisionRefused(
            f"the {switch.to} is the authority already",
            why=f"the route is at epoch {switch.route.epoch}",
            next_step="look at `exodus status`; there is nothing to switch",
        )
    if not switch.route.sync or switch.route.journal is not JournalMode.ALL:
        raise DecisionRefused("live sync is not on", why=f"route: {switch.route.why}", next_step="run the migrate phase first: exodus start migrate")
    gaps = await answered(store.client.hkeys(store.keys.gap))
    if gaps:
        raise DecisionRefused(
            f"{len(gaps)} open gap(s): {', '.join(gap.decode() for gap in gaps[:5])}",
            why="writes happened that no journal covers, and nothing has verified them since",
            next_step="exodus verify --repair, which closes gaps when it ends clean",
        )
    dead = int(await answered(store.client.hlen(store.keys.dead)))
    if dead:
        raise DecisionRefused(
            f"{dead} key(s) could not be carried",
            why="they are listed as dead letters with their reasons",
            next_step="exodus repair, or exodus status --json to see them",
        )
    await switch.fence(switch.old).check_possible()
    await registry.wait_for(
        store, "gateway", lambda beat: beat.epoch == switch.route.epoch, within_s=5, otherwise="not every gateway follows the route"
    )
    await registry.wait_for(store, "syncer", lambda beat: beat.epoch == switch.route.epoch, within_s=5, otherwise="no syncer follows the route")
    if await answered(store.client.get(store.keys.prefix + "abort")):
        raise CutoverAborted("the switch was called off", why="exodus abort", next_step="start the phase again when ready")
    switch.facts["partitions"] = plan.partitions


async def _pre_drain(switch: Switch) -> None:
    deadline = time.monotonic() + _PRE_DRAIN_S
    while (age_ms := await journal.oldest_ms(switch.store, switch.plan.partitions, await switch.store.now_ms())) > _PRE_DRAIN_MS:
        if time.monotonic() > deadline:
            raise CutoverAborted(
                f"live sync does not catch up: {age_ms} ms behind after {_PRE_DRAIN_S:.0f} s",
                why="keys change faster than they are copied",
                next_step="start more syncers, or wait for a quieter hour, then retry",
            )
        await asyncio.sleep(0.05)
    switch.facts["lag_ms_before_hold"] = age_ms


async def _hold(switch: Switch) -> None:
    switch.before_hold = await journal.ends(switch.store, switch.plan.partitions)
    switch.held_at = time.monotonic()
    await switch.change(hold=Hold.WRITES, why=f"switch to {switch.to}: hold")
    epoch = switch.route.epoch
    await switch.gateways(lambda beat: beat.epoch == epoch and beat.state == "held", "not every gateway could hold its writes", switch.left_s())


async def _release_old(switch: Switch) -> None:
    await switch.change(hold=Hold.NONE, why=f"switch to {switch.to} given up: writes go on at the {switch.old}")


async def _drain(switch: Switch) -> None:
    # A gateway says 'held' only when everything it had to journal is in the store.
    while not await journal.drained(switch.store, switch.plan.partitions):
        if not switch.left_s():
            raise CutoverAborted(
                "the journal did not drain while writes were held",
                why=f"{await journal.lag_entries(switch.store, switch.plan.partitions)} entries are left",
                next_step="look at the syncer in `exodus status`; writes go on at the old side, retry later",
            )
        await asyncio.sleep(0.005)


async def _fence(switch: Switch) -> None:
    proofs = await switch.fence(switch.old).raise_()
    switch.facts["fenced_users"] = ", ".join(f"{user}: {proof}" for user, proof in proofs.items())


async def _lower_old(switch: Switch) -> None:
    await switch.fence(switch.old).lower()


async def _drain_again(switch: Switch) -> None:
    # What changed around the hold is synced once more now that nothing can write any more: it covers a command that a
    # lost connection left behind in the server.
    changes = await journal.since(switch.store, switch.before_hold)
    switch.recent = list(dict.fromkeys(changes.keys))
    await journal.append(switch.store, switch.recent, switch.plan.partitions)
    # Said after the fence stood, so that a gateway that released its writes alone meanwhile is noticed.
    since_ms, epoch = await switch.store.now_ms(), switch.route.epoch
    await switch.gateways(
        lambda beat: beat.epoch == epoch and beat.state == "held" and beat.at_ms >= since_ms and not beat.facts["unflushed"],
        "a gateway does not hold its writes any more, or has keys that are not in the journal",
        switch.left_s(),
    )
    await _drain(switch)


async def _spot_check(switch: Switch) -> None:
    keys = switch.recent[-_SPOT_CHECK_KEYS:]
    engine = await open_engine(switch.store, switch.plan)
    try:
        divergences = await spot_check(engine, keys)
    finally:
        await engine.close()
    switch.facts["spot_checked_keys"] = len(keys)
    if divergences:
        named = ", ".join(f"db{found.db} {found.key!r} ({found.kind})" for found in divergences[:5])
        raise CutoverAborted(
            f"{len(divergences)} of {len(keys)} keys changed last differ between the sides",
            why=named,
            next_step="exodus verify --repair, then retry; writes go on at the old side",
        )


async def _close_epoch(switch: Switch) -> None:
    await set_writer_epoch(Endpoint(switch.to, switch.plan.address(switch.to)), switch.plan.name, _CLOSED)


async def _reopen_epoch(switch: Switch) -> None:
    await set_writer_epoch(Endpoint(switch.to, switch.plan.address(switch.to)), switch.plan.name, switch.route.writer_epoch)


async def _switch(switch: Switch) -> None:
    await switch.fence(switch.to).lower()
    next_writer = switch.route.writer_epoch + 1
    await set_writer_epoch(Endpoint(switch.old, switch.plan.address(switch.old)), switch.plan.name, next_writer)
    await switch.change(authority=switch.to, sync=False, journal=JournalMode.ALL, writer_epoch=next_writer, why=f"the {switch.to} is the authority")
    switch.switched = True
    epoch = switch.route.epoch
    try:
        await switch.gateways(lambda beat: beat.epoch == epoch, "a gateway did not confirm the switch", max(switch.left_s(), 1.0))
    except CutoverAborted as exc:
        # The fence stands, so a gateway that is behind can lose nothing; it follows as soon as it reads the route.
        switch.facts["late_gateways"] = exc.why


async def _kill_strays(switch: Switch) -> None:
    switch.facts["strays_killed"] = await switch.fence(switch.old).kill_strays()


async def _release(switch: Switch) -> None:
    await switch.change(hold=Hold.NONE, sync=switch.sync_after, why=f"the {switch.to} is the authority; writes go on there")
    if switch.held_at is not None:
        switch.facts["hold_ms"] = round((time.monotonic() - switch.held_at) * 1000, 1)


def steps(plan: Plan, to: Side) -> list[Step]:
    """The steps of a switch to `to`, in order."""
    old = to.other
    return [
        Step("readiness", "check live sync, open gaps, dead letters, gateways, syncers, and that a fence is possible", _readiness),
        Step("pre-drain", f"wait until live sync is at most {_PRE_DRAIN_MS} ms behind (writes go on)", _pre_drain),
        Step("hold", f"hold writes in every gateway (reads go on), at most {plan.hold_seconds_max:.0f} s in all", _hold, _release_old),
        Step("drain", f"wait until every journalled key is equal on the {to}", _drain),
        Step("fence", f"take the right to write on the {old} from every user but Exodus's", _fence, _lower_old),
        Step("drain again", "sync once more what changed around the hold", _drain_again),
        Step("spot check", f"compare up to {_SPOT_CHECK_KEYS} of the keys changed last", _spot_check),
        Step("close the epoch", f"end every syncer's right to write to the {to}", _close_epoch, _reopen_epoch),
        Step("switch", f"make the {to} the authority; gateways take their sessions there", _switch),
        Step("kill strays", f"end what is still connected to the {old} as an application", _kill_strays),
        Step("release", f"let writes go on at the {to}; changes flow back to the {old}", _release),
    ]


def explain(plan: Plan, to: Side) -> list[str]:
    """What `apply` would do, a line a step."""
    return [f"{number}. {step.name}: {step.text}" for number, step in enumerate(steps(plan, to), 1)]


async def apply(store: ControlStore, plan: Plan, to: Side, *, sync_after: bool = True) -> Switch:
    """Do the switch.

    Raises:
        DecisionRefused: a precondition does not hold; nothing was changed.
        CutoverAborted: it was given up before the authority changed; everything was undone, writes go on at the old side.
        ExodusError: a step after the switch failed; the authority has changed, and the message says what is left to do.
    """
    switch = Switch(store, plan, to, await read_route(store), sync_after=sync_after)
    done: list[Step] = []
    for step in steps(plan, to):
        began = time.monotonic()
        try:
            await step.do(switch)
        except (ExodusError, RedisError, OSError, TimeoutError) as exc:
            switch.timeline.append({"step": step.name, "ms": round((time.monotonic() - began) * 1000, 1), "failed": str(exc)})
            if switch.switched:
                raise ExodusError(
                    f"the {to} is the authority, but the step '{step.name}' failed",
                    why=str(exc),
                    next_step="writes go on when the gateways' time limit ends the hold; then `exodus status`",
                ) from exc
            await _undo(switch, [*done, step])
            if isinstance(exc, DecisionRefused | CutoverAborted):
                raise
            raise CutoverAborted(
                f"the switch to the {to} was given up at '{step.name}'", why=str(exc), next_step="writes go on at the old side; correct it and retry"
            ) from exc
        switch.timeline.append({"step": step.name, "ms": round((time.monotonic() - began) * 1000, 1)})
        done.append(step)
    return switch


async def _undo(switch: Switch, done: list[Step]) -> None:
    """Undo steps in reverse; one that fails does not keep the others from being undone."""
    for step in reversed(done):
        if step.undo is None or (step.name == "hold" and switch.route.hold is Hold.NONE):
            continue
        try:
            await step.undo(switch)
        except (ExodusError, RedisError, OSError, TimeoutError) as exc:
            switch.timeline.append({"step": f"undo {step.name}", "failed": str(exc)})
            switch.route = await read_route(switch.store)  # a gateway may have ended the hold itself
