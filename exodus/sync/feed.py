"""Change feeds: "these keys may have changed, up to this position".

`ChangeFeed` is the contract that every feed keeps. All of them end in the journal: `JournalFeed` is what the gateways put there, complete when all
writers pass them and scripts declare their keys; with `StreamedFeed` the authority's own replication stream is read into it as well, which is
complete by itself, with `PushedFeed` what the authority pushes. `prove` shows that a feed works before it is relied on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from typing import Protocol

import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus.config import Feed, Plan, Side
from exodus.control import journal
from exodus.control.changes import Changes, Key, parse_entries
from exodus.control.store import ControlStore, answered
from exodus.endpoint import Endpoint
from exodus.errors import DecisionRefused
from exodus.sync import replication
from exodus.sync.pushes import PUSHES, Beacon, PushReader, check_allowed
from exodus.sync.stream import FeedReader, begin

Positions = Mapping[int, bytes]
_TAIL_ENTRIES = 256


class ChangeFeed(Protocol):
    """What live sync and backfill need of a feed. Positions are opaque to them."""

    async def positions(self) -> dict[int, bytes]:
        """Where the feed is now: everything up to here may be taken as seen by who reads a state after this call."""

    async def synced(self) -> dict[int, bytes]:
        """Up to where syncers have finished."""

    async def changes_since(self, positions: Positions) -> Changes:
        """What changed after `positions`; `gap` where that is not known any more."""

    async def tail(self, after: Positions, *, wait_ms: int) -> dict[int, Changes]:
        """The next changes of some partitions, in order in each; empty after `wait_ms` without any."""

    async def mark(self, keys: Iterable[Key]) -> None:
        """Say that keys must be synced once more."""

    async def drained(self) -> bool:
        """Whether syncers have finished everything that is in the feed now."""


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
        found = await answered(self._store.client.xread(asked, count=_TAIL_ENTRIES, block=wait_ms))  # type: ignore[arg-type]
        # redis-py gives a list of [name, entries] in RESP2 and a mapping of name to [entries] in RESP3.
        streams = ((name, entries[0]) for name, entries in found.items()) if isinstance(found, dict) else (found or ())
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
        """See `ChangeFeed`: all that the authority had to push when it was asked was read, and then synced."""
        self._told = self._told or await self._beacon.seen()
        if not self._told or not await super().drained():
            return False
        self._told = False
        return True


def reader_of(store: ControlStore, plan: Plan, authority: Endpoint, process: str) -> FeedReader | None:
    """What a syncer has to run so that the plan's feed is read; None where others write it into the journal."""
    if plan.feed is Feed.GATEWAY:
        return None
    if plan.feed is Feed.REPLICATION:
        return replication.ReplicationFeed(store, authority, plan.partitions, process)
    return PushReader(store, authority, plan.partitions, process, PUSHES[plan.feed]())


async def begin_feed(store: ControlStore, plan: Plan) -> None:
    """Begin the plan's feed of the source anew: what it saw earlier is covered by the backfill or comparison to come.

    Raises:
        DecisionRefused: the source does not allow it; or the target, from which changes flow back after a cutover.
    """
    if plan.feed is Feed.GATEWAY:
        return
    source, target = [Endpoint(side, plan.address(side)) for side in Side]
    if plan.feed is Feed.REPLICATION:
        await replication.check_allowed(source)
    else:
        for side in (source, target):
            await check_allowed(side, plan.feed)
    await begin(store, Side.SOURCE)


def feed_of(store: ControlStore, plan: Plan, authority: Endpoint) -> ChangeFeed:
    """The change feed that a plan relies on, with `authority` as the side whose changes count."""
    if plan.feed is Feed.REPLICATION:
        return StreamedFeed(store, plan.partitions, authority)
    if plan.feed in PUSHES:
        return PushedFeed(store, plan.partitions, authority)
    return JournalFeed(store, plan.partitions)


async def prove(feed: ChangeFeed, writer: redis.Redis, prefix: str, *, within_s: float) -> str:
    """Write a probe key (through a gateway, where its journal is the feed) and wait for it in the feed; returns the key's name. The key is removed.

    Raises:
        DecisionRefused: it does not come: the feed must not be relied on.
    """
    key = f"{prefix}feed-probe:{secrets.token_hex(8)}"
    before = await feed.positions()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    try:
        await answered(writer.set(key, "1", px=60_000))
        while not any(name == key.encode() for _, name in (await feed.changes_since(before)).keys):
            if loop.time() > deadline:
                raise DecisionRefused(
                    "the change feed is not to be relied on",
                    why=f"a probe was written and was not in the journal after {within_s:.0f} s",
                    next_step="look at the `why` of gateway and syncer in `exodus status`, then start the phase again",
                )
            await asyncio.sleep(0.02)
        await answered(writer.delete(key))
    except RedisError as exc:
        raise DecisionRefused("no probe could be written", why=str(exc), next_step="start the gateway (exodus gateway), and the source") from exc
    return key
