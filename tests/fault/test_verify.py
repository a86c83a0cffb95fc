"""A reconciliation can fail, and names what it found. Copies are exact in both directions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
import redis
from typer.testing import CliRunner

from exodus.cli.app import app
from exodus.control.checkpoint import load_parts
from exodus.control.freshness import last_pass
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard
from exodus.copy.impact import read_budget
from exodus.copy.scan import plan_slices
from exodus.engine import Engine
from exodus.plan.plan import Plan
from exodus.plan.settings import Budget
from exodus.plan.share import in_share, share_bound
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import Depth
from exodus.verify.parts import merge_parts, plan_parts, read_part
from exodus.verify.passes import PassState
from exodus.verify.reconcile import reconcile, verify
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


def fill(client: redis.Redis) -> None:
    """Every type, small and large encodings, streams with groups, pending and deleted entries,
    expiry.
    """
    client.set("string", b"\x00bin\xff")
    client.set("int", 12345)
    client.set("timed", "x", px=3_600_000)
    client.setbit("bits", 1000, 1)
    client.pfadd("hll", *range(100))
    client.rpush("list", *[b"e%d" % n for n in range(1200)])
    client.sadd("intset", *range(50))
    client.sadd("set", *[f"m{n}" for n in range(700)])
    client.hset("hash", mapping={f"f{n}": "v" * n for n in range(100)})
    client.hset("small", mapping={"a": "1"})
    client.zadd("zset", {"a": 1.1, "b": float("inf"), "c": -0.1, "d": 1e300, "e": 3})
    client.zadd("bigz", {f"m{n}": n / 7 for n in range(300)})
    client.geoadd("geo", (13.361389, 38.115556, "Palermo"))
    for number in range(1, 30):
        client.xadd("stream", {"n": number}, id=f"{number}-1")
    client.xgroup_create("stream", "g1", id="0")
    client.xgroup_create("stream", "g2", id="10-1")
    client.xreadgroup("g1", "alice", {"stream": ">"}, count=5)
    client.xreadgroup("g1", "bob", {"stream": ">"}, count=3)
    client.xack("stream", "g1", "2-1")
    client.xdel("stream", "3-1", "29-1")
    client.xadd("emptied", {"a": 1}, id="5-5")
    client.xdel("emptied", "5-5")
    client.pexpire("zset", 7_200_000)
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"], db=4) as other:
        other.set("elsewhere", 1)


async def _engine(
    store: ControlStore, plan: Plan, authority: DatabaseServer, follower: DatabaseServer
) -> Engine:
    ends = Endpoint(Side.SOURCE, authority.address()), Endpoint(Side.TARGET, follower.address())
    facts = [await end.facts() for end in ends]
    from exodus.control.route import Route

    return Engine(plan, store, Route(), ends[0], ends[1], facts[0], facts[1])


@pytest.mark.parametrize(
    ("from_", "to"),
    [
        ("redis62", "valkey91"),
        ("valkey91", "redis62"),
        ("redis82", "valkey91"),
        ("valkey91", "redis82"),
        ("redis82", "redis62"),
        ("valkey81", "redis82"),
    ],
)
async def test_copies_are_exact(
    from_: str, to: str, control_server: DatabaseServer, request: pytest.FixtureRequest
) -> None:
    """As payloads where they fit, type by type where they do not."""
    authority, follower = request.getfixturevalue(from_), request.getfixturevalue(to)
    plan = Plan(name="copies", source=authority.address(), target=follower.address())
    fill(authority.client())
    async with await ControlStore.connect(control_server.address(), "copies") as store:
        engine = await _engine(store, plan, authority, follower)
        copier = await engine.copier(Guard())
        for db in (0, 4):
            keys = [
                key for key in authority.client(db=db).keys("*") if not key.startswith(b"exodus:")
            ]
            report = await copier.sync_keys(db, keys)
            assert report.failed == []
            assert report.copied == len(keys)
        await copier.close()
        found = await verify(engine, settle_s=0.01, attempts=2)
        assert found.divergences == []
        assert found.keys_verified == found.keys_authority == 16
        assert found.ttl_drift_ms_max <= (0 if "62" not in from_ + to else 2)


async def test_each_spoiled_key_is_found_and_named(local: LocalMigration) -> None:
    """One byte flipped, one key deleted, one added, one expiry shifted by a second; a list's order,
    a group's position.
    """
    fill(local.servers[Side.SOURCE].client())
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    assert (await local.verify()).divergences == []
    target = local.servers[Side.TARGET].client()
    target.setrange("string", 1, "B")
    target.delete("set")
    target.set("stranger", 1)
    target.pexpireat("timed", target.pexpiretime("timed") + 1000)
    target.rpoplpush("list", "list")
    target.xgroup_setid("stream", "g2", "11-1")
    target.zadd("zset", {"a": 1.1000000000000003})
    target.delete("int")
    target.rpush("int", 1)
    target.persist("zset")
    found = await local.verify()
    assert {(row.key, row.kind) for row in found.divergences} == {
        (b"string", "value"),
        (b"set", "missing"),
        (b"stranger", "extra"),
        (b"timed", "expiry"),
        (b"list", "value"),
        (b"stream", "group"),
        (b"zset", "expiry"),
        (b"int", "type"),
    }
    assert next(row for row in found.divergences if row.key == b"timed").detail == "+1000 ms"
    assert b"bin" not in repr(found.as_json()).encode()


@pytest.mark.parametrize("lacking", [(), ("scripts",)])
async def test_a_pass_can_look_at_less(local: LocalMigration, lacking: tuple[str, ...]) -> None:
    """At names, at outlines, at a sample of keys. Only a pass over all of everything counts."""
    source, target = (local.servers[side].client() for side in (Side.SOURCE, Side.TARGET))
    fill(source)
    source.mset({f"k{number}": number for number in range(4_000)})
    await local.start_live_sync()
    await local.backfill()
    target.setrange("string", 1, "B")
    target.append("k1", "x")
    target.pexpireat("timed", target.pexpiretime("timed") + 1000)
    target.delete("k2", "set")
    target.set("stranger", 1)
    engine = await local.engine()
    for facts in (engine.authority_facts, engine.follower_facts):
        facts.capabilities.update(dict.fromkeys(lacking, False))
    await local.change(sync=False)  # it is not repaired
    named = {(b"k2", "missing"), (b"set", "missing"), (b"stranger", "extra")}
    outlined = named | {(b"k1", "value"), (b"timed", "expiry")}
    for depth, wanted in (
        (Depth.COUNT, named),
        (Depth.OUTLINE, outlined),
        (Depth.FULL, outlined | {(b"string", "value")}),
    ):
        found = await verify(engine, settle_s=0.01, attempts=2, under_way=PassState(depth=depth))
        assert {(row.key, row.kind) for row in found.divergences} == wanted
        assert (found.keys_authority, found.keys_follower) == (4_016, 4_015)
        assert found.keys_verified == 4_016 - len([kind for _, kind in wanted if kind != "extra"])
    part = await verify(engine, settle_s=0.01, attempts=2, under_way=PassState(share=0.25))
    assert 800 < part.keys_authority < 1_200
    assert {(row.key, row.kind) for row in part.divergences} == {
        (key, kind)
        for key, kind in outlined | {(b"string", "value")}
        if in_share(key, share_bound(0.25), 0)
    }
    source.flushall()
    target.flushall()
    for depth, share, counts in (
        (Depth.OUTLINE, 1.0, False),
        (Depth.FULL, 0.5, False),
        (Depth.FULL, 1.0, True),
    ):
        assert (await reconcile(engine, "test", settle_s=0.01, depth=depth, share=share))[
            "divergences_total"
        ] == 0
        assert (await last_pass(local.store) is not None) == counts


async def test_depth_sample_and_budget_are_asked_for_by_command(
    local: LocalMigration, tmp_path: Path
) -> None:
    local.servers[Side.SOURCE].client().mset({f"k{number}": number for number in range(100)})
    await local.start_live_sync()
    await local.backfill()
    file = str(local.file(tmp_path))

    async def exodus(*arguments: str) -> tuple[int, str]:
        found = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--file", file])
        return found.exit_code, found.stdout

    status, said = await exodus("verify", "--depth", "count", "--sample", "0.5", "--json")
    report = orjson.loads(said)
    assert (status, report["depth"], report["share"], report["by_type"]) == (
        0,
        "count",
        0.5,
        {"key": report["keys_verified"]},
    )
    assert 20 < report["keys_verified"] < 80
    assert await exodus("budget") == (
        0,
        f"{local.plan.budget.model_dump_json()} (from the migration file)\n",
    )
    asked = Budget(cpu_share_max=0.5)
    assert await exodus("budget", '{"cpu_share_max": 0.5}') == (
        0,
        f"{asked.model_dump_json()} (set by exodus budget)\n",
    )
    assert await read_budget(local.store) == asked
    assert (await exodus("budget", "--plan"))[0] == 0
    assert await read_budget(local.store) is None


async def test_what_a_follower_cannot_hold_is_listed_with_its_reason(
    redis82: DatabaseServer, redis62: DatabaseServer, control_server: DatabaseServer
) -> None:
    plan = Plan(name="letters", source=redis82.address(), target=redis62.address())
    client = redis82.client()
    client.hset("h", mapping={"a": 1, "b": 2})
    client.execute_command("HPEXPIRE", "h", 3_600_000, "FIELDS", 1, "a")
    client.set("fine", 1)
    async with await ControlStore.connect(control_server.address(), "letters") as store:
        engine = await _engine(store, plan, redis82, redis62)
        copier = await engine.copier(Guard())
        report = await copier.sync_keys(0, [b"h", b"fine"])
        assert [failure.key for failure in report.failed] == [b"h"]
        assert "hash field expiry" in report.failed[0].reason
        assert report.copied == 1
        await engine.keep_failures(report.failed)
        await engine.keep_failures(report.failed)
        (letter,) = (await store.client.hgetall(store.keys.dead)).values()
        assert b'"attempts":2' in letter
        await engine.forget_failures([(0, b"h")])
        assert not await store.client.exists(store.keys.dead)
        await copier.close()


async def test_expiry_is_exact_from_a_server_without_pexpiretime(
    local: LocalMigration, tmp_path: Path
) -> None:
    """4,000 keys with an exact expiry on Redis 6.2. The drift is at most the 2 ms of its clock."""
    source = local.servers[Side.SOURCE].client()
    base = int(source.time()[0]) * 1000 + 3_600_000
    pipe = source.pipeline(transaction=False)
    for number in range(4000):
        pipe.set(f"t{number}", "x")
        pipe.pexpireat(f"t{number}", base + number)
    pipe.execute()
    await local.start_live_sync()
    await local.backfill()
    target = local.servers[Side.TARGET].client()
    pipe = target.pipeline(transaction=False)
    for number in range(4000):
        pipe.pexpiretime(f"t{number}")
    drift = [abs(at - base - number) for number, at in enumerate(pipe.execute())]
    assert max(drift) <= 2
    assert drift.count(0) > 3900


async def test_a_checkpointed_chunk_is_not_done_twice(local: LocalMigration) -> None:
    """The backfill is stopped and started repeatedly. It reads each key once, except where slices
    overlap.
    """
    source = local.servers[Side.SOURCE].client()
    pipe = source.pipeline(transaction=False)
    for number in range(30_000):
        pipe.set(f"k{number}", number)
    pipe.execute()
    await local.start_live_sync()
    from exodus.backfill.slices import copy_slice
    from exodus.control.checkpoint import load_progress
    from exodus.copy.scan import plan_slices

    (piece,) = await plan_slices((await local.engine()).authority, 1)
    rounds = 0
    while True:
        rounds += 1
        progress = await copy_slice(await local.engine(), "again", piece, budget_s=0)
        if progress.done:
            break
    assert rounds > 5
    stored = (await load_progress(local.store, "again"))[piece.slice_id]
    assert (
        stored.keys_seen
        == stored.keys_copied + stored.keys_removed + stored.keys_failed + stored.keys_skipped
    )
    assert 30_000 <= stored.keys_seen < 30_000 * 1.05
    assert stored.chunks == rounds
    assert (await local.verify()).keys_verified == 30_000


@pytest.mark.parametrize("count", [1, 3, 8])
async def test_parts_on_several_machines_find_what_one_process_finds(
    local: LocalMigration, count: int
) -> None:
    """Each key is counted once, also where two parts meet. A part that is resumed continues where
    it was.
    """
    with (
        local.servers[Side.SOURCE].client() as source,
        local.servers[Side.TARGET].client() as target,
    ):
        fill(source)
        source.mset({f"many:{number}": number for number in range(6_000)})
        await local.start_live_sync()
        await local.backfill()
        target.set("many:17", "spoiled")
        target.delete("many:18")
        target.set("stranger", 1)
    engine = await local.engine()
    alone = await reconcile(engine, "alone")
    parts = await plan_parts(engine, "parts", count)
    assert sum(len(part.forwards) for part in parts) == len(
        await plan_slices(engine.authority, local.plan.slices)
    )
    found = [await read_part(engine, part) for part in parts]
    assert len(await load_parts(local.store, "parts")) == len(parts)
    again = await read_part(engine, parts[0])
    assert again.progress.counts == found[0].progress.counts, "it was done already"
    together = await reconcile(
        engine, "parts", progress=await merge_parts(local.store, "parts", found)
    )
    for name in (
        "keys_authority",
        "keys_follower",
        "keys_verified",
        "keys_dirty",
        "divergences_total",
        "by_type",
        "resumed",
    ):
        assert together[name] == alone[name], name
    assert sorted(row["key"] for row in together["divergences"]) == [
        "many:17",
        "many:18",
        "stranger",
    ]
    assert await load_parts(local.store, "parts") == []
