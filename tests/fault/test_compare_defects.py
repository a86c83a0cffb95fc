"""A catalogue of planted defects: each is found, with its cause. Without a defect nothing is
found.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from exodus.control.registry import heartbeats
from exodus.engine import open_engine
from exodus.plan.address import Credentials
from exodus.plan.bounds import LARGE_KEY_BYTES
from exodus.plan.vocabulary import Side
from exodus.shadow import divergences
from exodus.shadow.causes import REMEDIES, Cause
from exodus.shadow.repairs import repair_divergences
from tests.support.comparing import (
    comparer_follows,
    comparing,
    comparing_apart,
    ledger,
    quiet,
    row_of,
)
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.planted_defects import CATALOGUE, key_of, words_of
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _rows(local: LocalMigration, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Return the confirmed rows by key and command, once the expected ones are there."""
    found: dict[tuple[str, str], Any] = {}

    async def there() -> bool:
        found.clear()
        for row in await ledger(local):
            if row["state"] == "confirmed":
                found[row["key"], row["command"]] = row
        return wanted <= found.keys()

    try:
        await until(there, within_s=20, otherwise="not all is found")
    except AssertionError as exc:
        raise AssertionError(f"not found: {sorted(wanted - found.keys())}") from exc
    return found


async def test_each_planted_defect_is_found_and_labelled(modern: LocalMigration) -> None:
    assert len(CATALOGUE) >= 25
    target = modern.servers[Side.TARGET].client()
    async with comparing(modern):
        app = modern.app()
        for defect in CATALOGUE:
            for command in defect.made:
                await app.execute_command(*words_of(command, key_of(defect)))
        for defect in CATALOGUE:
            await app.execute_command(*words_of(defect.asked, key_of(defect)))
        await row_of(modern, "GET", "equal", 3)
        await quiet(modern)
        assert await ledger(modern) == [], "a difference was confirmed before any was planted"
        for defect in CATALOGUE:
            for command in defect.planted:
                target.execute_command(*words_of(command, key_of(defect)))
        for defect in CATALOGUE:
            await app.execute_command(*words_of(defect.asked, key_of(defect)))
        found = await _rows(modern, {(key_of(each), each.command) for each in CATALOGUE})
        labels = {
            each.name: found[key_of(each), each.command]["cause"]
            for each in CATALOGUE
            if found[key_of(each), each.command]["cause"] != each.cause
        }
        assert labels == {}
        row = found["d:stale-value", "GET"]
        assert (row["db"], row["times"], row["remedy"] != "") == (0, 1, True)
        assert any(" SET from 127.0.0.1" in line for line in row["writes"])
        (kept,) = [
            each
            for each in await divergences.rows(modern.store)
            if (each["key"], each["command"]) == ("d:stale-value", "GET")
        ]
        assert (kept["authority_value"], kept["follower_value"]) == ("b'new'", "b'old'")

        done = await repair_divergences(await open_engine(modern.store, modern.plan))
        assert done["left"] == []
        assert {row["state"] for row in await ledger(modern)} == {"healed"}
        assert target.get("d:stale-value") == b"new"


async def _one_cause(local: LocalMigration, key: str, command: str, cause: Cause) -> dict[str, Any]:
    found = await _rows(local, {(key, command)})
    assert found[key, command]["cause"] == cause, found[key, command]
    return dict(found[key, command])


async def test_a_write_past_the_gateway(local: LocalMigration) -> None:
    source = local.servers[Side.SOURCE].client()
    async with comparing(local):
        app = local.app()
        await app.set("k", 1)
        await app.get("k")
        await row_of(local, "GET", "equal")
        source.set("k", 2)
        await app.get("k")
        await _one_cause(local, "k", "GET", Cause.PAST_GATEWAY)


async def test_keys_that_a_script_does_not_declare(local: LocalMigration) -> None:
    async with comparing(local):
        app = local.app()
        await app.set("k", 1)
        await app.get("k")
        await row_of(local, "GET", "equal")
        await app.eval("return redis.call('SET', 'k', 'by a script')", 0)
        await asyncio.sleep(1)  # the gateway reports its counters twice a second
        await app.get("k")
        await _one_cause(local, "k", "GET", Cause.UNDECLARED)


