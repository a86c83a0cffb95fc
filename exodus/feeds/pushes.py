"""Changes that a server pushes: CLIENT TRACKING in broadcast mode, and keyspace notifications. For
sides that refuse PSYNC.

Both name keys and keep nothing: what changed while nobody listened is not known, so every
connection but the first begins with a look at everything. What neither tells is asked for: the
server's own counts of commands (INFO commandstats) say whether one of those was run, once a second
and before the feed is called drained.

| not reported                         | by            | what Exodus does                      |
| ------------------------------------ | ------------- | ------------------------------------- |
| XREADGROUP, XACK, XCLAIM, XAUTOCLAIM | both          | syncs every stream with groups again  |
| SWAPDB                               | both          | compares everything again             |
| FLUSHDB, FLUSHALL                    | notifications | syncs keys that only the follower has |
| the database                         | tracking      | syncs the key in each database        |

*Drained* is shown by two PINGs on the connection that listens, one after the answer to the other. A
server pushes in the order of execution, and at the latest at the end of its turn. So what was
written before the first PING is told before the answer to the second one. Nothing is written for
it: applications that listen would hear of a key of ours.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import hiredis

from exodus.cancellation import end_all
from exodus.control import journal
from exodus.control.changes import RESYNC, Barrier, Key
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.feeds.reader import BEGIN, FeedReader, Probes, feed_states, id_of, missed, to_be_heard
from exodus.net.client import answered
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import (
    JOURNAL_WINDOW_S,
    LEASE_MS,
    PUSHES_AGAIN_S,
    PUSHES_BEACON_MS,
    PUSHES_BEACONS_KEPT,
    PUSHES_LOOK_S,
    PUSHES_READ_BYTES,
    PUSHES_SCAN_KEYS,
    PUSHES_SILENCE_S,
)
from exodus.plan.own_keys import is_own, without_own
from exodus.plan.vocabulary import Feed
from exodus.resp.encode import encode, encode_many
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node

_GROUPS = ("xreadgroup", "xack", "xclaim", "xautoclaim", "xnack", "xackdel", "xdelex")
_FLUSHES = ("flushdb", "flushall")
_SWAPS = ("swapdb",)
_CLASSES = "g$lshzxet"  # of notify-keyspace-events, which A stands for


class Pushes(ABC):
    """A way to listen. `take` reads what came."""

    feed: ClassVar[Feed]

    @abstractmethod
    def ask(self) -> bytes:
        """Return the requests that subscribe to the changes."""

    @abstractmethod
    def take(self, said: list[Any]) -> tuple[int | None, bytes] | bool | None:
        """Database (None: not told) and key of one message; True: all keys; None: it is none."""

    @abstractmethod
    async def why_not(self, leg: Leg) -> str | None:
        """Return why it cannot be used here; None: it can. Changes nothing."""


class Tracking(Pushes):
    """CLIENT TRACKING in broadcast mode, on one RESP3 connection: with another as receiver, losing
    that one would go unnoticed.
    """

    feed = Feed.TRACKING
    _ASK = (("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST"))

    def ask(self) -> bytes:
        """See `Pushes`."""
        return encode_many(self._ASK)

    def take(self, said: list[Any]) -> tuple[int | None, bytes] | bool | None:
        """See `Pushes`. `Listener` gives the names of a message one by one."""
        return None if said[0] != b"invalidate" else True if said[1] is None else (None, said[1])

    async def why_not(self, leg: Leg) -> str | None:
        """See `Pushes`."""
        for reply in await leg.pipeline(self._ASK):
            if isinstance(reply, ReplyError):
                return str(reply)
        return None


class Notifications(Pushes):
    """Keyspace notifications of every database."""

    feed = Feed.NOTIFICATIONS

    def ask(self) -> bytes:
        """See `Pushes`."""
        return encode("PSUBSCRIBE", "__keyspace@*__:*")

    def take(self, said: list[Any]) -> tuple[int | None, bytes] | bool | None:
        """See `Pushes`."""
        if said[0] != b"pmessage":
            return None
        db, _, key = said[2].removeprefix(b"__keyspace@").partition(b"__:")
        return int(db), key

    async def why_not(self, leg: Leg) -> str | None:
        """See `Pushes`."""
        (told,) = await leg.pipeline([("CONFIG", "GET", "notify-keyspace-events")])
        if isinstance(told, ReplyError) or not told:
            return None  # it keeps its settings from us: the probe will show
        flags = told[1].decode()
        if "K" in flags and ("A" in flags or set(_CLASSES) <= set(flags)):
            return None
        return (
            f"notify-keyspace-events is {flags!r}, and AK is needed (CONFIG SET "
            "notify-keyspace-events AK, or the provider's setting)"
        )


PUSHES: dict[Feed, type[Pushes]] = {Feed.TRACKING: Tracking, Feed.NOTIFICATIONS: Notifications}


class _Listener:
    """One connection that is told, and what came since it was asked last."""

    def __init__(self, leg: Leg, pushes: Pushes) -> None:
        self._leg = leg
        self._pushes = pushes
        self._parser = hiredis.Reader()
        self.listens = asyncio.Event()
        self.came = asyncio.Event()
        self.beacons: list[bytes] = []  # questions to which the answer is yes by now
        self.questions: asyncio.Queue[bytes] = asyncio.Queue()
        self._asked = self._answered = 0  # PINGs
        self._pong = asyncio.Event()
        self.keys: dict[tuple[int | None, bytes], None] = {}
        self.flushed = False

    async def run(self) -> None:
        """Read until the connection ends, which is raised."""
        self._leg.write(self._pushes.ask())
        self.ping()
        while True:
            self._parser.feed(await self._leg.raw(PUSHES_READ_BYTES, within_s=PUSHES_SILENCE_S))
            while (said := self._parser.gets()) is not False:
                self._note(said)

    def _note(self, said: Any) -> None:
        if isinstance(said, ReplyError):
            raise said
        if said == b"PONG" or (isinstance(said, list) and said[:1] == [b"pong"]):
            self.listens.set()
            self._answered += 1
            self._pong.set()
        elif isinstance(said, list):
            names = said[1] if said[0] == b"invalidate" and isinstance(said[1], list) else [None]
            for name in names:
                taken = self._pushes.take(said if name is None else [said[0], name])
                if taken is True:
                    self.flushed = True
                elif isinstance(taken, tuple):
                    self.keys[taken] = None
            if self.keys or self.flushed:
                self.came.set()

    def ping(self) -> None:
        """Ask whether the server is there."""
        self._asked += 1
        self._leg.write(encode("PING"))

    async def hear_all(self) -> None:
        """Wait until all that was written before this call has come."""
        for _ in range(2):  # see the head of this file
            self.ping()
            wanted = self._asked
            while self._answered < wanted:
                self._pong.clear()
                await self._pong.wait()

    async def answer(self) -> None:
        """Answer questions whether all was heard."""
        while True:
            question = await self.questions.get()
            await self.hear_all()
            self.say_heard(question)

    def say_heard(self, beacon: bytes) -> None:
        """Answer a question, together with what came before."""
        self.beacons.append(beacon)
        self.came.set()

    def all_taken(self) -> tuple[list[tuple[int | None, bytes]], bool, list[bytes]]:
        """Return what arrived and reset: keys, whether all keys may have changed, and the questions
        answered.
        """
        keys, flushed, beacons = list(self.keys), self.flushed, self.beacons
        self.keys, self.flushed, self.beacons = {}, False, []
        self.came.clear()
        return keys, flushed, beacons


class PushReader(FeedReader):
    """Listens, and writes what it is told into the journal."""

    def __init__(
        self, store: ControlStore, endpoint: Endpoint, partitions: int, process: str, pushes: Pushes
    ) -> None:
        super().__init__(store, endpoint, partitions, process)
        self._pushes = pushes
        self._listeners: dict[str, _Listener] = {}  # by node
        self._distributing: asyncio.Task[None] | None = None

    async def _follow(self) -> None:
        self._distributing = asyncio.create_task(self._distribute())
        try:
            await super()._follow()
        finally:
            await end_all([self._distributing])

    async def _distribute(self) -> None:
        """Give questions whether all was heard (`Beacon`) to all that listen."""
        asks = self._store.keys.feed_asks(self._endpoint.side)
        while True:
            found = await answered(self._store.client.blpop([asks], timeout=PUSHES_LOOK_S))
            if found is not None:
                for listener in self._listeners.values():
                    listener.questions.put_nowait(found[1])

    async def _follow_node(self, node: Node) -> None:
        tasks: list[asyncio.Task[None]] = []
        async with (
            await node.connect(name="exodus-feed") as leg,
            await node.connect(name="exodus-feed") as asker,
        ):
            listener = self._listeners[id_of(node)] = _Listener(leg, self._pushes)
            try:
                tasks.append(listening := asyncio.create_task(listener.run()))
                async with asyncio.timeout(PUSHES_SILENCE_S):
                    await _first(listener.listens, listening)
                self.connects += 1
                tasks.append(answering := asyncio.create_task(listener.answer()))
                await self._read(node, _Asker(asker), listener, (listening, answering))
            finally:
                del self._listeners[id_of(node)]
                await end_all(tasks)

    async def _read(
        self,
        node: Node,
        asker: _Asker,
        listener: _Listener,
        tasks: tuple[asyncio.Task[None], ...],
    ) -> None:
        listening, *_ = tasks
        state = await self._state_of(node)
        fresh = bool(state) and int(state["offset"]) == BEGIN
        await asker.begin()
        if not fresh:
            self.gaps += 1
        await self._append(node, [], [] if fresh else [missed(node)], [])
        self.why = ""
        looked = renewed = time.monotonic()
        while True:
            waiting = PUSHES_LOOK_S - (time.monotonic() - looked)
            try:
                async with asyncio.timeout(max(waiting, 0)):
                    await _first(listener.came, listening)
                await asyncio.sleep(JOURNAL_WINDOW_S)  # what comes meanwhile is one entry
            except TimeoutError:
                for task in (*tasks, self._distributing):
                    if task is not None and task.done():
                        task.result()
            named, flushed, beacons = listener.all_taken()
            keys = await asker.place([(db, name) for db, name in named if not is_own(name)])
            barriers = [Barrier("flushall")] if flushed else []
            if flushed or beacons or time.monotonic() - looked >= PUSHES_LOOK_S:
                looked = time.monotonic()
                listener.ping()
                more, found = await asker.look()
                keys += more
                barriers = list(dict.fromkeys([*barriers, *found]))
            if keys or barriers or beacons:
                await self._append(node, keys, barriers, beacons)
            if time.monotonic() - renewed > LEASE_MS / 3000:
                renewed = time.monotonic()
                if not await self._mine():
                    return

    async def _append(
        self, node: Node, keys: list[Key], barriers: list[Barrier], beacons: list[bytes]
    ) -> None:
        """Append keys, and in the same transaction the beacons that have arrived."""
        state: dict[str, str | int] = {"offset": 0}
        if beacons:
            kept = (await self._state_of(node)).get("beacons", "").encode()
            words = [*kept.split(), *beacons][-PUSHES_BEACONS_KEPT:]
            state["beacons"] = b" ".join(words).decode()
        fields = self._fields_of(node, state)
        await journal.append(
            self._store,
            keys,
            self._partitions,
            barriers,
            also=lambda pipe: pipe.hset(self._state_key, mapping=fields),  # type: ignore[arg-type]
        )


async def _first(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Wait for the event; where the task ends before, raise what it did."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        await end_all([waiting])


class _Asker:
    """What is not told is asked for over a connection of its own."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._databases: set[int] = set()
        self._streams: set[Key] = set()
        self._counts: dict[str, int] = {}

    async def begin(self) -> None:
        """Return which databases and streams there are, and how often each command was run until
        now.
        """
        self._counts = await self._count()
        await self._look_at_databases()
        for db in self._databases:
            await self._leg.select(db)
            cursor = b""
            while cursor != b"0":
                cursor, names = await self._leg.call(
                    "SCAN", cursor or b"0", "COUNT", PUSHES_SCAN_KEYS, "TYPE", "stream"
                )
                self._streams.update((db, name) for name in without_own(names))

    async def _look_at_databases(self) -> None:
        info = info_of(await self._leg.call("INFO", "keyspace"))
        self._databases |= {int(name[2:]) for name in info if name.startswith("db")}

    async def _count(self) -> dict[str, int]:
        info = info_of(await self._leg.call("INFO", "commandstats"))
        names = (*_GROUPS, *_FLUSHES, *_SWAPS)
        return {
            name: int(
                info.get(f"cmdstat_{name}", "calls=0").partition("calls=")[2].partition(",")[0]
            )
            for name in names
        }

    async def place(self, named: Iterable[tuple[int | None, bytes]]) -> list[Key]:
        """Return the keys with their databases; streams among them are remembered."""
        told = list(named)
        if not told:
            return []
        await self._look_at_databases()
        by_db: dict[int, list[bytes]] = {}
        for at, name in told:
            for db in self._databases if at is None else (at,):
                by_db.setdefault(db, []).append(name)
        for db, names in by_db.items():
            await self._leg.select(db)
            kinds = await self._leg.pipeline([("TYPE", name) for name in names])
            self._streams.update(
                (db, name) for name, kind in zip(names, kinds, strict=True) if kind == b"stream"
            )
        return [(db, name) for db, names in by_db.items() for name in names]

    async def look(self) -> tuple[list[Key], list[Barrier]]:
        """Streams and barriers that commands which are not told stand for, since the last look."""
        before, self._counts = self._counts, await self._count()
        changed = {name for name, count in self._counts.items() if count != before[name]}
        barriers = [Barrier("flushall")] if changed & set(_FLUSHES) else []
        if changed & set(_SWAPS):
            barriers.append(Barrier(RESYNC))
            await self._look_at_databases()
        return await self._with_groups() if changed & set(_GROUPS) else [], barriers

    async def _with_groups(self) -> list[Key]:
        found: list[Key] = []
        for wanted in sorted({db for db, _ in self._streams}):
            names = [name for db, name in self._streams if db == wanted]
            await self._leg.select(wanted)
            for name, groups in zip(
                names,
                await self._leg.pipeline([("XINFO", "GROUPS", name) for name in names]),
                strict=True,
            ):
                if isinstance(groups, ReplyError):
                    # Gone, or another type by now: that was told
                    self._streams.discard((wanted, name))
                elif groups:
                    found.append((wanted, name))
        return found


