"""The contract of every change feed, on real servers, and what only the replication stream sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as redis

from exodus.control import journal
from exodus.control.route import read_route
from exodus.copy.guard import set_writer_epoch
from exodus.cutover import switch
from exodus.cutover.feed_choice import choose_feed, choose_feeds, chosen_feed
from exodus.errors import DecisionRefused
from exodus.feeds import replication
from exodus.feeds.feed import begin_feed, prove
from exodus.feeds.reader import feed_state
from exodus.plan.settings import Fencing
from exodus.plan.vocabulary import Feed, FenceKind, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.local_migration import LocalMigration, between
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


def source_client(box: DatabaseServer) -> redis.Redis:
    """As Exodus."""
    address = box.address()
    return redis.Redis(port=box.port, username=address.username, password=address.secret("test"))


class Contract:
    """What live sync and backfill rely on; subclassed for each feed."""

    feed: Feed

    async def begin(self, local: LocalMigration) -> None:
        local.plan = local.plan.model_copy(update={"feed": self.feed})
        await local.store.save_plan(local.plan)
        await local.gateway()
        if self.feed is Feed.NOTIFICATIONS:
            for box in local.servers.values():
                box.client().config_set("notify-keyspace-events", "AK")
        await begin_feed(local.store, local.plan, self.feed)
        await local.syncer()
        await local.start_live_sync()
        if self.feed is not Feed.GATEWAY:

            async def reads() -> bool:
                state = await feed_state(local.store, Side.SOURCE)
                return state is not None and int(state["offset"]) >= 0

            await until(reads, within_s=15, otherwise="the stream was never read")

    async def settled(self, local: LocalMigration) -> None:
        feed = (await local.engine()).feed
        await local.flushed()
        await until(feed.drained, within_s=20, otherwise="the feed never drained")

    async def test_it_can_be_proved(self, modern: LocalMigration) -> None:
        await self.begin(modern)
        client = modern.app()
        key = await prove(
            (await modern.engine()).feed,
            client,
            modern.plan.rehearsal_prefix,
            within_s=10,
            undeclared=self.feed is not Feed.GATEWAY,
        )
        await self.settled(modern)
        assert modern.servers[Side.TARGET].client().get(key) is None

    async def test_what_changes_after_a_position_is_told_and_nothing_before(
        self, modern: LocalMigration
    ) -> None:
        await self.begin(modern)
        app = modern.app()
        await app.set("before", 1)
        await self.settled(modern)
        feed = (await modern.engine()).feed
        positions = await feed.positions()
        await app.mset({"after 1": 1, "after 2": 2})
        await app.rename("after 1", "after 3")
        await self.settled(modern)
        changes = await feed.changes_since(positions)
        assert {name for _, name in changes.keys} == {b"after 1", b"after 2", b"after 3"}
        assert not changes.gap

    async def test_drained_means_equal(self, modern: LocalMigration) -> None:
        """Every kind of write that both feeds have to see, another database and a flush among
        them.
        """
        await self.begin(modern)
        app, other = modern.app(), modern.app(db=3)
        for number in range(50):
            await app.set(f"s{number}", number, px=3_600_000 if number % 2 else None)
            await other.rpush(f"l{number}", *range(number + 1))
        await other.move("l7", 0)
        await app.copy("s1", "s1 copied", destination_db=3)
        await app.rename("s2", "renamed")
        await app.sadd("set", *range(100))
        await app.spop("set", 40)
        await app.rpush("sorted", 3, 1, 2)
        await app.sort("sorted", store="sorted too")
        await app.restore("restored", 0, await app.dump("s4"), replace=True)
        await app.xadd("x", {"a": 1})
        await app.xgroup_create("x", "g", id="0")
        await app.xreadgroup("g", "c", {"x": ">"})
        await app.xack("x", "g", (await app.xrange("x"))[0][0])
        async with app.pipeline(transaction=True) as pipe:
            pipe.incr("t1").incr("t2").delete("s6")
            await pipe.execute()
        await app.eval("redis.call('SET', KEYS[1], 'by script')", 1, "scripted")
        await self.settled(modern)
        assert (await modern.verify()).divergences == []
        await other.flushdb()
        await app.swapdb(0, 5)
        await self.settled(modern)
        report = await modern.verify()
        assert report.divergences == []
        assert report.keys_verified > 50

    gaps_by_restart = 0  # a feed that keeps nothing has one at every connection but the first

    async def test_a_reader_that_ends_goes_on_where_it_was(self, modern: LocalMigration) -> None:
        await self.begin(modern)
        app = modern.app()
        await app.set("a", 1)
        await self.settled(modern)
        syncer, task = modern.syncers.pop("syncer-1")
        syncer.stop()
        await task
        await app.set("b", 2)
        await app.delete("a")
        again = await modern.syncer("syncer-2")

        async def read() -> bool:
            return self.feed is Feed.GATEWAY or (
                again._stream is not None
                and again._stream.connects == 1
                and again._stream.gaps == self.gaps_by_restart
            )

        await until(read, within_s=15, otherwise="it did not read on")
        await self.settled(modern)
        target = modern.servers[Side.TARGET].client()
        assert (target.get("a"), target.get("b")) == (None, b"2")
        assert again.heartbeat(0).facts.stream_gaps == self.gaps_by_restart


class TestGatewayJournal(Contract):
    feed = Feed.GATEWAY


class _OfTheAuthority(Contract):
    """Feeds that need no gateway."""

    async def test_it_sees_what_no_gateway_can(self, modern: LocalMigration) -> None:
        """Writers that bypass the gateway, undeclared keys of scripts, expiry."""
        await self.begin(modern)
        source, target = modern.servers[Side.SOURCE].client(), modern.servers[Side.TARGET].client()
        source.set("bypass", 1)
        source.set("short", 1, px=200)
        source.eval(
            "redis.call('SET', 'undeclared', 'u') redis.call('SELECT', 2) redis.call('SET', 'in "
            "two', 2)",
            0,
        )

        async def gone() -> bool:
            return source.dbsize() == 2 and not source.exists("short")

        await until(gone, within_s=10, otherwise="the key did not expire")
        await self.settled(modern)
        assert (target.get("bypass"), target.get("undeclared"), target.get("short")) == (
            b"1",
            b"u",
            None,
        )
        assert (await modern.verify()).divergences == []

    async def test_what_the_authority_evicts_is_removed(self, modern: LocalMigration) -> None:
        await self.begin(modern)
        source = modern.servers[Side.SOURCE].client()
        source.config_set("maxmemory-policy", "allkeys-random")
        source.config_set("maxmemory", source.info("memory")["used_memory"] + 2_000_000)
        try:
            for number in range(4_000):
                source.set(f"k{number}", "x" * 1_000)
            assert source.info("stats")["evicted_keys"] > 0
        finally:
            source.config_set("maxmemory", 0)
            source.config_set("maxmemory-policy", "noeviction")
        await self.settled(modern)
        report = await modern.verify()
        assert report.divergences == []
        assert report.keys_follower == report.keys_authority < 4_000

    async def test_what_happens_to_groups_of_streams_is_seen(self, modern: LocalMigration) -> None:
        """So are flushes and swaps by clients that bypass the gateway: tracking pushes report none
        of these.
        """
        await self.begin(modern)
        source, target = modern.servers[Side.SOURCE].client(), modern.servers[Side.TARGET].client()
        source.xadd("x", {"a": 1})
        source.xadd("x", {"a": 2})
        source.xgroup_create("x", "g", id="0")
        await self.settled(modern)
        first = source.xreadgroup("g", "c", {"x": ">"})[0][1][0][0]
        source.xack("x", "g", first)
        await self.settled(modern)
        assert target.xpending("x", "g")["pending"] == 1
        assert (await modern.verify()).divergences == []
        with modern.servers[Side.SOURCE].client(db=4) as other:
            other.mset({"in four": 4, "too": 4})
        source.swapdb(0, 4)
        await self.settled(modern)
        assert target.get("too") == b"4"
        source.flushdb()
        await self.settled(modern)
        assert target.get("too") is None
        assert (await modern.verify()).divergences == []


class TestTracking(_OfTheAuthority):
    feed = Feed.TRACKING
    gaps_by_restart = 1

    async def test_a_side_that_does_not_push_is_refused(self, modern: LocalMigration) -> None:
        source = modern.servers[Side.SOURCE].client()
        source.execute_command("ACL", "SETUSER", "exodus", "-client|tracking")
        try:
            with pytest.raises(DecisionRefused) as refused:
                await begin_feed(
                    modern.store, modern.plan.model_copy(update={"feed": self.feed}), self.feed
                )
            assert "client|tracking" in refused.value.why
        finally:
            source.execute_command("ACL", "SETUSER", "exodus", "+@all")

    async def test_it_is_drained_behind_a_fence_there_and_back(
        self, modern: LocalMigration
    ) -> None:
        """The proof takes no write of ours, so the fence may refuse those too."""
        await self.begin(modern)
        app = modern.app()
        await app.set("k", 1)
        for number, to in enumerate((Side.TARGET, Side.SOURCE)):
            done = await switch.apply(modern.store, modern.plan, to)
            assert (done.switched, done.facts["fence"]) == (True, "acl")
            await app.set("k", number)
        await self.settled(modern)
        assert (await modern.verify()).divergences == []
        plan = modern.plan.model_copy(update={"fence": Fencing(source=FenceKind.MIN_REPLICAS)})
        done = await switch.apply(modern.store, plan, Side.TARGET)
        assert (done.switched, done.facts["fence"]) == (True, "min-replicas")


class TestNotifications(_OfTheAuthority):
    feed = Feed.NOTIFICATIONS
    gaps_by_restart = 1

    async def test_a_side_that_does_not_notify_is_refused(self, modern: LocalMigration) -> None:
        source = modern.servers[Side.SOURCE].client()
        source.config_set("notify-keyspace-events", "Kg")
        with pytest.raises(DecisionRefused) as refused:
            await begin_feed(
                modern.store, modern.plan.model_copy(update={"feed": self.feed}), self.feed
            )
        assert "notify-keyspace-events is 'gK', and AK is needed" in refused.value.why
        source.config_set("notify-keyspace-events", "")


class TestReplicationStream(_OfTheAuthority):
    feed = Feed.REPLICATION

    async def test_a_gap_has_everything_looked_at_again(self, modern: LocalMigration) -> None:
        """The authority restarts empty, so the stream cannot continue: a full resync and a rescan
        of both sides follow.
        """
        await self.begin(modern)
        app, source = modern.app(), modern.servers[Side.SOURCE].client()
        await app.mset({f"k{number}": number for number in range(100)})
        await self.settled(modern)
        syncer, task = modern.syncers.pop("syncer-1")
        syncer.stop()
        await task
        source.set("k1", "changed unseen")
        source.delete("k2")
        await modern.store.client.hset(modern.store.keys.feed(Side.SOURCE), "replid", "0" * 40)
        again = await modern.syncer("syncer-2")

        async def resynced() -> bool:
            return again._stream is not None and again._stream.gaps == 1

        await until(resynced, within_s=15, otherwise="the gap was not noticed")
        await self.settled(modern)
        target = modern.servers[Side.TARGET].client()
        assert (target.get("k1"), target.get("k2")) == (b"changed unseen", None)
        assert (await modern.verify()).divergences == []

    async def test_it_never_counts_as_a_replica_that_has_the_data(
        self, modern: LocalMigration
    ) -> None:
        await self.begin(modern)
        app = modern.app()
        await app.set("k", 1)
        assert await app.wait(1, 300) == 0

    async def test_a_lost_connection_is_made_again_without_a_gap(
        self, modern: LocalMigration
    ) -> None:
        await self.begin(modern)
        app, source = modern.app(), modern.servers[Side.SOURCE].client()
        syncer, _ = modern.syncers["syncer-1"]
        for round_ in range(3):
            source.execute_command("CLIENT", "KILL", "TYPE", "replica")
            await app.set("k", round_)
            await asyncio.sleep(0.1)
        await self.settled(modern)
        assert modern.servers[Side.TARGET].client().get("k") == b"2"
        assert syncer._stream is not None
        assert (syncer._stream.gaps, syncer._stream.connects > 1) == (0, True)


async def test_a_server_that_would_have_to_save_everything_is_refused(
    make_server: Callable[..., DatabaseServer],
) -> None:
    # Another server: one that ever had a replica has a backlog, and need not save
    redis62 = make_server(ServerKind.REDIS_62)
    with pytest.raises(DecisionRefused, match="cannot be the change feed"):
        await replication.check_allowed(Endpoint(Side.SOURCE, redis62.address()))


async def test_a_stream_that_begins_late_is_proved_all_the_same(
    make_server, valkey91: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A probe that is written before the save begins is in the skipped data, and never in the
    stream.
    """
    source = make_server(ServerKind.REDIS_82, repl_diskless_sync_delay="2")
    local = LocalMigration(source, valkey91, control_server, tmp_path, feed=Feed.REPLICATION)
    await local.open()
    try:
        await local.syncer()
        await begin_feed(local.store, local.plan, Feed.REPLICATION)
        await local.start_live_sync()
        client = source_client(source)
        local.clients.append(client)
        await prove(
            (await local.engine()).feed,
            client,
            local.plan.rehearsal_prefix,
            within_s=15,
            undeclared=True,
        )
        assert await client.dbsize() == 0
    finally:
        await local.close()


