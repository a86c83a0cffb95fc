"""Change feeds: "these keys may have changed, up to this position".

`ChangeFeed` is the contract of every feed. All of them end in the journal:

| feed | the journal gets | complete |
| --- | --- | --- |
| `JournalFeed` | what the gateways write | if all writers pass them and scripts declare keys |
| `StreamedFeed` | also the authority's replication stream | by itself |
| `PushedFeed` | also what the authority pushes | while the connection lasts |

`prove` shows that a feed works before Exodus relies on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus.control import journal
from exodus.control.changes import Changes, Key, parse_entries
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.feeds import replication
from exodus.feeds.pushes import PUSHES, Beacon, PushReader, check_allowed, check_heard
from exodus.feeds.reader import PROBE_SCRIPT, FeedReader, Probes, begin, to_be_heard
from exodus.net.client import answered
from exodus.plan.bounds import (
    FEED_POLL_S,
    FEED_PROBE_EVERY_S,
    FEED_READER_PROBE_MS,
    FEED_TAIL_ENTRIES,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, Side
from exodus.topology.endpoint import Endpoint

Positions = Mapping[int, bytes]


class ChangeFeed(Protocol):
    """What live sync and backfill need of a feed. Positions are opaque to them."""

    async def positions(self) -> dict[int, bytes]:
        """Return the feed's positions. A state read after this call contains every change up to
        them.
        """

    async def synced(self) -> dict[int, bytes]:
        """Up to where syncers have finished."""

    async def changes_since(self, positions: Positions) -> Changes:
        """Return the changes after `positions`; `gap` is set where they are unknown."""

    async def tail(self, after: Positions, *, wait_ms: int) -> dict[int, Changes]:
        """Return the next changes by partition, in order; empty after `wait_ms` without any."""

    async def mark(self, keys: Iterable[Key]) -> None:
        """Say that keys must be synced once more."""

    async def drained(self) -> bool:
        """Return whether syncers have finished everything that is in the feed now."""


class JournalFeed:
    """The gateways' journal in the control store."""

    def __init__(self, store: ControlStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def positions(self) -> dict[int, bytes]:
        """See `ChangeFeed`."""
        return await journal.ends(self._store, self._partitions)

    async def synced(self) -> dict[int, bytes]:
        """See `ChangeFeed`."""
        found = await journal.positions(self._store)
        return {partition: found.get(partition, b"0-0") for partition in range(self._partitions)}

    async def changes_since(self, positions: Positions) -> Changes:
        """See `ChangeFeed`."""
        return await journal.since(self._store, positions)

    async def tail(self, after: Positions, *, wait_ms: int) -> dict[int, Changes]:
        """See `ChangeFeed`."""
        names = {self._store.keys.journal(partition): partition for partition in after}
        asked = {name: after[partition] for name, partition in names.items()}
        found = await answered(
            self._store.client.xread(asked, count=FEED_TAIL_ENTRIES, block=wait_ms)  # type: ignore[arg-type]
        )
        # redis-py gives a list of [name, entries] in RESP2 and a mapping of name to [entries] in
        # RESP3.
        streams = (
            ((name, entries[0]) for name, entries in found.items())
            if isinstance(found, dict)
            else (found or ())
        )
        return {names[name.decode()]: parse_entries(entries) for name, entries in streams}

    async def mark(self, keys: Iterable[Key]) -> None:
        """See `ChangeFeed`."""
        await journal.append(self._store, keys, self._partitions)

    async def drained(self) -> bool:
        """See `ChangeFeed`."""
        return await journal.drained(self._store, self._partitions)


class StreamedFeed(JournalFeed):
    """The journal, with the authority's replication stream read into it (`replication.py`)."""

    def __init__(self, store: ControlStore, partitions: int, authority: Endpoint) -> None:
        super().__init__(store, partitions)
        self._authority = authority

    async def drained(self) -> bool:
        """See `ChangeFeed`: all that the authority has propagated was read, and then synced."""
        return await replication.reached(self._store, self._authority) and await super().drained()


class PushedFeed(JournalFeed):
    """The journal, with what the authority pushes read into it (`pushes.py`)."""

    def __init__(self, store: ControlStore, partitions: int, authority: Endpoint) -> None:
        super().__init__(store, partitions)
        self._beacon = Beacon(store, authority)
        self._told = False

    async def drained(self) -> bool:
        """See `ChangeFeed`: all that the authority had to push when it was asked was read, and then
        synced.
        """
        self._told = self._told or await self._beacon.seen()
        if not self._told or not await super().drained():
            return False
        self._told = False
        return True


def reader_of(
    store: ControlStore, feed: Feed, partitions: int, authority: Endpoint, process: str
) -> FeedReader | None:
    """Return the reader that a syncer runs for a feed; None where others write the journal."""
    if feed is Feed.REPLICATION:
        return replication.ReplicationFeed(store, authority, partitions, process)
    if feed in PUSHES:
        return PushReader(store, authority, partitions, process, PUSHES[feed]())
    return None


async def check_feed(endpoint: Endpoint, feed: Feed, prefix: str) -> None:
    """Prove that a side tells all its writes by `feed`: a script writes a key that it does not
    declare, and the key must come.

    Changes nothing but that key, which is removed.

    Raises:
        DecisionRefused: the side does not allow it, or the key does not come.
        SourceError, TargetError: the side does not answer.
    """
    if feed is Feed.REPLICATION:
        await replication.check_allowed(endpoint, without_data=True)
        await replication.check_heard(endpoint, prefix)
    elif feed in PUSHES:
        await check_allowed(endpoint, feed)
        await check_heard(endpoint, feed, prefix)


async def begin_feed(store: ControlStore, plan: Plan, feed: Feed) -> None:
    """Begin the feed of the source anew: what it saw earlier is covered by the backfill or
    comparison to come.

    Raises:
        DecisionRefused: the source does not allow it; or the target, from which changes flow back
            after a cutover.
    """
    source, target = [Endpoint(side, plan.address(side)) for side in Side]
    if feed is Feed.GATEWAY:
        if not plan.has_gateways:
            raise DecisionRefused(
                "the source has no change feed",
                why="applications pass no gateway, so each of its nodes has to allow its "
                "replication stream, client tracking or keyspace notifications",
                next_step="see docs/operating/feeds.md for what each of them needs",
            )
        return
    if feed is Feed.REPLICATION:
        await replication.check_allowed(source)
    else:
        for side in (source,) if plan.feed is Feed.AUTO else (source, target):
            await check_allowed(side, feed)
    await begin(store, source)


def feed_of(store: ControlStore, feed: Feed, partitions: int, authority: Endpoint) -> ChangeFeed:
    """Return the change feed in force, with `authority` as the side whose changes count."""
    if feed is Feed.REPLICATION:
        return StreamedFeed(store, partitions, authority)
    if feed in PUSHES:
        return PushedFeed(store, partitions, authority)
    return JournalFeed(store, partitions)


async def prove_nodes(
    feed: ChangeFeed, endpoint: Endpoint, prefix: str, *, within_s: float
) -> list[str]:
    """Prove the feed on each node of a side with probe keys (see `prove`); return the keys heard.

    Raises:
        DecisionRefused: of a node, none comes: the feed must not be relied on.
        SourceError, TargetError: the side does not answer.
    """
    found: list[str] = []
    for node in await endpoint.each_node():
        probes = await Probes.open(endpoint, node, prefix)
        try:
            before = await feed.positions()
            came: set[bytes] = set()
            async with to_be_heard(endpoint, f"the change feed of {node.name}", within_s):
                while not came:
                    await probes.write()
                    await asyncio.sleep(FEED_POLL_S)
                    seen = {name for _, name in (await feed.changes_since(before)).keys}
                    came = seen & set(probes.names)
            found += [name.decode() for name in came]
        finally:
            await probes.close()
    return found


async def prove(
    feed: ChangeFeed, writer: redis.Redis, prefix: str, *, within_s: float, undeclared: bool = False
) -> str:
    """Write probe keys (through a gateway, where its journal is the feed) until one is seen in the
    feed; return its name.

    A new key each time: one that is written before a feed has begun is never told.

    Args:
        undeclared: let a script write them that does not declare them, as a feed of the authority's
            own has to tell; they are removed. Without it, keys are deleted that do not exist, which
            a gateway journals and no application hears of.

    Raises:
        DecisionRefused: none comes: the feed must not be relied on.
    """
    names: list[str] = []

    async def write() -> bytes:
        names.append(f"{prefix}feed-probe:{secrets.token_hex(8)}")
        await answered(
            writer.eval(PROBE_SCRIPT, 0, names[-1], str(FEED_READER_PROBE_MS))
            if undeclared
            else writer.delete(names[-1])
        )
        return names[-1].encode()

    try:
        found = await until_heard(feed, write, within_s=within_s)
        if undeclared:
            await answered(writer.delete(*names))
    except RedisError as exc:
        raise DecisionRefused(
            "no probe could be written",
            why=str(exc),
            next_step="start the gateway (exodus gateway), and the source",
        ) from exc
    return found


async def until_heard(
    feed: ChangeFeed, write: Callable[[], Awaitable[bytes]], *, within_s: float, where: str = ""
) -> str:
    """Write probe keys until one is in the feed; return its name.

    Args:
        feed: that is to be proved.
        write: writes one more, and returns its name.
        within_s: seconds for all of them.
        where: words for the error, as ` to NODE`.

    Raises:
        DecisionRefused: none comes: the feed must not be relied on.
    """
    before, names = await feed.positions(), set[bytes]()
    loop = asyncio.get_running_loop()
    began, written = loop.time(), -FEED_PROBE_EVERY_S
    while True:
        if loop.time() - written >= FEED_PROBE_EVERY_S:
            written = loop.time()
            names.add(await write())
        seen = {name for _, name in (await feed.changes_since(before)).keys}
        if came := names & seen:
            return came.pop().decode()
        if loop.time() - began > within_s:
            raise DecisionRefused(
                "the change feed is not to be relied on",
                why=f"{len(names)} probe keys were written{where} in {within_s:.0f} s, and none "
                "came to the journal",
                next_step="look at the `why` of gateway and syncer in `exodus status`, then "
                "start the phase again",
            )
        await asyncio.sleep(FEED_POLL_S)
