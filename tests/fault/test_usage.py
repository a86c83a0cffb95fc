"""Where it is asked for, the target knows of a key how long it was not used, or how often it
was.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.control.checkpoint import load_progress
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair
from tests.support.plant import Plant
from tests.support.servers import Box

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(("from_", "to"), [("redis62", "valkey91"), ("redis82", "valkey91")])
async def test_idle_time_is_carried(
    from_: str, to: str, control_server: Box, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As payloads that fit, and re-footed; from a server on which reading makes a key look used,
    too.
    """
    source, target = request.getfixturevalue(from_), request.getfixturevalue(to)
    plant = Plant(source, target, control_server, tmp_path, keep_usage=True, slices=1)
    await plant.open()
    client = source.client()
    payload = client.pipeline().set("seed", "value").dump("seed").execute()[1]
    client.execute_command("RESTORE", "idle", 0, payload, "IDLETIME", 5_000)
    client.execute_command("RESTORE", "timed", 3_600_000, payload, "IDLETIME", 9_000)
    await plant.start_live_sync()
    await plant.backfill()
    there = target.client()
    assert 5_000 <= there.object("idletime", "idle") < 5_100
    assert 9_000 <= there.object("idletime", "timed") < 9_100
    assert there.object("idletime", "seed") < 100
    assert (
        sum(progress.usage_kept for progress in (await load_progress(plant.store, "run")).values())
        == 3
    )
    assert (await plant.verify()).divergences == []
    await plant.close()


async def test_frequency_is_carried_between_lfu_policies_and_anything_else_refused(
    redis82: Box, valkey91: Box, control_server: Box, tmp_path: Path
) -> None:
    plant = Plant(redis82, valkey91, control_server, tmp_path, keep_usage=True, slices=1)
    await plant.open()
    ends = Endpoint(Side.SOURCE, plant.plan.source), Endpoint(Side.TARGET, plant.plan.target)
    source, target = redis82.client(), valkey91.client()
    try:
        source.config_set("maxmemory-policy", "allkeys-lfu")
        (refused,) = [
            finding for finding in await check_pair(*ends, plant.plan) if finding.check == "usage"
        ]
        assert refused.severity == "fatal"
        target.config_set("maxmemory-policy", "allkeys-lfu")
        assert not [
            finding for finding in await check_pair(*ends, plant.plan) if finding.check == "usage"
        ]
        source.set("k", "v")
        source.execute_command("RESTORE", "often", 0, source.dump("k"), "FREQ", 200)
        await plant.start_live_sync()
        await plant.backfill()
        assert 190 <= target.object("freq", "often") <= 200
    finally:
        source.config_set("maxmemory-policy", "noeviction")
        target.config_set("maxmemory-policy", "noeviction")
        await plant.close()
