"""The failover of the demo's source, while the migration runs.

As an operator does who must lose nothing: writes pause on the master, the replica catches up, and
then the master's process is killed. The Sentinels make the replica the master.
"""

from __future__ import annotations

import asyncio
import time

from exodus.cli.output import say
from exodus.errors import SourceError
from exodus.net.leg import Leg
from exodus.net.masters import Lookout, master_of
from exodus.plan.address import Service
from exodus.plan.bounds import DEMO_FAILOVER_PAUSE_MS, DEMO_FAILOVER_WITHIN_S
from exodus.plan.migration_file import MigrationFile
from exodus.plan.vocabulary import Side
from exodus.stack.home import Home


def fail_over(file: MigrationFile, home: Home) -> None:
    """Let the source fail over, and wait for its new master.

    Raises:
        SourceError: no other master appeared.
    """
    service = file.plan.source
    assert isinstance(service, Service)
    asyncio.run(_fail_over(service, home))


async def _fail_over(service: Service, home: Home) -> None:
    async with Lookout(service) as lookout:
        await lookout.look()
        before = master_of(service).believed
        if before is None:
            raise SourceError(
                "the demo's source has no master",
                why=master_of(service).why,
                next_step=f"look at {home.logs}",
            )
        say(f"failover: the source's master {before.announced} is killed")
        await _pause(service)
        for entry in home.running():
            process = entry.process()
            if entry.port == before.address.port and process is not None:
                process.kill()
        began = time.monotonic()
        while not await lookout.look():
            if time.monotonic() - began > DEMO_FAILOVER_WITHIN_S:
                raise SourceError(
                    "the demo's source did not fail over",
                    why=master_of(service).why,
                    next_step=f"look at {home.logs}",
                )
            await asyncio.sleep(0.1)
        after = master_of(service).believed
        assert after is not None
        say(f"failover: {after.announced} is the master after {time.monotonic() - began:.1f} s")


async def _pause(service: Service) -> None:
    """Pause the writes, and wait until a replica has all of them."""
    async with await Leg.connect(service, Side.SOURCE, name="exodus-demo") as leg:
        await leg.call("CLIENT", "PAUSE", DEMO_FAILOVER_PAUSE_MS, "WRITE")
        deadline = time.monotonic() + DEMO_FAILOVER_WITHIN_S
        while True:
            _, offset, replicas = await leg.call("ROLE")
            if any(int(row[2]) >= offset for row in replicas):
                return
            if time.monotonic() > deadline:
                raise SourceError(
                    "the replica of the demo's source is behind",
                    why=f"master {offset}, replicas {replicas}",
                    next_step="start the demo again",
                )
            await asyncio.sleep(0.01)
