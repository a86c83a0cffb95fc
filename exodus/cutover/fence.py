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

A service behind Sentinel is fenced on its master and on every replica (`fence_replicas.py`), a
cluster on every node (`fence_cluster.py`, which `fence_for` chooses). The record keeps what was
before for each of them. `keep_raised` fences servers that appear later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Self, TypeVar

import orjson

from exodus.control.route import read_route
from exodus.control.schema import fence_guard_key
from exodus.control.store import ControlStore
from exodus.cutover.fence_methods import (
    KEEP_US_OUT,
    Call,
    Command,
    DoesNotHold,
    FenceMethod,
    Kept,
    choose_fence_method,
    fence_method_of,
)
from exodus.cutover.fence_replicas import Replicas
from exodus.errors import Bug, CutoverAborted, DecisionRefused, ExodusError, OperatorError
from exodus.lua import lua
from exodus.net.client import answered
from exodus.net.leg import Leg, Reply, ReplyError, close_all, error_of
from exodus.plan.address import Address
from exodus.plan.bounds import FENCE_LET_IN_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, FenceKind, Side, UserRole
from exodus.topology.endpoint import Endpoint

T = TypeVar("T")
_FORGET = lua("exodus.cutover", "forget_fence")
_REPLACE = lua("exodus.cutover", "replace_fence")


