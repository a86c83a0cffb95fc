"""Filters and renames apply alike in backfill, live sync, verification, repair and after a cutover.
What they leave out is counted by rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.closing import ends
from exodus.control.changes import Barrier
from exodus.control.checkpoint import load_progress
from exodus.control.freshness import read_freshness
from exodus.control.registry import heartbeats
from exodus.control.route import Route
from exodus.engine import open_engine
from exodus.live.rescan import rescan
from exodus.plan.vocabulary import JournalMode, Side
from exodus.shadow.comparer import Comparer
from exodus.verify.reconcile import keys_of, reconcile, repair, verify
from tests.fault.test_strategies import fill_large
from tests.fault.test_verify import fill
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

FILTERS = {
    "include": [{"databases": [0, 4]}],
    "exclude": [
        {"pattern": "cache:*"},
        {"types": ["stream"]},
        {"elements_over": 1_000},
        {"string_bytes_over": 50_000},
        {"expiry": "some", "pattern": "z*"},
    ],
}


@pytest_asyncio.fixture
async def filtered(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    local = LocalMigration(redis62, valkey91, control_server, tmp_path, filters=FILTERS)
    await local.open()
    yield local
    await local.close()


@pytest_asyncio.fixture
async def renamed(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    """Keys of two databases move into one that others use too. Payloads do not fit as they are."""
    renames = [
        {"database": 0, "to_database": 3, "to_prefix": "zero:"},
        {"database": 4, "prefix": "else", "to_database": 3, "to_prefix": "four:"},
    ]
    own = {
        "cutover": "own",
        "allow_nonempty": True,
        "filters": {"exclude": [{"pattern": "of others*"}]},
    }
    local = LocalMigration(redis82, valkey91, control_server, tmp_path, renames=renames, **own)
    await local.open()
    yield local
    await local.close()


def names(box: DatabaseServer, db: int = 0) -> set[bytes]:
    with box.client(db=db) as client:
        return {key for key in client.keys("*") if not key.startswith(b"exodus:{")}


async def test_what_the_rules_leave_out_is_nowhere_on_the_target_and_counted(
    filtered: LocalMigration,
) -> None:
    source, target = (filtered.servers[side] for side in (Side.SOURCE, Side.TARGET))
    fill(source.client())
    source.client().mset({"cache:1": 1, "cache:2": 2, "long": "x" * 60_000})
    source.client(db=7).set("in another database", 1)
    await filtered.gateway()
    await filtered.syncer()
    await filtered.start_live_sync()
    await filtered.backfill()
    left = {b"cache:1", b"cache:2", b"long", b"stream", b"emptied", b"list", b"zset"}
    assert names(target) == names(source) - left
    assert names(target, 7) == set()
    progress = list((await load_progress(filtered.store, "run")).values())
    for each in progress:
        assert (
            each.keys_seen
            == each.keys_copied
            + each.keys_removed
            + each.keys_failed
            + each.keys_skipped
            + each.keys_excluded
        )
        assert each.keys_excluded == sum(each.excluded.values())
    assert sum(each.keys_excluded for each in progress) == len(left) + 1
    found = await filtered.verify()
    assert found.divergences == []
    assert found.excluded == {
        "excluded: pattern 'cache:*'": 2,
        "excluded: types stream": 2,
        "excluded: elements_over 1000": 1,
        "excluded: string_bytes_over 50000": 1,
        "excluded: pattern 'z*', expiry 'some'": 1,
        "no include rule meets it": 1,
    }
    assert found.keys_verified == found.keys_authority == len(names(source) - left) + 1


async def test_a_write_can_bring_a_key_in_and_out_again(filtered: LocalMigration) -> None:
    """Verification and freshness judge each key by the rules, too."""
    source, target = (filtered.servers[side].client() for side in (Side.SOURCE, Side.TARGET))
    await filtered.gateway()
    syncer = await filtered.syncer()
    await filtered.start_live_sync()
    app = filtered.app()
    await app.rpush("l", *range(900))
    await app.set("cache:x", 1)
    await app.set("z", 1)
    await filtered.drained()
    assert names(filtered.servers[Side.TARGET]) == {b"l", b"z"}
    await app.rpush("l", *range(200))
    await app.expire("z", 1000)
    await filtered.drained()
    assert names(filtered.servers[Side.TARGET]) == set()
    assert (await filtered.verify()).divergences == []
    assert (await reconcile(await filtered.engine(), "test", settle_s=0.05))["keys_excluded"] == 3
    await app.ltrim("l", 0, 5)
    await app.persist("z")
    await app.set("cache:x", 2)
    await filtered.drained()
    assert target.lrange("l", 0, -1) == source.lrange("l", 0, -1)
    assert names(filtered.servers[Side.TARGET]) == {b"l", b"z"}
    assert syncer.tally.counts["excluded"] >= 3

    async def fresh() -> bool:
        return (await read_freshness(filtered.store, filtered.plan.partitions)).dirty == 0

    await until(fresh, within_s=20, otherwise="a key that a rule leaves out stayed dirty")


async def test_keys_on_the_target_that_a_rule_leaves_out_are_found_and_repaired(
    filtered: LocalMigration,
) -> None:
    target = filtered.servers[Side.TARGET].client()
    filtered.servers[Side.SOURCE].client().mset({"cache:1": 1, "fine": 1, "long": "x" * 60_000})
    await filtered.start_live_sync()
    await filtered.backfill()
    target.mset({"cache:1": 1, "long": "x", "stranger": 1})
    found = await filtered.verify()
    assert {(row.key, row.kind) for row in found.divergences} == {
        (b"cache:1", "extra"),
        (b"long", "extra"),
        (b"stranger", "extra"),
    }
    await filtered.gateway()
    await filtered.syncer()
    await filtered.change(journal="all", sync=True)
    kept = await repair(await filtered.engine(), [(row.db, row.key) for row in found.divergences])
    assert list(kept) == [(0, b"stranger")]  # the only copy there is
    assert names(filtered.servers[Side.TARGET]) == {b"fine", b"stranger"}
    await repair(await filtered.engine(), list(kept), remove_extra=True)
    assert names(filtered.servers[Side.TARGET]) == {b"fine"}
    target.mset({"cache:1": 1, "stranger": 1})
    assert await rescan(await filtered.engine(), Barrier("flushall")) == 2
    await filtered.drained()
    assert names(filtered.servers[Side.TARGET]) == {b"fine"}


async def test_after_a_cutover_all_that_is_written_flows_back_and_what_was_left_behind_stays(
    filtered: LocalMigration,
) -> None:
    """If the rules applied in this direction too, a rollback would lose writes to keys that they
    leave out.
    """
    source, target = (filtered.servers[side].client() for side in (Side.SOURCE, Side.TARGET))
    source.mset({"cache:1": "behind", "long": "x" * 60_000, "fine": 1})
    await filtered.start_live_sync()
    await filtered.backfill()
    back = await open_engine(filtered.store, filtered.plan, Route(authority=Side.TARGET))
    target.mset({"cache:2": "new", "fine": 2})
    copier = await back.copier(back.guard(), name="test")
    copier._to.guard = type(copier._to.guard)()
    await copier.sync_keys(0, [b"cache:2", b"fine"])
    await copier.close()
    assert source.mget("cache:1", "cache:2", "fine") == [b"behind", b"new", b"2"]
    found = await verify(back, settle_s=0.01, attempts=2)
    assert found.divergences == []
    assert found.keys_left_behind == 2
    target.flushall()
    assert await rescan(back, Barrier("flushall")) == 1, (
        "of the source's keys only the one that the rules let through"
    )


async def test_renamed_keys_are_found_under_their_new_names_and_nothing_of_others_is_touched(
    renamed: LocalMigration,
) -> None:
    source, target = (renamed.servers[side] for side in (Side.SOURCE, Side.TARGET))
    fill(source.client())
    large = fill_large(source.client())
    source.client(db=4).set("elsewhere", 1)
    source.client(db=3).mset({"zero:taken": 1, "free": 1})
    target.client(db=3).set("of others", 1)
    target.client().set("zero:of others too", 1)
    await renamed.gateway()
    await renamed.syncer()
    await renamed.start_live_sync()
    await renamed.backfill()
    zero = names(source)
    assert names(target, 3) == {b"zero:" + key for key in zero} | {
        b"four:where",
        b"of others",
        b"free",
    }
    assert names(target) == {b"zero:of others too"}
    letters = await renamed.store.client.hvals(renamed.store.keys.dead)
    assert len(letters) == 1
    assert b"zero:taken" in letters[0]
    assert b"renamed keys get" in letters[0]
    found = await renamed.verify()
    assert {(row.db, row.key, row.kind) for row in found.divergences} == {
        (3, b"zero:taken", "missing")
    }
    assert found.keys_spared == 2
    assert found.keys_verified == len(zero) + 2
    app = renamed.app()
    await app.rpush("list", "more")
    await app.delete("set", "large set")
    await app.rename("int", "renamed by the application")
    await renamed.drained()
    assert target.client(db=3).lrange("zero:list", -1, -1) == [b"more"]
    assert names(target, 3) == {b"zero:" + key for key in names(source)} | {
        b"four:where",
        b"of others",
        b"free",
    }
    with target.client(db=3) as client:
        client.set("zero:string", "spoiled")
        client.setrange("zero:large string", 5, "spoiled")
        client.set("zero:stranger", 1)
    report = await reconcile(await renamed.engine(), "test", settle_s=0.05)
    assert {row["key"] for row in report["divergences"]} == {"string", "large string", "stranger"}
    assert report["keys_not_carried"] == 1
    await repair(await renamed.engine(), keys_of(report), remove_extra=True)
    found = await renamed.verify()
    assert {row.key for row in found.divergences} == {b"zero:taken"}
    assert large
    source.client(db=3).delete("zero:taken")
    assert await repair(await renamed.engine(), [(3, b"zero:taken")]) == {}, (
        "it is gone, and so is its letter"
    )
    await app.flushdb()
    await renamed.drained()

    async def flushed() -> bool:
        return names(target, 3) == {b"four:where", b"of others", b"free"}

    await until(flushed, within_s=20, otherwise="a flush left renamed keys behind")


async def test_compare_asks_the_target_under_the_new_names_and_leaves_out_what_the_rules_do(
    renamed: LocalMigration,
) -> None:
    renamed.servers[Side.SOURCE].client().mset({"one": 1, "two": 2, "of others": 3})
    await renamed.gateway()
    comparer = Comparer(renamed.store, renamed.plan, "comparer-1")
    task = asyncio.create_task(comparer.run())
    try:
        await renamed.start_live_sync()
        await renamed.change(journal=JournalMode.SAMPLE, sync=False, shadow_rate=1.0, shadow_salt=7)

        async def follows() -> bool:
            return any(
                beat.state == "comparing" for beat in await heartbeats(renamed.store, "comparer")
            )

        await until(follows, within_s=10, otherwise="the comparer did not begin")
        app = renamed.app()
        for _ in range(3):
            await app.get("one")
            await app.get("of others")

        async def rows() -> dict[str, dict[str, int]]:
            (beat,) = await heartbeats(renamed.store, "comparer")
            return beat.facts.rows

        async def seen() -> bool:
            found = (await rows()).get("GET", {})
            return found.get("compared", 0) + found.get("excluded", 0) == 6

        await until(seen, within_s=10, otherwise="the comparer did not see every pair")
        # Equal: under its old name the target has nothing.
        assert (await rows())["GET"] == {"compared": 3, "equal": 3, "excluded": 3, "by_reply": 3}
        await app.set("one", "written")

        async def tried() -> bool:
            return "SET" in await rows()

        await until(tried, within_s=10, otherwise="the comparer did not try the write")
        assert (await rows())["SET"] == {"compared": 1, "equal": 1, "by_error": 1}
        assert await renamed.store.client.hlen(renamed.store.keys.divergence) == 0

        async def written() -> bool:
            return renamed.servers[Side.TARGET].client(db=3).get("zero:one") == b"written"

        await until(written, within_s=10, otherwise="the write did not come to the target")
        assert "of others" not in {
            name.decode()
            for name in names(renamed.servers[Side.TARGET], 3) | names(renamed.servers[Side.TARGET])
        }
    finally:
        comparer.stop()
        await task


async def test_an_abandoned_migration_takes_away_what_it_brought_under_its_names_there(
    renamed: LocalMigration,
) -> None:
    source, target = (renamed.servers[side] for side in (Side.SOURCE, Side.TARGET))
    source.client().mset({"one": 1, "of others": 2})
    source.client(db=4).set("elsewhere", 1)
    target.client(db=3).mset(
        {"of others": "theirs", "zero:of others": "theirs", "zero:nobody's": "theirs"}
    )
    target.client().set("one", "theirs")
    await renamed.gateway()
    await renamed.syncer()
    await renamed.start_live_sync()
    await renamed.backfill()
    assert {b"zero:one", b"four:where"} < names(target, 3)
    report = await ends.abandon(renamed.store, renamed.plan, clean_target=True)
    assert names(target, 3) == {b"of others", b"zero:of others", b"zero:nobody's"}
    assert names(target) == {b"one"}
    assert (report["target_keys_removed"], report["target_keys_left"]) == (2, 4)
    assert names(source) == {b"one", b"of others"}


async def test_an_abandoned_migration_empties_a_target_that_was_empty_whatever_the_rules_say(
    filtered: LocalMigration,
) -> None:
    source, target = (filtered.servers[side] for side in (Side.SOURCE, Side.TARGET))
    source.client().mset({"fine": 1, "cache:1": 1})
    await filtered.gateway()
    await filtered.syncer()
    await filtered.start_live_sync()
    await filtered.backfill()
    target.client().set("cache:2", "came later")
    report = await ends.abandon(filtered.store, filtered.plan, clean_target=True)
    assert (report["target_keys_removed"], report["target_keys_left"]) == (2, 0)
    assert names(target) == set()
    assert names(source) == {b"fine", b"cache:1"}
