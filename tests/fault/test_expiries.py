"""Expiries of a source without PEXPIRETIME arrive exact to the millisecond, under load and through
kills.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exodus.control.gaps import open_gaps
from exodus.copy.chunked import expiry_of
from exodus.copy.read import Reader, ReadMode
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
KEYS = 4_000
_BEGIN_MS = 1_900_000_000_000


@pytest.fixture
def busy() -> Iterator[None]:
    """Run more processes that compute than there are cores."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for process in burning:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy")
async def test_every_reading_is_exact(redis62: DatabaseServer) -> None:
    drawn = random.Random(17)
    wanted = {b"k%d" % number: _BEGIN_MS + drawn.randrange(10**9) for number in range(KEYS)}
    with redis62.client() as client:
        pipe = client.pipeline(transaction=False)
        for key, at_ms in wanted.items():
            pipe.set(key, "x").pexpireat(key, at_ms)
        pipe.execute()
    (node,) = await Endpoint(Side.SOURCE, redis62.address()).each_node()
    facts = await node.facts()
    plain = replace(facts, capabilities={**facts.capabilities, "scripts": False})
    keys = list(wanted)
    async with await node.connect() as leg:
        for given in (facts, plain):
            for what in (ReadMode.PAYLOAD, ReadMode.VALUE, ReadMode.OUTLINE):
                reader = Reader(leg, given, what)
                for start in range(0, KEYS, 256):
                    for seen in await reader.keys(keys[start : start + 256]):
                        assert seen.expiry_ms == wanted[seen.key]
        for key in keys[:1_000]:
            assert await expiry_of(leg, facts, key) == wanted[key]


@pytest.mark.usefixtures("busy")
async def test_they_arrive_exactly_under_load_and_kills(
    make_server, valkey91: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A restarted Redis 6.2 may have other expiries than before: its log holds them relative to the
    time of writing.
    """
    source = make_server(ServerKind.REDIS_62, appendonly="yes", appendfsync="always")
    local = LocalMigration(source, valkey91, control_server, tmp_path)
    await local.open()
    try:
        await local.gateway()
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        for round_ in range(3):
            app = local.app()
            for start in range(0, KEYS, 100):
                pipe = app.pipeline(transaction=False)
                for number in range(start, start + 100):
                    pipe.set(f"k{number}", round_, px=3_600_000 + number)
                await pipe.execute()
            await app.aclose()
            if round_ < 2:
                source.kill()
                source.start()
        syncer = local.syncers["syncer-1"][0]

        async def compared() -> bool:
            return not await open_gaps(local.store) and not syncer.heartbeat(0).why

        await asyncio.sleep(2)  # until it notices
        await until(compared, within_s=60, otherwise=syncer.heartbeat(0).why)
        await local.drained()
        report = await local.verify()
        assert (report.divergences, report.ttl_drift_ms_max, report.keys_with_ttl) == ([], 0, KEYS)
    finally:
        await local.close()
