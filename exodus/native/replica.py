"""Native replication: the target is the source's replica until the switch, and the servers move the
data themselves.

    absent ──grant_writes──▶ N, own server ──attach──▶ N, replica ──promote──▶ "closed by SWITCH"
                                ▲      │                        │
                                └── reopen (a switch was given up)   detach ──▶ "-1", own server

Both effects, REPLICAOF source and REPLICAOF NO ONE, must never come late: the first empties the
server that it reaches. So each is a transaction on the target that watches one key there
(`native_guard_key`), whose value is the writers' epoch in which the target may be a replica. The
key stands on the source too, so that replication brings it along, and a target that was restarted
still has it. `promote` leaves another value behind before the route names the target: whoever was
frozen before its REPLICAOF finds that when it wakes (race rule 6).

`sync(key)` is then a question: has the replica applied all that the source had written when it was
asked (`ReplicaSync`)? A failed or a good full resync replaces all that the target holds, so it must
be empty or ours, and of a version that loads the source's data
(docs/decisions/0005-native-replication.md: a downgrade that fails leaves it empty).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Sequence

from redis.exceptions import RedisError

from exodus.control import freshness
from exodus.control.route import Route, read_route
from exodus.control.schema import guard_key, native_guard_key
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard
from exodus.copy.key import BatchReport, CopyMethod
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError, TargetError
from exodus.native.link import (
    NO_ONE,
    Command,
    connect_side,
    look,
    replication_link_of,
    replication_link_on,
    replication_source,
)
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply, ReplyError, close_all
from exodus.plan.address import one_server
from exodus.plan.bounds import REPLICA_BEHIND_S, REPLICA_LOOK_S, REPLICA_POLL_S, REPLICA_TRIES
from exodus.plan.own_keys import without_own
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side

_CLOSED = b"-1"  # nobody may make it a replica
_LEAVE: list[Command] = [
    NO_ONE,
    ("CONFIG", "SET", "masteruser", ""),
    ("CONFIG", "SET", "masterauth", ""),
]  # without the source's login


# ---------------------------------------------------------------------- the effects, each
# conditional


async def _change(
    leg: Leg, plan: Plan, values: Collection[bytes], commands: Sequence[Command]
) -> bool:
    """Run `commands` on the target where the key has one of these values; whether they ran.

    Raises:
        DecisionRefused: the server refuses one of them; nothing was changed.
        SourceError, TargetError: it was lost.
    """
    key = native_guard_key(plan.name)
    outcome: list[Reply] | None = None
    try:
        if await leg.watch(key) not in values:
            await leg.call("UNWATCH")
            return False
        outcome = await leg.transaction(commands)
        said = next((reply for reply in outcome or () if isinstance(reply, ReplyError)), None)
    except ReplyError as exc:
        said = exc
    if said is not None:
        if str(said).startswith("READONLY"):
            return False  # it is a replica, or one again
        raise DecisionRefused(
            f"the {leg.side} refuses to change what it follows",
            why=str(said),
            next_step="see docs/operating/strategies.md",
        )
    return outcome is not None


async def grant_writes(plan: Plan, writer_epoch: int) -> None:
    """Let the target be a replica in this epoch of the writers. Before the route says so; a replica
    has the key from the source.
    """
    value = b"%d" % writer_epoch
    for side in Side:
        async with await connect_side(plan, side) as leg:
            if side is Side.SOURCE or not (await replication_link_on(leg)).follows:
                await leg.call("SET", native_guard_key(plan.name), value)


async def keep_write_grant(source: Leg, plan: Plan, writer_epoch: int) -> None:
    """Put the key back where an application's FLUSHALL took it, on the source and so on its
    replica.
    """
    await source.call("SET", native_guard_key(plan.name), writer_epoch, "NX")


async def attach(plan: Plan, writer_epoch: int) -> bool:
    """Make the target a replica of the source, if the right of this epoch stands there; whether it
    had to be done.

    Raises:
        DecisionRefused: the right has ended, or the target refuses.
        TargetError: it does not answer.
    """
    async with await connect_side(plan, Side.TARGET) as leg:
        if (await replication_link_on(leg)).follows == replication_source(plan):
            return False
        source = one_server(plan.source)
        login: list[Command] = [
            ("CONFIG", "SET", "masteruser", plan.source.username or ""),
            ("CONFIG", "SET", "masterauth", plan.source.secret("source") or ""),
        ]
        if not await _change(
            leg,
            plan,
            [b"%d" % writer_epoch],
            [*login, ("REPLICAOF", source.host, source.port)],
        ):
            if (await replication_link_on(leg)).follows == replication_source(plan):
                return False  # another process did it meanwhile, and the guard went with its data
            raise DecisionRefused(
                "the target was not made a replica of the source",
                why=f"writers' epoch {writer_epoch} has no right to it: a switch or a rollback "
                "ended that",
                next_step="nothing, where one is under way; else start migrate again",
            )
        return True


async def promote(leg: Leg, plan: Plan, writer_epoch: int, closed: bytes) -> None:
    """Make the target, a replica that has everything, a server of its own, and end the right to
    make it a replica again.

    Raises:
        CutoverAborted: the right had ended: whoever asks was late, and nothing was changed.
        TargetError: it was lost.
    """
    value = b"%d" % writer_epoch
    if not await _change(leg, plan, [value], _LEAVE):
        raise CutoverAborted(
            "the target was not promoted",
            why="another switch or a rollback ended the right to it",
            next_step="exodus status",
        )
    # The guard of the epoch came along from the source, where it has the value for the way back.
    if not await _change(
        leg,
        plan,
        [value],
        [("SET", native_guard_key(plan.name), closed), ("SET", guard_key(plan.name), value)],
    ):
        raise CutoverAborted(
            "the target became a replica again",
            why="the right to that was taken in this moment",
            next_step="exodus status",
        )


async def detach(plan: Plan, writer_epoch: int) -> None:
    """Make the target a server of its own, for good: a migration is rolled back or given up before
    its cutover.

    Raises:
        SourceError, TargetError: a side does not answer; the target may be a replica still.
    """
    value = b"%d" % writer_epoch
    async with await connect_side(plan, Side.SOURCE) as source:
        # First: who attaches again gets this along
        await _change(source, plan, [value], [("SET", native_guard_key(plan.name), _CLOSED)])
    async with await connect_side(plan, Side.TARGET) as leg:
        for _ in range(REPLICA_TRIES):
            if not await _change(leg, plan, [value, _CLOSED], _LEAVE):
                return  # it is another's by now
            if await _change(
                leg, plan, [value, _CLOSED], [("SET", native_guard_key(plan.name), _CLOSED)]
            ):
                return
    raise TargetError(
        "the target becomes a replica again and again",
        why="somebody else runs REPLICAOF there",
        next_step="find out who, then retry",
    )


async def reopen(plan: Plan, route: Route, closed: bytes) -> None:
    """After a switch that was given up: give the right of the route's epoch, so that syncers make
    the target a replica again if it is none.

    Never goes back to an older epoch, and takes the right from no other switch.
    """
    if not route.native:
        return
    value = b"%d" % route.writer_epoch
    for side in Side:
        async with await connect_side(plan, side) as leg:
            found = await leg.call("GET", native_guard_key(plan.name))
            older = found is not None and found.isdigit() and int(found) < route.writer_epoch
            if older or found == closed:
                await _change(leg, plan, [found], [("SET", native_guard_key(plan.name), value)])


# ---------------------------------------------------------------------- sync(key), by a replica


async def wait_reached(authority: Leg, follower: Leg, *, within_s: float) -> int:
    """Wait until the replica has applied all that the source has propagated by now; the source's
    offset.

    Raises:
        TargetError: it is no replica of this source, its link is down, or it is behind for longer.
    """
    here = info_of(await authority.call("INFO", "replication"))
    replid, goal = here["master_replid"], int(here["master_repl_offset"])
    deadline = time.monotonic() + within_s
    while True:
        link = replication_link_of(info_of(await follower.call("INFO", "replication")))
        if not link.up or link.replid != replid:
            raise TargetError(
                "the target does not follow the source",
                why=link.text,
                next_step="wait: syncers make it a replica again; exodus status",
            )
        if link.offset >= goal:
            return goal
        if time.monotonic() > deadline:
            raise TargetError(
                f"the target is {goal - link.offset:,} bytes behind the source",
                why=link.text,
                next_step="wait, or write less",
            )
        await asyncio.sleep(REPLICA_POLL_S)


class ReplicaSync:
    """`sync(key)` where the follower is the authority's replica: it waits, and writes nothing, so
    it needs no guard.
    """

    def __init__(self, authority: Leg, follower: Leg) -> None:
        self._legs = (authority, follower)

    async def close(self) -> None:
        """End the connections."""
        await close_all(self._legs)

    async def guard_by(self, guard: Guard) -> None:
        """Nothing is written."""

    async def sync_keys(self, db: int, keys: Sequence[bytes]) -> BatchReport:
        """Wait until the keys, as they are now or later, are on the replica.

        Raises:
            TargetError: it does not follow, or is behind.
        """
        del db  # the stream has all of them
        wanted = without_own(keys)
        await wait_reached(*self._legs, within_s=REPLICA_BEHIND_S)
        return BatchReport(
            copied=len(wanted),
            skipped=len(keys) - len(wanted),
            strategies=Counter({CopyMethod.NATIVE: len(wanted)}),
        )


async def check_filled(plan: Plan) -> None:
    """Return whether the target is a replica that has loaded its first copy.

    Raises:
        TargetError: it is not, and how far it has come.
    """
    link = await look(plan)
    if not link.up:
        raise TargetError(
            "live sync waits for the replica",
            why=link.text,
            next_step="nothing; it goes on by itself",
        )


class Attachment:
    """Keeps the target a replica for as long as the route says so: one that was restarted is a
    server of its own.
    """

    def __init__(self, store: ControlStore, plan: Plan, route: Route) -> None:
        self._store = store
        self._plan = plan
        self._route = route
        self.why = ""
        self.text = ""

    async def run(self) -> None:
        """Look once a second, until cancelled; failures are waited out."""
        while True:
            try:
                self.why = ""
                await self._look()
            except (ExodusError, ReplyError, RedisError, OSError, TimeoutError) as exc:
                self.why = (
                    f"{exc.what}: {exc.why}"
                    if isinstance(exc, ExodusError)
                    else f"{type(exc).__name__}: {exc}"
                )
            await asyncio.sleep(REPLICA_LOOK_S)

    async def _look(self) -> None:
        now = await read_route(self._store)
        if (
            not now.native
            or now.hold is not Hold.NONE
            or now.writer_epoch != self._route.writer_epoch
        ):
            return  # a switch is under way, or the next route says more
        link = await look(self._plan)
        self.text = link.text
        if link.follows == replication_source(self._plan):
            async with await connect_side(self._plan, Side.SOURCE) as leg:
                await keep_write_grant(leg, self._plan, now.writer_epoch)
        elif await attach(self._plan, now.writer_epoch):
            await freshness.forget_pass(self._store)  # what was compared is replaced
