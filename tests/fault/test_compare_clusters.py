"""Compare where a side is a cluster: each request is tried on the node of the target that has its
slot, and states are read from both sides' right nodes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio.cluster import RedisCluster as AsyncCluster

from exodus.commands.key_slots import slot_of
from exodus.control.registry import heartbeats
from exodus.net.client import answered
from exodus.net.clusters import look
from exodus.plan.address import Credentials
from exodus.plan.settings import RoleUser, Users
from exodus.plan.vocabulary import Side
from exodus.shadow import scratch_cluster
from exodus.shadow.causes import Cause
from exodus.shadow.cluster_trials import ClusterTrials
from exodus.shadow.rules import error_code
from exodus.shadow.trials import Slow
from exodus.shadow.verdicts import SEVERAL_SLOTS
from exodus.stack.servers import ServerKind
from tests.support.clusters import ClusterBox
from tests.support.comparing import beat_of, counted, ledger, quiet, row_of
from tests.support.comparing_clusters import Box, compared, make_comparers
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
# What makes a key, and the write whose reply is compared; {k} and {k}2 are in one slot
WRITES = [
    ("SET {k} 10", "INCR {k}"),
    ("SET {k} old", "SET {k} new GET"),
    ("SET {k} {k}", "APPEND {k} {k}"),  # a value that is equal to the name
    ("RPUSH {k} a b c", "LPOP {k} 2"),
    ("RPUSH {k} a b c; RPUSH {k}2 d", "LMOVE {k} {k}2 LEFT RIGHT"),
    ("SADD {k} a b c d", "SPOP {k} 2"),
    ("ZADD {k} 1.5 a 2 b", "ZPOPMIN {k}"),
    ("SADD {k} a b; SADD {k}2 c", "SINTERSTORE {k}2 {k} {k}"),
    ("XADD {k} 1-1 f v", "XADD {k} * f w"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterBox]:
    """Three masters of Redis 6.2, for all tests of this file."""
    box = ClusterBox(ServerKind.REDIS_62, tmp_path_factory.mktemp("old"))
    yield box
    box.close()


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterBox]:
    """Three masters of Valkey 9.1 with a replica each, likewise."""
    box = ClusterBox(ServerKind.VALKEY_91, tmp_path_factory.mktemp("new"), replicas=1)
    yield box
    box.close()


@pytest.fixture
def sides(request: pytest.FixtureRequest) -> tuple[Box, Box]:
    """Source and target, empty."""
    boxes: list[Box] = [request.getfixturevalue(name) for name in request.param.split(" to ")]
    for box in boxes:
        for node in box.masters() if isinstance(box, ClusterBox) else ():
            with node.client() as client:
                client.flushall()
    return boxes[0], boxes[1]


def node_of(box: Box, key: str) -> redis.Redis:
    """A client of the server that has a key."""
    return (box.master_of(key) if isinstance(box, ClusterBox) else box).client()


def take_slot(box: Box, key: str) -> None:
    """Give a key's slot to another node without its keys: the old node drops them."""
    assert isinstance(box, ClusterBox)
    owner, slot = box.master_of(key), slot_of(key.encode())
    other = next(node for node in box.masters() if node is not owner)
    with other.client() as client:
        ident = client.execute_command("CLUSTER", "MYID")
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ident)
        client.execute_command("CLUSTER", "BUMPEPOCH")
    box.wait_ready()


def of_one_node(box: Box, names: list[str], prefix: str) -> dict[str, str]:
    """Return a key for each name; all are on one node."""
    found: dict[str, str] = {}
    port = box.masters()[1].port if isinstance(box, ClusterBox) else 0
    for name in names:
        for number in itertools.count():
            key = f"{{{prefix}:{name}:{number}}}"
            if not port or (isinstance(box, ClusterBox) and box.master_of(key).port == port):
                found[name] = key
                break
    return found


