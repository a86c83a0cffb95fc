"""The switch: the authority moves from one side to the other, and no acknowledged write is lost.

A switch is a list of typed steps. `explain` describes them, `apply` does them in order and times
each, so what a person approves is what runs. A rollback after a cutover is the same list with the
sides swapped.

    readiness → prepare → let in → pre-drain → go → hold → drain → fence → verify → confirm
        → (promote) → close the epoch → open → switch → release → kill strays → flow back

Before the route names the new authority, any failure or missed deadline undoes everything in
reverse, and writes go on at the old side. After it, the switch is a fact and failures are repaired
forwards. One compare-and-set on the route decides which. If its outcome cannot be learnt, nothing
is undone: the fence stands, and the gateways settle it (`settle.py`).

A process that was frozen and wakes after others have settled must change nothing. So each effect is
conditional: the route on its epoch, the fence and the guards on a key whose value names this
switch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from exodus.control.process import STORE_ERRORS
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.cutover.context import Switch
from exodus.cutover.levers import keep_failed, over, say
from exodus.cutover.preconditions import NOTHING_MORE, Approved
from exodus.cutover.steps_after_switch import (
    change_authority,
    flow_back,
    kill_strays,
    release_writes,
)
from exodus.cutover.steps_before_hold import go, pre_drain, prepare, readiness, suspend_fence
from exodus.cutover.steps_under_hold import (
    close_epoch,
    close_new,
    confirm_and_spot_check,
    drain,
    hold,
    lower_old,
    open_new,
    promote,
    raise_fence,
    release_old,
    verify_scripts,
)
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError, SwitchUnknown
from exodus.plan.bounds import SWITCH_HELD_SPOT_CHECK_KEYS, SWITCH_PRE_DRAIN_MS, SWITCH_STEP_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, FenceKind, Side
from exodus.plan.window import Window

Act = Callable[[Switch], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """One step: its name, what it does in words, the doing, and what undoes it before the authority
    has changed.
    """

    name: str
    text: str
    do: Act
    undo: Act | None = None
    # May be broken off when its time is over; a change of the route may not, since its outcome must
    # be known
    bounded: bool = True


_FENCES = {
    FenceKind.AUTO: "make the {old} refuse writes of everybody but Exodus, by the strongest means "
    "that it allows",
    FenceKind.ACL: "take the right to write on the {old} from every user but Exodus's",
    FenceKind.MIN_REPLICAS: "make the {old} refuse every write (min-replicas-to-write)",
    FenceKind.REPLICA: "make the {old} a replica of nobody, which refuses every write",
    FenceKind.PROVIDER: "rely on the person who let nobody but gateways and Exodus reach the {old}",
}


def _promotion(plan: Plan, to: Side) -> list[Step]:
    if plan.strategy is not CopyStrategy.NATIVE or to is Side.SOURCE:
        return []
    text = (
        f"if the {to} is the {to.other}'s replica: wait until it has applied all, and make it "
        "a server of its own"
    )
    # Undone with the hold: syncers make it a replica again, in a new epoch
    return [Step("promote", text, promote)]


def steps(plan: Plan, to: Side) -> list[Step]:
    """Return the steps of a switch to `to`, in order."""
    old = to.other
    return [
        Step(
            "readiness",
            "check that no earlier switch is open, live sync, rehearsal, open gaps, dead letters, "
            "libraries, gateways, syncers",
            readiness,
        ),
        Step(
            "prepare",
            f"look up what may write to the {old}, so that a fence can be put up in one step",
            prepare,
        ),
        Step(
            "let in",
            f"where the fence on the {to} keeps Exodus out too: lift it, so that live sync can "
            "catch up",
            suspend_fence,
            close_new,
        ),
        Step(
            "pre-drain",
            f"wait until live sync is at most {SWITCH_PRE_DRAIN_MS} ms behind (writes go on)",
            pre_drain,
            bounded=False,
        ),
        Step(
            "go",
            "wait as long as a person postpones it (exodus hold), and for the window, if one is "
            f"approved; let gateways connect to the {to}",
            go,
            bounded=False,
        ),
        Step(
            "hold",
            f"hold writes in every gateway (reads go on), at most {plan.hold_seconds_max:.0f} s "
            "in all",
            hold,
            release_old,
            bounded=False,
        ),
        Step("drain", f"wait until every journalled key is equal on the {to}", drain),
        Step(
            "fence",
            f"{_FENCES[plan.fence.of(old)].format(old=old)}, and prove it",
            raise_fence,
            lower_old,
        ),
        Step(
            "verify",
            "if scripts ran whose writes no feed reports: compare every key, and copy what differs",
            verify_scripts,
        ),
        Step(
            "confirm",
            "hear from every gateway that it still holds, see the journal drained, check again "
            "all that readiness checked, "
            f"compare up to {SWITCH_HELD_SPOT_CHECK_KEYS} of the keys changed last",
            confirm_and_spot_check,
        ),
        *_promotion(plan, to),
        Step("close the epoch", f"end every syncer's right to write to the {to}", close_epoch),
        Step(
            "open",
            f"let applications write to the {to} again, if it was fenced",
            open_new,
            close_new,
        ),
        Step(
            "switch",
            f"make the {to} the authority; gateways take their sessions there",
            change_authority,
            bounded=False,
        ),
        Step("release", f"let writes go on at the {to}", release_writes, bounded=False),
        Step(
            "kill strays",
            f"end what is still connected to the {old} as an application",
            kill_strays,
        ),
        Step("flow back", f"let changes flow back to the {old}", flow_back),
    ]


def explain(plan: Plan, to: Side) -> list[str]:
    """Return what `apply` would do, one line a step."""
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
    """Do the switch, in `window` where one is given; `tell` hears of each step before it is done,
    and must not wait.

    It checks its preconditions itself, whatever was checked before (`preconditions.py`).

    Raises:
        DecisionRefused: a precondition does not hold; nothing was changed.
        CutoverAborted: it was given up before the authority changed; everything was undone, writes
            go on at the old side.
        SwitchUnknown: the control store went away while it was done; nothing was undone, the
            gateways settle it.
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
    try:
        await perform(switch, steps(plan, to), tell)
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


