"""Sides behind Sentinel: failovers at every point of a migration, on both sides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from exodus.control.topology import read_failovers, read_topologies
from exodus.net.leg import Leg
from exodus.plan.vocabulary import Side
from tests.support.local_migration import LocalMigration
from tests.support.sentinels import ServiceBox
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


async def test_a_leg_goes_to_the_master_and_ends_with_its_role(source_service: ServiceBox) -> None:
    before = source_service.master()
    async with await Leg.connect(source_service.address(), Side.SOURCE) as leg:
        assert leg.address.port == before.port
    source_service.failover()
    after = await asyncio.to_thread(source_service.wait_other, before)
    async with await Leg.connect(source_service.address(), Side.SOURCE) as leg:
        assert leg.address.port == after.port


async def test_a_migration_between_two_services(
    source_service: ServiceBox,
    target_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    local = LocalMigration(source_service, target_service, control_server, tmp_path)  # type: ignore[arg-type]
    await local.open()
    try:
        with source_service.client() as client:
            client.mset({f"k{number}": number for number in range(1_000)})
        await local.gateway()
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        await local.app().set("live", 1)
        await local.drained()
        assert (await local.verify()).divergences == []
        assert await read_failovers(local.store) == []
        assert set(await read_topologies(local.store)) == set(Side)
    finally:
        await local.close()
