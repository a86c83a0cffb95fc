"""The trial copy of Test on real servers: each planted defect turns its row red, by name. Writes to
the source meanwhile turn no row red.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Sequence

import pytest

from exodus.acceptance.rows import Checked
from exodus.acceptance.trial_copy import REPORT, copy_trial, remove_trial, verify_trial
from exodus.errors import DecisionRefused
from exodus.plan.gate_checks import GateChecks
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks import acceptance
from tasks.context import Opened
from tests.support.local_migration import LocalMigration
from tests.support.planted_defects import CATALOGUE, FAR, key_of, words_of

pytestmark = pytest.mark.fault


def _red(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


def _plan(local: LocalMigration, **checks: object) -> Plan:
    return local.plan.model_copy(update={"test_checks": GateChecks(**checks)})


def _fill(local: LocalMigration) -> None:
    with local.servers[Side.SOURCE].client() as source:
        pipe = source.pipeline()
        for number in range(300):
            pipe.set(f"order:{number}", f"value {number}")
            pipe.hset(f"user:{number}", mapping={"name": "n", "mail": "m"})
        pipe.rpush("list", "a", "b", "c")
        pipe.zadd("scores", {"m": 0.123456789012345})
        pipe.set("expires", "v")
        pipe.pexpireat("expires", FAR)
        pipe.xadd("stream", {"f": "v"}, id="1-1")
        pipe.execute()
        source.execute_command("XGROUP", "CREATE", "stream", "g", "0")
        source.execute_command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "stream", ">")


async def test_a_copy_is_equal_and_nothing_is_left(local: LocalMigration) -> None:
    _fill(local)
    with local.servers[Side.SOURCE].client(db=2) as other:
        other.set("order:1", "of another database")
    plan = _plan(local, data_keys=1_000)
    trial = await copy_trial(plan, local.store)
    assert len(trial.keys) == 605
    with local.servers[Side.TARGET].client(db=trial.database) as target:
        assert target.dbsize() == 605
        assert target.get("order:1") == b"value 1"
        assert target.get("db2:order:1") == b"of another database"
    rows = await verify_trial(plan, local.store, trial)
    assert _red(rows) == {}
    assert any(row.line.startswith("trial copy of 605 keys: the sample takes ") for row in rows)
    assert await remove_trial(plan, local.store) == 605
    assert local.servers[Side.TARGET].client().info("keyspace") == {}
    assert local.servers[Side.TARGET].client().keys("*") == []


async def test_each_planted_defect_is_found_by_name(modern: LocalMigration) -> None:
    """All that Compare has to find as well, over one source, each on a copy of its own."""
    assert len(CATALOGUE) >= 25
    with modern.servers[Side.SOURCE].client() as source:
        for defect in CATALOGUE:
            for command in defect.made:
                source.execute_command(*words_of(command, key_of(defect)))
    plan = _plan(modern, data_keys=1_000)
    for defect in CATALOGUE:
        trial = await copy_trial(plan, modern.store)
        assert _red(await verify_trial(plan, modern.store, trial)) == {}, defect.name
        with modern.servers[Side.TARGET].client(db=trial.database) as target:
            for command in defect.planted:
                target.execute_command(*words_of(command, key_of(defect)))
            red = _red(await verify_trial(plan, modern.store, trial))
            assert list(red) == [defect.red], (defect.name, red)
            assert key_of(defect) in red[defect.red], (defect.name, red)
            target.flushall()


async def test_keys_that_change_meanwhile_are_not_judged_before_they_stand_still(
    local: LocalMigration,
) -> None:
    _fill(local)
    plan = _plan(local, data_keys=1_000)
    stop = asyncio.Event()

    async def write() -> None:
        source = local.servers[Side.SOURCE].client()
        number = 0
        while not stop.is_set():
            source.set(f"order:{number % 300}", f"again {number}")
            source.incr("hot")
            number += 1
            await asyncio.sleep(0.001)

    writing = asyncio.create_task(write())
    trial = await copy_trial(plan, local.store)
    rows = await verify_trial(plan, local.store, trial)
    stop.set()
    await writing
    assert _red(rows) == {}


async def test_a_sample_is_drawn_from_everywhere_and_patterns_come_whole(
    local: LocalMigration,
) -> None:
    with local.servers[Side.SOURCE].client() as source:
        pipe = source.pipeline()
        for number in range(5_000):
            pipe.set(f"k:{number}", number)
        for number in range(40):
            pipe.hset(f"account:{number}", "balance", number)
        pipe.execute()
    plan = _plan(local, data_keys=100, business_patterns=("account:*",))
    trial = await copy_trial(plan, local.store)
    assert trial.whole == {"account:*": 40}
    sampled = [key for _, key in trial.keys if key.startswith(b"k:")]
    assert 60 <= len(sampled) <= 130
    assert _red(await verify_trial(plan, local.store, trial)) == {}


async def test_memory_that_does_not_suffice_is_found(local: LocalMigration) -> None:
    _fill(local)
    with local.servers[Side.TARGET].client() as target:
        target.config_set("maxmemory", target.info("memory")["used_memory"] + 600_000)
        plan = _plan(local)
        trial = await copy_trial(plan, local.store)
        red = _red(await verify_trial(plan, local.store, trial))
        assert list(red) == ["trial copy: memory"]


@pytest.mark.parametrize("room", [0, 300_000])
async def test_a_target_that_is_full_before_the_copy_ends_is_found(
    local: LocalMigration, room: int
) -> None:
    """Its own row is red, and no copied key is called different."""
    _fill(local)
    with local.servers[Side.SOURCE].client() as source:
        for number in range(100):
            source.set(f"large:{number}", random.randbytes(10_000))
    with local.servers[Side.TARGET].client() as target:
        target.config_set("maxmemory", target.info("memory")["used_memory"] + room)
        plan = _plan(local)
        trial = await copy_trial(plan, local.store)
        red = _red(await verify_trial(plan, local.store, trial))
        assert list(red) == ["trial copy: memory"]
        assert "the target took" in red["trial copy: memory"]
        await remove_trial(plan, local.store)
        assert target.dbsize() == 0


async def test_what_a_dead_run_left_is_removed_and_nothing_of_others(
    local: LocalMigration,
) -> None:
    _fill(local)
    plan = _plan(local, data_keys=20)
    first = await copy_trial(plan, local.store)
    with local.servers[Side.TARGET].client(db=first.database) as target:
        target.set("of others", 1)
        second = await copy_trial(plan, local.store)
        assert second.database == first.database - 1
        assert target.keys("*") == [b"of others"]
        await remove_trial(plan, local.store)
        assert target.keys("*") == [b"of others"]
    assert await local.store.report(REPORT) is None
    assert await remove_trial(plan, local.store) == 0


async def test_a_report_of_somebody_else_removes_nothing(local: LocalMigration) -> None:
    """Others may write to the control store. No key of database 0 is removed because of that."""
    with local.servers[Side.TARGET].client() as target:
        target.set("order:1", 1)
        report = {"database": 0, "keys": [b"order:1".hex()]}
        await local.store.save_report(REPORT, report)
        with pytest.raises(DecisionRefused, match="not removed"):
            await remove_trial(_plan(local), local.store)
        assert target.get("order:1") == b"1"


async def test_no_copy_is_made_beside_live_sync_or_without_a_database(
    local: LocalMigration,
) -> None:
    for database in range(1, 16):
        with local.servers[Side.TARGET].client(db=database) as target:
            target.set("taken", 1)
    with pytest.raises(DecisionRefused, match="no empty database"):
        await copy_trial(_plan(local), local.store)
    await local.start_live_sync()
    with pytest.raises(DecisionRefused, match="no trial copy is made now"):
        await copy_trial(_plan(local), local.store)
    it = Opened(_plan(local), local.store, _plan(local))
    (row,) = await inspect.unwrap(acceptance.check_data.fn)(it)
    assert (row["check"], row["ok"], row["level"]) == ("trial copy", False, "should")


async def test_a_key_that_cannot_be_carried_is_found(modern: LocalMigration) -> None:
    """A type that only the source has."""
    source = modern.servers[Side.SOURCE].client()
    source.set("k", "v")
    source.execute_command("VADD", "vectors", "VALUES", 1, 1, "e")
    plan = _plan(modern)
    trial = await copy_trial(plan, modern.store)
    red = _red(await verify_trial(plan, modern.store, trial))
    assert list(red) == ["trial copy: every key could be carried"]
    assert "0:vectors: " in red["trial copy: every key could be carried"]
