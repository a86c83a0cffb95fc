"""One key's fault is that key's dead letter: the follower closes the connection because of it, and
every other key is copied.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.control import letters
from exodus.control.letters import name_of
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
_MB = 1024 * 1024


@pytest.mark.parametrize("limit", ["proto-max-bulk-len", "client-query-buffer-limit"])
@pytest.mark.parametrize("source_kind", [ServerKind.REDIS_62, ServerKind.REDIS_82])
async def test_an_element_that_the_target_does_not_take(
    make_server, control_server: DatabaseServer, tmp_path: Path, limit: str, source_kind: ServerKind
) -> None:
    """In backfill and live sync: the keys with it become dead letters by name, all others are
    copied, and the journal drains.
    """
    source, target = make_server(source_kind), make_server(ServerKind.VALKEY_91)
    with target.client() as client:
        client.config_set(limit, _MB)
    local = LocalMigration(source, target, control_server, tmp_path)
    await local.open()
    try:
        ends = Endpoint(Side.SOURCE, source.address()), Endpoint(Side.TARGET, target.address())
        found = [each for each in await check_pair(*ends, local.plan) if each.check == limit]
        assert [(each.severity, "1,048,576" in each.what) for each in found] == [("warning", True)]
        with source.client() as client:
            client.mset({f"k{number}": b"x" * 2_000 for number in range(1_000)})
            client.rpush("list early", b"a", b"y" * (_MB + 1), b"b")
            client.hset("hash early", mapping={"a": 1, "b": b"y" * (_MB + 1)})
        await local.gateway()
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        app = local.app()
        for number in range(100):
            await app.set(f"later {number}", b"x" * 2_000)
            if number == 50:
                await app.rpush("list late", b"y" * (_MB + 1))
                await app.set("string late", b"y" * (_MB + 1))
        await local.drained()
        wanted = {"0:list early", "0:hash early", "0:list late"}
        if limit == "proto-max-bulk-len":
            wanted.add("0:string late")  # in pieces, but APPEND knows the limit too

        async def listed() -> bool:
            return {
                name_of(each) for each in (await letters.open_letters(local.store)).values()
            } == wanted

        await until(listed, within_s=10, otherwise=str(await letters.open_letters(local.store)))
        for letter in (await letters.open_letters(local.store)).values():
            assert (
                "closes the connection" in letter["reason"]
                or "proto-max-bulk-len" in letter["reason"]
            )
        report = await local.verify()
        assert {(each.kind, each.key.decode()) for each in report.divergences} == {
            ("missing", name[2:]) for name in wanted
        }
        with target.client() as client:
            client.config_set(limit, 512 * _MB)
        await app.set("k1", "again")
        await app.rpush("list late", "touched")
        await app.rpush("list early", "touched")
        await app.append("string late", "touched")
        await app.hset("hash early", "c", 1)
        await local.drained()
        assert (await local.verify()).divergences == []
        assert await letters.open_letters(local.store) == {}
    finally:
        await local.close()


async def test_a_batch_larger_than_the_target_takes_is_no_fault_of_its_keys(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A transaction counts as a whole against client-query-buffer-limit."""
    source, target = make_server(ServerKind.REDIS_62), make_server(ServerKind.VALKEY_91)
    with target.client() as client:
        client.config_set("client-query-buffer-limit", _MB)
    with source.client() as client:
        for number in range(40):
            client.set(f"k{number}", bytes(range(256)) * 400)
    local = LocalMigration(source, target, control_server, tmp_path)
    await local.open()
    try:
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        assert await letters.open_letters(local.store) == {}
        assert (await local.verify()).divergences == []
    finally:
        await local.close()


async def test_a_target_that_answers_nobody_is_away_and_no_key_is_at_fault(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source, target = (
        make_server(ServerKind.REDIS_62),
        make_server(ServerKind.VALKEY_91, appendonly="yes"),
    )
    local = LocalMigration(source, target, control_server, tmp_path)
    assert isinstance(local.plan, Plan)
    await local.open()
    try:
        await local.gateway()
        await local.syncer()
        await local.start_live_sync()
        app = local.app()
        await app.set("a", 1)
        await local.drained()
        for _ in range(3):
            target.kill()
            await app.mset({f"k{number}": number for number in range(300)})
            target.start()
            await app.incr("a")
        await local.drained()
        assert await letters.open_letters(local.store) == {}
        assert (await local.verify()).divergences == []
    finally:
        await local.close()
