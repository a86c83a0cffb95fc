"""Native replication: the target is the source's replica until the switch, and the servers move the data themselves.

    absent ──give_right──▶ N, a server of its own ──attach──▶ N, a replica ──promote──▶ "closed by SWITCH", the authority's follower no more
                                ▲      │                        │
                                └── reopen (a switch was given up)    detach ──▶ "-1", a server of its own

Both effects, REPLICAOF source and REPLICAOF NO ONE, must never come late: the first empties the server that it reaches. So each is a transaction on
the target that watches one key there (`native_guard_key`), whose value is the writers' epoch in which the target may be a replica. The key stands on
the source too, so that replication brings it along, and a target that was restarted still has it. `promote` leaves another value behind before the
route names the target: whoever was frozen before its REPLICAOF finds that when it wakes (race rule 6).

`sync(key)` is then a question: has the replica applied all that the source had written when it was asked (`ReplicaSync`)?
A failed or a good full resync replaces all that the target holds, so it must be empty or ours, and of a version that loads the source's data
(docs/decisions/0005-native-replication.md: a downgrade that fails leaves it empty).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from exodus.control import freshness
from exodus.control.changes import Key
from exodus.control.route import Route, read_route
from exodus.control.schema import guard_key, native_guard_key
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard
from exodus.copy.key import BatchReport, CopyMethod
from exodus.copy.read import clock_ms
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError, TargetError
from exodus.net.info import databases_of, info_of
from exodus.net.leg import Leg, Reply, ReplyError, close_all
from exodus.plan.own_keys import without_own
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side
from exodus.resp.encode import Arg
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import payload_fits
from exodus.topology.pair_checks import check_empty

Command = Sequence[Arg]
_CLOSED = b"-1"  # nobody may make it a replica
_NO_ONE: Command = ("REPLICAOF", "NO", "ONE")
_LEAVE: list[Command] = [
    _NO_ONE,
    ("CONFIG", "SET", "masteruser", ""),
    ("CONFIG", "SET", "masterauth", ""),
]  # without the source's login
_TRIES = 3
RESTATEMENTS = (
    20  # a reading that ran over the turn of a millisecond, or a write in between, asks for another
)
_POLL_S = 0.002
_BEHIND_S = 1.0  # a batch waits no longer for the replica: the leases have to be renewed
_LOOK_S = 1.0


@dataclass(frozen=True)
class ReplicationLink:
    """What the target says of itself as a replica."""

    follows: str  # host:port; empty for a server of its own
    up: bool  # the first copy is loaded, and the stream is followed
    replid: str
    offset: int  # applied
    percent: float  # of the first copy, as far as the target knows
    keys: int

    @property
    def text(self) -> str:
        """As `exodus status` says it."""
        if not self.follows:
            return "the target is a server of its own"
        return (
            f"the target follows {self.follows}"
            if self.up
            else f"the target takes the data of {self.follows}: {self.percent:.0f} %, {self.keys} keys"
        )


def _replication_link_of(info: dict[str, str]) -> ReplicationLink:
    replica = info.get("role") == "slave"
    busy = info.get("master_sync_in_progress", "0") != "0" or info.get("loading", "0") != "0"
    return ReplicationLink(
        follows=f"{info['master_host']}:{info['master_port']}" if replica else "",
        up=replica and not busy and info.get("master_link_status") == "up",
        replid=info.get("master_replid", ""),
        offset=int(info.get("slave_repl_offset" if replica else "master_repl_offset", 0)),
        percent=max(
            float(info.get("master_sync_perc", 0)), float(info.get("loading_loaded_perc", 0))
        ),
        keys=sum(databases_of(info).values()),
    )


async def replication_link_on(leg: Leg) -> ReplicationLink:
    """What a server says of itself as a replica, over an open connection."""
    return _replication_link_of(info_of(await leg.call("INFO")))


async def look(plan: Plan) -> ReplicationLink:
    """The same of the target.

    Raises:
        TargetError: it does not answer.
    """
    async with await _connect(plan, Side.TARGET) as leg:
        return await replication_link_on(leg)


def _source(plan: Plan) -> str:
    return f"{plan.source.host}:{plan.source.port}"


async def _connect(plan: Plan, side: Side) -> Leg:
    return await Endpoint(side, plan.address(side)).connect(name="exodus-native")


# ---------------------------------------------------------------------- may it be


async def check_possible(plan: Plan, store: ControlStore) -> None:
    """Whether the target can become the source's replica. Changes nothing.

    Raises:
        DecisionRefused: it cannot, and why.
        SourceError, TargetError: a side does not answer.
    """
    why = await _why_not(plan, store)
    if why is not None:
        raise DecisionRefused(
            "the target cannot become a replica of the source",
            why=why,
            next_step="mend that, or set strategy: keys in the migration file, which copies key by key",
        )


async def _why_not(plan: Plan, store: ControlStore) -> str | None:
    source, target = Endpoint(Side.SOURCE, plan.source), Endpoint(Side.TARGET, plan.target)
    ours, theirs = await source.facts(), await target.facts()
    if ours.run_id == theirs.run_id:
        return "both are the same server"
    if not payload_fits(ours, theirs):
        # Never found out by trying: a copy that cannot be loaded leaves the target empty.
        versions = f"{ours.engine} {ours.version_text} saves version {ours.payload_version}, {theirs.engine} {theirs.version_text} loads"
        return f"the target could not load the source's data: {versions} {theirs.payload_version}"
    empty = await check_empty(target, theirs, plan, store)
    if empty.severity == "fatal":
        return empty.what
    async with await _connect(plan, Side.SOURCE) as leg:
        why = await _why_not_source(leg, ours.user) or await _why_fewer(plan, leg)
    return why or await _why_not_target(plan)


async def _why_not_source(leg: Leg, user: str) -> str | None:
    known, conf, dry, cluster = await leg.pipeline(
        [
            ("COMMAND", "INFO", "PSYNC"),
            ("REPLCONF", "capa", "eof"),
            ("ACL", "DRYRUN", user, "PSYNC", "?", "-1"),
            ("INFO", "cluster"),
        ]
    )
    if isinstance(known, ReplyError) or not known or known[0] is None:
        return "the source does not allow PSYNC"
    if isinstance(conf, ReplyError):
        return f"the source: {conf}"
    if not isinstance(dry, ReplyError) and dry != b"OK":
        return f"the source: {dry.decode('utf-8', 'replace')}"
    return (
        "the source is a node of a cluster"
        if b"cluster_enabled:1" in (cluster if isinstance(cluster, bytes) else b"")
        else None
    )


async def _why_fewer(plan: Plan, source: Leg) -> str | None:
    async with await _connect(plan, Side.TARGET) as target:
        here, there = [
            (await leg.pipeline([("CONFIG", "GET", "databases")]))[0] for leg in (source, target)
        ]
    if (
        isinstance(here, list)
        and isinstance(there, list)
        and here
        and there
        and int(here[1]) > int(there[1])
    ):
        return f"the source has {int(here[1])} databases, the target {int(there[1])}"
    return None


async def _why_not_target(plan: Plan) -> str | None:
    async with await _connect(plan, Side.TARGET) as leg:
        link = await replication_link_on(leg)
        if link.follows:
            return (
                None
                if link.follows == _source(plan)
                else f"the target is a replica of {link.follows}"
            )
        kept, sets = await leg.pipeline(
            [("CONFIG", "GET", "masterauth"), ("CONFIG", "GET", "masteruser")]
        )
        for name, reply in (("masterauth", kept), ("masteruser", sets)):
            if isinstance(reply, ReplyError):
                return f"the target: {reply}"
            if (
                reply
                and reply[1]
                and reply[1].decode("utf-8", "replace")
                not in (plan.source.secret("source"), plan.source.username)
            ):
                return f"the target has a {name} of its own, which would be replaced"
        # What they are already: changes nothing, and shows whether it may be done.
        asked: list[Command] = [
            _NO_ONE,
            ("CONFIG", "SET", "masterauth", kept[1] if kept else ""),
            ("CONFIG", "GET", "tls-replication"),
        ]
        replies = await leg.pipeline(asked)
        refused = [reply for reply in replies if isinstance(reply, ReplyError)]
    if refused:
        return f"the target: {refused[0]}"
    # Only looked at: Redis 8.2 and Valkey 8.1 and 9.1 that were built without TLS crash where it is set at run time (tried here).
    by_tls = bool(replies[-1]) and replies[-1][1] == b"yes"
    if by_tls != plan.source.tls:
        return (
            f"the source is reached {'by' if plan.source.tls else 'without'} TLS, and the target's own setting tls-replication is "
            f"{'yes' if by_tls else 'no'}; set it in the target's configuration file, with its certificates"
        )
    return None


# ---------------------------------------------------------------------- the effects, each conditional


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
    """Let the target be a replica in this epoch of the writers. Before the route says so; a replica has the key from the source."""
    value = b"%d" % writer_epoch
    for side in Side:
        async with await _connect(plan, side) as leg:
            if side is Side.SOURCE or not (await replication_link_on(leg)).follows:
                await leg.call("SET", native_guard_key(plan.name), value)


async def keep_write_grant(source: Leg, plan: Plan, writer_epoch: int) -> None:
    """Put the key back where an application's FLUSHALL took it, on the source and so on its replica."""
    await source.call("SET", native_guard_key(plan.name), writer_epoch, "NX")


