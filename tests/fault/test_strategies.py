"""How keys are copied: re-footed payloads proved on the real follower, large keys in pieces, and
changes meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import randbytes

import pytest
import redis

from exodus.control.checkpoint import load_progress
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard, GuardedLeg
from exodus.copy.key import Copier, CopyMethod
from exodus.copy.payload import PackedStrings
from exodus.copy.refoot import refoot
from exodus.engine import Engine
from exodus.net.leg import Leg
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import verify
from tests.fault.test_verify import fill
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


async def _engine(
    store: ControlStore, authority: DatabaseServer, follower: DatabaseServer
) -> Engine:
    plan = Plan(name=store.migration, source=authority.address(), target=follower.address())
    ends = Endpoint(Side.SOURCE, plan.source), Endpoint(Side.TARGET, plan.target)
    facts = [await end.facts() for end in ends]
    return Engine(plan, store, Route(), ends[0], ends[1], facts[0], facts[1])


def _member(number: int) -> str:
    return f"member {number:090}"


def fill_large(client: redis.Redis) -> set[bytes]:
    """Write a key of each type that is too large for one command: by its memory, and, except the
    string, by its elements.
    """
    many = range(11_000)
    client.set("large string", b"\x00x" * 1_500_000)
    client.rpush(
        "large list", *[f"element {n} {'x' * 90}" for n in many], *[f"element {n}" for n in many]
    )
    client.sadd("large set", *[_member(n) for n in many])
    client.hset("large hash", mapping={f"field {n}": f"{n:090}" for n in many})
    client.zadd("large zset", {_member(n): n / 7 for n in many})
    pipe = client.pipeline(transaction=False)
    for number in range(1, 11_000):
        pipe.xadd("large stream", {"number": number, "text": "x" * 90}, id=f"{number}-1")
    pipe.execute()
    client.xgroup_create("large stream", "g1", id="0")
    client.xgroup_create("large stream", "g2", id="500-1")
    client.xreadgroup("g1", "alice", {"large stream": ">"}, count=300)
    client.xreadgroup("g2", "bob", {"large stream": ">"}, count=100)
    client.xack("large stream", "g1", *[f"{number}-1" for number in range(10, 20)])
    client.xdel("large stream", "5-1", "200-1", "10999-1")
    client.pexpire("large hash", 3_600_000)
    return {
        b"large string",
        b"large list",
        b"large set",
        b"large hash",
        b"large zset",
        b"large stream",
    }


def test_a_refooted_payload_differs_in_its_last_ten_bytes_only(redis62: DatabaseServer) -> None:
    """The checksum is the server's own: re-footed to its own version, a payload is unchanged."""
    client = redis62.client()
    client.set("k", "some value")
    payload = client.dump("k")
    assert refoot(payload, _version_of(payload)) == payload
    other = refoot(payload, 80)
    assert other[:-10] == payload[:-10]
    assert _version_of(other) == 80


def _version_of(payload: bytes) -> int:
    return int.from_bytes(payload[-10:-8], "little")


@pytest.mark.parametrize(
    ("from_", "to"), [("redis82", "valkey91"), ("redis82", "valkey81"), ("valkey91", "redis82")]
)
async def test_payloads_refused_for_their_version_alone_are_refooted(
    from_: str, to: str, control_server: DatabaseServer, request: pytest.FixtureRequest
) -> None:
    authority, follower = request.getfixturevalue(from_), request.getfixturevalue(to)
    fill(authority.client())
    async with await ControlStore.connect(control_server.address(), "feet") as store:
        engine = await _engine(store, authority, follower)
        copier = await engine.copier(Guard())
        keys = [key for key in authority.client().keys("*") if not key.startswith(b"exodus:")]
        report = await copier.sync_keys(0, keys)
        await copier.close()
        assert report.failed == []
        # Streams have another format in Valkey and Redis; whatever is not proved goes by type, and
        # says so.
        assert report.strategies[CopyMethod.REFOOTED] >= len(keys) - 3
        assert sum(report.strategies.values()) == len(keys)
        assert all(
            how.startswith((CopyMethod.REFOOTED, CopyMethod.BY_TYPE)) for how in report.strategies
        )
        assert engine.proofs.understood[0]
        found = await verify(engine, settle_s=0.01, attempts=2)
        assert [row.key for row in found.divergences if row.db == 0] == []
        assert not [key for key in follower.client().keys("*") if b"proof" in key]


