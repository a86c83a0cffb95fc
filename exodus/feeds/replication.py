"""The replication stream as a change feed: complete, ordered, and resumable.

Exodus poses as a replica without data (`REPLCONF rdb-filter-only ""`, Redis 7 and Valkey). From
each propagated command it takes only the changed keys. Scripts with undeclared keys, expiry,
eviction, and writers that bypass the gateway are all in the stream
(docs/decisions/0004-change-feeds.md, seven servers). The keys go into the gateways' journal. The
same transaction stores the offset, so a restart continues at that byte. If the server answers with
a full resync instead, everything counts as changed.

It always acknowledges offset 0. A true offset would let an application's WAIT count Exodus as a
replica that has its data.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from exodus.cancellation import end_all
from exodus.commands.semantics import Role
from exodus.commands.table import CommandTable
from exodus.control import journal
from exodus.control.changes import RESYNC, Barrier, Key
from exodus.control.effects import barrier_of, changed_keys
from exodus.control.schema import cluster_guard_key, guard_key
from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import EPOCH, GUARD_SLOTS
from exodus.errors import DecisionRefused
from exodus.feeds.reader import (
    BEGIN,
    FeedReader,
    Probes,
    feed_state,
    feed_states,
    id_of,
    missed,
    prefix_of,
    to_be_heard,
)
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.net.routed import RoutedLeg
from exodus.plan.bounds import (
    FEED_ANNOUNCED_PORT,
    JOURNAL_WINDOW_S,
    LEASE_MS,
    STREAM_ACK_S,
    STREAM_FIRST_ACK_S,
    STREAM_HEARD_S,
    STREAM_READ_BYTES,
    STREAM_SILENCE_S,
)
from exodus.plan.own_keys import is_own
from exodus.resp.encode import Arg, encode
from exodus.resp.scanner import SKIPPED, RequestScanner
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node

_ACK = encode("REPLCONF", "ACK", 0)
_MARK = b"$EOF:"


@dataclass
class Cursor:
    """How far the stream was read: `offset` counts bytes as the server does."""

    replid: str
    offset: int
    db: int = 0


@dataclass
class StreamKeys:
    """From the bytes of the stream to changed keys. No I/O."""

    table: CommandTable
    cursor: Cursor
    keys: dict[Key, None] = field(default_factory=dict)
    barriers: list[Barrier] = field(default_factory=list)
    # Names that the server does not list: it calls a command otherwise (rename-command)
    unlisted: set[bytes] = field(default_factory=set)
    _scanner: RequestScanner = field(default_factory=RequestScanner)

    def feed(self, data: bytes) -> None:
        """Take bytes; what they say gathers in `keys`, `barriers` and `cursor` until `take`.

        Raises:
            ValueError: the stream cannot be read: the connection has to be made anew.
        """
        cursor = self.cursor
        for request in self._scanner.feed(data):
            cursor.offset += request.size
            args = request.args
            if not args:
                continue
            command = self.table.of(args)
            if command.role is Role.SELECT:
                cursor.db = int(args[1])
            elif command.role is Role.BARRIER:
                self.barriers.append(barrier_of(command, args, cursor.db))
            elif command.write and command.role is not Role.EXEC:
                found = changed_keys(command, args, cursor.db)
                if command.hides_keys or any(key is SKIPPED for _, key in found):
                    self.barriers.append(Barrier(RESYNC))
                if not command.known:
                    self.unlisted.add(args[0].upper())
                self.keys.update(dict.fromkeys(key for key in found if not is_own(key[1])))
        if self._scanner.broken is not None:
            raise ValueError(self._scanner.broken)

    def take(self) -> tuple[list[Key], list[Barrier]]:
        """Return what gathered, and reset."""
        keys, barriers = list(self.keys), self.barriers
        self.keys, self.barriers = {}, []
        return keys, barriers


async def _learn(node: Node, stream: StreamKeys) -> None:
    """Ask what the server calls by unlisted names. Their keys are read from the next write on."""
    if not stream.unlisted:
        return
    names = sorted(stream.unlisted)
    stream.unlisted.clear()
    async with await node.connect(name="exodus-feed") as leg:
        for name, row in zip(names, await leg.call("COMMAND", "INFO", *names), strict=True):
            if row is not None:
                stream.table.learn(name, row)


class ReplicationFeed(FeedReader):
    """Reads the replication stream of one side into the journal."""

    async def _follow_node(self, node: Node) -> None:
        leg = await node.connect(name="exodus-feed")
        acknowledging: asyncio.Task[None] | None = None
        try:
            table = CommandTable.from_replies(await leg.call("COMMAND"))
            stream, resumed = await self._handshake(leg, node, table)
            self.connects += 1
            if not resumed:
                self.gaps += 1
                await self._append(node, stream, [], [missed(node)])
            self.why = ""
            started = asyncio.Event()
            acknowledging = asyncio.create_task(_acknowledge(leg, started))
            renewed = time.monotonic()
            async for data in _chunks(leg):
                started.set()
                stream.feed(data)
                await _learn(node, stream)
                await self._append(node, stream, *stream.take())
                if time.monotonic() - renewed > LEASE_MS / 3000:
                    renewed = time.monotonic()
                    if not await self._mine():
                        return
                await asyncio.sleep(JOURNAL_WINDOW_S)  # what comes meanwhile is one entry
        finally:
            try:
                await end_all([acknowledging])
            finally:
                await leg.close()

    async def _handshake(
        self, leg: Leg, node: Node, table: CommandTable
    ) -> tuple[StreamKeys, bool]:
        """Become a replica; return the stream's reader, and whether the stream has no gap."""
        state = await self._state_of(node) or await self._before_failover(leg, node)
        known = Cursor(state["replid"], int(state["offset"]), int(state["db"])) if state else None
        fresh = known is not None and known.offset == BEGIN
        stream, resumed = await _begin(leg, table, None if fresh else known)
        if fresh:
            # The beginning that `begin` allowed: a backfill covers what was before it
            await self._append(node, stream, [], [])
        return stream, resumed or fresh

    async def _before_failover(self, leg: Leg, node: Node) -> dict[str, str]:
        """Return how far the stream was read of which a shard's new master was a replica before;
        empty where that is not known.
        """
        if node.shard is None:
            return {}
        facts = info_of(await leg.call("INFO", "replication"))
        states = await feed_states(self._store, self._endpoint.side)
        return next(
            (
                state
                for state in states.values()
                if state.get("replid") == facts.get("master_replid2")
                and int(state["offset"]) < int(facts["second_repl_offset"])
            ),
            {},
        )

    async def _append(
        self, node: Node, stream: StreamKeys, keys: list[Key], barriers: list[Barrier]
    ) -> None:
        cursor = stream.cursor
        state = self._fields_of(
            node, {"replid": cursor.replid, "offset": cursor.offset, "db": cursor.db}
        )
        await journal.append(
            self._store,
            keys,
            self._partitions,
            barriers,
            also=lambda pipe: pipe.hset(self._state_key, mapping=state),  # type: ignore[arg-type]
        )


