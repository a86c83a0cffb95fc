"""What feeds read from the authority share: one syncer at a time reads into the journal, and
continues after failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from abc import ABC, abstractmethod
from typing import Self

from redis.exceptions import RedisError

from exodus.control.leases import give_back_lease, hold_lease
from exodus.control.store import ControlStore, Json
from exodus.errors import DecisionRefused, ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import FEED_READER_BACKOFF_S, FEED_READER_PROBE_MS, LEASE_MS
from exodus.plan.vocabulary import Side
from exodus.telemetry.states import WAITS, States
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import empty_database

log = logging.getLogger(__name__)
PROBE_SCRIPT = "return redis.call('SET', ARGV[1], '1', 'PX', ARGV[2])"  # it declares no key
BEGIN = -1  # as an offset: wherever the stream is


class FeedReader(ABC):
    """Reads the changes of one side into the journal, in one process at a time."""

    def __init__(
        self, store: ControlStore, endpoint: Endpoint, partitions: int, process: str
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._partitions = partitions
        self._process = process
        self.why = ""
        self._states = States(log)
        self.gaps = (
            0  # times that what was missed is not known: each had everything looked at again
        )
        self.connects = 0

    @property
    def _state_key(self) -> str:
        return self._store.keys.feed(self._endpoint.side)

    async def run(self) -> None:
        """Follow the changes until cancelled; failures are waited out."""
        try:
            while True:
                try:
                    if await self._mine():
                        self._states.away("the change feed", "", verbs=WAITS)
                        await self._follow()
                    else:
                        self.why = "another syncer reads the change feed"
                        await asyncio.sleep(LEASE_MS / 3000)
                except (
                    ExodusError,
                    ReplyError,
                    RedisError,
                    OSError,
                    TimeoutError,
                    ValueError,
                ) as exc:
                    self.why = (
                        exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                    )
                    self._states.away("the change feed", self.why, verbs=WAITS)
                    await asyncio.sleep(FEED_READER_BACKOFF_S)
        finally:
            with contextlib.suppress(RedisError, OSError):  # it then ends by its own time
                key = self._store.keys.feed_lease(self._endpoint.side)
                await give_back_lease(self._store, key, self._process)

    async def _mine(self) -> bool:
        key = self._store.keys.feed_lease(self._endpoint.side)
        return await hold_lease(self._store, key, self._process)

    @abstractmethod
    async def _follow(self) -> None:
        """Read until the lease ends or a connection does."""


class Probes:
    """Keys that a script writes and does not declare, one after the other, until a feed tells one
    of them.

    They are in the highest database that is empty, where no application looks, and are removed.
    """

    _EVERY_S = 0.5

    def __init__(self, leg: Leg, prefix: str) -> None:
        self._leg = leg
        self._prefix = f"{prefix}feed-probe:"
        self._at = -self._EVERY_S
        self.names: list[bytes] = []

    @classmethod
    async def open(cls, endpoint: Endpoint, prefix: str) -> Self:
        """On a connection of their own."""
        (node,) = await endpoint.each_node()
        return cls(await node.connect(await empty_database(endpoint), name="exodus-feed"), prefix)

    async def write(self) -> None:
        """Write one more, where the last one was written some time ago.

        Raises:
            hiredis.ReplyError: the server takes no script's write.
        """
        now = time.monotonic()
        if now - self._at >= self._EVERY_S:
            self._at = now
            self.names.append(f"{self._prefix}{secrets.token_hex(8)}".encode())
            await self._leg.call("EVAL", PROBE_SCRIPT, 0, self.names[-1], FEED_READER_PROBE_MS)

    async def close(self) -> None:
        """Remove them."""
        try:
            if self.names:
                await self._leg.pipeline([("UNLINK", *self.names)])
        finally:
            await self._leg.close()


def not_heard(endpoint: Endpoint, feed: str, why: str) -> DecisionRefused:
    """Return the error for a feed that does not tell what it has to."""
    return DecisionRefused(
        f"{feed} of the {endpoint.side} cannot be the change feed",
        why=why,
        next_step="set another feed in the migration file, or feed: auto",
    )


async def feed_state(store: ControlStore, side: Side) -> Json | None:
    """Return how far the changes of a side were read, or None where they never were."""
    raw = await answered(store.client.hgetall(store.keys.feed(side)))
    return {name.decode(): value.decode() for name, value in raw.items()} if raw else None


async def begin(store: ControlStore, side: Side) -> None:
    """Let the reading of a side's changes begin wherever they are: a backfill that is still to come
    covers all before it.

    Without this a first reading counts as a gap, since nobody knows what was written before it.
    """
    await answered(store.client.delete(store.keys.feed(side)))
    await answered(
        store.client.hset(store.keys.feed(side), mapping={"replid": "?", "offset": BEGIN, "db": 0})
    )