@pytest.mark.parametrize(
    ("from_", "to"), [("redis62", "valkey91"), ("redis82", "valkey91"), ("valkey91", "redis62")]
)
async def test_large_keys_go_in_pieces_and_are_exact(
    from_: str, to: str, control_server: DatabaseServer, request: pytest.FixtureRequest
) -> None:
    """They are compared in pieces too: one changed element of any of them is found."""
    authority, follower = request.getfixturevalue(from_), request.getfixturevalue(to)
    keys = fill_large(authority.client())
    async with await ControlStore.connect(control_server.address(), "pieces") as store:
        engine = await _engine(store, authority, follower)
        copier = await engine.copier(Guard())
        report = await copier.sync_keys(0, sorted(keys))
        assert report.failed == []
        assert report.unsettled == []
        assert dict(report.strategies) == {CopyMethod.PIECES: len(keys)}
        found = await verify(engine, settle_s=0.01, attempts=2)
        assert found.divergences == []
        assert set(follower.client().keys("*")) == keys  # no staging key is left
        await copier.sync_keys(0, sorted(keys))  # over the existing key
        assert set(follower.client().keys("*")) == keys
        target = follower.client()
        target.setrange("large string", 2_000_000, "y")
        target.lset("large list", 15_000, "other")
        target.srem("large set", _member(7))
        target.sadd("large set", "stranger")
        target.hset("large hash", "field 10999", "other")
        target.zadd("large zset", {_member(3): 3 / 7 + 1e-9})
        target.xack("large stream", "g1", "1-1")
        spoiled = await verify(engine, settle_s=0.01, attempts=2)
        assert {row.key for row in spoiled.divergences} == keys
        assert {row.kind for row in spoiled.divergences} == {"value", "group"}
        report = await copier.sync_keys(0, sorted(keys))
        assert (await verify(engine, settle_s=0.01, attempts=2)).divergences == []
        authority.client().delete(*keys)
        await copier.sync_keys(0, sorted(keys))
        assert follower.client().dbsize() == 0
        await copier.close()


