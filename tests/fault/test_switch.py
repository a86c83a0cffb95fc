"""The switch on real servers, under writes."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis

from exodus.cutover import switch
from exodus.plan.vocabulary import Side
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


async def _writers(local: LocalMigration, stop: asyncio.Event, count: int = 4) -> dict[bytes, int]:
    """Increment counters until told to stop; return the acknowledged increments."""
    acknowledged: dict[bytes, int] = {}

    async def write(number: int) -> None:
        client = local.app()
        step = 0
        while not stop.is_set():
            key = b"counter:%d:%d" % (number, step % 50)
            acknowledged[key] = int(await client.incr(key))
            await client.lpush(f"list:{number}", step)
            step += 1

    await asyncio.gather(*[write(number) for number in range(count)])
    return acknowledged


async def test_nothing_is_lost_there_and_back(local: LocalMigration) -> None:
    """Cutover and rollback under writes: the authority has every acknowledged write, each time."""
    source = local.servers[Side.SOURCE].client()
    for number in range(3000):
        source.set(f"cold:{number}", "x" * 20, px=600_000 if number % 5 == 0 else None)
    looked: list[bool] = []

    async def settle(*_: object) -> list[str]:
        looked.append(gateway.groups.main.orders.hold)
        return []

    gateway = await local.gateway(settle=settle)
    await local.syncer()
    await local.start_live_sync()
    stop = asyncio.Event()
    writing = asyncio.create_task(_writers(local, stop))
    await local.backfill()
    blocked = asyncio.create_task(local.app(socket_timeout=30).blpop("jobs", 20))
    for to in (Side.TARGET, Side.SOURCE, Side.TARGET):
        done = await switch.apply(local.store, local.plan, to)
        assert done.switched
        await asyncio.sleep(0.3)
    assert not any(looked), (
        "writes waited until a gateway had looked at the side that they had just left"
    )
    stop.set()
    acknowledged = await writing
    await local.app().lpush("jobs", "one")
    assert tuple(await blocked) == (b"jobs", b"one")
    await local.drained()
    report = await local.verify()
    assert report.divergences == []
    assert report.keys_authority > 3000
    target = redis.Redis(port=local.servers[Side.TARGET].port)
    for key, value in acknowledged.items():
        assert int(await target.get(key)) == value
    await target.aclose()
    strays = redis.Redis(port=local.servers[Side.SOURCE].port)
    with pytest.raises(redis.RedisError, match="permission"):
        await strays.set("stray", 1)
    await strays.aclose()
