"""The MIGRATE lane of a backfill: the source sends batches of keys to the target itself, by
`MIGRATE … COPY REPLACE KEYS`.

The source does nothing else during a MIGRATE, so it always sends the newest state. A later write is
in the journal. Three things need care:

1. An expiry travels as the time left, counted from its arrival. The lane sets the absolute time
   once more, under the guard. If the expiry changed before the MIGRATE, the key was written, and
   live sync copies it again (race rule 3).
2. The target may run a MIGRATE after its timeout, when the key has changed.
3. Its RESTORE has no guard (race rule 6). A frozen source could send it after a switch.

For 2 and 3, the source logs in on the target as a user that belongs to one slice. Its password is
kept nowhere, and the user is made under the guard of the writers' epoch. To void requests under
way, `MigrateLane` deletes the user, which ends its connections. It also ends the connections of the
other slices' users, since the source shares one connection among them. A late request cannot log
in. It would then run as the user `default`, so that user must not be allowed to RESTORE without a
password. The switch deletes all of these users once the epoch is closed (`end_users`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from exodus.cancellation import end_all
from exodus.copy.guard import FULL, GuardedLeg, no_room
from exodus.copy.key import BatchReport, Copier, CopyMethod
from exodus.copy.payload import MigratedKeys
from exodus.copy.read import Batch, Reader, ReadMode
from exodus.copy.value import Command
from exodus.engine import Engine
from exodus.errors import DecisionRefused, OperatorError
from exodus.net.leg import Leg, Reply, ReplyError, close_all
from exodus.plan.address import one_server
from exodus.plan.bounds import (
    MIGRATE_LANE_BATCH_KEYS,
    MIGRATE_LANE_PROBE_MS,
    MIGRATE_TIMEOUT_MS,
    READ_BATCH_BYTES,
)
from exodus.plan.own_keys import RESERVED_PREFIX, is_own
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode_many
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import payload_fits
from exodus.topology.pair_checks import empty_database

_THEIRS = "Target instance replied with error: "
_NO_LOGIN = ("NOAUTH", "WRONGPASS", "NOPERM")
_PROBE = RESERVED_PREFIX + b"migrate}:probe"
_LARGE, _GONE = "it is large", "it is gone"


def _prefix(migration: str) -> str:
    return f"exodus-{migration}-slice-"


async def check_possible(plan: Plan) -> None:
    """Return whether this source may send to this target in a way that no late request can do harm.
    Changes nothing.

    Raises:
        DecisionRefused: it may not, and why.
        SourceError, TargetError: a side does not answer.
    """
    why = await _why_not(plan)
    if why is not None:
        raise DecisionRefused(
            "MIGRATE cannot carry this migration",
            why=why,
            next_step="mend that, or set strategy: keys in the migration file, which copies key "
            "by key",
        )


async def _why_not(plan: Plan) -> str | None:
    source, target = [await Endpoint(side, plan.address(side)).any_node() for side in Side]
    ours, theirs = await source.facts(), await target.facts()
    if not payload_fits(ours, theirs):
        return (
            f"payload version {ours.payload_version} of the source does not fit the target's "
            f"{theirs.payload_version}"
        )
    if plan.target.tls:
        return (
            "the target is reached by TLS, and a source uses that for MIGRATE only where it is "
            "its own cluster's"
        )
    if not ours.capabilities.get("scripts"):
        return "the source does not allow scripts, which look at keys before they are sent"
    async with await source.connect(name="exodus-migrate") as leg:
        known = (await leg.pipeline([("COMMAND", "INFO", "MIGRATE")]))[0]
        if isinstance(known, ReplyError) or not known or known[0] is None:
            return "the source does not allow MIGRATE"
    async with await target.connect(name="exodus-migrate") as leg:
        refused = [
            reply
            for reply in await leg.pipeline([("ACL", "USERS"), ("ACL", "SETUSER", theirs.user)])
            if isinstance(reply, ReplyError)
        ]
        if refused:
            return f"the target must let Exodus make a user for each slice: {refused[0]}"
    return await _why_open(plan)


async def _why_open(plan: Plan) -> str | None:
    """Return why a request with a refused login would still run; None where it would not."""
    plain = plan.target.model_copy(
        update={"username": None, "password": None, "password_env": None, "password_file": None}
    )
    try:
        leg = await Leg.connect(plain, Side.TARGET, name="exodus-probe")
    except OperatorError:
        return None  # a password is asked of `default`
    async with leg:
        # Refused in any case: by the user's rules, or as no payload
        (said,) = await leg.pipeline([("RESTORE", _PROBE, 0, "no payload", "REPLACE")])
    if str(said).startswith(_NO_LOGIN):
        return None
    return (
        "the target's user 'default' may RESTORE without a password, so a MIGRATE that comes "
        "late, whose own user is gone, would still be executed; "
        "ACL SETUSER default -restore (or a password) closes that"
    )


class MigrateLane:
    """Sends keys of one slice. Used by one task, beside the copier that carries what cannot go this
    way.
    """

    def __init__(
        self, engine: Engine, copier: Copier, source: Leg, looking: Leg, target: Leg, slice_id: str
    ) -> None:
        self._plan = engine.plan
        self._databases = engine.follower_facts.database_count
        self._copier = copier
        self._from = source
        self._looking = looking  # the next batch is looked at while this one is sent
        self._to = GuardedLeg(target, engine.guard())
        self._reader = Reader(looking, engine.authority_facts, ReadMode.SIZE)
        self._ahead: tuple[BatchReport, asyncio.Task[tuple[int, Batch]]] | None = None
        self._user = _prefix(engine.plan.name) + slice_id.replace(" ", "-")
        self._password = ""
        self.sent_bytes = 0  # memory of the keys sent, as the source estimates it

    async def close(self) -> None:
        """End the connections. The user stays for `end_users`, or for who takes the slice up."""
        try:
            await end_all([self._ahead[1]] if self._ahead is not None else [])
        finally:
            await close_all((self._from, self._looking, self._to.leg))

    async def renew_user(self) -> None:
        """Change the password, so that a request sent with the old one never runs.

        Raises:
            EpochEnded: the right to write ended.
            DecisionRefused: the target does not let us.
        """
        self._password = secrets.token_hex(24)
        users = [name.decode() for name in await self._to_call("ACL", "USERS")]
        mine: list[Command] = [
            ("ACL", "DELUSER", self._user),
            ("ACL", "SETUSER", self._user, "on", f">{self._password}", "~*", "+restore", "+select"),
        ]
        # The source sends what it has of several slices through one connection, which is logged in
        # as the last of them.
        others: list[Command] = [
            ("CLIENT", "KILL", "USER", name)
            for name in users
            if name.startswith(_prefix(self._plan.name)) and name != self._user
        ]
        commands = [*mine, *others]
        replies = await self._to.run(0, encode_many(commands), len(commands))
        for reply in replies[: len(mine)]:
            if isinstance(reply, ReplyError):
                raise DecisionRefused(
                    "the target does not take the user of a slice",
                    why=str(reply),
                    next_step="see docs/operating/strategies.md",
                )

    async def _to_call(self, *command: str) -> Reply:
        async with await Leg.connect(self._plan.target, Side.TARGET, name="exodus-migrate") as leg:
            return await leg.call(*command)

    async def scan(
        self, db: int, cursor: int, report: BatchReport, *, more: Callable[[int, int], bool]
    ) -> tuple[int, list[bytes], MigratedKeys]:
        """Do one SCAN call; return the next cursor, the keys, and what is still to be written.

        Args:
            report: of the chunk.
            more: whether the chunk goes on after so many keys and up to this cursor. The next batch
                is then looked at while this one is sent; never one of the next chunk, whose feed
                positions have to be older than any look at its keys.
        """
        following, batch = await self._look(db, cursor, report)
        if more(following, len(batch.keys)):
            self._ahead = (
                report,
                asyncio.create_task(self._reader.scan(following, MIGRATE_LANE_BATCH_KEYS)),
            )
        plain: list[tuple[bytes, int]] = []
        expiries: dict[bytes, int] = {}
        others: dict[bytes, str] = {}
        for key, at_ms, size in zip(batch.keys, batch.expiries_ms, batch.values, strict=True):
            if is_own(key):
                report.skipped += 1
            elif at_ms == -2:
                others[key] = _GONE
            elif not size:
                others[key] = _LARGE
            else:
                plain.append((key, size))
                if at_ms >= 0:
                    expiries[key] = at_ms
        for part in _parts(plain):
            why = await self._send(db, part, report)
            if why:
                others.update(dict.fromkeys((key for key, _ in part), why))
        report.not_sent.update(others.values())
        for key in others:
            expiries.pop(key, None)
        states = await self._copier.read(db, list(others), report) if others else []
        return following, batch.keys, MigratedKeys(list(expiries), list(expiries.values()), states)

    async def _look(self, db: int, cursor: int, report: BatchReport) -> tuple[int, Batch]:
        if self._ahead is not None:
            (looked_for, ahead), self._ahead = self._ahead, None
            found = await ahead
            if looked_for is report:
                return found
        for leg in (self._from, self._looking):
            await leg.select(db)
        return await self._reader.scan(cursor, MIGRATE_LANE_BATCH_KEYS)

    async def _send(self, db: int, part: Sequence[tuple[bytes, int]], report: BatchReport) -> str:
        """Send keys; why they have to go another way, or nothing.

        Raises:
            NoRoom: the target takes nothing now.
        """
        keys = [key for key, _ in part]
        target = one_server(self._plan.target)
        login = ("AUTH2", self._user, self._password)
        send: Command = (
            "MIGRATE",
            target.host,
            target.port,
            "",
            db,
            MIGRATE_TIMEOUT_MS,
            "COPY",
            "REPLACE",
            *login,
            "KEYS",
            *keys,
        )
        if (
            db >= self._databases
            # A source sends SELECT and the keys together: behind one that fails they would come
            # into database 0
        ):
            return f"the target has no database {db}"
        try:
            outcome = await self._from.transaction([("EXISTS", *keys), send])
        except ReplyError as exc:
            raise DecisionRefused(
                "the source refuses to send keys",
                why=str(exc),
                next_step="see docs/operating/strategies.md",
            ) from exc
        exist, said = outcome or (0, ReplyError("the source did not send them"))
        if not isinstance(said, ReplyError):
            report.copied += exist
            report.removed += len(keys) - exist
            report.strategies[CopyMethod.MIGRATE] += exist
            size = sum(size for _, size in part)
            report.payload_bytes += size
            self.sent_bytes += size
            return ""
        theirs = str(said).partition(_THEIRS)[2]
        if theirs.startswith(FULL):
            raise no_room(Side.TARGET, theirs[:200])
        if not theirs or theirs.startswith(_NO_LOGIN):
            await self.renew_user()  # what the target has not executed of it, it never will
        return f"MIGRATE: {str(said)[:100]}"


def _parts(keys: Sequence[tuple[bytes, int]]) -> list[list[tuple[bytes, int]]]:
    """Runs of keys that one MIGRATE may hold the source for."""
    parts: list[list[tuple[bytes, int]]] = []
    left = 0
    for key, size in keys:
        if size > left or not parts:
            parts.append([])
            left = READ_BATCH_BYTES
        parts[-1].append((key, size))
        left -= size
    return parts


async def open_migrate_lane(engine: Engine, copier: Copier, slice_id: str) -> MigrateLane:
    """Open the lane of a slice. Requests sent for the slice before this are void.

    Raises:
        DecisionRefused: a late request could do harm on this target.
        EpochEnded: the right to write ended.
    """
    why = await _why_open(engine.plan)
    if why is not None:
        raise DecisionRefused(
            "MIGRATE cannot carry this migration",
            why=why,
            next_step="mend that, or set strategy: keys",
        )
    source, looking = await engine.authority_leg(name="exodus-migrate"), None
    try:
        looking = await engine.authority_leg(name="exodus-migrate")
        target = await engine.follower.connect(name="exodus-migrate")
    except BaseException:
        await close_all((source, looking))
        raise
    lane = MigrateLane(engine, copier, source, looking, target, slice_id)
    try:
        await lane.renew_user()
    except BaseException:
        await lane.close()
        raise
    return lane


async def prove(engine: Engine) -> None:
    """Send a key of our own, and find it on the target.

    Raises:
        DecisionRefused: it does not come.
    """
    copier = await engine.copier(engine.guard(), name="exodus-migrate")
    lane: MigrateLane | None = None
    try:
        lane = await open_migrate_lane(engine, copier, "probe")
        db = await empty_database(engine.authority)  # where no application looks
        async with await engine.authority_leg(name="exodus-migrate") as source:
            await source.select(db)
            await source.call("SET", _PROBE, "1", "PX", MIGRATE_LANE_PROBE_MS)
            await lane._from.select(db)  # noqa: SLF001 - the lane's own proof
            why = await lane._send(db, [(_PROBE, 1)], BatchReport())  # noqa: SLF001
            await source.call("UNLINK", _PROBE)
        async with await engine.follower.connect(name="exodus-migrate") as target:
            await target.select(db)
            found = await target.call("GET", _PROBE)
            await target.call("UNLINK", _PROBE)
        if why or found != b"1":
            raise DecisionRefused(
                "the source cannot send keys to the target",
                why=why or "a key that it sent is not there",
                next_step=f"let the source reach {engine.plan.target.url}, or set strategy: keys "
                "in the migration file",
            )
    finally:
        try:
            await copier.close()
        finally:
            if lane is not None:
                await lane.close()


async def end_users(leg: Leg, migration: str) -> None:
    """Delete every slice's user on the target, and with it what was sent and not executed: after
    the epoch in which they could be made was closed.
    """
    (found,) = await leg.pipeline([("ACL", "USERS")])
    if isinstance(found, ReplyError):
        return  # who may not list them could not make one
    ours = [name for name in found if name.startswith(_prefix(migration).encode())]
    if ours:
        await leg.call("ACL", "DELUSER", *ours)
