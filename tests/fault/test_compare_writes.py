"""Replies to writes are compared on the state that each write found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exodus.control import registry
from exodus.control.changes import pack
from exodus.control.registry import heartbeats
from exodus.net.client import answered
from exodus.plan.address import Credentials
from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.plan.vocabulary import Side
from exodus.shadow import histories
from exodus.shadow.causes import Cause
from exodus.shadow.findings import findings
from exodus.shadow.write_replies import LIVE_SYNC, OTHER_STATE, SILENT
from exodus.stack.servers import ServerKind
from tests.support.comparing import comparer_follows, comparing, counted, ledger, row_of
from tests.support.local_migration import LocalMigration, between
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

# The command that makes the key, and the write whose reply is compared
WRITES = [
    ("SET {k} 10", "INCR {k}"),
    ("SET {k} 10", "DECRBY {k} 3"),
    ("SET {k} 1.1", "INCRBYFLOAT {k} 2.2"),
    ("SET {k} old", "GETSET {k} new"),
    ("SET {k} old", "SET {k} new GET"),
    ("SET {k} old", "SET {k} new EX 1000"),
    ("SET {k} v", "GETDEL {k}"),
    ("SET {k} abc", "APPEND {k} def"),
    ("SET {k} v EX 1000", "PERSIST {k}"),
    ("SET {k} v", "EXPIRE {k} 1000"),
    ("SET {k} v", "UNLINK {k}"),
    ("HSET {k} f 1.5", "HINCRBYFLOAT {k} f 443344.1234567"),
    ("HSET {k} f 1", "HSET {k} f 2 g 3"),
    ("RPUSH {k} a b c", "LPOP {k}"),
    ("RPUSH {k} a b c", "RPOP {k} 2"),
    ("RPUSH {k} a b", "LPUSH {k} c"),
    ("SADD {k} a b c d e", "SPOP {k}"),
    ("SADD {k} a b c d e", "SPOP {k} 3"),
    ("SADD {k} a b", "SADD {k} b c"),
    ("ZADD {k} 1 a 2 b", "ZADD {k} INCR 443344.1234567 a"),
    ("ZADD {k} 1 a 2 b", "ZPOPMIN {k}"),
    ("ZADD {k} 443344.1234567 a 2 b", "ZPOPMAX {k}"),
    ("XADD {k} 1-1 f v", "XADD {k} * f w"),
    ("XADD {k} 1-1 f v", "XADD {k} MAXLEN 1 * f w"),
    ("PFADD {k} a", "PFADD {k} b"),
]


async def _settled(local: LocalMigration, count: int) -> None:
    """Wait until so many exchanges have an outcome, and their keys are not written any more."""

    async def settled() -> bool:
        (beat,) = await heartbeats(local.store, "comparer")
        told = sum(row.get("by_error", 0) + row.get("by_reply", 0) for row in _rows(beat))
        return told >= count and not beat.facts.keys_unsettled

    await until(settled, within_s=20, otherwise="some writes have no outcome")


def _rows(beat: Any) -> list[dict[str, int]]:
    return list(beat.facts.rows.values())


async def _send(app: Any, text: str, key: str) -> Any:
    return await app.execute_command(*text.replace("{k}", key).split())


async def _reasons(local: LocalMigration, command: str) -> dict[str, int]:
    (beat,) = await heartbeats(local.store, "comparer")
    return beat.facts.by_error.get(command, {})


async def _total(local: LocalMigration, outcome: str) -> int:
    (beat,) = await heartbeats(local.store, "comparer")
    return sum(row.get(outcome, 0) for row in beat.facts.rows.values())


async def test_replies_to_writes_are_compared_by_their_rules(local: LocalMigration) -> None:
    """Counters, pops, scores, SET … GET, draws, and ids that the server makes."""
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        for number, (made, _) in enumerate(WRITES):
            await _send(app, made, f"w{number}")
        await _settled(local, len(WRITES))
        before = await _total(local, "by_reply")
        for number, (_, write) in enumerate(WRITES):
            await _send(app, write, f"w{number}")

        async def judged() -> bool:
            return await _total(local, "by_reply") >= before + len(WRITES)

        try:
            await until(judged, within_s=15, otherwise="not every reply was compared")
        except AssertionError as exc:
            (beat,) = await heartbeats(local.store, "comparer")
            raise AssertionError(beat.facts.by_error, beat.facts.not_tried) from exc
        assert await ledger(local) == []
        assert target.info("keyspace").keys() == {"db0"}  # no scratch copy is left


async def test_a_transaction_that_writes_is_compared_command_by_command(
    local: LocalMigration,
) -> None:
    async with comparing(local):
        app = local.app()
        await app.mset({"a": 1, "b": 2})
        await app.sadd("s", *range(5))
        await _settled(local, 2)
        async with app.pipeline(transaction=True) as pipe:
            found = await pipe.incr("a").get("b").spop("s").incr("a").execute()
        assert (found[0], found[1], found[3]) == (2, b"2", 3)
        await row_of(local, "MULTI", "by_reply")
        assert await ledger(local) == []


async def test_a_reply_that_only_the_target_gives_is_confirmed(local: LocalMigration) -> None:
    """Redis 6.2 prints a score with 17 digits where Valkey 9.1 prints the shortest form. A rule of
    the migration says that this counts.
    """
    rule = CompareRule(commands=("ZADD",), rule=ReplyRule.EXACT)
    local.plan = local.plan.model_copy(update={"compare_rules": (rule,)})
    async with comparing(local):
        app = local.app()
        await app.zadd("z", {"a": 1, "b": 2})
        await _settled(local, 1)
        await _send(app, "ZADD {k} INCR 443343.1234567 a", "z")
        await row_of(local, "ZADD", "divergences")
        (row,) = await ledger(local)
        assert (row["key"], row["command"], row["kind"]) == ("z", "ZADD", "replies differ")
        assert (row["cause"], row["state"]) == (Cause.PRECISION, "confirmed")
        # That the target takes the next one does not heal it
        await _send(app, "ZADD {k} INCR 1 b", "z")
        await row_of(local, "ZADD", "equal", 3)
        (row,) = await ledger(local)
        assert row["state"] == "confirmed"


async def test_a_key_that_is_written_all_the_time_proves_nothing(local: LocalMigration) -> None:
    """Several clients write it at once, each reported in its own order: no reply can be placed."""
    rule = CompareRule(commands=("ZADD",), rule=ReplyRule.EXACT)
    local.plan = local.plan.model_copy(update={"compare_rules": (rule,)})
    async with comparing(local):
        apps = [local.app() for _ in range(4)]
        await apps[0].zadd("z", {"a": 1})
        await _settled(local, 1)
        for _ in range(5):
            await asyncio.gather(
                *[_send(app, "ZADD {k} INCR 443343.1234567 a", "z") for app in apps]
            )

        async def told() -> bool:
            return sum((await _reasons(local, "ZADD")).values()) >= 20

        await until(told, within_s=15, otherwise="some writes have no outcome")
        assert (await counted(local, "ZADD")).get("divergences", 0) == 0
        assert await ledger(local) == []


async def test_a_write_that_nobody_told_of_is_taken_for_no_divergence(
    local: LocalMigration,
) -> None:
    """A blocked pop is not sampled, so the state looks as if only the push had run."""
    async with comparing(local):
        app, other = local.app(), local.app()
        await app.rpush("list", "a")
        await _settled(local, 1)
        popped = asyncio.create_task(other.blpop("list", 5))
        await popped
        assert await app.rpush("list", "a") == 1

        async def told() -> bool:
            return sum((await _reasons(local, "RPUSH")).values()) == 2

        await until(told, within_s=15, otherwise="the push has no outcome")
        assert await _reasons(local, "RPUSH") == {histories.UNSETTLED: 1, histories.UNSEEN: 1}
        assert await ledger(local) == []


async def test_a_write_past_the_gateway_is_taken_for_no_reply_of_the_target(
    local: LocalMigration,
) -> None:
    source = local.servers[Side.SOURCE].client()
    async with comparing(local):
        app = local.app()
        await app.set("counter", 10)
        await _settled(local, 1)
        source.incrby("counter", 5)
        assert await app.incr("counter") == 16

        async def told() -> bool:
            return bool(await _reasons(local, "INCRBY"))

        await until(told, within_s=15, otherwise="the write has no outcome")
        assert await _reasons(local, "INCRBY") == {"run again, it led to another state": 1}
        assert (await counted(local, "INCRBY")).get("divergences", 0) == 0


async def test_a_reply_of_another_command_with_the_same_effect_is_confirmed(
    redis62: DatabaseServer,
    control_server: DatabaseServer,
    make_server: Callable[..., DatabaseServer],
    tmp_path: Path,
) -> None:
    """On this target GETDEL is what DEL is elsewhere, and LPOP takes from the right."""
    renamed = {"GETDEL": "gone", "DEL": "GETDEL", "LPOP": "gone2", "RPOP": "LPOP"}
    lines = "\nrename-command ".join(f"{name} {to}" for name, to in renamed.items())
    target = make_server(ServerKind.VALKEY_91, rename_command=lines)
    async with between(redis62, target, control_server, tmp_path) as local, comparing(local):
        app = local.app()
        for number in range(4):
            await app.rpush(f"list{number}", "a", "b", "c")
        await app.set("k", "v")
        await _settled(local, 5)
        assert await app.getdel("k") == b"v"
        for number in range(4):
            assert await app.lpop(f"list{number}") == b"a"
        await row_of(local, "GETDEL", "divergences")
        (row,) = await ledger(local)
        assert (row["key"], row["command"], row["cause"]) == ("k", "GETDEL", Cause.VERSION)

        async def told() -> bool:
            return (await _reasons(local, "LPOP")).get(OTHER_STATE) == 4

        await until(told, within_s=15, otherwise="the effect of LPOP was not told")
        (finding,) = findings([await _lpop(local)], [], {"LPOP": 4})
        assert finding["name"] == "LPOP effect"


async def _lpop(local: LocalMigration) -> dict[str, Any]:
    return {"command": "LPOP", **await counted(local, "LPOP")}


async def test_nothing_is_confirmed_while_a_gateway_is_silent(local: LocalMigration) -> None:
    """It may hold reports of the key's writes."""
    rule = CompareRule(commands=("ZADD",), rule=ReplyRule.EXACT)
    local.plan = local.plan.model_copy(update={"compare_rules": (rule,)})
    async with comparing(local):
        (beat,) = await heartbeats(local.store, "gateway")
        await registry.beat(local.store, beat.model_copy(update={"process": "gw-silent"}))
        app = local.app()
        await app.zadd("z", {"a": 1, "b": 2})
        await _settled(local, 1)
        await _send(app, "ZADD {k} INCR 443343.1234567 a", "z")

        async def told() -> bool:
            return SILENT in await _reasons(local, "ZADD")

        await until(told, within_s=20, otherwise="the write has no outcome")
        assert await ledger(local) == []


