"""The switch on real servers, under writes."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis

from exodus.cutover import switch
from exodus.plan.vocabulary import Side
from tests.support.plant import Plant

pytestmark = pytest.mark.fault


async def _writers(plant: Plant, stop: asyncio.Event, count: int = 4) -> dict[bytes, int]:
    """Increment counters until told to stop; what was acknowledged."""
    acknowledged: dict[bytes, int] = {}

    async def write(number: int) -> None:
        client = plant.app()
        step = 0
        while not stop.is_set():
            key = b"counter:%d:%d" % (number, step % 50)
            acknowledged[key] = int(await client.incr(key))
            await client.lpush(f"list:{number}", step)
            step += 1

    await asyncio.gather(*[write(number) for number in range(count)])
    return acknowledged


async def test_nothing_is_lost_there_and_back(plant: Plant) -> None:
    """Cutover and rollback under writes: the authority has every acknowledged write, each time."""
    source = plant.boxes[Side.SOURCE].client()
    for number in range(3000):
        source.set(f"cold:{number}", "x" * 20, px=600_000 if number % 5 == 0 else None)
    looked: list[bool] = []

    async def settle(*_: object) -> list[str]:
        looked.append(gateway.groups.main.orders.hold)
        return []

    gateway = await plant.gateway(settle=settle)
    await plant.syncer()
    await plant.start_live_sync()
    stop = asyncio.Event()
    writing = asyncio.create_task(_writers(plant, stop))
    await plant.backfill()
    blocked = asyncio.create_task(plant.app(socket_timeout=30).blpop("jobs", 20))
    for to in (Side.TARGET, Side.SOURCE, Side.TARGET):
        done = await switch.apply(plant.store, plant.plan, to)
        assert done.switched
        await asyncio.sleep(0.3)
    assert not any(looked), (
        "writes waited until a gateway had looked at the side that they had just left"
    )
    stop.set()
    acknowledged = await writing
    await plant.app().lpush("jobs", "one")
    assert tuple(await blocked) == (b"jobs", b"one")
    await plant.drained()
    report = await plant.verify()
    assert report.divergences == []
    assert report.keys_authority > 3000
    target = redis.Redis(port=plant.boxes[Side.TARGET].port)
    for key, value in acknowledged.items():
        assert int(await target.get(key)) == value
    await target.aclose()
    strays = redis.Redis(port=plant.boxes[Side.SOURCE].port)
    with pytest.raises(redis.RedisError, match="permission"):
        await strays.set("stray", 1)
    await strays.aclose()
