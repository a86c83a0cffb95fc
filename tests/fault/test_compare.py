"""Ordinary workloads pass Compare: scores that servers print differently, and hot keys."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from exodus.net.client import answered
from exodus.plan.vocabulary import Side
from tasks.comparison import _convergence, _figures
from tasks.context import Opened
from tests.support.comparing import comparing, row_of
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


async def test_scores_that_are_printed_differently_are_equal(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    for client in (source, target):
        client.zadd("probe", {"m": 443344.1234567})
    printed = {
        client.eval("return redis.call('ZSCORE', 'probe', 'm')", 0) for client in (source, target)
    }
    source.delete("probe")
    target.delete("probe")
    assert len(printed) == 2, f"this pair of servers prints a score in one way: {printed}"
    async with comparing(local):
        app = local.app()
        await app.zadd("z", {"m": 443344.1234567, "n": 0.1 + 0.2, "big": 1e21})
        for _ in range(3):
            await app.zscore("z", "m")
            await app.zrange("z", 0, -1, withscores=True)
            await app.zrangebyscore("z", "-inf", "+inf", withscores=True)
        for command in ("ZSCORE", "ZRANGE", "ZRANGEBYSCORE"):
            await row_of(local, command, "equal", 3)
        assert await answered(local.store.client.hgetall(local.store.keys.divergence)) == {}


async def test_a_key_that_is_written_all_the_time_is_not_judged(local: LocalMigration) -> None:
    """A hot key differs at every look. A cold key that differs is found all the same."""
    source, target = (local.servers[side].client() for side in Side)
    stop = asyncio.Event()

    async def write() -> None:
        app, number = local.app(), 0
        while not stop.is_set():
            number += 1
            await app.set("hot", number)
            await app.expire("renewed", 1_000 + number)

    async with comparing(local):
        app = local.app()
        await app.set("cold", 1)
        await app.set("spoiled", 1)
        await app.set("renewed", 1)
        writing = asyncio.create_task(write())
        try:
            for command in ("SET", "EXPIRE"):
                await row_of(local, command, "compared", 50)
            await app.get("spoiled")
            await row_of(local, "GET", "compared")
            target.set("spoiled", 2)
            found = await _convergence(Opened(local.plan, local.store, local.plan))
        finally:
            stop.set()
            await writing
    assert [row["key"] for row in found["differ"]] == ["spoiled"]
    assert {row["key"] for row in found["inconclusive"]} <= {"hot", "renewed"}
    assert source.get("spoiled") == b"1"


async def test_runs_accumulate_until_their_evidence_is_too_old(local: LocalMigration) -> None:
    """A key that two runs judged counts once. A run from before the limit does not count."""
    local.plan = local.plan.model_copy(update={"evidence_hours_max": 1.0})
    store, names = local.store, local.store.keys
    now_ms = await store.now_ms()
    judged = {1: range(500), 2: range(100), 3: range(50, 150)}  # the seed of a run differs
    for salt, keys in judged.items():
        await answered(store.client.pfadd(names.judged(salt), *[f"k{number}" for number in keys]))
    for salt, age_ms in ((1, 2 * 3_600_000), (2, 60_000)):
        run = {"at_ms": now_ms - age_ms, "salt": salt}
        await answered(store.client.rpush(names.comparisons, orjson.dumps(run)))
    await local.change(shadow_rate=0.5, shadow_salt=3)
    found = await _figures(Opened(local.plan, store, local.plan), [])
    assert [run["salt"] for run in found["runs"]] == [2, 3]
    keys = int(found["bound"].split(" of ")[1].split(" keys")[0])
    assert 147 <= keys <= 153  # 150, as nearly as a sketch counts
    assert found["bound"].startswith("0 of ")