async def check_allowed(endpoint: Endpoint, feed: Feed) -> None:
    """Return whether each node of a side lets us listen, and tells how often which command was run.

    Raises:
        DecisionRefused: it does not, and why.
    """
    for node in await endpoint.each_node():
        async with await node.connect(name="exodus-feed") as leg:
            (counts,) = await leg.pipeline([("INFO", "commandstats")])
            why = await PUSHES[feed]().why_not(leg)
        if why is None and (isinstance(counts, ReplyError) or b"cmdstat_" not in counts):
            why = "INFO commandstats tells nothing, so what is not pushed would be missed"
        if why is not None:
            raise DecisionRefused(
                f"{feed} of the {endpoint.side} cannot be the change feed",
                why=why,
                next_step="mend that, or set feed: gateway (or replication) in the migration file",
            )


async def check_heard(
    endpoint: Endpoint, feed: Feed, prefix: str, *, within_s: float = PUSHES_SILENCE_S
) -> None:
    """Listen to each node of a side until a key comes that a script writes there without declaring
    it.

    Raises:
        DecisionRefused: none comes.
        SourceError, TargetError: the side does not answer.
    """
    for node in await endpoint.each_node():
        await _check_heard(endpoint, node, feed, prefix, within_s)


async def _check_heard(
    endpoint: Endpoint, node: Node, feed: Feed, prefix: str, within_s: float
) -> None:
    leg = await node.connect(name="exodus-feed")
    listener = _Listener(leg, PUSHES[feed]())
    listening = asyncio.create_task(listener.run())
    try:
        probes = await Probes.open(endpoint, node, prefix)
        try:
            async with to_be_heard(endpoint, feed, within_s):
                await _first(listener.listens, listening)
                while not {name for _, name in listener.all_taken()[0]} & set(probes.names):
                    await probes.write()
                    await _first(listener.came, listening)
        finally:
            await probes.close()
    finally:
        try:
            await end_all([listening])
        finally:
            await leg.close()


