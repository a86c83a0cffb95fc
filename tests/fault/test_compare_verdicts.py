"""A reply that differs is judged before anything heals the key."""

from __future__ import annotations

import asyncio

import pytest

from exodus.control.registry import heartbeats
from exodus.net.client import answered
from exodus.plan.vocabulary import Side
from tests.support.comparing import comparer_follows, comparing, counted, ledger, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def test_a_stale_value_is_found_and_stays_until_somebody_asks(local: LocalMigration) -> None:
    """Before, the comparer copied the key again before its second look, and could find nothing."""
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "right")
    async with comparing(local):
        app = local.app()
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "divergences")
        assert [(row["key"], row["command"]) for row in await ledger(local)] == [("k", "GET")]
        assert target.get("k") == b"stale"


async def test_compare_copies_a_confirmed_key_again_where_the_plan_says_so(
    local: LocalMigration,
) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "right")
    local.plan = local.plan.model_copy(update={"compare_repair": True})
    async with comparing(local):
        app = local.app()
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "divergences")

        async def healed() -> bool:
            return target.get("k") == b"right"

        await until(healed, within_s=5, otherwise="the key was not copied again")


async def test_a_copy_that_comes_late_is_no_divergence(local: LocalMigration) -> None:
    """The difference goes away before the last look."""
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "right")
    async with comparing(local):
        app = local.app()
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "compared", 2)
        target.set("k", "right")
        await row_of(local, "GET", "late")
        assert await ledger(local) == []


async def test_a_reply_that_moved_is_inconclusive(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "one")
    async with comparing(local):
        app = local.app()
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "compared", 2)
        source.set("k", "two")  # past the gateway: no journal tells of it
        await row_of(local, "GET", "inconclusive")
        (beat,) = await heartbeats(local.store, "comparer")
        assert beat.facts.inconclusive == {"the authority's reply moved": 1}


async def test_writes_are_tried_on_a_scratch_copy(local: LocalMigration) -> None:
    """The key's own copy is left to copying. The scratch copy is removed."""
    source, target = (local.servers[side].client() for side in Side)
    source.set("counter", 10)
    async with comparing(local):
        app = local.app()
        for _ in range(20):
            await app.incr("counter")
        await row_of(local, "INCRBY", "equal", 20)

        async def copied() -> bool:
            return target.get("counter") == b"30"

        await until(copied, within_s=5, otherwise="the copy is not what copying makes of it")
        assert target.info("keyspace").keys() == {"db0"}
        assert (await counted(local, "INCRBY")).get("divergences", 0) == 0


async def test_what_flushes_a_database_is_followed(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"a": 1, "b": 2})
    async with comparing(local):
        app = local.app()
        await app.get("a")
        await app.get("b")
        await row_of(local, "GET", "equal", 2)
        await app.flushdb()

        async def gone() -> bool:
            return not target.exists("a", "b")

        await until(gone, within_s=5, otherwise="the copies outlived the flush")
        await app.get("a")
        await row_of(local, "GET", "equal", 3)


async def test_nothing_is_confirmed_while_keys_are_written_all_the_time(
    local: LocalMigration,
) -> None:
    stop, written = asyncio.Event(), [0, 0, 0]

    async def write(number: int) -> None:
        app = local.app()
        while not stop.is_set():
            written[number] += 1
            writes = written[number]
            key, other = f"{number}:{writes % 100}", f"{number}:{(writes + 50) % 100}"
            await app.incr("hot")
            await app.get("hot")
            await app.get(f"c{other}")  # written a while ago
            await app.hgetall(f"h{other}")
            await app.lrange(f"l{other}", 0, -1)
            await app.incr(f"c{key}")
            await app.hset(f"h{key}", f"f{writes % 5}", writes)
            await app.lpush(f"l{key}", writes)
            await app.ltrim(f"l{key}", 0, 9)
            await asyncio.sleep(0.01)

    async def enough() -> bool:
        return min(written) > 250

    async with comparing(local):
        writing = [asyncio.create_task(write(number)) for number in range(3)]
        await until(enough, within_s=90, otherwise="the applications came to nothing")
        stop.set()
        await asyncio.gather(*writing)

        async def settled() -> bool:
            (beat,) = await heartbeats(local.store, "comparer")
            return not beat.facts.behind and not beat.facts.pending

        await until(settled, within_s=20, otherwise="the comparer did not come to an end")
        assert await ledger(local) == []
        for command in ("GET", "HGETALL", "LRANGE"):
            row = await counted(local, command)
            assert row["equal"] > 10, row


async def test_with_live_sync_on_the_lanes_own_the_target(local: LocalMigration) -> None:
    """Then Compare copies nothing, and waits for the lanes before it confirms."""
    source, target = (local.servers[side].client() for side in Side)
    source.set("old", 1)
    await local.syncer()
    async with comparing(local):
        await local.start_live_sync()
        await comparer_follows(local)  # what it was told to copy before, it still may copy
        await local.backfill()
        app = local.app()
        await app.set("k", "right")
        await local.drained()
        await app.get("k")
        await app.get("old")
        await row_of(local, "GET", "equal", 2)
        assert not await answered(local.store.client.exists(local.store.keys.seeded))
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "divergences")
        assert target.get("k") == b"stale"
        assert [row["key"] for row in await ledger(local) if row["command"] == "GET"] == ["k"]
