"""The fence: behind it, nobody but Exodus writes to a side. Others get an error and never lose a
write.

The side's user decides which method is possible (`fence_methods.py`). A write that must fail proves
the fence. The control store keeps what must be restored, without secrets. A server's restart drops
settings that were not saved, and the fence with them, until `settle.py` raises it again.

Raising and lowering are transactions under a guard key on that side. Its value is the id of the
switch that owns the fence. A flow or gateway that was frozen between deciding and acting finds
another value and changes nothing (race rule 6).

    absent ──prepare──▶ ID ──raise_──▶ ID, up ──lower──▶ "ended ID"

`open` lowers the fence and keeps the grant to raise it again. The grant is taken from the value
that `check_possible` saw. A switch that was frozen while another one came and went gets none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import orjson

from exodus.control.route import read_route
from exodus.control.schema import fence_guard_key
from exodus.control.store import ControlStore
from exodus.cutover.fence_methods import (
    KEEP_US_OUT,
    Command,
    DoesNotHold,
    FenceMethod,
    Kept,
    choose_fence_method,
    fence_method_of,
)
from exodus.errors import Bug, CutoverAborted, DecisionRefused, ExodusError, OperatorError
from exodus.lua import lua
from exodus.net.client import answered
from exodus.net.leg import Leg, Reply, ReplyError, close_all, error_of
from exodus.plan.bounds import FENCE_LET_IN_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, FenceKind, Side, UserRole
from exodus.topology.endpoint import Endpoint

T = TypeVar("T")
_FORGET = lua("exodus.cutover", "forget_fence")


@dataclass(frozen=True)
class Record:
    """What the control store keeps of a fence, from before it is up until after it is down."""

    switch: str  # id of the switch that it belongs to
    kind: str
    kept: Kept  # as it was before


async def read_record(store: ControlStore, side: Side) -> Record | None:
    """Return the record of the fence of a side; None where there is no fence."""
    raw = await answered(store.client.get(store.keys.fence(side)))
    return None if raw is None else Record(**orjson.loads(raw))


async def blocks_exodus(store: ControlStore, side: Side) -> bool:
    """Return whether a fence is recorded that refuses Exodus's own writes too."""
    record = await read_record(store, side)
    return record is not None and record.kind in KEEP_US_OUT


async def record_confirmation(store: ControlStore, plan: Plan, side: Side, by: str) -> None:
    """Keep that a person has done what the plan asks for, so that a side's provider refuses whom it
    must.
    """
    word = {"by": by, "at_ms": await store.now_ms(), "instruction": plan.fence.instruction(side)}
    await answered(store.client.set(store.keys.fence_confirmation(side), orjson.dumps(word)))


async def read_confirmation(store: ControlStore, plan: Plan, side: Side) -> Kept | None:
    """Return who confirmed the fence; None where nobody did, or the plan now asks for something
    else.
    """
    raw = await answered(store.client.get(store.keys.fence_confirmation(side)))
    word: Kept | None = None if raw is None else orjson.loads(raw)
    return (
        word if word is not None and word["instruction"] == plan.fence.instruction(side) else None
    )


