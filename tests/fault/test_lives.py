"""Servers that come back with less than they had: noticed, reported, and made equal before anybody
can switch.
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
from exodus.live import server_runs
from exodus.plan.vocabulary import Feed, Side
from exodus.stack.servers import ServerKind
from exodus.verify.reconcile import Marked, keys_of, reconcile, repair
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
KEYS = 3_000


async def _local(
    source: DatabaseServer,
    target: DatabaseServer,
    control: DatabaseServer,
    folder: Path,
    **plan: object,
) -> LocalMigration:
    local = LocalMigration(source, target, control, folder, **plan)
    await local.open()
    with source.client() as client:
        for number in range(KEYS):
            client.set(f"k{number}", number, px=3_600_000 if number % 3 == 0 else None)
    await local.gateway()
    await local.syncer()
    await begin_feed(local.store, local.plan, local.feed)
    await local.start_live_sync()
    return local


async def _recovered(local: LocalMigration, within_s: float = 30) -> None:
    async def closed() -> bool:
        return (
            not await open_gaps(local.store) and not local.syncers["syncer-1"][0].heartbeat(0).why
        )

    await until(closed, within_s=within_s, otherwise="the gap was never closed")


async def _opened(local: LocalMigration, side: Side) -> str:
    async def there() -> bool:
        return f"life:{side}" in await open_gaps(local.store)

    await until(there, within_s=15, otherwise="the restart was never noticed")
    return str((await open_gaps(local.store))[f"life:{side}"]["why"])


async def test_a_target_that_comes_back_empty_is_filled_again_while_writes_go_on(
    make_server, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Before a cutover. The switch is refused with the reason, and works once both sides are
    equal.
    """
    target = make_server(ServerKind.VALKEY_91)
    local = await _local(redis62, target, control_server, tmp_path)
    try:
        await local.backfill()
        app, stop = local.app(), asyncio.Event()
        await local.drained()
        assert (await reconcile(await local.engine(), "migrate", settle_s=0.1))[
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
        assert "lost keys" in await _opened(local, Side.TARGET)
        with pytest.raises(ExodusError, match=r"restarted|open gap") as caught:
            await switch.apply(local.store, local.plan, Side.TARGET)
        assert "target" in str(caught.value)
        await _recovered(local)
        stop.set()
        await writing
        await local.drained()
        assert (await local.verify()).divergences == []
        fresh = await freshness.read_freshness(local.store, local.plan.partitions)
        assert fresh.pass_age_s is not None  # the comparison counts as a verification
        await switch.apply(local.store, local.plan, Side.TARGET)
        assert await local.app().get("k1") == b"1"
    finally:
        await local.close()


@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_a_target_emptied_in_the_middle_of_the_backfill_is_filled_again(
    make_server, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path, how: str
) -> None:
    target = make_server(ServerKind.VALKEY_91)
    local = await _local(redis62, target, control_server, tmp_path)
    try:
        engine = await local.engine()
        pieces = await plan_slices(engine.authority, local.plan.slices)
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

        await _recovered(local)
        await local.drained()
        assert (await local.verify()).divergences == []
    finally:
        await local.close()


async def test_a_target_that_comes_back_from_an_older_snapshot(
    make_server, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Nothing is written afterwards. The restart is noticed all the same."""
    target = make_server(ServerKind.VALKEY_91)
    local = await _local(redis62, target, control_server, tmp_path)
    try:
        await local.backfill()
        app = local.app()
        await app.set("stays", 1)
        await local.drained()
        target.save()
        await app.mset({f"k{number}": "newer" for number in range(100)})
        await app.delete("stays", "k200")
        await local.drained()
        target.kill()
        target.start()
        with target.client() as client:
            assert (client.get("stays"), client.get("k1")) == (b"1", b"1")
        with pytest.raises(ExodusError):
            await switch.apply(local.store, local.plan, Side.TARGET)
        await _opened(local, Side.TARGET)
        await _recovered(local)
        await local.drained()
        assert (await local.verify()).divergences == []
        with target.client() as client:
            assert (client.get("stays"), client.get("k1")) == (None, b"newer")
    finally:
        await local.close()


@pytest.mark.parametrize("feed", [Feed.GATEWAY, Feed.TRACKING, Feed.REPLICATION])
async def test_a_source_that_comes_back_older_loses_nothing_more(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    feed: Feed,
) -> None:
    """Keys that only the target has are kept and named until a person says that they may go, also
    while the feed has a gap.
    """
    source = make_server(
        ServerKind.REDIS_82 if feed is Feed.REPLICATION else ServerKind.REDIS_62,
        repl_diskless_sync_delay="0",
    )
    local = await _local(source, valkey91, control_server, tmp_path, feed=feed)
    try:
        await local.backfill()
        app = local.app()
        source.save()
        await app.set("k7", "newer")
        await app.set("only the target has it", 1)
        await local.flushed()
        await until(
            (await local.engine()).feed.drained, within_s=20, otherwise="the feed never drained"
        )
        await app.aclose()
        source.kill()
        source.start()

        async def named() -> bool:
            return "0:only the target has it" in str(
                (await open_gaps(local.store)).get("life:source", {}).get("why")
            )

        await until(named, within_s=20, otherwise="the keys were never named")
        syncer = local.syncers["syncer-1"][0]

        async def read_on() -> bool:
            return syncer._stream is None or syncer._stream.gaps > 0

        await until(read_on, within_s=15, otherwise="the feed was never read again")
        await local.drained()
        with valkey91.client() as client:
            assert (client.get("only the target has it"), client.get("k7")) == (b"1", b"7")
        with pytest.raises(DecisionRefused, match="open gap") as caught:
            await switch.apply(local.store, local.plan, Side.TARGET)
        assert "only on the target" in caught.value.why
        report = await reconcile(await local.engine(), "test", settle_s=0.1)
        assert [(row["kind"], row["key"]) for row in report["divergences"]] == [
            ("extra", "only the target has it")
        ]
        assert "OPEN GAP" in str(await freshness.read_freshness(local.store, local.plan.partitions))
        kept = await repair(await local.engine(), keys_of(report))
        assert "--remove-extra" in kept[(0, b"only the target has it")]
        assert await repair(await local.engine(), keys_of(report), remove_extra=True) == {}
        await reconcile(await local.engine(), "test", settle_s=0.1)
        await _recovered(local)
        with valkey91.client() as client:
            assert client.get("only the target has it") is None
    finally:
        await local.close()


async def test_keys_that_are_being_deleted_while_both_sides_are_compared_keep_no_gap(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The source restarts. The comparison finds two keys on the target only: the deletion of one
    arrives afterwards, the other one the source has lost.
    """
    source = make_server(ServerKind.REDIS_62)
    local = await _local(source, valkey91, control_server, tmp_path)
    compare, compared = server_runs.mark_differing, []

    async def with_deletions_under_way(*of: object, **more: object) -> Marked:
        with source.client() as client, valkey91.client() as target:
            client.delete("k1", "k2")
            found = await compare(*of, **more)  # type: ignore[arg-type]
            target.delete("k1")
        compared.append(found.names)
        return found

    try:
        await local.backfill()
        await local.drained()
        source.save()
        monkeypatch.setattr(server_runs, "mark_differing", with_deletions_under_way)
        source.kill()
        source.start()

        async def named() -> bool:
            why = str((await open_gaps(local.store)).get("life:source", {}).get("why"))
            return "1 keys are only on the target, such as 0:k2:" in why

        await until(named, within_s=20, otherwise="the lost key was never named alone")
        assert sorted(compared[0].split(", ")) == ["0:k1", "0:k2"]
    finally:
        await local.close()


async def test_another_server_with_keys_of_others_is_not_written_to(
    make_server, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """It may be the wrong server. Once it is empty, it is filled."""
    target = make_server(ServerKind.VALKEY_91)
    local = await _local(redis62, target, control_server, tmp_path)
    try:
        await local.backfill()
        await local.drained()
        with target.client() as client:
            pipe = client.pipeline(transaction=True)
            pipe.flushall().set("k1", "of others").set("foreign", 1)
            pipe.execute()
        await local.app().set("k1", "ours")

        async def said() -> bool:
            why = local.syncers["syncer-1"][0].heartbeat(0).why
            return "holds 2 keys" in why and "Empty it" in why

        await until(said, within_s=15, otherwise=local.syncers["syncer-1"][0].heartbeat(0).why)
        with target.client() as client:
            assert (client.get("k1"), client.get("foreign"), client.exists("k2")) == (
                b"of others",
                b"1",
                0,
            )
            client.flushall()
        await _opened(local, Side.TARGET)
        await _recovered(local)
        await local.drained()
        assert (await local.verify()).divergences == []
    finally:
        await local.close()
