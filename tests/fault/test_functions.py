"""Function libraries are carried over by their code, both ways. Those that cannot be are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.cutover.functions import carry_functions
from exodus.plan.vocabulary import Side
from tests.support.local_migration import between
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault

_CODE = (
    "#!lua name=shop\nredis.register_function('price', function(keys, args) return "
    "redis.call('INCRBY', keys[1], args[1]) end)"
)
_OTHER = _CODE.replace("INCRBY", "DECRBY")


async def test_libraries_follow_the_authority(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    async with between(redis82, valkey91, control_server, tmp_path) as local:
        with redis82.client() as source, valkey91.client() as target:
            for client in (source, target):
                client.function_flush()
            source.function_load(_CODE)
            target.function_load(
                "#!lua name=own\nredis.register_function('mine', function() return 1 end)"
            )
            found = await carry_functions(await local.engine())
            assert (found.carried, found.equal, found.failed, found.extra) == (
                ["shop"],
                [],
                {},
                ["own"],
            )
            assert target.fcall("price", 1, "k", 5) == 5
            assert (await carry_functions(await local.engine())).equal == ["shop"]
            source.function_load(_OTHER, replace=True)
            assert (await carry_functions(await local.engine())).carried == ["shop"]
            assert target.fcall("price", 1, "k", 5) == 0
            # After a cutover they flow the other way.
            await local.change(authority=Side.TARGET)
            target.function_load(_CODE, replace=True)
            assert (await carry_functions(await local.engine())).carried == ["own", "shop"]
            assert source.fcall("price", 1, "k", 7) == 7
            for client in (source, target):
                client.function_flush()


async def test_a_follower_without_functions_is_named(
    redis82: DatabaseServer, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with between(redis82, redis62, control_server, tmp_path) as local:
        with redis82.client() as source:
            source.function_flush()
            source.function_load(_CODE)
            found = await carry_functions(await local.engine())
            assert list(found.failed) == ["shop"]
            assert "the target does not take functions" in found.failed["shop"]
            assert found.as_rows()[0]["outcome"] == "FAILED"
            source.function_flush()


async def test_an_authority_without_functions_has_none_to_carry(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    async with between(redis62, valkey91, control_server, tmp_path) as local:
        assert (await carry_functions(await local.engine())).as_rows() == []
