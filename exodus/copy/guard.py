"""The guard of every write to a follower. A write counts only while the guard keys there have the
expected values.

A batch is `WATCH keys · MGET keys · SELECT database · MULTI`, then `… · EXEC`. The switch changes
the guard keys. A syncer that was frozen before the switch gets nil from EXEC and writes nothing
(race rule 6). A lane's fencing token does the same for a lost lease (race rule 2).

No write is sent before the first four commands were answered as expected. Behind a failed SELECT it
would change another database; behind a failed MULTI it would run without its guard. The four for
the next batch follow the EXEC of this one, so a batch costs one round trip. A batch in another
database costs a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exodus.control.schema import guard_key, lane_guard_key
from exodus.copy import cluster_grants
from exodus.copy.payload import Packed, State, Uncarried
from exodus.copy.value import Command
from exodus.errors import EpochEnded, NoRoom
from exodus.net.leg import Leg, Reply, ReplyError, no_database
from exodus.net.routed import RoutedLeg
from exodus.plan.bounds import GUARD_TOUCHES_MAX
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode, encode_many
from exodus.topology.endpoint import Endpoint

_MULTI, _EXEC, _DISCARD = encode("MULTI"), encode("EXEC"), encode("DISCARD")
_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"
# It takes no writes of anybody
FULL = (
    "OOM",
    "READONLY",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
)


def no_room(side: Side, why: str) -> NoRoom:
    """Return the error for a follower that takes no writes."""
    return NoRoom(
        f"the {side} takes no writes now",
        why=why,
        next_step=f"make room on the {side}, or wait; the copy goes on by itself",
    )


class DatabaseMissing(Uncarried):
    """The follower has no database of that number: no key is there, and none can be put there."""


@dataclass(frozen=True)
class Guard:
    """Keys in database 0 of the follower, and the values under which writing is allowed. No keys:
    no guard.
    """

    values: tuple[tuple[bytes, bytes], ...] = ()

    def check(self, found: Sequence[bytes | None]) -> None:
        """Raise where a value is another.

        Raises:
            EpochEnded: the right to write ended.
        """
        for (key, wanted), value in zip(self.values, found, strict=True):
            if value != wanted:
                raise EpochEnded(
                    "the right to write to the follower ended",
                    why=f"{key.decode()} is {value!r} there, not {wanted!r}",
                    next_step="nothing; the process that holds the right now goes on",
                )


class BatchReplies(NamedTuple):
    """The replies to a batch of states."""

    replies: list[Reply]
    counts: list[int]  # replies for each state


class GuardedLeg:
    """Batches of writes on one leg, each under the guard; callers take turns."""

    def __init__(self, leg: Leg, guard: Guard) -> None:
        self.leg = leg
        self.guard = guard
        self._turn = asyncio.Lock()
        self._armed: tuple[int, list[str]] | None = (
            # The database of the transaction that was asked for, and what is still to be answered
            None
        )
        # The database that the leg was proved to be in; None: not known
        self._at: int | None = leg.db

    async def change(self, guard: Guard) -> None:
        """Write under another guard from the next batch on."""
        async with self._turn:
            await self._disarm()
            self.guard = guard

    async def run(self, db: int, body: bytes, count: int) -> list[object]:
        """Execute `count` commands (encoded in `body`) in one transaction in `db`; their replies,
        errors as values.

        Raises:
            EpochEnded: the guard does not hold; nothing was written.
            NoRoom: the follower did not take the batch (no memory, read-only, no permission);
                nothing was written.
            Uncarried: the follower does not let us into this database; nothing was written.
            SourceError, TargetError: it was lost; safe to repeat.
        """
        async with self._turn:
            return await self._run(db, body, count)

    async def _run(self, db: int, body: bytes, count: int) -> list[object]:
        leg = self.leg
        for _ in range(GUARD_TOUCHES_MAX):
            if self._armed is None or self._armed[0] != db:
                await self._disarm()
                leg.write(self._arm(db))
            await self._begun()
            # By itself: it may be megabytes, and to put it between the others would copy it
            leg.write(body)
            leg.write(_EXEC + self._arm(db))
            await leg.drain()
            if await leg.answered(_QUEUED * count + b"*%d\r\n" % count + _OK * count):
                return [b"OK"] * count
            replies = await leg.replies(count + 1)
            outcome = replies[-1]
            if isinstance(outcome, list):
                return outcome
            if outcome is not None:
                refused = next(
                    (reply for reply in replies if isinstance(reply, ReplyError)), outcome
                )  # EXECABORT: why it did not queue them
                raise no_room(leg.side, str(refused)[:200])
            # A watched key was touched: the guard's next answer says whether it has another value.
        raise EpochEnded(
            "the right to write to the follower is being changed",
            why="its guard keys were touched three times in a row",
            next_step="try again",
        )

    async def run_commands(self, db: int, commands: Sequence[Command]) -> list[Reply]:
        """Execute commands in one transaction in `db`; see `run`."""
        return await self.run(db, encode_many(commands), len(commands))

    async def run_packed(self, db: int, packed: Packed) -> list[Reply]:
        """Write keys as payloads; see `run`."""
        return await self.run(db, packed.body(), len(packed))

    async def run_states(self, db: int, states: Sequence[State]) -> BatchReplies:
        """Write states; see `run`."""
        bodies: list[bytes] = []
        counts: list[int] = []
        for state in states:
            body, count = state.encoded()
            bodies.append(body)
            counts.append(count)
        return BatchReplies(await self.run(db, b"".join(bodies), sum(counts)), counts)

    def stage_of(self, key: bytes) -> bytes:
        """Return the hash tag of a staging key for `key`."""
        del key  # a single server can rename any key
        return b"stage"

    def _arm(self, db: int) -> bytes:
        """Return the requests that open a transaction in `db` under the guard. The guard is in
        database 0.
        """
        asks: list[tuple[str, bytes]] = []
        at = self._at
        keys = [key for key, _ in self.guard.values]
        if keys:
            if at != 0:
                asks.append(("SELECT 0", encode("SELECT", 0)))
            asks += [("WATCH", encode("WATCH", *keys)), ("MGET", encode("MGET", *keys))]
            at = 0
        if at != db:
            asks.append(("SELECT", encode("SELECT", db)))
        asks.append(("MULTI", _MULTI))
        self._armed = db, [name for name, _ in asks]
        return b"".join(data for _, data in asks)

    async def _begun(self) -> None:
        """Read the answers to `_arm`: from here on the leg is in a transaction in its database,
        under the guard.

        Raises:
            EpochEnded, NoRoom, Uncarried: it is not; the leg is as if it had not been asked.
        """
        db, answers = await self._answers()
        values = answers.pop("MGET", [])
        refused = next(
            (
                reply
                for reply in (*answers.values(), values)
                if reply != b"OK" and not isinstance(reply, list)
            ),
            None,
        )
        if refused is None:
            self._at = db
            try:
                self.guard.check(values)
            except EpochEnded:
                await self.leg.call("DISCARD")
                raise
            return
        # A transaction that was begun in another database, or without its guard, is given up
        # unused; without one DISCARD is an error.
        await self.leg.pipeline([("DISCARD",), ("UNWATCH",)])
        said = str(refused)[:200]
        if refused is not answers.get("SELECT") or said.startswith(FULL):
            raise no_room(self.leg.side, said)
        kind = DatabaseMissing if no_database(said) else Uncarried
        raise kind(f"the {self.leg.side} has no database {db} for it: {said}")

    async def _answers(self) -> tuple[int, dict[str, Reply]]:
        """Return the database of the transaction that was asked for, and the answers."""
        assert self._armed is not None
        db, names = self._armed
        self._armed = self._at = None
        return db, dict(zip(names, await self.leg.replies(len(names)), strict=True))

    async def _disarm(self) -> None:
        """End the transaction that was asked for and is not wanted."""
        if self._armed is not None:
            self.leg.write(_DISCARD)
            await self._answers()
            await self.leg.replies(1)

    async def check(self, *, enforced: bool) -> None:
        """Ask for the guard, on an idle leg; a server that restarted has ended the connection.

        Args:
            enforced: raise where it does not hold.

        Raises:
            EpochEnded: the right to write ended.
            SourceError, TargetError: the server was lost.
        """
        found = await self.leg.call("MGET", *[key for key, _ in self.guard.values])
        if enforced:
            self.guard.check(found)

    async def reopen(self) -> None:
        """Connect anew, after the connection was lost.

        Raises:
            SourceError, TargetError: the follower answers nobody.
            OperatorError: it refuses the credentials.
        """
        async with self._turn:
            self._armed, self._at = None, 0
            before = self.leg
            self.leg = await Leg.connect(before.place, before.side, name=before.name)
            await before.close()
            await self.leg.call("PING")


async def read_write_grants(endpoint: Endpoint, migration: str) -> dict[bytes, bytes | None]:
    """Return guard key → writers' epoch. A server has one guard key, a cluster has many.

    Raises:
        SourceError, TargetError: the side does not answer.
    """
    async with await endpoint.connect(name="exodus-right") as leg:
        return await read_write_grants_on(leg, migration)


async def read_write_grants_on(leg: Leg, migration: str) -> dict[bytes, bytes | None]:
    """Return the same, over a connection that is open already.

    Raises:
        SourceError, TargetError: the side does not answer.
        hiredis.ReplyError: it refuses to tell.
    """
    if isinstance(leg, RoutedLeg):
        return await cluster_grants.read_fields(leg, migration, cluster_grants.EPOCH)
    key = guard_key(migration)
    return {key: await leg.call("GET", key)}


async def has_write_grant(follower: Endpoint, migration: str, epoch: int) -> bool:
    """Return whether the writers of `epoch` may write to `follower`.

    Raises:
        SourceError, TargetError: it does not answer.
    """
    grants = await read_write_grants(follower, migration)
    return all(value == b"%d" % epoch for value in grants.values())


async def set_writer_epoch(follower: Endpoint, migration: str, epoch: int) -> None:
    """Give the right to write to `follower` to the writers of `epoch`, and end that of all others
    at once.
    """
    if follower.cluster is not None:
        await cluster_grants.set_epochs(follower, migration, epoch)
        return
    async with await follower.connect(name="exodus-right") as leg:
        await leg.call("SET", guard_key(migration), epoch)


async def replace_write_grant(
    endpoint: Endpoint, migration: str, before: bytes | None, after: bytes
) -> bool:
    """Give the right to write to a follower to `after` where `before` has it; whether it had.

    Raises:
        SourceError, TargetError: the side does not answer.
    """
    async with await endpoint.connect(name="exodus-switch") as leg:
        return await replace_write_grant_on(leg, migration, before, after)


async def regain_write_grants(
    endpoint: Endpoint, migration: str, lacking: Mapping[bytes, bytes | None], after: bytes
) -> bool:
    """Give the right to `after` at the guard keys that have these values; whether they had.

    Raises:
        SourceError, TargetError: the side does not answer.
    """
    del migration  # the keys have its name
    async with await endpoint.connect(name="exodus-switch") as leg:
        return await regain_write_grants_on(leg, lacking, after)


async def regain_write_grants_on(
    leg: Leg, lacking: Mapping[bytes, bytes | None], after: bytes
) -> bool:
    """Return the same, over a connection that is open already."""
    if isinstance(leg, RoutedLeg):
        return await cluster_grants.replace_fields(leg, cluster_grants.EPOCH, lacking, after)
    ((key, before),) = lacking.items()
    return await _replace_on(leg, key, before, after)


async def set_lane_grants(follower: Endpoint, migration: str, tokens: Mapping[int, int]) -> None:
    """Set the fencing tokens of partitions (race rule 2). The follower refuses a syncer with an
    older token, even one that wakes up after this process has ended.

    Raises:
        SourceError, TargetError: the follower does not answer.
    """
    if follower.cluster is not None:
        await cluster_grants.set_lanes(follower, migration, tokens)
        return
    async with await follower.connect(name="exodus-lease") as leg:
        for partition, token in tokens.items():
            await leg.call("SET", lane_guard_key(migration, partition), token)


async def lost_lane_grants(
    follower: Endpoint, migration: str, tokens: Mapping[int, int]
) -> list[int]:
    """Return the partitions that somebody with another fencing token has.

    Raises:
        SourceError, TargetError: the follower does not answer.
    """
    if not tokens:
        return []
    if follower.cluster is not None:
        return await cluster_grants.lost_lanes(follower, migration, tokens)
    async with await follower.connect(name="exodus-lease") as leg:
        return [
            partition
            for partition, token in tokens.items()
            if await leg.call("GET", lane_guard_key(migration, partition)) != b"%d" % token
        ]


async def replace_write_grant_on(
    leg: Leg, migration: str, before: bytes | None, after: bytes
) -> bool:
    """Return the same, over a connection that is open already."""
    if isinstance(leg, RoutedLeg):
        befores = dict.fromkeys(cluster_grants.guard_keys(migration), before)
        return await regain_write_grants_on(leg, befores, after)
    return await _replace_on(leg, guard_key(migration), before, after)


async def _replace_on(leg: Leg, key: bytes, before: bytes | None, after: bytes) -> bool:
    if await leg.watch(key) != before:
        await leg.call("UNWATCH")
        return False
    outcome = await leg.transaction([("SET", key, after)])
    return outcome is not None and not isinstance(outcome[0], ReplyError)