async def attach(plan: Plan, writer_epoch: int) -> bool:
    """Make the target a replica of the source, if the right of this epoch stands there; whether it had to be done.

    Raises:
        DecisionRefused: the right has ended, or the target refuses.
        TargetError: it does not answer.
    """
    async with await _connect(plan, Side.TARGET) as leg:
        if (await replication_link_on(leg)).follows == _source(plan):
            return False
        login: list[Command] = [
            ("CONFIG", "SET", "masteruser", plan.source.username or ""),
            ("CONFIG", "SET", "masterauth", plan.source.secret("source") or ""),
        ]
        if not await _change(
            leg,
            plan,
            [b"%d" % writer_epoch],
            [*login, ("REPLICAOF", plan.source.host, plan.source.port)],
        ):
            raise DecisionRefused(
                "the target was not made a replica of the source",
                why=f"writers' epoch {writer_epoch} has no right to it: a switch or a rollback ended that",
                next_step="nothing, where one is under way; else start migrate again",
            )
        return True


async def promote(leg: Leg, plan: Plan, writer_epoch: int, closed: bytes) -> None:
    """Make the target, a replica that has everything, a server of its own, and end the right to make it a replica again.

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
    """Make the target a server of its own, for good: a migration is rolled back or given up before its cutover.

    Raises:
        SourceError, TargetError: a side does not answer; the target may be a replica still.
    """
    value = b"%d" % writer_epoch
    async with await _connect(plan, Side.SOURCE) as source:
        await _change(
            source, plan, [value], [("SET", native_guard_key(plan.name), _CLOSED)]
        )  # first: who attaches again gets this along
    async with await _connect(plan, Side.TARGET) as leg:
        for _ in range(_TRIES):
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
    """After a switch that was given up: give the right of the route's epoch, so that syncers make the target a replica again if it is none.

    Never goes back to an older epoch, and takes the right from no other switch.
    """
    if not route.native:
        return
    value = b"%d" % route.writer_epoch
    for side in Side:
        async with await _connect(plan, side) as leg:
            found = await leg.call("GET", native_guard_key(plan.name))
            older = found is not None and found.isdigit() and int(found) < route.writer_epoch
            if older or found == closed:
                await _change(leg, plan, [found], [("SET", native_guard_key(plan.name), value)])


# ---------------------------------------------------------------------- sync(key), by a replica


async def wait_reached(authority: Leg, follower: Leg, *, within_s: float) -> int:
    """Wait until the replica has applied all that the source has propagated by now; the source's offset.

    Raises:
        TargetError: it is no replica of this source, its link is down, or it is behind for longer.
    """
    here = info_of(await authority.call("INFO", "replication"))
    replid, goal = here["master_replid"], int(here["master_repl_offset"])
    deadline = time.monotonic() + within_s
    while True:
        link = _replication_link_of(info_of(await follower.call("INFO", "replication")))
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
        await asyncio.sleep(_POLL_S)


class ReplicaSync:
    """`sync(key)` where the follower is the authority's replica: it waits, and writes nothing, so it needs no guard."""

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
        await wait_reached(*self._legs, within_s=_BEHIND_S)
        return BatchReport(
            copied=len(wanted),
            skipped=len(keys) - len(wanted),
            strategies=Counter({CopyMethod.NATIVE: len(wanted)}),
        )


