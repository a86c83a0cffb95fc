"""What feeds read from the authority share: one syncer at a time reads into the journal, and
continues after failures.

Each shard of a cluster is read by a task of its own, with a position of its own. A node that
becomes a master is read from then on, and one that is no master any more is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

from redis.exceptions import RedisError

from exodus.cancellation import end_all
from exodus.commands.key_slots import slot_of
from exodus.commands.slots import Shard
from exodus.control.changes import Barrier
from exodus.control.leases import give_back_lease, hold_lease
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused, ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import (
    FEED_PROBE_NAMES_MAX,
    FEED_READER_BACKOFF_S,
    FEED_READER_PROBE_MS,
    LEASE_MS,
)
from exodus.plan.vocabulary import Side
from exodus.telemetry.states import WAITS, States
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
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
        self._whys: dict[str, str] = {}  # node of a cluster → why it is not read
        self._states = States(log)
        self.gaps = (
            0  # times that what was missed is not known: each had everything looked at again
        )
        self.connects = 0

    @property
    def _state_key(self) -> str:
        return self._store.keys.feed(self._endpoint.side)

    async def _state_of(self, node: Node) -> dict[str, str]:
        """Return how far a node was read; empty where it never was."""
        return await feed_state(self._store, self._endpoint.side, id_of(node)) or {}

    def _fields_of(self, node: Node, state: Mapping[str, str | int]) -> dict[str, str | int]:
        """Return the fields under which a node's state is kept."""
        return {prefix_of(node) + name: value for name, value in state.items()}

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
    async def _follow_node(self, node: Node) -> None:
        """Read one node until the lease ends or a connection does."""

    async def _follow(self) -> None:
        """Read all nodes until the lease ends, or the connection to a single server does."""
        if self._endpoint.cluster is None:
            await self._follow_node(await self._endpoint.any_node())
            return
        tasks: dict[str, asyncio.Task[None]] = {}
        self._whys.clear()
        try:
            while await self._mine():
                nodes = {id_of(node): node for node in await self._endpoint.each_node()}
                gone = tasks.keys() - nodes.keys()
                await end_all([tasks.pop(name) for name in gone])
                for name in gone:
                    self._whys.pop(name, None)
                for name, node in nodes.items():
                    if name not in tasks:
                        tasks[name] = asyncio.create_task(self._keep_following(node))
                for task in tasks.values():
                    if task.done():
                        task.result()
                self.why = "; ".join(sorted(filter(None, self._whys.values())))
                await asyncio.sleep(FEED_READER_BACKOFF_S)
        finally:
            await end_all(tasks.values())

    async def _keep_following(self, node: Node) -> None:
        """Read one shard, again and again: its failures do not end the reading of the others."""
        name = id_of(node)
        while True:
            self._whys[name] = ""
            try:
                await self._follow_node(node)
            except (ExodusError, ReplyError, OSError, TimeoutError, ValueError) as exc:
                said = exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                self._whys[name] = f"{node.name}: {said}"
            await asyncio.sleep(FEED_READER_BACKOFF_S)


def probe_name(prefix: str, shard: Shard | None) -> bytes:
    """Return a new name of a key by which a feed is proved; on a cluster in a slot of `shard`.

    Raises:
        ValueError: no name is in a slot of it.
    """
    for _ in range(FEED_PROBE_NAMES_MAX):
        name = f"{prefix}feed-probe:{secrets.token_hex(8)}".encode()
        if shard is None or shard.has(slot_of(name)):
            return name
    raise ValueError(
        f"no key {prefix}feed-probe:… is in a slot of {shard.name if shard else ''}: "
        "rehearsal_prefix has a hash tag"
    )


