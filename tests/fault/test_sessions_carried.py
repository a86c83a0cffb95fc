"""Sessions in every state are taken there and back on real servers, by real clients, and none is
closed.
"""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis

from exodus.cutover import switch
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


class Raw:
    """A connection whose bytes the test sees."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Raw:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, *args: object) -> None:
        self._writer.write(encode(*args))

    async def hear(self, data: bytes) -> None:
        async with asyncio.timeout(5):
            got = await self._reader.readuntil(data[-4:])
            while not got.endswith(data):
                got += await self._reader.readuntil(data[-4:])

    async def close(self) -> None:
        self._writer.close()


async def _messages(pubsub: redis.client.PubSub, wanted: bytes) -> list[bytes]:
    found: list[bytes] = []

    async def heard() -> bool:
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.05)
        if message is not None:
            found.append(message["data"])
        return wanted in found

    await until(heard, within_s=5, otherwise=f"{wanted!r} was never heard; {found}")
    return found


@pytest.fixture
async def carrying(local: LocalMigration) -> LocalMigration:
    with local.servers[Side.SOURCE].client() as source:
        source.mset({f"key:{number}": number for number in range(3_000)})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    return local


async def _there_and_back(local: LocalMigration, after=None) -> None:
    for to in (Side.TARGET, Side.SOURCE):
        done = await switch.apply(local.store, local.plan, to)
        assert done.switched
        if after is not None:
            await after()
    assert dict(local.gateways["gw-1"][0].sessions_closed) == {}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_subscribers_hear_what_is_published_after_a_switch_once(
    carrying: LocalMigration, protocol: int
) -> None:
    pubsub = carrying.app(protocol=protocol).pubsub()
    await pubsub.subscribe("news")
    await pubsub.psubscribe("n*s:*")
    publisher = carrying.app()
    heard: list[bytes] = []
    await publisher.publish("news", "0")
    heard += await _messages(pubsub, b"0")
    number = 0

    async def after() -> None:
        nonlocal number
        number += 1
        await publisher.publish("news", str(number))
        await publisher.publish("news:more", f"{number}!")
        heard.extend(await _messages(pubsub, b"%d!" % number))

    await _there_and_back(carrying, after)
    assert heard == [b"0", b"1", b"1!", b"2", b"2!"]
    await pubsub.aclose()


async def test_an_iteration_over_a_switch_misses_nothing(carrying: LocalMigration) -> None:
    client = carrying.app()
    seen: set[bytes] = set()
    cursor, keys = await client.scan(0, match="key:*", count=100)
    seen.update(keys)

    async def after() -> None:
        nonlocal cursor
        for _ in range(3):
            assert cursor
            cursor, keys = await client.scan(cursor, match="key:*", count=100)
            seen.update(keys)

    await _there_and_back(carrying, after)
    while cursor:
        cursor, keys = await client.scan(cursor, match="key:*", count=100)
        seen.update(keys)
    assert len(seen) == 3_000


async def test_a_cache_that_is_tracked_is_emptied_and_tracked_on(carrying: LocalMigration) -> None:
    raw, other = await Raw.open(carrying.port), carrying.app()
    raw.send("HELLO", 3)
    raw.send("CLIENT", "TRACKING", "ON")
    raw.send("GET", "key:1")
    await raw.hear(b"$1\r\n1\r\n")

    async def after() -> None:
        await raw.hear(b">2\r\n$10\r\ninvalidate\r\n_\r\n")
        raw.send("GET", "key:1")
        await raw.hear(b"1\r\n")
        await other.set("key:1", "1")
        await raw.hear(b"*1\r\n$5\r\nkey:1\r\n")

    await _there_and_back(carrying, after)
    await raw.close()


async def test_writes_with_replies_off_are_neither_lost_nor_done_twice(
    carrying: LocalMigration,
) -> None:
    raw, other = await Raw.open(carrying.port), carrying.app()
    raw.send("SELECT", 3)
    raw.send("CLIENT", "REPLY", "OFF")
    for _ in range(100):
        raw.send("INCR", "silent")

    async def after() -> None:
        for _ in range(100):
            raw.send("INCR", "silent")

    await _there_and_back(carrying, after)
    raw.send("CLIENT", "REPLY", "ON")
    await raw.hear(b"+OK\r\n")
    await other.select(3)
    assert await other.get("silent") == b"300"
    await raw.close()


async def test_a_transaction_with_a_watch_fails_and_one_without_goes_through(
    carrying: LocalMigration,
) -> None:
    watching, plain, other = (
        await Raw.open(carrying.port),
        await Raw.open(carrying.port),
        carrying.app(),
    )
    watching.send("WATCH", "key:1")
    for raw in (watching, plain):
        raw.send("MULTI")
        raw.send("SET", "key:2", "in the transaction")
        await raw.hear(b"+QUEUED\r\n")
    await _there_and_back(carrying)
    watching.send("EXEC")
    await watching.hear(b"*-1\r\n")
    assert await other.get("key:2") == b"2"
    plain.send("EXEC")
    await plain.hear(b"*1\r\n+OK\r\n")
    assert await other.get("key:2") == b"in the transaction"
    await watching.close()
    await plain.close()
