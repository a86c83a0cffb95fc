"""Job queues go through a whole migration and back: no job is lost, none is done twice.

Their scripts write keys that no request declares. So this holds only where the change feed reports
those keys, or where every key is compared while writes are held. The programs are in
tests/support/jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.control.route import read_route
from exodus.copy.guard import set_writer_epoch
from exodus.cutover import switch
from exodus.cutover.feed_choice import choose_feeds
from exodus.cutover.held_comparison import script_gaps
from exodus.feeds.feed import begin_feed
from exodus.plan.vocabulary import Feed, JournalMode, Side
from tests.support.full import FULL
from tests.support.jobs import PROGRAM_NAMES, Jobs
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault

RUN_S = 20.0 if FULL else 3.0


@pytest_asyncio.fixture(params=[Feed.AUTO, Feed.GATEWAY], ids=str)
async def served(
    request: pytest.FixtureRequest,
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    local = LocalMigration(redis62, valkey91, control_server, tmp_path, feed=request.param)
    await local.open()
    await local.gateway()
    await local.syncer()
    yield local
    await local.close()


async def _migrate(local: LocalMigration) -> Feed:
    """As the phase Migrate begins it."""
    route = await read_route(local.store)
    feed = (await choose_feeds(local.store, local.plan))[Side.SOURCE].feed
    await begin_feed(local.store, local.plan, feed)
    await set_writer_epoch((await local.engine()).follower, local.plan.name, route.writer_epoch)
    await local.change(journal=JournalMode.ALL, sync=True, feed=feed)
    await local.backfill()
    return feed


@pytest.mark.parametrize("program", PROGRAM_NAMES)
async def test_no_job_is_lost_and_none_is_done_twice(
    served: LocalMigration, program: str, tmp_path: Path
) -> None:
    jobs = Jobs(program, served.port, tmp_path / "jobs")
    try:
        await jobs.more(20)
        feed = await _migrate(served)
        await asyncio.sleep(RUN_S)
        await jobs.more(20)
        if program == "bullmq_jobs":
            assert bool(await script_gaps(served.store)) is (feed is Feed.GATEWAY)
        for to in (Side.TARGET, Side.SOURCE):
            done = await switch.apply(served.store, served.plan, to)
            assert done.switched
            await jobs.more(40)
        await asyncio.sleep(RUN_S)
    finally:
        await jobs.stop()
    assert len(jobs.read("made")) > 100
    assert jobs.lost() == set()
    assert jobs.twice() == []