async def test_with_live_sync_on_replies_to_writes_are_not_compared(
    local: LocalMigration,
) -> None:
    await local.syncer()
    async with comparing(local):
        await local.start_live_sync()
        app = local.app()
        await app.set("k", 1)
        await row_of(local, "SET", "by_error")
        assert await _reasons(local, "SET") == {LIVE_SYNC: 1}


async def test_what_is_in_the_unused_database_is_left_alone(local: LocalMigration) -> None:
    """Another client begins to use it while Compare runs. Compare then stops trying writes
    there.
    """
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        await app.set("k", 1)
        await row_of(local, "SET", "equal")
        theirs = local.servers[Side.TARGET].client(db=15)
        theirs.set("k", "theirs")
        await app.incr("k")
        await row_of(local, "INCRBY", "not_tried")
        (beat,) = await heartbeats(local.store, "comparer")
        assert beat.facts.why_not_tried["INCRBY"] == {"the target's unused database is in use": 1}
        assert theirs.get("k") == b"theirs"
        assert target.info("keyspace").keys() == {"db0", "db15"}


async def test_scratch_copies_that_a_killed_comparer_left_are_removed(
    local: LocalMigration,
) -> None:
    left = local.servers[Side.TARGET].client(db=15)
    await answered(local.store.client.sadd(local.store.keys.scratch, pack([(15, b"left")])))
    left.set("left", "of a trial")
    async with comparing(local):
        await local.app().set("k", 1)
        await row_of(local, "SET", "compared")
        assert not left.exists("left")


