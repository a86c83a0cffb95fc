"""Keys too large for one command: copied in chunks to a staging key, then moved into place whole.

No command reads or writes more than CHUNK_ELEMENTS elements or about CHUNK_BYTES, so no server is
blocked for more than a few ms. No reader sees half a key: the transaction that sets the expiry also
renames the staging key. A staging key that is left behind expires.

The key is WATCHed on the authority. An empty EXEC at the end tells whether it changed. Then the
copy begins again. After LARGE_KEY_COPY_ATTEMPTS it is put in place and reported as *unsettled*: the
caller marks the key as changed, and live sync copies it again. The feed reports writes that WATCH
does not notice (XACK and the like).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from exodus.commands.slots import is_redirect
from exodus.copy.guard import GuardedLeg
from exodus.copy.impact import Turn, unpaced
from exodus.copy.payload import (
    StreamGroups,
    Uncarried,
    entry_order,
    field_expiry_commands,
    group_commands,
    stream_end_commands,
)
from exodus.copy.read import clock_ms
from exodus.copy.value import COUNTS, Command, pairs
from exodus.copy.value import groups as comparable_groups
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import (
    CHUNK_BYTES,
    CHUNK_ELEMENTS,
    LARGE_KEY_COPY_ATTEMPTS,
    LARGE_KEY_STAGE_MS,
)
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.topology.node import NodeFacts

_STAGE = RESERVED_PREFIX + b"%b}:%b"
_SCANS = {b"hash": "HSCAN", b"set": "SSCAN", b"zset": "ZSCAN"}
_PUTS = {b"hash": "HSET", b"set": "SADD", b"zset": "ZADD"}


@dataclass(frozen=True)
class ChunkedOutcome:
    """What became of a large key."""

    exists: bool
    payload_bytes: int = 0
    settled: bool = True  # it did not change while it was copied


class ChunkedCopy:
    """Copies large keys, one at a time. `authority` is a leg of its own, since it WATCHes."""

    def __init__(
        self,
        authority: Leg,
        follower: GuardedLeg,
        authority_facts: NodeFacts,
        follower_facts: NodeFacts,
        turn: Turn,
    ) -> None:
        self.leg = authority  # the copier ends it together with its own
        self._at = authority  # the connection to the node of the key
        self._turn = turn
        self._to = follower
        self._facts = authority_facts
        self._follower_facts = follower_facts

    async def copy(self, db: int, key: bytes, to_db: int, to: bytes) -> ChunkedOutcome:
        """Make one key of database `db` equal on the follower, where it is `to` in `to_db`.

        Raises:
            EpochEnded: the right to write ended; the follower has the whole value of before.
            Uncarried: the follower cannot hold it, or refused a piece.
            SourceError, TargetError: a connection was lost; safe to repeat.
        """
        await self.leg.select(db)
        for attempt in range(1, LARGE_KEY_COPY_ATTEMPTS + 1):
            self._at = await self.leg.of(key)
            last = attempt == LARGE_KEY_COPY_ATTEMPTS
            try:
                outcome = await self._once(key, to_db, to, last=last)
            except ReplyError as exc:
                if not is_redirect(str(exc)):
                    raise
                # Another node has it, or gets it now: live sync copies it when it has arrived.
                await self._at.pipeline([("UNWATCH",)])
                outcome = ChunkedOutcome(exists=True, settled=False) if last else None
            if outcome is not None:
                return outcome
        raise AssertionError("the last attempt always has an outcome")

    async def _once(
        self, key: bytes, to_db: int, to: bytes, *, last: bool
    ) -> ChunkedOutcome | None:
        watched, kind = await self._at.pipeline([("WATCH", key), ("TYPE", key)])
        for reply in (watched, kind):
            if isinstance(reply, ReplyError):
                raise reply
        stage = _STAGE % (self._to.stage_of(to), secrets.token_hex(8).encode())
        size = 0
        if kind == b"none":
            await self._at.call("UNWATCH")
            await self._put(to_db, [("UNLINK", to)])
            return ChunkedOutcome(exists=False)
        try:
            async for commands in self._chunks(kind, key, stage):
                await self._turn()
                await self._put(to_db, [*commands, ("PEXPIRE", stage, LARGE_KEY_STAGE_MS)])
                size += sum(
                    len(arg) for command in commands for arg in command if isinstance(arg, bytes)
                )
        except _Moved:
            size = 0
        if not size:
            await self._at.call("UNWATCH")
            await self._put(to_db, [("UNLINK", stage)])
            return ChunkedOutcome(exists=True, settled=False) if last else None
        expiry_ms = await expiry_of(self._at, self._facts, key)
        settled = (await self._at.pipeline([("MULTI",), ("PING",), ("EXEC",)]))[-1] is not None
        if not settled and not last:
            await self._put(to_db, [("UNLINK", stage)])
            return None
        if expiry_ms == -2:
            await self._put(to_db, [("UNLINK", stage), ("UNLINK", to)])
            return ChunkedOutcome(exists=False, settled=settled)
        expire: Command = ("PEXPIREAT", to, expiry_ms) if expiry_ms >= 0 else ("PERSIST", to)
        # UNLINK: a RENAME over a large key would free it at once, and block.
        await self._put(to_db, [("UNLINK", to), ("RENAME", stage, to), expire])
        return ChunkedOutcome(exists=True, payload_bytes=size, settled=settled)

    async def _put(self, db: int, commands: Sequence[Command]) -> None:
        replies = await self._to.run_commands(db, commands)
        refused = [reply for reply in replies if isinstance(reply, ReplyError)]
        if refused and is_redirect(str(refused[0])):
            raise refused[0]
        if refused:
            raise Uncarried(str(refused[0])[:200])

    async def _ask(self, *command: bytes | str | int) -> Reply:
        try:
            return await self._at.call(*command)
        except ReplyError as exc:
            if is_redirect(str(exc)):
                raise
            if str(exc).startswith(("WRONGTYPE", "ERR no such key")):
                raise _Moved from exc
            raise Uncarried(str(exc)[:200]) from exc

    # ------------------------------------------------------------------ pieces

    async def _chunks(self, kind: bytes, key: bytes, stage: bytes) -> AsyncIterator[list[Command]]:
        if kind == b"string":
            for start in range(0, int(await self._ask("STRLEN", key)), CHUNK_BYTES):
                yield [
                    (
                        "APPEND",
                        stage,
                        await self._ask("GETRANGE", key, start, start + CHUNK_BYTES - 1),
                    )
                ]
        elif kind == b"list":
            step = await self._step(key, int(await self._ask("LLEN", key)))
            start = 0
            while found := await self._ask("LRANGE", key, start, start + step - 1):
                yield [("RPUSH", stage, *found)]
                start += step
        elif kind in _SCANS:
            async for commands in self._scanned(kind, key, stage):
                yield commands
        elif kind == b"stream":
            async for commands in self._stream(key, stage):
                yield commands
        else:
            raise Uncarried(
                f"type {kind.decode('ascii', 'replace')} of a module cannot be copied in pieces"
            )

    async def _step(self, key: bytes, elements: int) -> int:
        """Elements in one piece, by what the server estimates for each."""
        try:
            used = int(await self._at.call("MEMORY", "USAGE", key))
        except (ReplyError, TypeError):
            used = 0  # not allowed here, or gone: the count alone bounds the piece
        return (
            max(1, min(CHUNK_ELEMENTS, CHUNK_BYTES * max(elements, 1) // max(used, 1)))
            if used
            else CHUNK_ELEMENTS
        )

    async def _scanned(self, kind: bytes, key: bytes, stage: bytes) -> AsyncIterator[list[Command]]:
        step = await self._step(key, int(await self._ask(COUNTS[kind], key)))
        cursor = b"0"
        while True:
            cursor, found = await self._ask(_SCANS[kind], key, cursor, "COUNT", step)
            if found:
                put = found
                if kind == b"zset":
                    put = [
                        part
                        for index in range(0, len(found), 2)
                        for part in (found[index + 1], found[index])
                    ]
                commands: list[Command] = [(_PUTS[kind], stage, *put)]
                if kind == b"hash" and self._facts.capabilities.get("hash field ttl"):
                    fields = found[::2]
                    expiries = await self._ask("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)
                    commands += field_expiry_commands(stage, fields, expiries, self._follower_facts)
                yield commands
            if cursor == b"0":
                return

    async def _stream(self, key: bytes, stage: bytes) -> AsyncIterator[list[Command]]:
        """Entries page by page, with dummies for those that are pending but deleted, which XCLAIM
        needs; then groups, and the last id.
        """
        info = pairs(await self._ask("XINFO", "STREAM", key))
        told = await read_groups(self._at, key)
        step = await self._step(key, int(info[b"length"]))
        waiting = sorted(told.pending_ids, key=entry_order)
        ghosts: list[bytes] = []
        after, at = b"-", 0
        while entries := await self._ask("XRANGE", key, after, "+", "COUNT", step):
            commands: list[Command] = []
            for entry_id, fields in entries:
                while at < len(waiting) and entry_order(waiting[at]) < entry_order(entry_id):
                    ghosts.append(waiting[at])
                    commands.append(("XADD", stage, waiting[at], b"-", b"-"))
                    at += 1
                at += at < len(waiting) and waiting[at] == entry_id
                commands.append(("XADD", stage, entry_id, *fields))
            yield commands
            after = b"(" + entries[-1][0]
        ghosts += waiting[at:]
        commands = [("XADD", stage, entry_id, b"-", b"-") for entry_id in waiting[at:]]
        commands += group_commands(stage, told, self._follower_facts)
        commands += stream_end_commands(stage, ghosts, info, self._follower_facts)
        for start in range(0, len(commands), CHUNK_ELEMENTS):
            yield commands[start : start + CHUNK_ELEMENTS]


async def read_groups(leg: Leg, key: bytes) -> StreamGroups:
    """Groups, consumers and pending entries of a stream, without its entries.

    XINFO STREAM FULL tells the times of delivery exactly, but as many entries as pending ones with
    them; where many are pending, XPENDING is paged instead, whose idle times give the same to the
    ms or two that lie between the answer and the clock.
    """
    groups = [pairs(group) for group in await leg.call("XINFO", "GROUPS", key)]
    pending = max((int(group[b"pending"]) for group in groups), default=0)
    if not groups:
        return StreamGroups(())
    if pending <= 10 * CHUNK_ELEMENTS:
        full = pairs(await leg.call("XINFO", "STREAM", key, "FULL", "COUNT", max(pending, 1)))
        return StreamGroups(tuple(pairs(group) for group in full[b"groups"]))
    return StreamGroups(tuple([await _paged_group(leg, key, group) for group in groups]))


async def _paged_group(leg: Leg, key: bytes, group: dict[bytes, Reply]) -> dict[bytes, Reply]:
    name = group[b"name"]
    by_consumer: dict[bytes, list[list[Reply]]] = {
        pairs(raw)[b"name"]: [] for raw in await leg.call("XINFO", "CONSUMERS", key, name)
    }
    start = b"-"
    while True:
        clock, page = await leg.pipeline(
            [("TIME",), ("XPENDING", key, name, start, "+", CHUNK_ELEMENTS)]
        )
        if not page:
            break
        now_ms = clock_ms(clock)
        for entry_id, consumer, idle_ms, count in page:
            by_consumer.setdefault(consumer, []).append([entry_id, now_ms - idle_ms, count])
        start = b"(" + page[-1][0]
    return {
        b"name": name,
        b"last-delivered-id": group[b"last-delivered-id"],
        b"entries-read": group.get(b"entries-read"),
        b"consumers": [
            [b"name", consumer, b"pending", rows] for consumer, rows in by_consumer.items()
        ],
    }


async def expiry_of(leg: Leg, facts: NodeFacts, key: bytes) -> int:
    """Return the absolute expiry of one key in ms; -1 for none, -2 where there is no key."""
    if facts.capabilities.get("pexpiretime"):
        return int(await leg.call("PEXPIRETIME", key))
    while True:
        before, left, after = await leg.pipeline([("TIME",), ("PTTL", key), ("TIME",)])
        if left < 0 or clock_ms(after) == clock_ms(before):
            return int(left) if left < 0 else clock_ms(before) + int(left)


@dataclass(frozen=True)
class At:
    """A key on one side, under the name that it has there."""

    leg: Leg
    key: bytes

    async def ask(self, command: str, *more: bytes | str | int) -> Reply:
        """Ask a command whose first argument is the key."""
        return await self.leg.call(command, self.key, *more)


async def differs_in_chunks(
    here: At, there: At, kind: bytes, *, field_expiry: bool, turn: Turn = unpaced
) -> str | None:
    """Compare a large key, of the authority and of the follower, piece by piece: `value` or `group`
    where it differs, None where not.

    As many elements on both sides, and each of the authority's on the follower too: equal. A write
    meanwhile shows as a difference, which the caller looks at again.
    """
    count = COUNTS.get(kind)
    if count is None:
        return None if await here.ask("DUMP") == await there.ask("DUMP") else "value"
    sizes = [await side.leg.pipeline([(count, side.key)]) for side in (here, there)]
    if sizes[0] != sizes[1] or isinstance(sizes[0][0], ReplyError):
        return "value"
    try:
        if kind in _SCANS:
            same = await _same_elements(here, there, kind, turn, field_expiry=field_expiry)
        else:
            same = await _same_windows(here, there, kind, int(sizes[0][0]), turn)
        if not same:
            return "value"
        if kind == b"stream":
            ends = [
                pairs(await side.leg.call("XINFO", "STREAM", side.key))[b"last-generated-id"]
                for side in (here, there)
            ]
            told = [(await read_groups(side.leg, side.key)).groups for side in (here, there)]
            if ends[0] != ends[1] or comparable_groups(told[0]) != comparable_groups(told[1]):
                return "group"
    except ReplyError:
        return "value"  # another type by now
    return None


async def _same_windows(here: At, there: At, kind: bytes, size: int, turn: Turn) -> bool:
    """Strings, lists and streams: both in windows of the same borders."""
    after: bytes = b"-"
    start = 0
    window: tuple[str, *tuple[bytes | str | int, ...]]
    while start < size:
        await turn()
        if kind == b"string":
            window = ("GETRANGE", start, start + CHUNK_BYTES - 1)
            start += CHUNK_BYTES
        elif kind == b"list":
            window = ("LRANGE", start, start + CHUNK_ELEMENTS - 1)
            start += CHUNK_ELEMENTS
        else:
            window = ("XRANGE", after, "+", "COUNT", CHUNK_ELEMENTS)
            start += CHUNK_ELEMENTS
        ours, theirs = await here.ask(*window), await there.ask(*window)
        if ours != theirs:
            return False
        if kind == b"stream" and ours:
            after = b"(" + ours[-1][0]
    return True


async def _same_elements(
    here: At, there: At, kind: bytes, turn: Turn, *, field_expiry: bool
) -> bool:
    """Hashes, sets and sorted sets: each element of the authority is asked of the follower."""
    cursor = b"0"
    while True:
        await turn()
        cursor, found = await here.ask(_SCANS[kind], cursor, "COUNT", CHUNK_ELEMENTS)
        names = found if kind == b"set" else found[::2]
        if names:
            if kind == b"set":
                same = all(await there.ask("SMISMEMBER", *names))
            elif kind == b"hash":
                same = await there.ask("HMGET", *names) == found[1::2]
                if same and field_expiry:
                    times = [
                        await side.ask("HPEXPIRETIME", "FIELDS", len(names), *names)
                        for side in (here, there)
                    ]
                    same = times[0] == times[1]
            else:
                scores = await there.ask("ZMSCORE", *names)
                same = all(
                    score is not None and float(ours) == float(score)
                    for ours, score in zip(found[1::2], scores, strict=True)
                )
            if not same:
                return False
        if cursor == b"0":
            return True


class _Moved(Exception):
    """The key changed its type, or went, while it was read."""