PLANTED = {
    "changed": ("SET {k} right", "GET {k}", "SET {k} wrong", Cause.FOLLOWER_WRITTEN),
    "missing": ("SET {k} there", "GET {k}", "DEL {k}", Cause.FOLLOWER_WRITTEN),
    "expiry": ("SET {k} v EX 900", "TTL {k}", "EXPIRE {k} 902", Cause.FOLLOWER_WRITTEN),
    "older": ("SET {k} new", "GET {k}", "SET {k} old", Cause.STALE),
    "member": ("ZADD {k} 1 a", "ZRANGE {k} 0 -1", "ZADD {k} 2 b", Cause.FOLLOWER_WRITTEN),
    "field": ("HSET {k} f 1", "HGET {k} f", "HSET {k} g 2", Cause.FOLLOWER_WRITTEN),
    "slot": ("SET {k} there", "GET {k}", "", Cause.FOLLOWER_WRITTEN),  # moved without its keys
}


async def test_a_defect_of_one_node_is_confirmed_and_nothing_else(
    old: ClusterBox,
    new: ClusterBox,
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Values, expiries, states of before, and a slot without its keys, planted on one node of the
    target: between two clusters, and between a cluster and a server. Writes are compared by their
    replies, also those of several keys. All three at once, since most of it is waiting. Between the
    clusters the comparer has its own rights alone.
    """
    comparer = RoleUser(**make_comparers({Side.SOURCE: old, Side.TARGET: new}, tmp_path))
    ways: dict[str, tuple[Box, Box]] = {
        "both": (old, new),
        "to": (redis62, new),
        "from": (old, valkey91),
    }
    await asyncio.gather(
        *[
            _finds_defects(
                sides,
                control_server,
                tmp_path / name,
                name,
                users=Users(comparer=comparer) if name == "both" else Users(),
            )
            for name, sides in ways.items()
        ]
    )
    for node in (*old.nodes, *new.nodes):
        with node.client() as client:
            log = client.acl_log()
            refused = {each["object"] for each in log if each["username"] == "exodus-comparer"}
            # Redis 6.2 has no CLIENT NO-TOUCH, and names the command without its second word.
            assert refused <= ({"client"} if node.kind is ServerKind.REDIS_62 else set())


async def _finds_defects(
    sides: tuple[Box, Box],
    control_server: DatabaseServer,
    folder: Path,
    prefix: str,
    **plan: object,
) -> None:
    _, target = sides
    wanted = [name for name in PLANTED if name != "slot" or isinstance(target, ClusterBox)]
    keys = of_one_node(target, wanted, prefix)
    async with compared(sides, control_server, folder, **plan) as (local, app):
        await app("SET {k} old", keys["older"])
        for number, (made, _) in enumerate(WRITES):
            for each in made.split("; "):
                await app(each, f"{{{prefix}{number}}}")
        for name in wanted:
            if name != "older":
                await app(PLANTED[name][0], keys[name])
        await row_of(local, "SET", "compared", 7)
        await quiet(local)
        await app(PLANTED["older"][0], keys["older"])
        for number, (_, write) in enumerate(WRITES):
            await app(write, f"{{{prefix}{number}}}")

        async def by_reply() -> bool:
            rows = (await beat_of(local)).rows.values()
            return sum(row.get("by_reply", 0) for row in rows) > len(WRITES)

        try:
            await until(by_reply, within_s=20, otherwise="not every reply was compared")
        except AssertionError as exc:
            facts = await beat_of(local)
            raise AssertionError(facts.by_error, facts.why_not_tried, facts.rows) from exc
        await quiet(local)
        assert await ledger(local) == []
        for name in wanted:
            if name == "slot":
                await asyncio.to_thread(take_slot, target, keys[name])
                continue
            with node_of(target, keys[name]) as client:
                client.execute_command(*PLANTED[name][2].replace("{k}", keys[name]).split())
        for name in wanted:
            await app(PLANTED[name][1], keys[name])

        async def causes() -> dict[str, str]:
            # Another reply of a key may still be pending, without a cause.
            rows = [row for row in await ledger(local) if row["state"] == "confirmed"]
            return {row["key"]: row["cause"] for row in rows}

        async def confirmed() -> bool:
            return (await causes()).keys() == set(keys.values())

        await until(confirmed, within_s=15, otherwise="a planted defect was not confirmed")
        assert await causes() == {keys[name]: PLANTED[name][3] for name in wanted}
        assert await answered(local.store.client.smembers(local.store.keys.scratch))
    # No scratch copy is left of those that were made.
    for node in target.masters() if isinstance(target, ClusterBox) else ():
        with node.client() as client:
            assert list(client.scan_iter(match=r"exodus:{scratch*", count=1_000)) == []


@pytest.mark.parametrize("sides", ["redis62 to new"], indirect=True)
async def test_what_the_cluster_would_not_take_is_counted_with_its_reason(
    sides: tuple[Box, Box], control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Keys of several slots, another database, and an application's user that may not use the names
    of scratch copies.
    """
    _, target = sides
    assert isinstance(target, ClusterBox)
    password = tmp_path / "secret"
    password.write_text("secret")
    for node in target.nodes:  # rules are not replicated
        with node.client() as client:
            client.acl_setuser(
                "shop", enabled=True, passwords=["+secret"], keys=["a*"], commands=["+@all"]
            )
    user = Credentials(username="shop", password_file=password)
    async with compared(sides, control_server, tmp_path, compare_user=user) as (local, app):
        plain, other = local.app(), local.app(db=1)
        await plain.mset({"a": 1, "b": 2})
        assert await plain.mget("a", "b") == [b"1", b"2"]
        await app("SET a1 1")
        await app("SET b1 1")
        await other.set("elsewhere", 1)

        async def told() -> bool:
            facts = await beat_of(local)
            why = facts.why_not_tried
            return (
                why.get("MSET", {}).get(SEVERAL_SLOTS) == 1
                and why.get("MGET", {}).get(SEVERAL_SLOTS) == 1
                and why.get("SET", {}).get(scratch_cluster.NAMES_REFUSED) == 1
                and why.get("SET", {}).get(scratch_cluster.OTHER_DATABASE) == 1
            )

        try:
            await until(told, within_s=10, otherwise="not all was counted")
        except AssertionError as exc:
            raise AssertionError((await beat_of(local)).why_not_tried) from exc
        for node in target.nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "shop", r"~exodus:{scratch*")
        before = (await counted(local, "SET")).get("equal", 0)
        await app("SET a2 1")
        await row_of(local, "SET", "equal", before + 1)
        # A slot that is on its way: the key is on one node, its scratch copy on the other.
        owner = target.master_of("a2")
        to = next(node for node in target.masters() if node is not owner)
        with target.migrating(slot_of(b"a2"), to):
            await app("SET a2 2")
            await row_of(local, "SET", "equal", before + 2)
        assert not (await counted(local, "SET")).get("infrastructure")
        rows = {(row["key"], row["command"]): row["cause"] for row in await ledger(local)}
        # The user may not touch this key, under whatever name; the other has no place there.
        assert rows[("b1", "SET")] == Cause.PERMISSION
        assert ("a1", "SET") not in rows
        assert ("elsewhere", "(copy)") in rows
        assert {key for key, _ in rows} == {"b1", "elsewhere"}


