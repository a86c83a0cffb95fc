"""Syncers among themselves: partitions are shared, taken over from a dead one, and a hot key costs a bounded number of copies."""

from __future__ import annotations

import asyncio

import pytest

from exodus.config import Side
from exodus.control import registry
from tests.support.plant import Plant
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _shares(plant: Plant) -> dict[str, list[int]]:
    return {beat.process: beat.facts["partitions"] for beat in await registry.heartbeats(plant.store, "syncer")}


async def test_syncers_share_partitions_and_take_over_from_a_dead_one(plant: Plant) -> None:
    await plant.gateway()
    await plant.syncer("syncer-1")
    await plant.start_live_sync()

    async def all_one() -> bool:
        return [len(share) for share in (await _shares(plant)).values()] == [plant.plan.partitions]

    await until(all_one, within_s=15, otherwise="one syncer did not take all partitions")
    second = await plant.syncer("syncer-2")

    async def halves() -> bool:
        shares = list((await _shares(plant)).values())
        return [len(share) for share in shares] == [plant.plan.partitions // 2] * 2 and not set(shares[0]) & set(shares[1])

    await until(halves, within_s=20, otherwise="the partitions were not shared")
    app = plant.app()
    await app.mset({f"k{number}": number for number in range(200)})
    await plant.drained()
    # It dies without a word: no lease is given back, and its heartbeat goes stale.
    second.__class__ = type("Dead", (type(second),), {"_stop_work": lambda _: asyncio.sleep(0)})
    _, task = plant.syncers.pop("syncer-2")
    work, second._work = second._work, None
    second._lanes.give_back = lambda: asyncio.sleep(0)
    work.cancel()
    task.cancel()
    await asyncio.gather(work, task, return_exceptions=True)
    await app.mset({f"k{number}": -number for number in range(200)})
    await plant.drained()
    assert (await plant.verify()).divergences == []


async def test_a_hot_key_is_copied_far_less_often_than_it_is_written(plant: Plant) -> None:
    await plant.gateway()
    syncer = await plant.syncer()
    await plant.start_live_sync()
    app = plant.app()
    before = syncer.tally.counts["copied"]
    for _ in range(50):
        pipe = app.pipeline(transaction=False)
        for _ in range(200):
            pipe.incr("hot")
        await pipe.execute()
    await plant.drained()
    assert plant.boxes[Side.TARGET].client().get("hot") == b"10000"
    copied = syncer.tally.counts["copied"] - before
    assert 1 <= copied <= 1_000
    assert syncer.tally.lag.total_count or syncer._rates.lag_ms_p99
