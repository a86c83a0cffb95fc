"""Applications do not notice what Exodus does on a source: no key of its own, no script that blocks
the server.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import hiredis
import pytest

from exodus.copy.read import Reader, ReadMode
from exodus.feeds.feed import begin_feed, prove
from exodus.feeds.reader import feed_state
from exodus.net.leg import Leg
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import Feed, Side
from exodus.resp.encode import encode_many
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair
from exodus.verify.reconcile import reconcile
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
_LISTEN = [("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST"), ("PSUBSCRIBE", "__key*@*__:*")]


async def _listen(box: DatabaseServer, heard: set[bytes], ready: asyncio.Event) -> None:
    """Track all keys and listen to all notifications, as an application might."""
    async with await Leg.connect(box.address(), Side.SOURCE, name="application") as leg:
        parser = hiredis.Reader()
        leg.write(encode_many(_LISTEN))
        while True:
            parser.feed(await leg.raw(65_536, within_s=60))
            while (said := parser.gets()) is not False:
                if not isinstance(said, list):
                    continue  # the answer to HELLO, or OK
                if said[:1] == [b"psubscribe"]:
                    ready.set()
                elif said[:1] == [b"invalidate"]:
                    heard.update(said[1] or [b"(all)"])
                elif said[:1] == [b"pmessage"]:
                    heard.add(
                        said[3]
                        if said[2].startswith(b"__keyevent")
                        else said[2].partition(b"__:")[2]
                    )


@pytest.mark.parametrize("kind", [ServerKind.REDIS_62, ServerKind.REDIS_82])
@pytest.mark.parametrize("feed", [Feed.GATEWAY, Feed.TRACKING, Feed.NOTIFICATIONS])
async def test_no_key_of_exodus_is_heard_of(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    feed: Feed,
    kind: ServerKind,
) -> None:
    source = make_server(kind, notify_keyspace_events="AK")
    local = LocalMigration(source, valkey91, control_server, tmp_path, feed=feed)
    local.plan = local.plan.model_copy(update={"gateway": Listen(port=local.port)})
    await local.open()
    with valkey91.client() as client:
        client.config_set("notify-keyspace-events", "AK")
    heard: set[bytes] = set()
    ready = asyncio.Event()
    listening = asyncio.create_task(_listen(source, heard, ready))
    try:
        await asyncio.wait_for(ready.wait(), 10)
        ends = Endpoint(Side.SOURCE, source.address()), Endpoint(Side.TARGET, valkey91.address())
        await check_pair(*ends, local.plan, local.store)
        await local.gateway()
        syncer = await local.syncer()
        await begin_feed(local.store, local.plan, feed)
        await local.start_live_sync()
        if feed is Feed.GATEWAY:
            await prove(
                (await local.engine()).feed, local.app(), local.plan.rehearsal_prefix, within_s=10
            )
        else:

            async def reads() -> bool:
                state = await feed_state(local.store, Side.SOURCE)
                return state is not None and int(state["offset"]) >= 0

            await until(reads, within_s=15, otherwise="the feed was never read")
        app = local.app()
        await app.mset({f"app:{number}": number for number in range(100)})
        await local.backfill()

        async def measured() -> bool:
            return (syncer.heartbeat(0).facts.probe_lag_ms_p99 or 0) > 0

        await until(measured, within_s=15, otherwise="the lag was never measured")
        assert syncer.heartbeat(0).facts.probes_missed == 0
        await local.flushed()
        await until(
            (await local.engine()).feed.drained, within_s=15, otherwise="the feed never drained"
        )
        assert (await reconcile(await local.engine(), "test", settle_s=0.1))[
            "divergences_total"
        ] == 0
        assert {name for name in heard if not name.startswith(b"app:")} == set()
        assert len(heard) == 100
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await local.close()
        with valkey91.client() as client:
            client.config_set("notify-keyspace-events", "")


async def test_no_script_holds_the_server_up_longer_than_its_limit(make_server) -> None:
    """Before, with a limit of 10 ms, one of our batches had applications answered BUSY."""
    source = make_server(ServerKind.REDIS_62, lua_time_limit="10")
    with source.client() as client:
        client.mset({f"k{number}": bytes(range(256)) * 2 for number in range(8_000)})
    asking = (
        "import redis, sys\n"
        f"c = redis.Redis(port={source.port})\n"
        "busy = 0\n"
        "while not sys.stdin.closed:\n"
        "    try: c.get('k1')\n"
        "    except redis.exceptions.RedisError as exc:\n"
        "        busy += 1\n"
        "        print(exc, flush=True)\n"
    )
    applications = [
        subprocess.Popen(
            [sys.executable, "-c", asking], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    said: list[bytes] = []
    readers = [
        threading.Thread(target=lambda pipe=each.stdout: said.extend(pipe)) for each in applications
    ]  # type: ignore[misc]
    for reader in readers:
        reader.start()
    (node,) = await Endpoint(Side.SOURCE, source.address()).each_node()
    facts = await node.facts()
    try:
        assert facts.script_ms == 10
        async with await node.connect() as leg:
            for what in (ReadMode.PAYLOAD, ReadMode.COMPARABLE, ReadMode.VALUE) * 3:
                found = await Reader(leg, facts, what).keys(
                    [b"k%d" % number for number in range(8_000)]
                )
                assert len(found) == 8_000
    finally:
        for each in applications:
            each.kill()
            each.wait()
        for reader in readers:
            reader.join()
        for each in applications:
            each.stdin.close()  # type: ignore[union-attr]
            each.stdout.close()  # type: ignore[union-attr]
    assert said == []