class Probes:
    """Keys that a script writes and does not declare, one after the other, until a feed tells one
    of them.

    They are in the highest database that is empty, where no application looks, and are removed. On
    a cluster they are in slots of the node.
    """

    _EVERY_S = 0.5

    def __init__(self, leg: Leg, prefix: str, shard: Shard | None = None) -> None:
        self._leg = leg
        self._prefix = prefix
        self._shard = shard
        self._at = -self._EVERY_S
        self.names: list[bytes] = []

    @classmethod
    async def open(cls, endpoint: Endpoint, node: Node, prefix: str) -> Self:
        """On a connection of their own to a node of the side."""
        leg = await node.connect(await empty_database(endpoint), name="exodus-feed")
        return cls(leg, prefix, node.shard)

    async def write(self) -> None:
        """Write one more, where the last one was written some time ago.

        Raises:
            hiredis.ReplyError: the server takes no script's write.
            ValueError: no name is in a slot of the node.
        """
        now = time.monotonic()
        if now - self._at >= self._EVERY_S:
            self._at = now
            self.names.append(probe_name(self._prefix, self._shard))
            await self._leg.call("EVAL", PROBE_SCRIPT, 0, self.names[-1], FEED_READER_PROBE_MS)

    async def close(self) -> None:
        """Remove them."""
        try:
            if self.names:
                await self._leg.pipeline([("UNLINK", name) for name in self.names])
        finally:
            await self._leg.close()


@asynccontextmanager
async def to_be_heard(endpoint: Endpoint, feed: str, within_s: float) -> AsyncIterator[None]:
    """Enclose the wait for a key that a script writes without declaring it.

    Raises:
        DecisionRefused: it does not come within `within_s`, or the server refuses something.
    """
    why = ""
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        why = f"a key that a script wrote without declaring it did not come within {within_s:.0f} s"
    except (ReplyError, ValueError) as exc:
        why = str(exc)
    if why:
        raise DecisionRefused(
            f"{feed} of the {endpoint.side} cannot be the change feed",
            why=why,
            next_step="set another feed in the migration file, or feed: auto",
        )


def id_of(node: Node) -> str:
    """Return what a node's state is kept under: the id of a shard's master, nothing for a single
    server.
    """
    return node.shard.node_id if node.shard is not None else ""


def missed(node: Node) -> Barrier:
    """Return the barrier for what was not heard of a node: its slots, or all of a single server."""
    return Barrier.resync(node.shard.ranges if node.shard is not None else None)


def prefix_of(node: Node) -> str:
    """Return how a node's fields in the state of its side begin."""
    return f"{id_of(node)}:" if node.shard is not None else ""


async def feed_state(store: ControlStore, side: Side, node: str = "") -> dict[str, str] | None:
    """Return how far the changes of a node were read (`id_of`), or None where they never were."""
    return (await feed_states(store, side)).get(node)


async def feed_states(store: ControlStore, side: Side) -> dict[str, dict[str, str]]:
    """Return how far the changes of a side were read, by node (`id_of`); empty where they never
    were.
    """
    found: dict[str, dict[str, str]] = {}
    raw = await answered(store.client.hgetall(store.keys.feed(side)))
    for field, value in raw.items():
        node, _, name = field.decode().rpartition(":")
        found.setdefault(node, {})[name] = value.decode()
    return found


async def begin(store: ControlStore, endpoint: Endpoint) -> None:
    """Let the reading of a side's changes begin wherever they are: a backfill that is still to come
    covers all before it.

    Without this a first reading counts as a gap, since nobody knows what was written before it. So
    does that of a node that becomes a master later.
    """
    state: dict[str, str | int] = {}
    for node in await endpoint.each_node():
        prefix = prefix_of(node)
        state |= {f"{prefix}replid": "?", f"{prefix}offset": BEGIN, f"{prefix}db": 0}
    pipe = store.client.pipeline(transaction=True)
    pipe.delete(store.keys.feed(endpoint.side))
    pipe.hset(store.keys.feed(endpoint.side), mapping=state)  # type: ignore[arg-type]
    await pipe.execute()