async def _begin(leg: Leg, table: CommandTable, known: Cursor | None) -> tuple[StreamKeys, bool]:
    """Become a replica, behind `known` where that is given; the stream's reader, and whether it
    goes on exactly there.

    Raises:
        hiredis.ReplyError: the server does not let us.
    """
    asks = await leg.pipeline(
        [
            ("REPLCONF", "listening-port", FEED_ANNOUNCED_PORT),
            ("REPLCONF", "capa", "eof", "capa", "psync2"),
            ("REPLCONF", "rdb-filter-only", ""),
        ]
    )
    refused = [reply for reply in asks[:2] if isinstance(reply, ReplyError)]
    if refused:
        raise refused[0]
    leg.write(encode("PSYNC", *((known.replid, known.offset + 1) if known else ("?", -1))))
    await leg.drain()
    words = (await _line(leg)).split()
    if words[0] == b"+CONTINUE" and known is not None:
        if len(words) > 1:
            known.replid = words[1].decode()
        return StreamKeys(table, known), True
    if words[0] != b"+FULLRESYNC":
        raise ReplyError(b" ".join(words)[1:].decode("utf-8", "replace"))
    cursor = Cursor(words[1].decode(), int(words[2]))
    await _skip_data(leg)
    return StreamKeys(table, cursor), False


async def _chunks(leg: Leg) -> AsyncIterator[bytes]:
    """Yield the bytes as they arrive."""
    while True:
        yield await leg.raw(STREAM_READ_BYTES, within_s=STREAM_SILENCE_S)


async def _acknowledge(leg: Leg, started: asyncio.Event) -> None:
    while True:
        leg.write(_ACK)
        await asyncio.sleep(STREAM_ACK_S if started.is_set() else STREAM_FIRST_ACK_S)


async def _line(leg: Leg) -> bytes:
    """Return the next line that says something: a server sends empty ones while it prepares, for
    `repl-diskless-sync-delay` seconds at first.
    """
    while (line := await leg.line()) == b"":
        continue
    return line


async def _skip_data(leg: Leg) -> None:
    """Read past the RDB: with its length in front, or between two marks of 40 bytes. It is as good
    as empty where the server filters.
    """
    head = await _line(leg)
    if not head.startswith(_MARK):
        left = int(head[1:])
        while left:
            left -= len(await leg.raw(min(left, STREAM_READ_BYTES), within_s=STREAM_SILENCE_S))
        return
    mark, tail = head[len(_MARK) :], b""
    while True:
        tail += await leg.raw(STREAM_READ_BYTES, within_s=STREAM_SILENCE_S)
        at = tail.find(mark)
        if at >= 0:
            leg.unread(tail[at + len(mark) :])
            return
        tail = tail[-len(mark) :]


async def check_heard(endpoint: Endpoint, prefix: str, *, within_s: float = STREAM_HEARD_S) -> None:
    """Read the stream of each node of a side until a key comes that a script writes there without
    declaring it.

    Raises:
        DecisionRefused: none comes.
        SourceError, TargetError: the side does not answer.
    """
    for node in await endpoint.each_node():
        await _check_heard(endpoint, node, prefix, within_s)