class Fence:
    """The fence of one side. Keeps its connections until `close`, or the end of `async with`."""

    def __init__(self, store: ControlStore, side: Side, plan: Plan) -> None:
        self._store = store
        self._side = side
        self._plan = plan
        self._address = plan.acting(UserRole.SWITCH).address(side)
        self._guard = fence_guard_key(store.migration)
        self._leg: Leg | None = None
        self._probe: Leg | None = None  # as an application that needs no password
        self._method: FenceMethod | None = None
        self._seen: bytes | None = (
            None  # the guard's value when it was checked that this side can be fenced
        )
        self._prepared: Record | None = None

    async def close(self) -> None:
        """Give the connections back."""
        legs, self._leg, self._probe = (self._leg, self._probe), None, None
        await close_all(legs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect now: where `open` comes, writes wait for each round trip."""
        await self._ours()

    async def _ours(self) -> Leg:
        if self._leg is None:
            self._leg = await Endpoint(self._side, self._address).connect(name="exodus-fence")
        return self._leg

    async def _ask(self, *commands: Command) -> list[Reply]:
        """Replies of commands sent together, errors as values; a connection that failed is not used
        again.
        """
        leg = await self._ours()
        try:
            return await leg.pipeline(commands)
        except BaseException:
            self._leg = None  # replies that nobody waits for any more may still come
            await leg.close()
            raise

    async def _call(self, *commands: Command) -> list[Reply]:
        """Return the same; an error among them is raised."""
        replies = await self._ask(*commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                await self._ask(("UNWATCH",))
                raise self._refused(reply)
        return replies

    def _refused(self, exc: ReplyError) -> ExodusError:
        return error_of(self._side)(
            f"the {self._side} refuses what its fence needs",
            why=str(exc),
            next_step="see docs/operating/users.md, then retry",
        )

    async def _by_method(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except ReplyError as exc:
            raise self._refused(exc) from exc

    async def record(self) -> Record | None:
        """Return the record of the fence of this side; None where there is no fence."""
        return await read_record(self._store, self._side)

    def _method_of(self, record: Record) -> FenceMethod:
        ours = self._plan.own_users(self._side)
        return fence_method_of(
            FenceKind(record.kind), Feed.GATEWAY, record.kept, ours
        )  # it was found possible: the feed does not matter any more

    async def check_possible(self) -> FenceMethod:
        """Choose by what this side will be fenced.

        Raises:
            DecisionRefused: by nothing that it allows, or that the plan names.
        """
        try:
            found = await self._ask(("GET", self._guard))
            self._seen = None if isinstance(found[0], ReplyError) else found[0]
            feed, word = (
                (await read_route(self._store)).feed,
                await read_confirmation(self._store, self._plan, self._side),
            )
            method, reasons = await choose_fence_method(
                self._ask, self._plan, self._side, feed, word
            )
        except ExodusError as exc:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why=f"{self._address.url}: {exc.why}",
                next_step=f"start the {self._side}, then retry",
            ) from exc
        if method is None:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why="; ".join(reasons),
                next_step=f"give {self._side} a user of Exodus's own that may run ACL "
                f"(docs/operating/users.md), or choose fence.{self._side} in the "
                "migration file (docs/operating/fences.md)",
            )
        self._method = method
        return method

    async def prepare(self, switch: str) -> None:
        """Look up what is now, give `switch` the right to fence, connect for the proof. Nobody
        notices.

        Raises:
            SourceError, TargetError: the side does not answer, or refuses.
            CutoverAborted: another switch took the right since `check_possible`.
        """
        method = self._method or await self.check_possible()
        kept = await self._by_method(method.look(self._ask))
        before = await self.record()
        if before is not None and before.kind == method.kind:
            kept |= before.kept  # as it was before any fence of ours
        self._prepared = Record(switch, method.kind, kept)
        if not await self._change(self._seen, [("SET", self._guard, switch)]):
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why="another switch took the right to it meanwhile",
                next_step="look at `exodus status`",
            )
        try:
            plain = self._address.model_copy(
                update={
                    "username": None,
                    "password": None,
                    "password_env": None,
                    "password_file": None,
                }
            )
            self._probe = await Leg.connect(plain, self._side, name="exodus-probe")
        except OperatorError:
            self._probe = (
                None  # the default user has a password that we do not know: its rules are read back
            )

    async def raise_(self) -> dict[str, str]:
        """Make the side refuse writes, after `prepare`; returns who → how it was proved.

        Raises:
            CutoverAborted: the right to fence has ended, or what was looked up is not so any more.
            SourceError, TargetError: it could not be done, or does not hold.
        """
        record, method = self._prepared, self._method
        if record is None or method is None:
            raise Bug(
                "a fence was not prepared",
                why="raise_ came before prepare",
                next_step="report this; nothing was changed",
            )
        # Written down before it is up: who finds the fence after a crash of ours must know what to
        # give back.
        kept = answered(
            self._store.client.set(self._store.keys.fence(self._side), orjson.dumps(asdict(record)))
        )
        _, (_, found, *replies) = await asyncio.gather(
            kept, self._call(("WATCH", self._guard), ("GET", self._guard), *method.recheck())
        )
        stale = method.stale(replies, record.kept)
        if found != record.switch.encode() or stale is not None:
            await self._call(("UNWATCH",))
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why=stale if stale is not None else f"switch {record.switch} was ended: {found!r}",
                next_step="nothing was switched; start it again",
            )
        if not await self._transaction(method.up(record.kept)):
            raise CutoverAborted(
                f"the fence of the {self._side} was not touched",
                why="another switch took the right to it",
                next_step="look at `exodus status`",
            )
        try:
            return await self._by_method(method.prove(self._ask, self._probe, record.kept))
        except DoesNotHold as exc:
            raise error_of(self._side)(
                f"the fence on the {self._side} does not hold",
                why=str(exc),
                next_step="nothing was switched; see docs/operating/fences.md",
            ) from exc

    async def _transaction(self, commands: list[Command]) -> bool:
        """Return whether it was done: not where the guard was touched since it was watched."""
        await self._call(
            ("MULTI",)
        )  # before it is begun nothing is sent: it would run at once, whatever was watched
        outcome = (await self._ask(*commands, ("EXEC",)))[-1]
        if outcome is None:
            return False
        replies = [outcome] if isinstance(outcome, ReplyError) else outcome
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise error_of(self._side)(
                    f"the fence on the {self._side} could not be changed",
                    why=str(reply),
                    next_step="see docs/operating/fences.md, then retry",
                )
        return True

    async def _change(self, guard: bytes | None, commands: list[Command]) -> bool:
        """Do `commands` if the guard has this value; whether it had."""
        _, found = await self._call(("WATCH", self._guard), ("GET", self._guard))
        if found != guard:
            await self._call(("UNWATCH",))
            return False
        return await self._transaction(commands)

    async def kill_strays(self) -> int:
        """End connections on this side that the fence may have left a way."""
        record = await self.record()
        return (
            0
            if record is None
            else await self._by_method(self._method_of(record).kill_strays(self._ask, record.kept))
        )

    async def open(self, record: Record) -> None:
        """Give back what was taken, and keep the right to take it again: the authority is about to
        come here.
        """
        await self._change(record.switch.encode(), self._method_of(record).down(record.kept))

    async def suspend(self) -> None:
        """Return the same for a fence that keeps Exodus out, for a while: call it again and again
        as long as it is needed.
        """
        record = await self.record()
        if record is not None and record.kind in KEEP_US_OUT:
            await answered(
                self._store.client.set(
                    self._store.keys.fence_suspended(self._side), record.switch, ex=FENCE_LET_IN_S
                )
            )
            await self.open(record)

    async def resume(self, record: Record) -> None:
        """Take it again: the authority did not come here after all."""
        await self._change(record.switch.encode(), self._method_of(record).up(record.kept))

    async def keep_raised(self, record: Record) -> None:
        """See that the fence of this side is up, as long as no switch back has let Exodus in."""
        if not await answered(
            self._store.client.exists(self._store.keys.fence_suspended(self._side))
        ):
            await self.resume(record)

    async def lower(self, record: Record) -> None:
        """Give back what was taken, for good."""
        down, ended = (
            self._method_of(record).down(record.kept),
            ("SET", self._guard, f"ended {record.switch}"),
        )
        if record.kind in KEEP_US_OUT:
            # Our own write to the guard is refused until it is down. Who dies in between leaves the
            # record, and it is done again.
            await self._change(record.switch.encode(), down)
            down = []
        await self._change(record.switch.encode(), [ended, *down])
        await answered(
            self._store.client.eval(_FORGET, 1, self._store.keys.fence(self._side), record.switch)
        )
        if record.kind == FenceKind.PROVIDER:
            await answered(
                self._store.client.delete(self._store.keys.fence_confirmation(self._side))
            )  # the way may be open again: to be said anew