@pytest.mark.parametrize("sides", ["redis62 to new"], indirect=True)
async def test_a_node_that_stalls_takes_no_command_out_of_the_comparison(
    sides: tuple[Box, Box], control_server: DatabaseServer, tmp_path: Path
) -> None:
    """GET did not make it slow. Compare waits for the node."""
    _, target = sides
    assert isinstance(target, ClusterBox)
    async with compared(sides, control_server, tmp_path) as (local, app):
        await app("SET k v")
        await app("GET k")
        await row_of(local, "GET", "equal")
        await quiet(local)  # else another request waits for the node, for up to REPLY_TIMEOUT_S
        stalled = target.master_of("k")
        with target.patient():  # else a replica takes over
            stalled.pause()
            await app("GET k")

            async def waits() -> bool:
                (beat,) = await heartbeats(local.store, "comparer")
                return f":{stalled.port} failed" in beat.why

            await until(waits, within_s=30, otherwise="Compare does not wait")
        await row_of(local, "GET", "equal", 2)
        assert not (await counted(local, "GET")).get("too_slow")
        assert await ledger(local) == []
    await asyncio.to_thread(target.wait_ready)


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
async def test_a_script_leads_compare_to_no_other_address(new: ClusterBox, word: str) -> None:
    """Its error looks like a redirect. Whoever listens there would be given a password."""
    reached: list[object] = []
    stranger = await asyncio.start_server(lambda *both: reached.append(both), "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    cluster = new.address()
    await look(cluster)
    trials = ClusterTrials(cluster, Side.TARGET, Slow(), name="test")
    try:
        script = f"return redis.error_reply('{word} 1 127.0.0.1:{port}')".encode()
        replies = await trials.ask_all(0, [[b"EVAL", script, b"1", b"k"]], b"k")
        assert [error_code(reply) for reply in replies] == [word]
        # The connection is as it was.
        ahead = await trials.ask_all(0, [[b"SET", b"{k}", b"v"]], b"k")
        assert ahead == [b"OK"]
    finally:
        await trials.close()
        stranger.close()
    assert reached == []


async def _writes(local: LocalMigration, number: int, done: list[int], stop: asyncio.Event) -> None:
    async with AsyncCluster(host="127.0.0.1", port=local.port) as app:
        while not stop.is_set():
            done[number] += 1
            count = done[number]
            key, other = f"{number}:{count % 100}", f"{number}:{(count - 10) % 100}"
            await app.incr(f"hot:{number}")
            await app.get(f"c{other}")  # written a while ago
            await app.hgetall(f"h{other}")
            await app.lrange(f"l{other}", 0, -1)
            await app.mget(f"{{m{other}}}a", f"{{m{other}}}b")
            await app.set(f"c{key}", count, ex=1_000)
            await app.hset(f"h{key}", f"f{count % 5}", str(count))
            await app.lpush(f"l{key}", count)
            await app.ltrim(f"l{key}", 0, 9)
            async with app.pipeline(transaction=True) as pipe:
                await pipe.incr(f"{{t{key}}}a").get(f"{{t{key}}}b").execute()
            await app.mset_nonatomic({f"{{m{key}}}a": count, f"{{m{key}}}b": count})
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("sides", ["old to new"], indirect=True)
async def test_nothing_is_confirmed_through_a_reshard_and_a_failover_of_the_target(
    sides: tuple[Box, Box], control_server: DatabaseServer, tmp_path: Path
) -> None:
    """The failover loses writes: the replica was frozen, and had no connection to its master when
    that was killed. They are no divergences, and the copies are made again.
    """
    _, target = sides
    assert isinstance(target, ClusterBox)
    stop, done = asyncio.Event(), [0, 0, 0]
    async with compared(sides, control_server, tmp_path) as (local, app):
        writing = [asyncio.create_task(_writes(local, at, done, stop)) for at in range(3)]

        async def more(count: int) -> None:
            wanted = min(done) + count

            async def reached() -> bool:
                for each in writing:
                    if each.done():
                        each.result()
                return min(done) >= wanted

            await until(reached, within_s=60, otherwise="the applications came to nothing")

        await more(15)
        first, second, _ = target.masters()
        slot = slot_of(b"c0:1")
        for _ in range(10 if FULL else 0):
            await asyncio.to_thread(target.reshard, range(slot, slot + 20), first)
            await more(10)
            await asyncio.to_thread(target.reshard, range(slot, slot + 20), second)
            first = await asyncio.to_thread(target.failover, first)
            await more(10)
            await asyncio.to_thread(target.wait_ready)
        await asyncio.to_thread(target.reshard, range(slot, slot + 8), first)
        await asyncio.to_thread(target.reshard, range(slot, slot + 8), second)
        (replica,) = target.replicas_of(first)
        names = (f"lost:{number}" for number in itertools.count())
        lost = list(itertools.islice((n for n in names if target.master_of(n) is first), 5))
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            with first.client() as client:  # what it writes from now on reaches nobody
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            for key in lost:
                await app(f"SET {key} written-once")

            async def there() -> bool:
                with first.client() as client:
                    return all(client.exists(key) for key in lost)

            await until(there, within_s=10, otherwise="the keys were not copied")
            await more(10)
            first.kill()
        finally:
            os.kill(replica.pid, signal.SIGCONT)

        async def copied_again() -> bool:
            return (await beat_of(local)).copied_again > 0

        await until(copied_again, within_s=30, otherwise="the failover was not noticed")
        for key in lost:
            await app(f"GET {key}")
        await more(20)
        stop.set()
        await asyncio.gather(*writing)
        await quiet(local)
        assert await ledger(local) == []
        for command in ("GET", "HGETALL", "LRANGE", "MGET", "MULTI"):
            row = await counted(local, command)
            assert row["equal"] > 10, row
    first.start()
    target.wait_ready()
