"""Ordinary workloads pass Compare: scores that servers print differently, and hot keys."""

from __future__ import annotations

import asyncio
import inspect

import orjson
import pytest

from exodus.control.registry import heartbeats
from exodus.control.route import read_route
from exodus.net.client import answered
from exodus.plan.vocabulary import JournalMode, Side
from exodus.shadow import divergences
from exodus.shadow.causes import Cause
from exodus.shadow.comparer import Comparer
from tasks.comparison import _convergence, _figures, shadow
from tasks.context import Opened
from tests.support.comparing import LOOKS_S, comparing, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

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


async def test_a_run_tells_what_was_compared_what_was_not_and_how_copies_converge(
    local: LocalMigration,
) -> None:
    local.plan = local.plan.model_copy(update={"sample": 1.0})
    await local.gateway()
    comparer = Comparer(local.store, local.plan, "comparer-1", looks_s=LOOKS_S)
    running, stop = asyncio.create_task(comparer.run()), asyncio.Event()

    async def work() -> None:
        app, number = local.app(), 0
        while not stop.is_set():
            number += 1
            await app.set(f"k{number % 20}", number)
            await app.get(f"k{(number + 10) % 20}")
            await app.dump("k1")
            await app.eval("return redis.call('GET', KEYS[1])", 1, "k1")
            await asyncio.sleep(0.01)

    async def registered() -> bool:
        return all([await heartbeats(local.store, kind) for kind in ("gateway", "comparer")])

    await until(registered, within_s=10, otherwise="a process did not tell of itself")
    working = asyncio.create_task(work())
    try:
        it = Opened(local.plan, local.store, local.plan)
        found = await inspect.unwrap(shadow.fn)(it, 4.0)
    finally:
        stop.set()
        await working
        comparer.stop()
        await running
    rows = {row["command"]: row for row in found["coverage"]}
    for name, why in (
        ("DUMP", "its reply differs between healthy servers"),
        ("EVAL", "a script, and compare_scripts is off"),
    ):
        assert rows[name]["why_not"] == f"{why}: {rows[name]['left_out']}"
        assert (rows[name]["compared"], rows[name]["left_out"] > 20) == (0, True), rows[name]
    for name in ("GET", "SET"):
        assert rows[name]["calls"] >= rows[name]["compared"] > 20, rows[name]
    assert rows["SET"]["by_error"] + rows["SET"]["by_reply"] > 0
    figures = found["figures"]
    assert 0 < figures["lag_ms_p50"] <= figures["lag_ms_p99"] < 5_000, figures
    assert max(moment["dirty"] for moment in found["series"]) == figures["dirty_max"] > 0
    assert figures["states_compared"] > 0
    assert found["bound"].startswith("0 of 2")  # twenty keys, as nearly as a sketch counts
    assert found["convergence"]["differ"] == []
    route = await read_route(local.store)
    assert (route.shadow_rate, route.journal) == (0.0, JournalMode.OFF)


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


async def test_accepted_and_healed_keys_count_for_the_bound_of_all(local: LocalMigration) -> None:
    """What was repaired in the sample was not repaired in the keys that were not sampled. Before,
    ten repaired keys of a hundred left "0 of 100 keys differ".
    """
    store, names = local.store, local.store.keys
    local.plan = local.plan.model_copy(update={"evidence_hours_max": 1.0})
    await answered(store.client.pfadd(names.judged(3), *[f"k{number}" for number in range(100)]))
    await local.change(shadow_rate=0.5, shadow_salt=3)
    for key in (b"accepted", b"healed", b"open", b"long ago"):
        assert await divergences.note(
            store, (0, key), "GET", kind="replies differ", cause=Cause.STALE
        )
    await divergences.accept(store, "0:accepted GET", "Ada")
    await divergences.heal(store, (0, b"healed"), "GET")
    found = await _figures(Opened(local.plan, store, local.plan), [])
    assert found["bound"].startswith("4 of ")
    assert " keys differ (1 healed since): at most " in found["bound"]
    await divergences.heal(store, (0, b"long ago"), "GET")
    field = divergences.row_id((0, b"long ago"), "GET")
    row = orjson.loads(await answered(store.client.hget(names.divergence, field)))
    row["at_ms"] -= 2 * 3_600_000
    await answered(store.client.hset(names.divergence, field, orjson.dumps(row)))
    found = await _figures(Opened(local.plan, store, local.plan), [])
    assert found["bound"].startswith("3 of ")
    assert found["figures"]["keys_open"] == 1