async def test_an_older_state_that_was_restored(local: LocalMigration) -> None:
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()

        async def written(value: bytes) -> bytes:
            await app.set("k", value)

            async def copied() -> bool:
                return target.get("k") == value

            await until(copied, within_s=5, otherwise="the write was not copied")
            return target.dump("k")

        older = await written(b"one")
        await written(b"two")
        # The copy may have been made before the journal told of the write: it is made again then.
        await row_of(local, "SET", "compared", 2)
        await quiet(local)
        target.restore("k", 0, older, replace=True)
        await app.get("k")
        await _one_cause(local, "k", "GET", Cause.STALE)


@pytest.mark.parametrize(
    ("side", "cause"),
    [(Side.TARGET, Cause.EVICTED), (Side.SOURCE, Cause.EVICTED_AUTHORITY)],
)
async def test_a_key_that_a_side_evicted(local: LocalMigration, side: Side, cause: Cause) -> None:
    box = local.servers[side].client()
    async with comparing(local):
        app = local.app()
        for number in range(50):
            await app.set(f"k{number}", "x" * 1_000)
        await app.get("k1")
        await row_of(local, "GET", "equal")
        box.config_set("maxmemory-policy", "allkeys-random")

        async def evicted() -> bool:
            # Buffers come and go: what is a limit now may be none in a moment.
            box.config_set("maxmemory", box.info("memory")["used_memory"] - 30_000)
            box.set("pressure", "x" * 100)
            return box.info("stats")["evicted_keys"] > 0 and len(box.keys("k*")) < 45

        await until(evicted, within_s=10, otherwise="nothing was evicted")
        box.config_set("maxmemory", 0)
        gone = next(f"k{n}" for n in range(50) if not box.exists(f"k{n}"))
        await app.get(gone)
        await _one_cause(local, gone, "GET", cause)


async def test_a_key_whose_expiry_was_lost_on_its_way(local: LocalMigration) -> None:
    """It expires on the authority alone."""
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        await app.set("k", "v", px=2_500)
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.persist("k")
        await asyncio.sleep(2.6)
        assert await app.get("k") is None
        await _one_cause(local, "k", "GET", Cause.EXPIRED)