async def test_a_renamed_command_is_read_as_what_it_is(
    make_server: Callable[..., DatabaseServer],
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """The stream has the name that clients use. Each write compared all keys of both sides."""
    source = make_server(
        ServerKind.REDIS_82, rename_command="HSET xhset", repl_diskless_sync_delay="0"
    )
    async with between(source, valkey91, control_server, tmp_path) as local:
        contract = TestReplicationStream()
        await contract.begin(local)
        app = local.app()
        await app.execute_command("XHSET", "first", "f", "v")
        await contract.settled(local)
        before = await journal.ends(local.store, local.plan.partitions)
        await app.execute_command("XHSET", "second", "f", "v")
        await contract.settled(local)
        changes = await journal.since(local.store, before)
        assert (0, b"second") in changes.keys
        assert not changes.barriers
        assert (await local.verify()).divergences == []


@pytest.mark.parametrize(
    ("rules", "notifies", "wanted"),
    [
        ([], "", Feed.REPLICATION),
        (["-psync"], "", Feed.TRACKING),
        (["-psync", "-client|tracking"], "AK", Feed.NOTIFICATIONS),
        (["-psync", "-client|tracking"], "", Feed.GATEWAY),
        (["-psync", "-client|tracking", "-eval"], "AK", Feed.GATEWAY),
    ],
)
async def test_the_most_complete_feed_that_a_side_allows_is_chosen(
    modern: LocalMigration, rules: list[str], notifies: str, wanted: Feed
) -> None:
    source = modern.servers[Side.SOURCE].client()
    source.config_set("notify-keyspace-events", notifies)
    if rules:
        source.execute_command("ACL", "SETUSER", "exodus", *rules)
    try:
        chosen = (await choose_feeds(modern.store, modern.plan, [Side.SOURCE]))[Side.SOURCE]
    finally:
        source.execute_command("ACL", "SETUSER", "exodus", "+@all")
        source.config_set("notify-keyspace-events", "")
    assert chosen.feed is wanted
    order = [Feed.REPLICATION, Feed.TRACKING, Feed.NOTIFICATIONS, Feed.GATEWAY]
    assert list(chosen.refused) == order[: order.index(wanted)]
    assert all(chosen.refused.values())
    text = chosen.text(Side.SOURCE)
    assert ("proved by a script's write" in text) is (wanted is not Feed.GATEWAY)
    assert (await chosen_feed(modern.store, modern.plan, Side.SOURCE)) == chosen
    assert all(source.info("keyspace").get(f"db{db}") is None for db in range(16))


async def test_an_older_source_pushes_what_it_would_have_to_save(local: LocalMigration) -> None:
    chosen = await choose_feeds(local.store, local.plan)
    assert (chosen[Side.SOURCE].feed, chosen[Side.TARGET].feed) == (Feed.TRACKING, Feed.REPLICATION)
    assert "leave the data away" in chosen[Side.SOURCE].refused[Feed.REPLICATION]


async def test_a_feed_that_is_named_is_taken_and_one_that_no_fence_goes_with_is_not(
    local: LocalMigration,
) -> None:
    named = local.plan.model_copy(update={"feed": Feed.NOTIFICATIONS})
    assert (await choose_feed(named, Side.SOURCE)).feed is Feed.NOTIFICATIONS
    fenced = local.plan.model_copy(update={"fence": Fencing(source=FenceKind.REPLICA)})
    found = await choose_feed(fenced, Side.SOURCE)
    assert (found.feed, set(found.refused.values())) == (
        Feed.GATEWAY,
        {"it does not go with the one fence that the source allows, replica"},
    )


async def test_each_direction_has_the_feed_that_its_authority_allows(local: LocalMigration) -> None:
    """Forward by client tracking, back by the replication stream. Both report a script's undeclared
    keys.
    """
    chosen = await choose_feeds(local.store, local.plan)
    await local.gateway()
    await local.syncer()
    await begin_feed(local.store, local.plan, chosen[Side.SOURCE].feed)
    route = await read_route(local.store)
    await set_writer_epoch(
        Endpoint(Side.TARGET, local.plan.target), local.plan.name, route.writer_epoch
    )
    await local.change(journal="all", sync=True, feed=chosen[Side.SOURCE].feed)
    app = local.app()
    script = "for i = 1, 50 do redis.call('SET', ARGV[1] .. i, i) end"
    await app.eval(script, 0, "there:")
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert (done.switched, done.route.feed) == (True, Feed.REPLICATION)
    await app.eval(script, 0, "back:")

    async def reads() -> bool:
        stream = local.syncers["syncer-1"][0]._stream
        return stream is not None and stream.connects > 0

    await until(reads, within_s=10, otherwise="the stream was never read")
    stream = local.syncers["syncer-1"][0]._stream
    assert stream is not None
    assert stream.gaps == 0  # it goes on at the byte at which both sides were equal
    await switch.apply(local.store, local.plan, Side.SOURCE)
    assert (await read_route(local.store)).feed is Feed.TRACKING
    with local.servers[Side.SOURCE].client() as source:
        assert len(source.keys("there:*")) == len(source.keys("back:*")) == 50