async def _check_heard(endpoint: Endpoint, node: Node, prefix: str, within_s: float) -> None:
    feed, tasks = "the replication stream", []
    leg = await node.connect(name="exodus-feed")
    try:
        probes = await Probes.open(endpoint, node, prefix)
        try:
            async with to_be_heard(endpoint, feed, within_s):
                table = CommandTable.from_replies(await leg.call("COMMAND"))
                stream, _ = await _begin(leg, table, None)
                started = asyncio.Event()
                tasks.append(asyncio.create_task(_acknowledge(leg, started)))
                while not {name for _, name in stream.take()[0]} & set(probes.names):
                    await probes.write()
                    stream.feed(await leg.raw(STREAM_READ_BYTES, within_s=STREAM_SILENCE_S))
                    started.set()
        finally:
            await end_all(tasks)
            await probes.close()
    finally:
        await leg.close()


async def check_allowed(endpoint: Endpoint, *, without_data: bool = False) -> None:
    """Return whether each node of a side lets us be its replica at a bearable cost; with
    `without_data`, only where it sends none of its data.

    Raises:
        DecisionRefused: it does not, and why.
    """
    for node in await endpoint.each_node():
        await _check_allowed(node, without_data=without_data)


async def _check_allowed(node: Node, *, without_data: bool) -> None:
    async with await node.connect(name="exodus-feed") as leg:
        replies = await leg.pipeline(
            [
                ("REPLCONF", "rdb-filter-only", ""),
                ("COMMAND", "INFO", "PSYNC"),
                ("INFO", "replication"),
            ]
        )
    filtered, known, info = replies
    active = isinstance(info, bytes) and b"repl_backlog_active:1" in info
    if isinstance(known, ReplyError) or not known or known[0] is None:
        why = "PSYNC is not allowed here"
    elif isinstance(filtered, ReplyError) and "NOPERM" in str(filtered):
        why = str(filtered)
    elif isinstance(filtered, ReplyError) and (without_data or not active):
        why = (
            "this server cannot leave the data away (Redis 7 and Valkey can), and would have to "
            "save all of it first"
        )
    else:
        return
    raise DecisionRefused(
        f"the replication stream of the {node.side} cannot be the change feed",
        why=why,
        next_step="set feed: gateway in the migration file, or allow +psync +replconf to Exodus's "
        "user",
    )


async def begin_here(store: ControlStore, endpoint: Endpoint, leg: Leg, value: bytes) -> None:
    """Let the streams of a side be read from here on: both sides are equal now, and nobody writes.

    The writers' guard of each node has `value`, and gets it again: the stream says behind this
    offset in which database that is, or was there already. Where a server keeps nothing of its
    stream, the first reading is a gap.

    Args:
        store: keeps the positions.
        endpoint: the side.
        leg: a connection to it.
        value: of the guards.
    """
    state: dict[str, str] = {}
    for node in await endpoint.each_node():
        on, key = leg, guard_key(store.migration)
        asked: tuple[Sequence[Arg], Sequence[Arg]] = (("GET", key), ("SET", key, value))
        if isinstance(leg, RoutedLeg) and node.shard is not None:
            on = await leg.node(node.shard.master)
            slots = node.shard.multiples(GUARD_SLOTS.step)
            if not slots:
                continue  # it has no guard, and nothing was written there
            key = cluster_guard_key(store.migration, slots[0])
            asked = (("HGET", key, EPOCH), ("HSET", key, EPOCH, value))
        position = await _position(on, key, *asked, value)
        state |= {f"{prefix_of(node)}{name}": told for name, told in position.items()}
    pipe = store.client.pipeline(transaction=True)
    pipe.delete(store.keys.feed(leg.side))
    if state:
        pipe.hset(store.keys.feed(leg.side), mapping=state)  # type: ignore[arg-type]
    await pipe.execute()


async def _position(
    leg: Leg, key: bytes, read: Sequence[Arg], write: Sequence[Arg], value: bytes
) -> dict[str, str]:
    """Write a guard once more if it has this value; return the stream's position behind that."""
    _, found = await leg.pipeline([("WATCH", key), read])
    if found != value:
        await leg.call("UNWATCH")
        return {}
    outcome = await leg.transaction([write, ("INFO", "replication")])
    info = info_of(outcome[1]) if outcome is not None and isinstance(outcome[1], bytes) else {}
    if info.get("repl_backlog_active") != "1":
        return {}
    return {"replid": info["master_replid"], "offset": info["master_repl_offset"], "db": "0"}


async def reached(store: ControlStore, endpoint: Endpoint) -> bool:
    """Return whether everything that each node has propagated until now was read into the journal:
    exact, by its own offset.
    """
    for node in await endpoint.each_node():
        async with await node.connect(name="exodus-feed") as leg:
            facts = info_of(await leg.call("INFO", "replication"))
        state = await feed_state(store, endpoint.side, id_of(node))
        if (
            state is None
            or state["replid"] != facts["master_replid"]
            or int(state["offset"]) < int(facts["master_repl_offset"])
        ):
            return False
    return True
