"""The example application begins at the source, as in Pre-test, and moves to a gateway while it
works, as at Analyze: it takes a new address, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from exodus.plan.vocabulary import Side
from tasks import clients
from tasks.context import Opened
from tests.support.local_migration import LocalMigration
from tests.support.shop import checked, shopping
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def test_the_application_moves_to_the_gateway_while_it_works(
    local: LocalMigration, tmp_path: Path
) -> None:
    source = f"redis://127.0.0.1:{local.servers[Side.SOURCE].port}"
    gateway = await local.gateway()
    folder = tmp_path / "shop"
    folder.mkdir()
    address = folder / "address"
    address.write_text(source)
    it = Opened(local.plan, local.store, local.plan)

    async def direct() -> int:
        rows = (await clients._look(it)).values()
        return sum(row["connections"] - row["through_gateways"] for row in rows)

    running = shopping(folder, address, keys=500, writes=400)
    await asyncio.to_thread(running.__enter__)
    try:

        async def works() -> bool:
            return await direct() > 5

        await until(works, within_s=20, otherwise="the application does not use the source")
        assert len(gateway.connections) == 0
        address.write_text(f"redis://127.0.0.1:{local.port}")

        async def moved() -> bool:
            return len(gateway.connections) > 5 and await direct() == 0

        await until(moved, within_s=20, otherwise="the application did not move")
        before = gateway.telemetry.calls
        await asyncio.sleep(1)
        assert gateway.telemetry.calls > before + 200
        (folder / "stop").touch()

        async def reported() -> bool:
            return (folder / "app.json").exists()

        await until(reported, within_s=20, otherwise="the application never reported")
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
    told = json.loads((folder / "app.json").read_text())
    assert told["app_errors"] == told["unknown_writes"] == told["lost_connections"] == 0, told
    found = await asyncio.to_thread(checked, told["model"], source)
    assert found.returncode == 0, found.stdout