async def restate_expiries(plan: Plan, keys: Sequence[Key]) -> list[Key]:
    """Let the source say the expiry that these keys have once more, as an absolute time; those that changed at every try.

    For a source that propagates the time left (before Redis 7). No reader of the source sees a change: the reading is exact, as the server's clock
    was the same on both sides of it. Under WATCH, so that a write in between wins.

    Raises:
        SourceError: the source was lost; what was said stands.
        hiredis.ReplyError: the source refuses PEXPIREAT.
    """
    changing: list[Key] = []
    async with await _connect(plan, Side.SOURCE) as leg:
        for db, key in keys:
            await leg.select(db)
            for _ in range(RESTATEMENTS):
                if await _restated(leg, key):
                    break
            else:
                changing.append((db, key))
    return changing


async def _restated(leg: Leg, key: bytes) -> bool:
    # Stricter than `large.expiry_of`, which is only compared with: what is read here is written back, and may not be a millisecond off.
    watching, before, left_ms, after = await leg.pipeline(
        [("WATCH", key), ("TIME",), ("PTTL", key), ("TIME",)]
    )
    now_ms = clock_ms(before)
    if left_ms <= 0 or now_ms != clock_ms(after):
        await leg.call("UNWATCH")
        return bool(left_ms <= 0)  # it has no expiry, or is gone
    if isinstance(watching, ReplyError):
        raise watching
    return await leg.transaction([("PEXPIREAT", key, now_ms + left_ms)]) is not None


async def check_filled(plan: Plan) -> None:
    """Whether the target is a replica that has loaded its first copy.

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
    """Keeps the target a replica for as long as the route says so: one that was restarted is a server of its own."""

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
            await asyncio.sleep(_LOOK_S)

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
        if link.follows == _source(self._plan):
            async with await _connect(self._plan, Side.SOURCE) as leg:
                await keep_write_grant(leg, self._plan, now.writer_epoch)
        elif await attach(self._plan, now.writer_epoch):
            await freshness.forget_pass(self._store)  # what was compared is replaced