class Beacon:
    """A question to the reader of a feed: has all that was written until now been heard? No key
    shows it: applications would hear of it.
    """

    def __init__(self, store: ControlStore, authority: Endpoint) -> None:
        self._store = store
        self._authority = authority
        self._tokens: set[bytes] = set()
        self._at = 0.0

    async def seen(self) -> bool:
        """Return whether everything that was written before the first of these calls was read into
        the journal; a new one is begun after each yes.

        Raises:
            redis.exceptions.RedisError: the control store is away.
        """
        if not self._tokens or time.monotonic() - self._at > PUSHES_AGAIN_S:
            token = secrets.token_hex(8).encode()
            asks = self._store.keys.feed_asks(self._authority.side)
            pipe = self._store.client.pipeline(transaction=True)
            pipe.rpush(asks, token)
            # Nobody reads: whoever begins to looks at everything
            pipe.pexpire(asks, PUSHES_BEACON_MS)
            await pipe.execute()
            self._tokens.add(token)
            self._at = time.monotonic()
        states = await feed_states(self._store, self._authority.side)
        nodes = [states.get(id_of(node), {}) for node in await self._authority.each_node()]
        heard = [set(state.get("beacons", "").encode().split()) for state in nodes]
        if not self._tokens.intersection(*heard):
            return False
        self._tokens.clear()
        return True