_USER = ("~*", "+@read", "+@write", "+@scripting", "+client|setname")
_LEAVES = ("-select", "-swapdb", "-flushall", "-move", "-copy", "-migrate")


def _user(local: LocalMigration, folder: Path, *rights: str) -> None:
    secret = folder / "app"
    secret.write_text("app-secret")
    local.servers[Side.TARGET].client().execute_command(
        "ACL", "SETUSER", "shop", "reset", "on", ">app-secret", *rights
    )
    user = Credentials(username="shop", password_file=secret)
    local.plan = local.plan.model_copy(update={"compare_user": user, "compare_scripts": True})


_LIBRARY = (
    "#!lua name=lib\nredis.register_function('counts', function(keys, args) "
    "return redis.call('INCRBY', keys[1], args[1]) end)"
)
_COUNTS = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
_TELLS_VERSION = "redis.call('INCR', KEYS[1]) return redis.REDIS_VERSION"
_READS_ANOTHER = "redis.call('INCR', KEYS[1]) return redis.call('GET', 'undeclared')"
_WRITES_ANOTHER = "redis.call('INCR', KEYS[1]) return redis.call('INCR', 'stray')"
_LEAVES_IT = "redis.call('SELECT', 0) return redis.call('SET', KEYS[1], 'harm')"