@dataclass(frozen=True)
class Record:
    """What the control store keeps of a fence, from before it is up until after it is down."""

    switch: str  # id of the switch that it belongs to
    kind: str
    kept: Kept  # as it was before; of several servers: on the master that was fenced first
    master: str = ""  # host:port of that master; empty for a standalone server
    nodes: dict[str, Kept] = field(default_factory=dict)  # the same of the other servers
    lowered: list[str] = field(default_factory=list)  # servers whose fence is down for good

    def kept_of(self, server: str) -> Kept | None:
        """Return what was before on one server; None where it was not fenced."""
        return self.kept if self.master in ("", server) else self.nodes.get(server)

    @property
    def servers(self) -> list[str]:
        """Return the servers that were fenced; empty for a standalone server."""
        return [self.master, *self.nodes] if self.master else []


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

    _other = "replica"  # what a server is that is not the first
    _page = "docs/operating/sentinel.md"

    def __init__(self, store: ControlStore, side: Side, plan: Plan) -> None:
        self._store = store
        self._side = side
        self._plan = plan
        self._address = plan.acting(UserRole.SWITCH).address(side)
        self._guard = fence_guard_key(store.migration)
        self._replicas = Replicas(side, self._address, self._guard)
        self._leg: Leg | None = None
        self._probe: Leg | None = None  # as an application that needs no password
        self._method: FenceMethod | None = None
        self._seen: bytes | None = (
            None  # the guard's value when it was checked that this side can be fenced
        )
        self._prepared: Record | None = None
        self._before: bytes = b""  # the record as it was then

    async def close(self) -> None:
        """Give the connections back."""
        legs, self._leg, self._probe = (self._leg, self._probe), None, None
        await close_all(legs)
        await self._replicas.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect now: where `open` comes, writes wait for each round trip."""
        await self._ours()

    async def _ours(self) -> Leg:
        if self._leg is None or self._leg.ended:  # a failover ends it
            self._leg = await Endpoint(self._side, self._address).connect(name="exodus-fence")
        return self._leg

    async def _master(self) -> str:
        """Return host:port of the master of a service; empty for a standalone server."""
        leg = await self._ours()
        return "" if isinstance(self._address, Address) else leg.address.place

    def _on(self, replica: str) -> Call:
        return partial(self._replicas.call, replica)

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
            FenceKind(record.kind),
            Feed.GATEWAY,
            record.kept,
            ours,
            watched=not isinstance(self._address, Address),
        )  # it was found possible: the feed does not matter any more

    async def check_possible(self) -> FenceMethod:
        """Choose by what this side will be fenced.

        Raises:
            DecisionRefused: by nothing that it allows, or that the plan names.
        """
        try:
            await self._see_guard()
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
        await self._check_others(method)
        self._method = method
        return method

    async def _see_guard(self) -> None:
        """Note the guard's value: the right to fence is taken from it."""
        found = await self._ask(("GET", self._guard))
        self._seen = None if isinstance(found[0], ReplyError) else found[0]

    async def _check_others(self, method: FenceMethod) -> None:
        """Check that every other server of the side can be fenced in the same way.

        Raises:
            DecisionRefused: one cannot.
        """
        first, *others = (await self._servers()).items()
        del first
        for name, call in others:
            try:
                await call(("PING",))
                why = await method.why_not(call)
            except (ExodusError, ReplyError) as exc:
                why = exc.why if isinstance(exc, ExodusError) else str(exc)
            if why is not None:
                raise DecisionRefused(
                    f"the {self._side} cannot be fenced on its {self._other} {name}",
                    why=why,
                    next_step=f"let Exodus reach every server of the {self._side} (address_map) "
                    f"with the same user and rights ({self._page}), then retry",
                )

    async def _servers(self) -> dict[str, Call]:
        """Return the servers that can be fenced now, and how each is asked; a master first.

        Raises:
            SourceError, TargetError: which these are is not known.
        """
        found: dict[str, Call] = {await self._master(): self._ask}
        return found | {name: self._on(name) for name in await self._replicas.current()}

    async def prepare(self, switch: str) -> None:
        """Look up what is now, give `switch` the right to fence, connect for the proof. Nobody
        notices.

        Raises:
            SourceError, TargetError: the side does not answer, or refuses.
            CutoverAborted: another switch took the right since `check_possible`.
        """
        method = self._method or await self.check_possible()
        servers = await self._servers()
        found = {name: await self._by_method(method.look(call)) for name, call in servers.items()}
        self._before = await answered(self._store.client.get(self._key)) or b""
        before = Record(**orjson.loads(self._before)) if self._before else None
        if before is not None and before.kind == method.kind:
            for name in found:
                found[name] |= before.kept_of(name) or {}  # as it was before any fence of ours
        master = next(iter(found))
        self._prepared = Record(switch, method.kind, found.pop(master), master, found)
        if not await self._take_guard(switch):
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why="another switch took the right to it meanwhile",
                next_step="look at `exodus status`",
            )
        await self._meet_strangers()

    async def _take_guard(self, switch: str) -> bool:
        """Give a switch the right to fence; return whether nobody else took it since
        `check_possible`.
        """
        return await self._change(self._seen, [("SET", self._guard, switch)])

    async def _meet_strangers(self) -> None:
        """Connect as an application that needs no password, for the proof."""
        try:
            nobody = dict.fromkeys(("username", "password", "password_env", "password_file"))
            plain = self._address.model_copy(update=nobody)
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
        try:
            return await self._raise(record, method)
        except DoesNotHold as exc:
            raise error_of(self._side)(
                f"the fence on the {self._side} does not hold",
                why=str(exc),
                next_step="nothing was switched; see docs/operating/fences.md",
            ) from exc

    async def _write_down(self, record: Record) -> None:
        """Keep the record, before the fence is up: who finds the fence after a crash of ours must
        know what to give back.

        Raises:
            CutoverAborted: another switch has a record there.
        """
        if not await self._replace(self._before, record):
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why="another switch took the right to it meanwhile",
                next_step="look at `exodus status`",
            )

    @property
    def _key(self) -> str:
        return self._store.keys.fence(self._side)

    async def _replace(self, before: bytes, after: Record) -> bool:
        """Replace the record as it was read; return whether nobody else did."""
        wanted = orjson.dumps(asdict(after))
        done = await answered(self._store.client.eval(_REPLACE, 1, self._key, before, wanted))
        return bool(int(done))

    async def _raise(self, record: Record, method: FenceMethod) -> dict[str, str]:
        """Raise the fence on every server, and prove it.

        Raises:
            DoesNotHold: it lets writes pass.
            ExodusError: as `raise_` does.
        """
        _, (_, found, *replies) = await asyncio.gather(
            self._write_down(record),
            self._call(("WATCH", self._guard), ("GET", self._guard), *method.recheck()),
        )
        stale = method.stale(replies, record.kept)
        if found != record.switch.encode() or stale is not None:
            await self._call(("UNWATCH",))
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why=stale if stale is not None else f"switch {record.switch} was ended: {found!r}",
                next_step="nothing was switched; start it again",
            )
        if record.master != await self._master():
            await self._call(("UNWATCH",))
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why=f"there was a failover: {record.master} is not its master any more",
                next_step="nothing was switched; start it again",
            )
        if not await self._transaction(method.up(record.kept)):
            raise CutoverAborted(
                f"the fence of the {self._side} was not touched",
                why="another switch took the right to it",
                next_step="look at `exodus status`",
            )
        await asyncio.gather(*[self._raise_on(name, record) for name in record.nodes])
        return await self._by_method(method.prove(self._ask, self._probe, record.kept))

    async def _raise_on(self, name: str, record: Record) -> None:
        """Raise the fence on a replica, and prove it.

        Raises:
            CutoverAborted: the replica does not have this switch's guard.
            DoesNotHold: it would let writes pass as a master.
        """
        method, kept = self._method_of(record), record.nodes[name]
        stale = method.stale(
            await self._replicas.call(name, *method.recheck()) if method.recheck() else [], kept
        )
        if stale is not None:
            raise CutoverAborted(
                f"the replica {name} of the {self._side} was not fenced",
                why=stale,
                next_step="nothing was switched; start it again",
            )
        if not await self._replicas.change(name, record.switch.encode(), method.up(kept)):
            raise CutoverAborted(
                f"the replica {name} of the {self._side} was not fenced",
                why="the guard of this switch did not come to it: it is behind its master",
                next_step="nothing was switched; look at its replication, then retry",
            )
        await self._by_method(method.prove_on_replica(self._on(name), kept))

    @property
    def fenced_servers(self) -> set[str]:
        """Return the servers of a service or cluster that this fence was raised on."""
        record = self._prepared
        return set() if record is None else {record.master, *record.nodes}

    async def _transaction(self, commands: list[Command]) -> bool:
        """Return whether it was done: not where the guard was touched since it was watched."""
        # Before it is begun nothing is sent: it would run at once, whatever was watched
        await self._call(("MULTI",))
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
        if record is None:
            return 0
        method, ended = self._method_of(record), 0
        for name, call in (await self._servers()).items():
            kept = record.kept_of(name)
            if kept is not None:
                ended += await self._by_method(method.kill_strays(call, kept))
        return ended

    async def open(self, record: Record) -> None:
        """Give back what was taken, and keep the right to take it again: the authority is about to
        come here.
        """
        await self._everywhere(record, self._method_of(record).down)

    async def _everywhere(
        self, record: Record, commands: Callable[[Kept], list[Command]]
    ) -> list[str]:
        """Do commands on every server that was fenced, under the guard; return those where it was
        done.
        """
        guard, done = record.switch.encode(), []
        master = await self._master()
        kept = record.kept_of(master)
        if kept is not None and await self._change(guard, commands(kept)):
            done.append(master)
        names = [
            name for name in await self._replicas.current() if record.kept_of(name) is not None
        ]
        changed = await asyncio.gather(
            *[
                self._replicas.change(name, guard, commands(record.kept_of(name) or {}))
                for name in names
            ]
        )
        return [*done, *(name for name, did in zip(names, changed, strict=True) if did)]

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
        await self._everywhere(record, self._method_of(record).up)

    async def keep_raised(self, record: Record) -> None:
        """See that the fence of this side is up, as long as no switch back has let Exodus in; also
        on servers of a service that appeared since.
        """
        if not await answered(
            self._store.client.exists(self._store.keys.fence_suspended(self._side))
        ):
            wider, failed = await self._with_new_servers(record)
            await self.resume(wider)
            if failed:
                raise failed[0]

    async def _with_new_servers(self, record: Record) -> tuple[Record, list[ExodusError]]:
        """Note what is now on servers that were not fenced yet: who lowers the fence must know it.
        Return the record, and the errors of servers that cannot be asked.

        Where another process does the same, its record counts at the next look.
        """
        method = self._method_of(record)
        new: dict[str, Kept] = {}
        failed: list[ExodusError] = []
        for name, call in (await self._servers()).items():
            if record.kept_of(name) is None:
                try:
                    new[name] = await self._by_method(method.look(call))
                except ExodusError as exc:
                    failed.append(exc)
        if not new:
            return record, failed
        raw = await answered(self._store.client.get(self._key))
        if raw is None or Record(**orjson.loads(raw)) != record:
            return record, failed
        wider = replace(record, nodes={**record.nodes, **new})
        return (wider if await self._replace(raw, wider) else record), failed

    async def lower(self, record: Record) -> None:
        """Give back what was taken, for good.

        The right to fence ends together with the first fence. Otherwise a process that keeps the
        fence up (`keep_raised`) could raise it again on a server that was done. A fence that
        refuses our own write to the guard is an exception: there the right ends last.

        Raises:
            SourceError, TargetError: a server does not answer; it is done again.
        """
        method, guard = self._method_of(record), record.switch.encode()
        ended = f"ended {record.switch}".encode()
        end_right: list[Command] = [("SET", self._guard, ended)]
        refuses_us = record.kind in KEEP_US_OUT
        master = await self._master()
        kept = record.kept_of(master)
        down = [] if kept is None or master in record.lowered else method.down(kept)
        # The master first: applications wait for it.
        if not await self._change(guard, [*([] if refuses_us else end_right), *down]) and down:
            await self._change(ended, down)  # the right ended, and the process that ended it died
        if master:
            if down:
                record = await self._note_lowered(record, master)
            record = await self._lower_replicas(record, guard if refuses_us else ended)
            self._check_all_lowered(record)
        if refuses_us:
            await self._change(guard, end_right)
        await self._forget(record)

    async def _lower_replicas(self, record: Record, guard: bytes) -> Record:
        """Give back what was taken on replicas, under this value of the guard.

        Raises:
            SourceError, TargetError: one does not answer, or is behind its master.
        """
        method = self._method_of(record)
        for name in await self._replicas.current():
            kept = record.kept_of(name)
            if kept is None or name in record.lowered:
                continue
            if not await self._replicas.change(name, guard, method.down(kept)):
                raise error_of(self._side)(
                    f"the fence on the replica {name} could not be lifted",
                    why="the end of the right to fence did not come to it: it is behind its master",
                    next_step="look at its replication; it is done again",
                )
            record = await self._note_lowered(record, name)
        return record

    def _check_all_lowered(self, record: Record) -> None:
        """Check that no server of the service is left fenced: it may be the master one day.

        Raises:
            SourceError, TargetError: one does not answer.
        """
        down = self._replicas.down()
        left = [name for name in (record.master, *record.nodes) if name in down]
        left = [name for name in left if name not in record.lowered]
        if left:
            raise error_of(self._side)(
                f"the fence on {', '.join(left)} could not be lifted",
                why="it answers no Sentinel, and may still refuse writes if it is promoted later",
                next_step="start it; or remove it, then SENTINEL RESET on each Sentinel",
            )

    async def _note_lowered(self, record: Record, *servers: str) -> Record:
        """Note that the fence of servers is down, so that nobody lowers it again over what their
        owner sets from then on.
        """
        raw = await answered(self._store.client.get(self._key))
        after = replace(record, lowered=[*record.lowered, *servers])
        if raw is not None and Record(**orjson.loads(raw)) == record:
            await self._replace(raw, after)
        return after

    async def _forget(self, record: Record) -> None:
        """Remove the record of a fence that is down."""
        await answered(self._store.client.eval(_FORGET, 1, self._key, record.switch))
        if record.kind == FenceKind.PROVIDER:
            await answered(
                self._store.client.delete(self._store.keys.fence_confirmation(self._side))
            )  # the way may be open again: to be said anew
