"""If the plan asks for it, the target knows how long, or how often, a key was used."""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.control.checkpoint import load_progress
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(("from_", "to"), [("redis62", "valkey91"), ("redis82", "valkey91")])
async def test_idle_time_is_carried(
    from_: str,
    to: str,
    control_server: DatabaseServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """With payloads that fit, and re-footed, and from a server on which reading counts as use."""
    source, target = request.getfixturevalue(from_), request.getfixturevalue(to)
    local = LocalMigration(source, target, control_server, tmp_path, keep_usage=True, slices=1)
    await local.open()
    client = source.client()
    payload = client.pipeline().set("seed", "value").dump("seed").execute()[1]
    client.execute_command("RESTORE", "idle", 0, payload, "IDLETIME", 5_000)
    client.execute_command("RESTORE", "timed", 3_600_000, payload, "IDLETIME", 9_000)
    await local.start_live_sync()
    await local.backfill()
    there = target.client()
    assert 5_000 <= there.object("idletime", "idle") < 5_100
    assert 9_000 <= there.object("idletime", "timed") < 9_100
    assert there.object("idletime", "seed") < 100
    assert (
        sum(progress.usage_kept for progress in (await load_progress(local.store, "run")).values())
        == 3
    )
    assert (await local.verify()).divergences == []
    await local.close()


async def test_frequency_is_carried_between_lfu_policies_and_anything_else_refused(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    local = LocalMigration(redis82, valkey91, control_server, tmp_path, keep_usage=True, slices=1)
    await local.open()
    ends = Endpoint(Side.SOURCE, local.plan.source), Endpoint(Side.TARGET, local.plan.target)
    source, target = redis82.client(), valkey91.client()
    try:
        source.config_set("maxmemory-policy", "allkeys-lfu")
        (refused,) = [
            finding for finding in await check_pair(*ends, local.plan) if finding.check == "usage"
        ]
        assert refused.severity == "fatal"
        target.config_set("maxmemory-policy", "allkeys-lfu")
        assert not [
            finding for finding in await check_pair(*ends, local.plan) if finding.check == "usage"
        ]
        source.set("k", "v")
        source.execute_command("RESTORE", "often", 0, source.dump("k"), "FREQ", 200)
        await local.start_live_sync()
        await local.backfill()
        assert 190 <= target.object("freq", "often") <= 200
    finally:
        source.config_set("maxmemory-policy", "noeviction")
        target.config_set("maxmemory-policy", "noeviction")
        await local.close()