async def test_scripts_that_write_are_tried_on_scratch_copies(
    modern: LocalMigration, tmp_path: Path
) -> None:
    target = modern.servers[Side.TARGET].client()
    _user(modern, tmp_path, *_USER, *_LEAVES)
    async with comparing(modern):
        await modern.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(modern)
        app = modern.app()
        for key in ("same", "version", "reads", "writes", "called", "lacks"):
            await app.set(key, 1)
        await app.mset({"undeclared": "v", "stray": 1})
        await _settled(modern, 7)
        assert await app.eval(_COUNTS, 1, "same", 4) == 5
        await row_of(modern, "EVAL", "by_reply")
        assert await ledger(modern) == []
        for side in Side:
            modern.servers[side].client().function_load(_LIBRARY)
        assert await app.fcall("counts", 1, "called", 4) == 5
        await row_of(modern, "FCALL", "by_reply")
        assert await ledger(modern) == []
        target.function_flush()
        await app.fcall("counts", 1, "lacks", 4)
        await row_of(modern, "FCALL", "divergences")
        (row,) = await ledger(modern)
        assert (row["key"], row["cause"]) == ("lacks", Cause.CONFIGURATION)
        await app.eval(_READS_ANOTHER, 1, "reads")
        await app.eval(_WRITES_ANOTHER, 1, "writes")

        async def told() -> bool:
            return sum((await _reasons(modern, "EVAL")).values()) == 2

        await until(told, within_s=15, otherwise="a script has no outcome")
        assert await _reasons(modern, "EVAL") == {
            "the script may use keys that it does not declare": 2
        }
        await app.eval(_TELLS_VERSION, 1, "version")
        await row_of(modern, "EVAL", "divergences")
        (row,) = [row for row in await ledger(modern) if row["command"] == "EVAL"]
        assert (row["key"], row["cause"]) == ("version", Cause.VERSION)
        assert target.info("keyspace").keys() == {"db0"}


async def test_a_script_cannot_leave_its_scratch_copies(
    modern: LocalMigration, tmp_path: Path
) -> None:
    target = modern.servers[Side.TARGET].client()
    _user(modern, tmp_path, *_USER, *_LEAVES)
    async with comparing(modern):
        await modern.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(modern)
        app = modern.app()
        await app.set("k", "safe")
        await app.get("k")
        await row_of(modern, "GET", "equal")
        await app.eval(_LEAVES_IT, 1, "k")
        await row_of(modern, "EVAL", "inconclusive")
        (beat,) = await heartbeats(modern.store, "comparer")
        assert beat.facts.inconclusive == {"the script would leave its scratch copies": 1}

        async def copied() -> bool:
            return target.get("k") == b"harm"  # by the copy alone: the source ran the script

        await until(copied, within_s=5, otherwise="the script's write was not copied")
        assert await ledger(modern) == []


@pytest.mark.parametrize("right", ["+select", "+copy"])
async def test_no_script_that_writes_is_tried_as_a_user_that_could_leave_them(
    modern: LocalMigration, tmp_path: Path, right: str
) -> None:
    target = modern.servers[Side.TARGET].client()
    _user(modern, tmp_path, *_USER, *_LEAVES, right)
    async with comparing(modern):
        await modern.change(shadow_salt=9, shadow_scripts=True)
        await comparer_follows(modern)
        await modern.app().eval(_COUNTS, 1, "counter", 4)
        await row_of(modern, "EVAL", "not_tried")
        (beat,) = await heartbeats(modern.store, "comparer")
        name = right[1:].upper()
        assert beat.facts.why_not_tried["EVAL"] == {
            f"compare_user may run {name}: a script could leave its copies": 1
        }
        assert "cmdstat_incrby" not in target.info("commandstats")