async def test_without_scripts_the_same_is_read_by_commands(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    """One provider allows no EVAL. Another does not tell the memory of a key."""
    large = fill_large(redis62.client())
    fill(redis62.client())
    async with await ControlStore.connect(control_server.address(), "plain") as store:
        for lacking in (("scripts",), ("scripts", "memory usage"), ("memory usage",)):
            valkey91.client().flushall()
            engine = await _engine(store, redis62, valkey91)
            for facts in (engine.authority_facts, engine.follower_facts):
                facts.capabilities.update(dict.fromkeys(lacking, False))
            copier = await engine.copier(Guard())
            for db in (0, 4):
                keys = redis62.client(db=db).keys("*")
                report = await copier.sync_keys(db, keys)
                assert report.failed == []
                assert report.copied == len(keys)
                assert db or report.strategies[CopyMethod.PIECES] >= len(large)
            await copier.close()
            found = await verify(engine, settle_s=0.01, attempts=2)
            assert found.divergences == [], lacking


async def test_a_large_key_that_changes_while_it_is_copied_is_marked_again(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in place as it is. Live sync makes it exact once nobody writes it."""
    source, target = local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()
    source.hset("h", mapping={f"field {n}": "before" for n in range(30_000)})
    await local.start_live_sync()
    engine = await local.engine()
    copier = await engine.copier(engine.guard())
    writing = asyncio.Event()

    async def write() -> None:
        number = 0
        while not writing.is_set():
            source.hset("h", f"field {number % 30_000}", f"after {number}")
            number += 97
            await asyncio.sleep(0)

    task = asyncio.create_task(write())
    report = await copier.sync_keys(0, [b"h"])
    writing.set()
    await task
    assert report.unsettled == [b"h"]
    assert target.hlen("h") == 30_000
    await engine.feed.mark((0, key) for key in report.unsettled)
    await local.syncer()
    await local.drained()
    assert (await local.verify()).divergences == []
    await copier.close()


async def test_a_payload_that_the_follower_refuses_goes_by_type(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One key's refusal does not stop the others, and is counted with its reason."""
    redis62.client().mset({"fine": 1, "odd": 2})
    async with await ControlStore.connect(control_server.address(), "odd") as store:
        engine = await _engine(store, redis62, valkey91)
        copier = await engine.copier(Guard())
        read = Copier.read

        async def spoiled(self: Copier, db: int, keys: list[bytes], report: object) -> list:
            states = await read(self, db, keys, report)
            for state in states:
                if state.key == b"odd":
                    state.payload = state.payload[:-1] + bytes([state.payload[-1] ^ 1])
            return states

        monkeypatch.setattr(Copier, "read", spoiled)
        report = await copier.sync_keys(0, [b"fine", b"odd"])
        await copier.close()
        assert report.failed == []
        assert report.copied == 2
        assert report.strategies == {
            CopyMethod.PAYLOAD: 1,
            f"{CopyMethod.BY_TYPE}: payload refused": 1,
        }
        assert valkey91.client().get("odd") == b"2"


async def test_long_strings_go_by_their_value_and_are_counted_once(local: LocalMigration) -> None:
    """Fewer of them fit into a call, so slices overlap by calls of different lengths."""
    source = local.servers[Side.SOURCE].client()
    pipe = source.pipeline(transaction=False)
    for number in range(3_000):
        pipe.set(f"k{number}", randbytes(6_000), px=3_600_000 + number if number % 2 else None)
    pipe.set("short", "x" * 100)
    pipe.execute()
    local.plan = local.plan.model_copy(update={"slices": 2})
    await local.store.save_plan(local.plan)
    await local.start_live_sync()
    await local.backfill()
    strategies: Counter[str] = Counter()
    for progress in (await load_progress(local.store, "run")).values():
        strategies.update(progress.strategies)
    assert strategies[CopyMethod.STRING] >= 3_000
    assert set(strategies) <= {CopyMethod.STRING, CopyMethod.PAYLOAD}
    # The short one, where it is in a slice's first batch; slices overlap.
    assert strategies[CopyMethod.PAYLOAD] <= 2
    report = await local.verify()
    assert report.divergences == []
    assert (report.keys_verified, report.keys_follower, report.keys_with_ttl) == (
        3_001,
        3_001,
        1_500,
    )
    assert report.ttl_drift_ms_max <= 2


@pytest.mark.parametrize("others", [False, True])
async def test_short_strings_go_by_their_value_where_there_is_nothing_else(
    local: LocalMigration, others: bool
) -> None:
    """To guess wrong costs a call a key, so a scan that found another type reads payloads again."""
    source, target = (local.servers[side].client() for side in Side)
    pipe = source.pipeline(transaction=False)
    for number in range(4_000):
        value = number if number % 3 else b"\x00\xff%d" % number
        pipe.set(f"k{number}", value, px=3_600_000 + number if number % 2 else None)
        if others:
            pipe.rpush(f"list{number}", number)
    pipe.set("empty", "")
    pipe.execute()
    target.rpush("k0", "another type")
    target.set("k2", "expires", px=60_000)
    local.plan = local.plan.model_copy(update={"slices": 1, "allow_nonempty": True})
    await local.store.save_plan(local.plan)
    await local.start_live_sync()
    await local.backfill()
    strategies: Counter[str] = Counter()
    for progress in (await load_progress(local.store, "run")).values():
        strategies.update(progress.strategies)
    by_payload = strategies[CopyMethod.PAYLOAD]
    assert strategies[CopyMethod.STRING] == (0 if others else strategies.total() - by_payload)
    assert by_payload >= 8_001 if others else 200 < by_payload < 600, "of the first batch"
    report = await local.verify()
    assert report.divergences == []
    assert report.keys_with_ttl == 2_000
    assert report.ttl_drift_ms_max <= 2
    for key in ("empty", "k0", "k1"):
        assert target.object("encoding", key) == source.object("encoding", key)


@pytest.mark.parametrize("kind", ["redis62", "redis82", "valkey81", "valkey91"])
async def test_a_string_that_expires_on_the_way_does_not_come_back(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: DatabaseServer = request.getfixturevalue(kind)
    server.client().mset({"gone": "before", "stays": "before"})
    async with await Leg.connect(server.address(), Side.TARGET) as leg:
        packed = PackedStrings([b"gone", b"stays"], [1_000, 4_000_000_000_000], [b"new", b"new"])
        assert await GuardedLeg(leg, Guard()).run_packed(0, packed) == [b"OK", b"OK"]
    assert server.client().get("gone") is None
    assert server.client().get("stays") == b"new"
    assert server.client().pexpiretime("stays") == 4_000_000_000_000 if kind != "redis62" else True