async def perform(switch: Switch, wanted: Sequence[Step], tell: Tell = _silent) -> None:
    """Do steps in order and time each. Where one fails before the authority changed, undo them all.

    Raises:
        ExodusError: as `apply` does.
    """
    done: list[Step] = []
    for step in wanted:
        tell(switch, step)
        if switch.told and not switch.holding:  # writes would wait for it
            await say(switch.store, step.name)
        done.append(step)
        with switch.timed(step.name) as row:
            try:
                async with asyncio.timeout(_limit_s(switch) if step.bounded else None):
                    await _do(step, switch)
            except (ExodusError, *STORE_ERRORS) as exc:
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
        # The authority has changed. The gateways do the remaining steps when the hold's time is
        # over (`settle`).
        why = failure.why if isinstance(failure, ExodusError) else type(failure).__name__
        switch.facts["unfinished"] = f"{step.name}: {why}"


async def _do(step: Step, switch: Switch) -> None:
    try:
        await step.do(switch)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group  # of two that were done side by side


def _limit_s(switch: Switch) -> float:
    return SWITCH_STEP_S if switch.switched or switch.held_at is None else switch.left_s()


def _given_up(switch: Switch, step: Step, exc: BaseException) -> ExodusError:
    if isinstance(exc, DecisionRefused | CutoverAborted):
        return exc
    return CutoverAborted(
        f"the switch to the {switch.to} was given up at '{step.name}'",
        why=str(exc) or "it took too long",
        next_step="writes go on at the old side; retry",
    )


async def _undo(switch: Switch, done: list[Step]) -> None:
    """Undo steps in reverse; one that fails does not keep the others from being undone, and the
    gateways do it again.
    """
    for step in reversed(done):
        if step.undo is None:
            continue
        with switch.timed(f"undo {step.name}") as row:
            try:
                async with asyncio.timeout(SWITCH_STEP_S):
                    await step.undo(switch)
            except (ExodusError, *STORE_ERRORS) as exc:
                row["failed"] = str(exc) or type(exc).__name__
