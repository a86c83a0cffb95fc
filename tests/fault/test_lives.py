"""Servers that come back with less than they had: noticed, said, and made equal again before
anybody can switch.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from exodus.backfill.slices import copy_slice
from exodus.control import freshness
from exodus.control.gaps import open_gaps
from exodus.copy.scan import plan_slices
from exodus.cutover import switch
from exodus.errors import DecisionRefused, ExodusError
from exodus.feeds.feed import begin_feed
from exodus.plan.vocabulary import Feed, Side
from exodus.stack.servers import ServerKind
from exodus.verify.reconcile import keys_of, reconcile, repair
from tests.support.plant import Plant
from tests.support.servers import Box
from tests.support.wait import until

pytestmark = pytest.mark.fault
KEYS = 3_000


async def _plant(source: Box, target: Box, control: Box, folder: Path, **plan: object) -> Plant:
    plant = Plant(source, target, control, folder, **plan)
    await plant.open()
    with source.client() as client:
        for number in range(KEYS):
            client.set(f"k{number}", number, px=3_600_000 if number % 3 == 0 else None)
    await plant.gateway()
    await plant.syncer()
    await begin_feed(plant.store, plant.plan, plant.feed)
    await plant.start_live_sync()
    return plant


async def _recovered(plant: Plant, within_s: float = 30) -> None:
    async def closed() -> bool:
        return (
            not await open_gaps(plant.store) and not plant.syncers["syncer-1"][0].heartbeat(0).why
        )

    await until(closed, within_s=within_s, otherwise="the gap was never closed")


async def _opened(plant: Plant, side: Side) -> str:
    async def there() -> bool:
        return f"life:{side}" in await open_gaps(plant.store)

    await until(there, within_s=15, otherwise="the restart was never noticed")
    return str((await open_gaps(plant.store))[f"life:{side}"]["why"])


async def test_a_target_that_comes_back_empty_is_filled_again_while_writes_go_on(
    make_server, redis62: Box, control_server: Box, tmp_path: Path
) -> None:
    """As before a cutover: the switch is refused with the reason, and goes through once both sides
    are equal.
    """
    target = make_server(ServerKind.VALKEY_91)
    plant = await _plant(redis62, target, control_server, tmp_path)
    try:
        await plant.backfill()
        app, stop = plant.app(), asyncio.Event()
        await plant.drained()
        assert (await reconcile(await plant.engine(), "migrate", settle_s=0.1))[
            "divergences_total"
        ] == 0

        async def write() -> None:
            number = 0
            while not stop.is_set():
                await app.set(f"w{number % 200}", number)
                number += 1
                await asyncio.sleep(0.002)

        writing = asyncio.create_task(write())
        target.kill()
        target.start()
        assert "lost keys" in await _opened(plant, Side.TARGET)
        with pytest.raises(ExodusError, match=r"restarted|open gap") as caught:
            await switch.apply(plant.store, plant.plan, Side.TARGET)
        assert "target" in str(caught.value)
        await _recovered(plant)
        stop.set()
        await writing
        await plant.drained()
        assert (await plant.verify()).divergences == []
        fresh = await freshness.read_freshness(plant.store, plant.plan.partitions)
        assert fresh.pass_age_s is not None  # the comparison counts as the verification that it is
        await switch.apply(plant.store, plant.plan, Side.TARGET)
        assert await plant.app().get("k1") == b"1"
    finally:
        await plant.close()


@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_a_target_emptied_in_the_middle_of_the_backfill_is_filled_again(
    make_server, redis62: Box, control_server: Box, tmp_path: Path, how: str
) -> None:
    target = make_server(ServerKind.VALKEY_91)
    plant = await _plant(redis62, target, control_server, tmp_path)
    try:
        engine = await plant.engine()
        pieces = await plan_slices(engine.authority, plant.plan.slices)
        half = len(pieces) // 2
        for piece in pieces[:half]:
            assert (await copy_slice(engine, "run", piece, budget_s=60)).done
        if how == "flush":
            with target.client() as client:
                client.flushall()
        else:
            target.kill()
            target.start()
        for piece in pieces[half:]:
            assert (await copy_slice(engine, "run", piece, budget_s=60)).done

        await _recovered(plant)
        await plant.drained()
        assert (await plant.verify()).divergences == []
    finally:
        await plant.close()


async def test_a_target_that_comes_back_from_an_older_snapshot(
    make_server, redis62: Box, control_server: Box, tmp_path: Path
) -> None:
    """With nothing written after: the restart is noticed all the same."""
    target = make_server(ServerKind.VALKEY_91)
    plant = await _plant(redis62, target, control_server, tmp_path)
    try:
        await plant.backfill()
        app = plant.app()
        await app.set("stays", 1)
        await plant.drained()
        target.save()
        await app.mset({f"k{number}": "newer" for number in range(100)})
        await app.delete("stays", "k200")
        await plant.drained()
        target.kill()
        target.start()
        with target.client() as client:
            assert (client.get("stays"), client.get("k1")) == (b"1", b"1")
        with pytest.raises(ExodusError):
            await switch.apply(plant.store, plant.plan, Side.TARGET)
        await _opened(plant, Side.TARGET)
        await _recovered(plant)
        await plant.drained()
        assert (await plant.verify()).divergences == []
        with target.client() as client:
            assert (client.get("stays"), client.get("k1")) == (None, b"newer")
    finally:
        await plant.close()


@pytest.mark.parametrize("feed", [Feed.GATEWAY, Feed.TRACKING, Feed.REPLICATION])
async def test_a_source_that_comes_back_older_loses_nothing_more(
    make_server, valkey91: Box, control_server: Box, tmp_path: Path, feed: Feed
) -> None:
    """What only the target has by then is kept and named, until a person says that it may go; also
    where the feed has a gap.
    """
    source = make_server(
        ServerKind.REDIS_82 if feed is Feed.REPLICATION else ServerKind.REDIS_62,
        repl_diskless_sync_delay="0",
    )
    plant = await _plant(source, valkey91, control_server, tmp_path, feed=feed)
    try:
        await plant.backfill()
        app = plant.app()
        source.save()
        await app.set("k7", "newer")
        await app.set("only the target has it", 1)
        await plant.flushed()
        await until(
            (await plant.engine()).feed.drained, within_s=20, otherwise="the feed never drained"
        )
        await app.aclose()
        source.kill()
        source.start()

        async def named() -> bool:
            return "0:only the target has it" in str(
                (await open_gaps(plant.store)).get("life:source", {}).get("why")
            )

        await until(named, within_s=20, otherwise="the keys were never named")
        syncer = plant.syncers["syncer-1"][0]

        async def read_on() -> bool:
            return syncer._stream is None or syncer._stream.gaps > 0

        await until(read_on, within_s=15, otherwise="the feed was never read again")
        await plant.drained()
        with valkey91.client() as client:
            assert (client.get("only the target has it"), client.get("k7")) == (b"1", b"7")
        with pytest.raises(DecisionRefused, match="open gap") as caught:
            await switch.apply(plant.store, plant.plan, Side.TARGET)
        assert "only on the target" in caught.value.why
        report = await reconcile(await plant.engine(), "test", settle_s=0.1)
        assert [(row["kind"], row["key"]) for row in report["divergences"]] == [
            ("extra", "only the target has it")
        ]
        assert "OPEN GAP" in str(await freshness.read_freshness(plant.store, plant.plan.partitions))
        kept = await repair(await plant.engine(), keys_of(report))
        assert "--remove-extra" in kept[(0, b"only the target has it")]
        assert await repair(await plant.engine(), keys_of(report), remove_extra=True) == {}
        await reconcile(await plant.engine(), "test", settle_s=0.1)
        await _recovered(plant)
        with valkey91.client() as client:
            assert client.get("only the target has it") is None
    finally:
        await plant.close()


async def test_another_server_with_keys_of_others_is_not_written_to(
    make_server, redis62: Box, control_server: Box, tmp_path: Path
) -> None:
    """It may be the wrong one; emptied, it is filled."""
    target = make_server(ServerKind.VALKEY_91)
    plant = await _plant(redis62, target, control_server, tmp_path)
    try:
        await plant.backfill()
        await plant.drained()
        with target.client() as client:
            pipe = client.pipeline(transaction=True)
            pipe.flushall().set("k1", "of others").set("foreign", 1)
            pipe.execute()
        await plant.app().set("k1", "ours")

        async def said() -> bool:
            why = plant.syncers["syncer-1"][0].heartbeat(0).why
            return "holds 2 keys" in why and "Empty it" in why

        await until(said, within_s=15, otherwise=plant.syncers["syncer-1"][0].heartbeat(0).why)
        with target.client() as client:
            assert (client.get("k1"), client.get("foreign"), client.exists("k2")) == (
                b"of others",
                b"1",
                0,
            )
            client.flushall()
        await _opened(plant, Side.TARGET)
        await _recovered(plant)
        await plant.drained()
        assert (await plant.verify()).divergences == []
    finally:
        await plant.close()
