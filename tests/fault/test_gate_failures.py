"""A slow, full, and restarted target on disposable servers, with the settings of the target."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import pytest

from exodus.acceptance import disposable
from exodus.acceptance.disposable import DisposableServer, kind_of
from exodus.acceptance.failures import check_failures
from exodus.acceptance.rows import Checked
from exodus.errors import StackError
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


def _red(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


def _by_name(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows}


async def test_a_target_that_refuses_when_full_passes(local: LocalMigration) -> None:
    local.servers[Side.TARGET].client().config_set("appendonly", "yes")
    before = {each.pid for each in psutil.Process().children()}
    rows = await check_failures(local.plan, local.store)
    assert _red(rows) == {}
    said = _by_name(rows)
    assert "0 of 400 keys differ" in said["failures: a slow target"]
    assert "maxmemory-policy noeviction: the copy was refused" in said["failures: a full target"]
    assert said["failures: what a kill of the target loses"] == "400 of 400 keys were there"
    assert {each.pid for each in psutil.Process().children()} <= before
    assert local.servers[Side.TARGET].client().keys("*") == []


async def test_a_policy_that_evicts_is_found_and_a_kill_without_persistence_is_told(
    local: LocalMigration,
) -> None:
    local.servers[Side.TARGET].client().config_set("maxmemory-policy", "allkeys-lru")
    rows = await check_failures(local.plan, local.store)
    assert list(_red(rows)) == ["failures: a full target"]
    assert "keys were evicted without a word" in _red(rows)["failures: a full target"]
    assert _by_name(rows)["failures: what a kill of the target loses"] == "0 of 400 keys were there"


async def test_without_the_package_it_is_said(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(kind: ServerKind) -> None:
        raise StackError(f"there is no {kind} server here", why="not installed", next_step="x")

    monkeypatch.setattr(disposable, "binary", none)
    (row,) = await check_failures(local.plan, local.store)
    assert (row.check, row.ok, row.by_name) == ("failures", False, True)
    assert row.why == "there is no valkey-9.1 server here: not installed"


async def test_a_server_that_does_not_start_is_said() -> None:
    with pytest.raises(StackError, match="did not start"):
        async with DisposableServer(ServerKind.VALKEY_91, {"maxmemory-policy": "nonsense"}):
            pass


async def test_the_nearest_package_stands_for_a_server(
    local: LocalMigration, modern: LocalMigration
) -> None:
    kinds = {
        kind_of(await Endpoint(side, each.plan.address(side)).facts())
        for each in (local, modern)
        for side in Side
    }
    assert kinds == {ServerKind.REDIS_62, ServerKind.REDIS_82, ServerKind.VALKEY_91}
