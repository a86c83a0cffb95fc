"""Writers: each owns its keys, so that the expected state is exact, and has at most one write of a
key under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import redis.asyncio as redis
from redis.exceptions import RedisClusterException

from examples.shop.check import read_expiries, read_state
from examples.shop.model import Expiry, Model, State, cold_key, cold_kind, cold_state
from examples.shop.place import Place, connect, is_cluster

# A cluster client that reaches no node raises an error that is no RedisError.
LOST = (redis.ConnectionError, RedisClusterException, OSError)
ERRORS = (redis.RedisError, *LOST)
# Capped, as a stream that is written for ever has to be; what is pending may be trimmed
_STREAM_MAX = 500
_LIST_MAX = 40
_TOGETHER = {b"renamed": b"string", b"scripted-copy": b"scripted"}
_ACCOUNTS = 8
_ACCOUNT_START = 1_000
_SCRIPT = """
local n = redis.call('HINCRBY', KEYS[1], 'hits', ARGV[1])
redis.call('SET', KEYS[2], n)
return n
"""
_TRANSFER = """
redis.call('DECRBY', KEYS[1], ARGV[1])
return redis.call('INCRBY', KEYS[2], ARGV[1])
"""


@dataclass
class WriterTally:
    """What all writers together met."""

    acknowledged: int = 0
    unknown: int = 0
    errors: int = 0
    rides_failovers: bool = False  # connects again, as applications behind Sentinel do
    lost_connections: int = 0
    texts: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # of all errors, by their class
    stall_ms_max: float = 0.0

    def error(self, exc: BaseException) -> None:
        """Count an error."""
        self.kinds[type(exc).__name__] += 1
        if self.rides_failovers and isinstance(exc, LOST):
            self.lost_connections += 1
            return
        self.errors += 1
        if len(self.texts) < 20:
            self.texts.append(f"{type(exc).__name__}: {exc}"[:200])


class Writer:
    """One connection, or a `client` that is given, and the keys under `shop:N:`."""

    def __init__(
        self,
        number: int,
        place: Place,
        model: Model,
        tally: WriterTally,
        *,
        writers: int,
        client: redis.Redis | None = None,
        pipelined: int = 0,
    ) -> None:
        self.number, self.writers = number, writers
        self.prefix = b"shop:%d:" % number
        self.tagged = is_cluster(place.url)
        self.model = model
        self.tally = tally
        self.draw = random.Random(model.seed * 7919 + number)  # noqa: S311 - reproducible, not secret
        self.place = place
        self.url = place.url
        self.given = client is not None
        self.client = client or connect(self.url)
        self.pipelined = pipelined  # writes of other keys that are sometimes under way together
        self.script: Any = self.client.register_script(_SCRIPT)
        self.transferring: Any = self.client.register_script(_TRANSFER)
        self.renames = 0
        self.delivered: list[bytes] = []
        for account in range(_ACCOUNTS):
            self.model.live.setdefault(self.key(b"account", account), None)
        reads = [self.read_back] * 3
        changes = [
            self.set_string,
            self.count,
            self.count,
            self.push_or_pop,
            self.push_or_pop,
            self.change_set,
            self.change_zset,
            self.change_hash,
        ]
        times = [self.set_with_ttl, self.set_expiry_at, self.persist]
        several = [
            self.add_to_stream,
            self.transfer,
            self.run_script,
            self.delete,
            self.rename,
            self.change_cold,
        ]
        self.actions: list[Callable[[], Awaitable[None]]] = [
            *reads,
            *changes,
            *times,
            *several,
            *([self.set_many] * 3 if pipelined else []),
        ]

    def key(self, kind: bytes, number: int) -> bytes:
        """A key of this writer. On a cluster, keys that one request names share a slot."""
        if self.tagged:
            tag = _TOGETHER.get(kind, kind)
            return b"shop:{%d.%b}:%b:%d" % (self.number, tag, kind, number)
        return self.prefix + kind + b":%d" % number

    async def run(self, stop: asyncio.Event, per_s: float) -> None:
        """Write `per_s` times a second until told to stop."""
        await self.open_accounts()
        interval = 1 / per_s
        due = time.monotonic()
        while not stop.is_set():
            await self.move()
            action = self.draw.choice(self.actions)
            await self.act(action)
            if action == self.read_back:
                continue  # the rate is one of writes
            due += interval * (self.pipelined if action == self.set_many else 1)
            left = due - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            elif left < -1:
                due = time.monotonic()  # after a stall the lost time is not made up for
        await self.client.aclose()

    async def move(self) -> None:
        """Go on at another address, where the configuration names one."""
        if self.given or self.place.url == self.url:
            return
        await self.client.aclose()
        self.url = self.place.url
        self.client = connect(self.url)
        self.script = self.client.register_script(_SCRIPT)
        self.transferring = self.client.register_script(_TRANSFER)
        # As after a start. A gateway learns the scripts' texts from it.
        with contextlib.suppress(redis.RedisError):  # then the next call loads it
            for text in (_SCRIPT, _TRANSFER):
                await self.client.script_load(text)

    async def act(self, action: Callable[[], Awaitable[None]]) -> None:
        """One of the actions."""
        await action()

    async def write(
        self,
        changes: dict[bytes, State],
        send: Callable[[], Awaitable[Any]],
        *,
        expiry: dict[bytes, Expiry | None] | None = None,
    ) -> Any:
        """Send one write and, once it is acknowledged, change the model."""
        unknown = [key for key in changes if key in self.model.unknown]
        if unknown:
            for key in unknown:
                await self.settle(key)
            return None  # the changes were reckoned from states that may not be
        began = time.monotonic()
        try:
            reply = await send()
        except ERRORS as exc:
            self._doubt(exc, changes, expiry or {})
            return None
        finally:
            self.tally.stall_ms_max = max(
                self.tally.stall_ms_max, (time.monotonic() - began) * 1000
            )
        self._take(changes, expiry or {})
        return reply

    def _take(self, changes: dict[bytes, State], expiry: dict[bytes, Expiry | None]) -> None:
        """A write was acknowledged."""
        self.tally.acknowledged += 1
        self.model.live.update(changes)
        for key in changes:
            at = expiry.get(key)
            if at is not None:
                self.model.expiries[key] = at
            else:
                self.model.expiries.pop(key, None)

    def _doubt(
        self, exc: BaseException, changes: dict[bytes, State], expiry: dict[bytes, Expiry | None]
    ) -> None:
        """A write was refused, or had no answer."""
        self.tally.error(exc)
        self.tally.unknown += 1
        for key, state in changes.items():
            # Whichever it is, one that expires may be gone by the time that somebody looks.
            expires = key in self.model.expiries or expiry.get(key) is not None
            self.model.unknown[key] = (
                self.model.live.get(key),
                state,
                *((None,) if expires else ()),
            )

    async def settle(self, key: bytes) -> None:
        """After a write without an answer: read which of the states it is."""
        try:
            now = await read_state(self.client, key)
            at = (await read_expiries(self.client, [key]))[0]
        except ERRORS as exc:
            self.tally.error(exc)
            return
        if now is not None and at == -2:
            return  # it expired between the two reads
        if now in self.model.unknown[key]:
            self.model.live[key] = now
            self.model.expiries.pop(key, None)
            if at >= 0:
                self.model.expiries[key] = Expiry(at, at)
            del self.model.unknown[key]

    async def settle_stream(self, key: bytes) -> None:
        """Return the same for a stream, whose group may have been changed too."""
        try:
            rows = await self.client.xpending_range(key, "workers", "-", "+", count=1000)
        except ERRORS as exc:
            self.tally.error(exc)
            return
        self.delivered = [cast("bytes", row["message_id"]) for row in rows]
        self.model.pending[key] = len(self.delivered)
        await self.settle(key)

    def now(self, key: bytes) -> State:
        """Return the state that a key must have; None also where it may have expired by now."""
        return self.model.live.get(key)

    async def read_back(self) -> None:
        """Read a key of one's own: it must be what was acknowledged last."""
        kind = self.draw.choice((b"string", b"counter", b"list", b"set", b"hash"))
        key = self.key(kind, self.draw.randrange(30))
        if key in self.model.unknown:
            return
        try:
            found = await read_state(self.client, key)
        except ERRORS as exc:
            self.tally.error(exc)
            return
        if found != self.now(key):
            self.tally.error(ValueError(f"stale read of {key.decode()}"))

    async def set_string(self) -> None:
        key, value = (
            self.key(b"string", self.draw.randrange(200)),
            b"%x" % self.draw.getrandbits(128),
        )
        await self.write({key: value}, lambda: self.client.set(key, value))

    async def set_many(self) -> None:
        keys = [
            self.key(b"string", number) for number in self.draw.sample(range(200), self.pipelined)
        ]
        values = {
            key: b"%x" % self.draw.getrandbits(128) for key in keys if key not in self.model.unknown
        }
        pipe = self.client.pipeline(transaction=False)
        for key, value in values.items():
            pipe.set(key, value)
        began = time.monotonic()
        try:
            replies = await pipe.execute(raise_on_error=False)
        except ERRORS as exc:
            replies = [exc] * len(values)
        self.tally.stall_ms_max = max(self.tally.stall_ms_max, (time.monotonic() - began) * 1000)
        for (key, value), reply in zip(values.items(), replies, strict=True):
            if isinstance(reply, Exception):
                self._doubt(reply, {key: value}, {})
            else:
                self._take({key: value}, {})

    async def count(self) -> None:
        key = self.key(b"counter", self.draw.randrange(50))
        wanted = int(cast("bytes", self.now(key) or b"0")) + 1
        await self.write({key: b"%d" % wanted}, lambda: self.client.incr(key))

    async def push_or_pop(self) -> None:
        key = self.key(b"list", self.draw.randrange(30))
        items = cast("tuple[bytes, ...]", self.now(key) or ())
        if len(items) >= _LIST_MAX or (items and self.draw.random() < 0.3):
            await self.write({key: items[1:] or None}, lambda: self.client.lpop(key))
        else:
            value = b"%x" % self.draw.getrandbits(64)
            await self.write({key: (*items, value)}, lambda: self.client.rpush(key, value))

    async def change_set(self) -> None:
        key, member = self.key(b"set", self.draw.randrange(30)), b"m%d" % self.draw.randrange(40)
        members = cast("frozenset[bytes]", self.now(key) or frozenset())
        if member in members:
            await self.write(
                {key: members - {member} or None}, lambda: self.client.srem(key, member)
            )
        else:
            await self.write({key: members | {member}}, lambda: self.client.sadd(key, member))

    async def change_zset(self) -> None:
        key, member = self.key(b"zset", self.draw.randrange(30)), b"m%d" % self.draw.randrange(40)
        scores = dict(cast("dict[bytes, bytes]", self.now(key) or {}))
        score = int(scores.get(member, b"0")) + 3
        scores[member] = b"%d" % score
        await self.write({key: scores}, lambda: self.client.zincrby(key, 3, member))

    async def change_hash(self) -> None:
        key, name = self.key(b"hash", self.draw.randrange(30)), b"f%d" % self.draw.randrange(20)
        fields = dict(cast("dict[bytes, bytes]", self.now(key) or {}))
        if name in fields and self.draw.random() < 0.3:
            del fields[name]
            await self.write({key: fields or None}, lambda: self.client.hdel(key, name))
        else:
            value = b"%x" % self.draw.getrandbits(64)
            fields[name] = value
            await self.write({key: fields}, lambda: self.client.hset(key, name, value))

    async def add_to_stream(self) -> None:
        key = self.key(b"stream", 0)
        if key in self.model.unknown:
            await self.settle_stream(key)
            return
        entries = cast("tuple[bytes, ...]", self.now(key) or ())
        if not entries:
            await self.write(
                {key: (b"0-1",)}, lambda: self.client.xadd(key, {b"n": b"0"}, id="0-1")
            )
            await self.client.xgroup_create(key, "workers", id="0")
            return
        last = int(entries[-1].split(b"-")[1])
        if last % 10 == 0 and self.delivered:
            entry_id = self.delivered.pop()
            await self.write({key: entries}, lambda: self.client.xack(key, "workers", entry_id))
            self.model.pending[key] = len(self.delivered)
        elif last % 7 == 0 and len(self.delivered) < 50:
            found = await self.write(
                {key: entries}, lambda: self.client.xreadgroup("workers", "w1", {key: ">"}, count=2)
            )
            batches = (
                found.values() if isinstance(found, dict) else [batch for _, batch in found or []]
            )
            for batch in batches:
                rows = batch[0] if batch and isinstance(batch[0], list) else batch
                self.delivered.extend(entry_id for entry_id, _ in rows)
            self.model.pending[key] = len(self.delivered)
        if key in self.model.unknown:
            # Refused or unanswered: the next turn reads what the group holds, which a write of
            # another kind would not
            return
        # The next id is ours to choose, so that the state after the write is known before it is
        # answered.
        following = b"0-%d" % (last + 1)
        keep = (*entries, following)[-_STREAM_MAX:]
        await self.write(
            {key: keep},
            lambda: self.client.xadd(
                key, {b"n": b"1"}, id=following, maxlen=_STREAM_MAX, approximate=False
            ),
        )

    async def set_with_ttl(self) -> None:
        key, value = self.key(b"ttl", self.draw.randrange(100)), b"%x" % self.draw.getrandbits(64)
        px = self.draw.choice((1_500, 4_000, 3_600_000, 7_200_000))
        before = int(time.time() * 1000)
        expiry = Expiry(before + px, before + px)
        await self.write(
            {key: value}, lambda: self.client.set(key, value, px=px), expiry={key: expiry}
        )
        after = int(time.time() * 1000)
        if self.model.expiries.get(key) is expiry:
            self.model.expiries[key] = Expiry(before + px, after + px + 1)

    async def set_expiry_at(self) -> None:
        key = self.key(b"string", self.draw.randrange(200))
        state = self.now(key)
        if state is None or key in self.model.expiries:
            return await self.set_string()
        at = self.model.began_ms + self.draw.randrange(7_200_000, 10_000_000)
        await self.write(
            {key: state}, lambda: self.client.pexpireat(key, at), expiry={key: Expiry(at, at)}
        )
        return None

    async def persist(self) -> None:
        key = self.key(b"string", self.draw.randrange(200))
        state = self.now(key)
        if state is None:
            return await self.set_string()
        await self.write({key: state}, lambda: self.client.persist(key))
        return None

    async def open_accounts(self) -> None:
        keys = [self.key(b"account", number) for number in range(_ACCOUNTS)]
        await self.write(
            dict.fromkeys(keys, b"%d" % _ACCOUNT_START),
            lambda: self.client.mset(dict.fromkeys(keys, _ACCOUNT_START)),
        )

    async def transfer(self) -> None:
        one, other = (
            self.key(b"account", number) for number in self.draw.sample(range(_ACCOUNTS), 2)
        )
        amount = self.draw.randrange(1, 20)

        async def send() -> Any:
            if self.tagged:
                # A transaction of redis-py's asyncio cluster client (8.1) runs in a thread and a
                # loop of its own, and waits for it in this one.
                return await self.transferring(keys=[one, other], args=[amount])
            pipe = self.client.pipeline(transaction=True)
            pipe.decrby(one, amount)
            pipe.incrby(other, amount)
            return await pipe.execute()

        less, more = (
            int(cast("bytes", self.now(one))) - amount,
            int(cast("bytes", self.now(other))) + amount,
        )
        await self.write({one: b"%d" % less, other: b"%d" % more}, send)

    async def run_script(self) -> None:
        first, second = self.key(b"scripted", 0), self.key(b"scripted-copy", 0)
        hits = int(cast("dict[bytes, bytes]", self.now(first) or {b"hits": b"0"})[b"hits"]) + 2
        await self.write(
            {first: {b"hits": b"%d" % hits}, second: b"%d" % hits},
            lambda: self.script(keys=[first, second], args=[2]),
        )

    async def delete(self) -> None:
        kind = self.draw.choice((b"string", b"set", b"zset", b"hash", b"list"))
        key = self.key(kind, self.draw.randrange(30))
        await self.write({key: None}, lambda: self.client.delete(key))

    async def rename(self) -> None:
        key = self.key(b"string", self.draw.randrange(200))
        state = self.now(key)
        if state is None or key in self.model.expiries:
            return await self.set_string()
        new = self.key(b"renamed", self.renames % 100)
        self.renames += 1
        await self.write({key: None, new: state}, lambda: self.client.rename(key, new))
        return None

    async def change_cold(self) -> None:
        if self.model.keys < self.writers * 10:
            return await self.set_string()
        index = self.draw.randrange(self.model.keys // self.writers) * self.writers + self.number
        if index >= self.model.keys or cold_kind(index) != "string":
            return await self.set_string()
        key = cold_key(index)
        if key not in self.model.live:
            self.model.live[key] = self.model.changed.get(index, cold_state(self.model.seed, index))
        value: State = None if self.draw.random() < 0.3 else b"%x" % self.draw.getrandbits(64)
        await self.write(
            {key: value},
            lambda: (
                self.client.delete(key)
                if value is None
                else self.client.set(key, cast("bytes", value))
            ),
        )
        self.model.changed[index] = None
        return None


async def _moved(client: redis.Redis, url: str, place: Place) -> tuple[redis.Redis, str]:
    """Return the connection to use now, and its address."""
    if place.url == url:
        return client, url
    await client.aclose()
    return connect(place.url), place.url


async def produce_jobs(
    place: Place, model: Model, tally: WriterTally, stop: asyncio.Event, per_s: float
) -> None:
    """Push unique job ids."""
    url, number = place.url, 0
    client = connect(url)
    while not stop.is_set():
        client, url = await _moved(client, url, place)
        job = b"job-%d" % number
        number += 1
        try:
            await client.lpush("shop:jobs", job)
            model.jobs_pushed.add(job)
            tally.acknowledged += 1
        except ERRORS as exc:
            tally.error(exc)
            tally.unknown += 1
            model.jobs_unknown.add(job)
        await asyncio.sleep(1 / per_s)
    await client.aclose()


async def consume_jobs(place: Place, model: Model, tally: WriterTally, stop: asyncio.Event) -> None:
    """Take jobs with a blocking pop; each at most once."""
    url = place.url
    client = connect(url)
    while not stop.is_set():
        client, url = await _moved(client, url, place)
        try:
            found = await cast("Awaitable[Any]", client.brpop(["shop:jobs"], timeout=2))
            if found is not None:
                model.jobs_consumed.append(found[1])
        except ERRORS as exc:
            tally.error(exc)
            model.pops_unknown += 1
    await client.aclose()