async def test_a_difference_of_which_nothing_is_known(local: LocalMigration) -> None:
    """Of a large key no checksum is kept: nothing tells which side was written."""
    target = local.servers[Side.TARGET].client()
    local.servers[Side.SOURCE].client().rpush("k", *[b"x" * 100] * (2 * LARGE_KEY_BYTES // 100))
    async with comparing(local):
        app = local.app()
        await app.lindex("k", 7)
        await row_of(local, "LINDEX", "equal")
        await quiet(local)
        target.lset("k", 7, "other")
        await app.lindex("k", 7)
        row = await _one_cause(local, "k", "LINDEX", Cause.UNKNOWN)
        assert row["remedy"] == REMEDIES[Cause.UNKNOWN]


def _user(local: LocalMigration, folder: Path, *rights: str) -> None:
    secret = folder / "app"
    secret.write_text("app-secret")
    local.servers[Side.TARGET].client().execute_command(
        "ACL", "SETUSER", "shop", "reset", "on", ">app-secret", *rights
    )
    user = Credentials(username="shop", password_file=secret)
    local.plan = local.plan.model_copy(update={"compare_user": user, "compare_scripts": True})


async def test_a_right_that_is_missing_on_the_target(local: LocalMigration, tmp_path: Path) -> None:
    _user(local, tmp_path, "~*", "+@read", "+set", "+select", "+client|setname")
    async with comparing(local):
        app = local.app()
        await app.set("k", 1)
        await app.lpush("list", 1)
        row = await _one_cause(local, "list", "LPUSH", Cause.PERMISSION)
        assert row["kind"] == "the target refuses it"
        await row_of(local, "SET", "equal")


async def test_a_function_that_is_missing_on_the_target(
    modern: LocalMigration, tmp_path: Path
) -> None:
    source = modern.servers[Side.SOURCE].client()
    source.function_load(
        "#!lua name=lib\nredis.register_function{function_name='f', callback=function(keys) "
        "return redis.call('GET', keys[1]) end, flags={'no-writes'}}"
    )
    source.set("k", "v")
    _user(modern, tmp_path, "~*", "+@read", "+@scripting", "+select", "+client|setname")
    async with comparing(modern):
        await modern.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(modern)
        assert await modern.app().fcall_ro("f", 1, "k") == b"v"
        row = await _one_cause(modern, "k", "FCALL_RO", Cause.CONFIGURATION)
        assert "exodus carry" in row["remedy"]


async def test_a_script_whose_reply_is_never_the_same(
    modern: LocalMigration, tmp_path: Path
) -> None:
    modern.servers[Side.SOURCE].client().set("k", "v")
    _user(modern, tmp_path, "~*", "+@read", "+@scripting", "+time", "+select", "+client|setname")
    async with comparing(modern):
        await modern.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(modern)
        await modern.app().eval_ro("return redis.call('TIME')[2]", 1, "k")
        await _one_cause(modern, "k", "EVAL_RO", Cause.NON_DETERMINISTIC)


async def test_a_command_that_the_target_lacks(modern: LocalMigration, tmp_path: Path) -> None:
    """XDELEX is of Redis 8.2."""
    target = modern.servers[Side.TARGET].client()
    assert b"xdelex" not in target.command_list(), "this target has it"
    _user(modern, tmp_path, "~*", "+@all")
    async with comparing(modern):
        app = modern.app()
        await app.xadd("k", {"f": 1}, id="1-1")
        await app.execute_command("XDELEX", "k", "IDS", 1, "1-1")
        await _one_cause(modern, "k", "XDELEX", Cause.VERSION)


async def test_nothing_is_confirmed_without_a_defect(modern: LocalMigration) -> None:
    """Operations of every kind, with expiries, scripts and transactions, by two clients.

    FULL=1 takes a minute.
    """
    seconds = 60 if FULL else 20
    stop, made = asyncio.Event(), 0

    async def work(seed: int) -> int:
        app, chance, done = modern.app(), random.Random(seed), 0
        while not stop.is_set():
            key = str(chance.randrange(150))
            for step in chance.sample(_steps(key, chance), 4):
                try:
                    await step(app)
                except ResponseError as exc:
                    assert "WRONGTYPE" not in str(exc)
            done += 4
            await asyncio.sleep(0.004)
        return done

    written = ("INCRBYFLOAT", "SPOP", "ZADD", "HSET", "XADD", "RPUSH", "SADD")

    async def judged() -> bool:
        (beat,) = await heartbeats(modern.store, "comparer")
        return sum(beat.facts.rows.get(name, {}).get("by_reply", 0) > 0 for name in written) > 3

    async with comparing(modern):
        workers = [asyncio.create_task(work(seed)) for seed in (1, 2)]
        await asyncio.sleep(seconds)
        await until(judged, within_s=90, otherwise="few replies to writes were judged")
        stop.set()
        made = sum(await asyncio.gather(*workers))
        await quiet(modern)
        rows = await ledger(modern)
        (beat,) = await heartbeats(modern.store, "comparer")
    assert made > 500
    assert rows == [], [(r["key"], r["command"], r["kind"], r["cause"], r["detail"]) for r in rows][
        :8
    ]
    equal = sum(row.get("equal", 0) for row in beat.facts.rows.values())
    assert equal > 15 * seconds, beat.facts
    assert beat.facts.states_compared > 15 * seconds


def _steps(key: str, chance: random.Random) -> list[Callable[[Any], Any]]:
    number = chance.randrange(1_000)
    return [
        lambda app: app.set(f"s{key}", number),
        lambda app: app.get(f"s{key}"),
        lambda app: app.set(f"e{key}", number, px=chance.randrange(50, 3_000)),
        lambda app: app.get(f"e{key}"),
        lambda app: app.pttl(f"e{key}"),
        lambda app: app.hset(f"h{key}", f"f{number % 7}", number),
        lambda app: app.hgetall(f"h{key}"),
        lambda app: app.hdel(f"h{key}", f"f{number % 7}"),
        lambda app: app.rpush(f"l{key}", number),
        lambda app: app.lpop(f"l{key}"),
        lambda app: app.incrbyfloat(f"n{key}", number / 7),
        lambda app: app.spop(f"m{key}"),
        lambda app: app.execute_command("ZADD", f"z{key}", "INCR", number / 7, "m"),
        lambda app: app.set(f"s{key}", number, get=True),
        lambda app: app.zpopmin(f"z{key}"),
        lambda app: app.lrange(f"l{key}", 0, -1),
        lambda app: app.zadd(f"z{key}", {str(number % 9): number / 7}),
        lambda app: app.zrange(f"z{key}", 0, -1, withscores=True),
        lambda app: app.sadd(f"m{key}", number % 9),
        lambda app: app.smembers(f"m{key}"),
        lambda app: app.xadd(f"x{key}", {"f": number}, maxlen=20),
        lambda app: app.xrange(f"x{key}"),
        lambda app: app.mget(f"s{key}", f"e{key}"),
        lambda app: app.delete(f"s{key}"),
        lambda app: app.eval("return redis.call('INCR', KEYS[1])", 1, f"c{key}"),
        lambda app: app.get(f"c{key}"),
        lambda app: _transaction(app, key, number),
    ]


async def _transaction(app: Any, key: str, number: int) -> None:
    async with app.pipeline(transaction=True) as pipe:
        await pipe.set(f"s{key}", number).get(f"s{key}").execute()


_WRITES_PER_S = 5_000
_BATCH = 50  # writes of one pipeline


@pytest.mark.timeout(2_400 if FULL else 300)
async def test_nothing_is_confirmed_under_five_thousand_writes_a_second(
    modern: LocalMigration,
) -> None:
    """A twentieth of 20,000 keys, hot ones and cold ones, counters and draws. A minute of writes.

    FULL=1 takes ten minutes. The pace is a limit: a slow machine takes longer for as many writes.
    """
    seconds = 600 if FULL else 60
    loop = asyncio.get_running_loop()

    async def write(seed: int, writes: int, per_s: float) -> None:
        app, chance, began = modern.app(), random.Random(seed), loop.time()
        for done in range(0, writes, _BATCH):
            async with app.pipeline(transaction=False) as pipe:
                for _ in range(_BATCH):
                    # Half of the writes go to one key in a hundred.
                    key = chance.randrange(200 if chance.random() < 0.5 else 20_000)
                    _queue_write(pipe, key, chance)
                for _ in range(_BATCH // 10):
                    pipe.get(f"n{chance.randrange(20_000)}")
                await pipe.execute()
            await asyncio.sleep(max(0.0, began + done / per_s - loop.time()))

    async with comparing_apart(modern, rate=0.05):
        each = _WRITES_PER_S * seconds // 2
        await asyncio.gather(*[write(seed, each, _WRITES_PER_S / 2) for seed in (1, 2)])
        await quiet(modern)
        rows = await ledger(modern)
        (beat,) = await heartbeats(modern.store, "comparer")
    found = [(row["key"], row["command"], row["kind"], row["cause"]) for row in rows]
    assert found == []
    compared = sum(row.get("compared", 0) for row in beat.facts.rows.values())
    by_reply = sum(row.get("by_reply", 0) for row in beat.facts.rows.values())
    assert compared > 20 * seconds, beat.facts
    assert by_reply > seconds, beat.facts
    assert beat.facts.keys_judged > 500, beat.facts


def _queue_write(pipe: Any, key: int, chance: random.Random) -> None:
    kind, number = key % 6, chance.randrange(1_000)
    if kind == 0:
        pipe.incrby(f"n{key}", number)
    elif kind == 1:
        pipe.hincrbyfloat(f"h{key}", f"f{number % 5}", number / 7)
    elif kind == 2:
        pipe.execute_command("ZADD", f"z{key}", "INCR", number / 7, f"m{number % 5}")
    elif kind == 3:
        pipe.sadd(f"m{key}", number % 9)
        pipe.spop(f"m{key}")
    elif kind == 4:
        pipe.rpush(f"l{key}", number)
        pipe.ltrim(f"l{key}", -5, -1)
    else:
        pipe.set(f"s{key}", number, ex=3_600, get=True)
