"""Which requests are sampled: by their first key, under a rule that may change meanwhile. What is
not compared is counted.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus.control.registry import heartbeats
from exodus.control.route import read_route
from exodus.errors import DecisionRefused, OperatorError
from exodus.gateway import shadow_stream
from exodus.plan.vocabulary import Side
from exodus.shadow import comparer
from exodus.shadow.sampling import set_sample
from tests.support.comparing import (
    beat_of,
    comparer_follows,
    comparing,
    counted,
    ledger,
    quiet,
    row_of,
)
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _left_out(local: LocalMigration, command: str) -> dict[str, int]:
    found: dict[str, int] = {}

    async def told() -> bool:
        (beat,) = await heartbeats(local.store, "gateway")
        found.update(beat.facts.shadow_left_out.get(command, {}))
        return bool(found)

    await until(told, within_s=5, otherwise=f"no {command} was counted as left out")
    return found


async def test_commands_of_several_keys_are_sampled_by_their_first(local: LocalMigration) -> None:
    """The other keys join the sample: they are copied each time, since no journal tells of them."""
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"in:a": 1, "out:b": 2, "out:c": 3})
    source.sadd("in:s", 1, 2, 3)
    source.sadd("out:s", 2, 3, 4)
    source.zadd("in:z", {"a": 1})
    source.zadd("out:z", {"b": 2})
    async with comparing(local):
        await local.change(shadow_include=["in:*"])
        await comparer_follows(local)
        app = local.app()
        assert await app.mget("in:a", "out:b") == [b"1", b"2"]
        await row_of(local, "MGET", "equal")
        source.set("out:b", 22)  # no journal entry reaches the comparer
        assert await app.mget("in:a", "out:b") == [b"1", b"22"]
        await row_of(local, "MGET", "equal", 2)
        await app.sinter("in:s", "out:s")
        await row_of(local, "SINTER", "equal")
        await app.mget("out:b", "in:a")  # its first key is not sampled
        await app.sinterstore("in:d", "in:s", "out:s")
        await row_of(local, "SINTERSTORE", "equal")
        assert (await counted(local, "MGET"))["compared"] == 2
        # Where the keys stand, only the request itself tells.
        await app.zunion(["out:z", "in:z"])
        for _ in range(2):
            await app.zunion(["in:z", "out:z"])
        await row_of(local, "ZUNION", "equal", 2)
        assert (await counted(local, "ZUNION"))["compared"] == 2
        target.set("in:a", "stale")
        await app.mget("in:a", "out:b")
        await row_of(local, "MGET", "divergences")
        assert [row["command"] for row in await ledger(local)] == ["MGET"]


async def test_transactions_are_compared_command_by_command(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"a": 1, "b": 2})
    async with comparing(local):
        app = local.app()
        async with app.pipeline(transaction=True) as pipe:
            assert await pipe.get("a").get("b").execute() == [b"1", b"2"]
        await row_of(local, "MULTI", "equal")
        async with app.pipeline(transaction=True) as pipe:
            assert await pipe.incr("a").get("b").execute() == [2, b"2"]
        await row_of(local, "MULTI", "equal", 2)

        async def copied() -> bool:
            return target.get("a") == b"2"

        await until(copied, within_s=5, otherwise="the transaction's write was not copied")
        target.set("b", "stale")
        async with app.pipeline(transaction=True) as pipe:
            await pipe.get("a").get("b").execute()
        await row_of(local, "MULTI", "divergences")
        assert target.get("b") == b"stale"


async def test_what_is_left_out_is_counted_by_reason(local: LocalMigration) -> None:
    source = local.servers[Side.SOURCE].client()
    source.rpush("list", *range(100))
    source.set("long", "x" * 4_000_000)
    async with comparing(local):
        app = local.app()
        await app.eval("return redis.call('GET', KEYS[1])", 1, "k")
        assert await _left_out(local, "EVAL") == {"a script, and compare_scripts is off": 1}
        await app.dump("list")
        assert await _left_out(local, "DUMP") == {"its reply differs between healthy servers": 1}
        await app.blpop("list", 1)
        assert await _left_out(local, "BLPOP") == {
            "it may block, or does more than its reply says": 1
        }
        await app.get("long")
        assert await _left_out(local, "GET") == {"larger than is compared": 1}
        await app.set("other", "x" * 100_000)
        assert await _left_out(local, "SET") == {"larger than is compared": 1}
        async with app.pipeline(transaction=True) as pipe:
            await pipe.set("other", "x" * 100_000).get("other").execute()
        assert await _left_out(local, "MULTI") == {"larger than is compared": 1}


async def test_what_expires_before_it_is_taken_is_counted(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target stalls while Compare reads states there. Sampled requests are not kept so long."""
    monkeypatch.setattr(shadow_stream, "SHADOW_KEPT_MS", 500)
    monkeypatch.setattr(comparer, "COMPARE_STEP_TOLD_S", 1.0)
    async with comparing(local):
        app = local.app()
        await app.set("k", "v")
        await app.get("k")
        await row_of(local, "GET", "equal")
        await quiet(local)
        assert (await beat_of(local)).expired == 0
        local.servers[Side.TARGET].pause()
        try:

            async def told() -> bool:
                (beat,) = await heartbeats(local.store, "comparer")
                return "a step of comparing takes" in beat.why

            await until(told, within_s=20, otherwise="nobody hears of the step")
            await app.get("k")
            await app.get("k")
            await asyncio.sleep(1)
        finally:
            local.servers[Side.TARGET].resume()

        async def counted_as_expired() -> bool:
            return (await beat_of(local)).expired == 2

        await until(counted_as_expired, within_s=15, otherwise="what expired is not counted")
        await app.get("k")
        await row_of(local, "GET", "equal", 2)
        assert (await beat_of(local)).expired == 2
        (beat,) = await heartbeats(local.store, "comparer")
        assert not beat.why


async def test_the_sample_is_changed_while_it_runs(local: LocalMigration) -> None:
    """Keys that leave the sample are removed from the target: no journal reports them any more."""
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"cart:1": 1, "user:1": 1, "user:2": 1})
    async with comparing(local):
        app = local.app()
        for key in ("cart:1", "user:1", "user:2"):
            await app.get(key)
        await row_of(local, "GET", "equal", 3)
        target.set("user:2", "of others")  # the removal is of the copy, whatever it holds
        route = await set_sample(local.store, 1.0, ["cart:*", "user:*"], ["*:2"], why="test")
        assert route.shadow_salt == 7

        async def removed() -> bool:
            return not target.exists("user:2")

        await until(removed, within_s=5, otherwise="a key that is not sampled stayed")
        assert sorted(target.keys("[cu]*:*")) == [b"cart:1", b"user:1"]
        await app.get("user:2")
        await app.get("cart:1")
        await row_of(local, "GET", "equal", 4)
        assert (await counted(local, "GET"))["compared"] == 4
        await set_sample(local.store, 1e-9, [], [], why="the target has too much to do")

        async def emptied() -> bool:
            return not target.keys("[cu]*:*")

        await until(emptied, within_s=5, otherwise="another share changed nothing")


async def test_a_sample_that_cannot_be_is_refused(local: LocalMigration) -> None:
    with pytest.raises(OperatorError, match="is no share"):
        await set_sample(local.store, 1.5, [], [], why="test")
    with pytest.raises(DecisionRefused, match="no keys are sampled"):
        await set_sample(local.store, 0.5, [], [], why="test")
    assert (await read_route(local.store)).epoch == 0
