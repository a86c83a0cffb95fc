"""Each rule on servers of both families, in both protocol versions: equal data is equal, and the
smallest difference is found.
"""

from __future__ import annotations

import pytest

from exodus.control.changes import Key
from exodus.control.registry import heartbeats
from exodus.net.leg import Leg, ReplyError
from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.shadow import rules as module
from exodus.shadow.exchange import Exchange
from exodus.shadow.rules import INFRASTRUCTURE, Rules, error_code
from exodus.shadow.verdicts import Judge
from tests.support.comparing import comparing, counted, ledger, quiet, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault
_FAR = 2_000_000_000_000

# Rule of their replies, how both keys are made, what makes the second differ, the request
CASES = [
    (ReplyRule.EXACT, ["SET k 1"], "SET k 2", "GET k"),
    (ReplyRule.EXACT, ["RPUSH k a b"], "LSET k 0 c", "LRANGE k 0 -1"),
    (ReplyRule.EXACT, ["XADD k 1-1 f v"], "XADD k 1-2 f v", "XRANGE k - +"),
    (ReplyRule.MULTISET, ["SADD k a b c d e"], "SADD k f", "SMEMBERS k"),
    (ReplyRule.MULTISET, ["HSET k a 1 b 1 c 2"], "HSET k c 1", "HVALS k"),
    (ReplyRule.MAP, ["HSET k a 1 b 2"], "HSET k a 2 b 1", "HGETALL k"),
    (ReplyRule.SCORED, ["ZADD k 443344.1234567 m 1 n"], "ZADD k 1.5 n", "ZRANGE k 0 -1 WITHSCORES"),
    (ReplyRule.TIES, ["ZADD k 1 a 1 b 2 c"], "ZADD k 3 a", "ZUNION 1 k WITHSCORES"),
    (
        ReplyRule.NUMERIC,
        ["ZADD k 443344.1234567 m"],
        "ZADD k 443344.123456701 m",
        "ZSCORE k m",
    ),
    (ReplyRule.NUMERIC, ["GEOADD k 13.361389 38.115556 m"], "GEOADD k 13.4 38.1 m", "GEOPOS k m"),
    (ReplyRule.APPROXIMATE, ["PFADD k a b c"], "PFADD k d e f g h", "PFCOUNT k"),
    (ReplyRule.EXPIRY, ["SET k v", f"PEXPIREAT k {_FAR}"], f"PEXPIREAT k {_FAR + 1000}", "PTTL k"),
    (ReplyRule.EXPIRY, ["SET k v", f"PEXPIREAT k {_FAR}"], "PERSIST k", "TTL k"),
    (
        ReplyRule.NUMERIC,
        ["ZADD k 443343.1234567 m"],
        "ZADD k 1.5 m",
        "ZADD k INCR 1 m",
    ),
    (ReplyRule.DRAWN, ["SADD k a b c d"], "DEL k", "SRANDMEMBER k"),
    (ReplyRule.DRAWN, ["SADD k a b c d"], "SREM k b c", "SRANDMEMBER k 3"),
    (ReplyRule.DRAWN, ["HSET k a 1 b 2 c 3"], "HDEL k a b", "HRANDFIELD k 2 WITHVALUES"),
    (ReplyRule.DRAWN, ["ZADD k 1 a 2 b 3 c"], "ZREM k a b", "ZRANDMEMBER k 2 WITHSCORES"),
    (ReplyRule.EXACT, ["RPUSH k a"], "DEL k", "GET k"),  # an error on one side only
]


async def _ask(leg: Leg, protocol: int, text: str) -> object:
    await leg.call("HELLO", protocol)
    leg.write(encode(*text.split()))
    await leg.drain()
    return (await leg.replies(1))[0]


@pytest.mark.parametrize("protocols", [(2, 2), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize(("rule", "made", "other", "request_"), CASES)
async def test_a_rule_tells_equal_data_from_other_data(
    local: LocalMigration,
    protocols: tuple[int, int],
    rule: ReplyRule,
    made: list[str],
    other: str,
    request_: str,
) -> None:
    rules, args = Rules(), [word.encode() for word in request_.split()]
    assert rules.of(args[0], args).rule is rule
    one, two = [
        await Leg.connect(local.servers[side].address(), side, name="test") for side in Side
    ]
    async with one, two:
        for leg in (one, two):
            for command in made:
                await leg.call(*command.split())
        here = await _ask(one, protocols[0], request_)
        there = await _ask(two, protocols[1], request_)
        assert rules.equivalent(args[0], here, there, args), (here, there)
        await two.call(*other.split())
        there = await _ask(two, protocols[1], request_)
        assert not rules.equivalent(args[0], here, there, args), (here, there)


async def test_geo_searches_have_no_order_unless_they_ask_for_one(local: LocalMigration) -> None:
    rules = Rules()
    plain = b"GEOSEARCH k FROMLONLAT 15 37 BYRADIUS 200 km".split()
    assert rules.of(plain[0], plain).rule is ReplyRule.MULTISET
    asked = [*plain, b"ASC", b"WITHDIST"]
    found = []
    for side in Side:
        client = local.servers[side].client()
        client.geoadd("k", (13.361389, 38.115556, "a"))
        client.geoadd("k", (15.087269, 37.502669, "b"))
        found.append([client.execute_command(*each) for each in (plain, asked)])
    assert rules.equivalent(plain[0], list(reversed(found[0][0])), found[1][0], plain)
    assert rules.equivalent(asked[0], found[0][1], found[1][1], asked)
    assert not rules.equivalent(asked[0], list(reversed(found[0][1])), found[1][1], asked)


_IDS = b"123456789012", b"123456789013", b"10", b"1e1"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(("one", "other"), [_IDS[:2], _IDS[2:]])
async def test_members_that_look_like_numbers_are_none(
    modern: LocalMigration, protocol: int, one: bytes, other: bytes
) -> None:
    """Users' numbers, a share of 1e-11 apart: a tolerance of numbers took them for equal."""
    rules = Rules()
    geo = b"GEOSEARCH k FROMLONLAT 15 37 BYRADIUS 200 km ASC".split()
    requests = [
        geo,
        [*geo, b"WITHDIST", b"WITHCOORD", b"WITHHASH"],
        b"ZMPOP 1 z MIN COUNT 1".split(),
        b"ZMPOP 1 z MIN COUNT 1".split(),
    ]
    found = []
    for side, theirs in ((Side.SOURCE, one), (Side.TARGET, one), (Side.TARGET, other)):
        async with await Leg.connect(modern.servers[side].address(), side, name="test") as leg:
            await leg.call("HELLO", protocol)
            await leg.call("FLUSHALL")
            await leg.call("GEOADD", "k", "13.361389", "38.115556", theirs)
            await leg.call("ZADD", "z", "1.1234567", theirs, "1.1234568", theirs + b"b", 2, "n")
            found.append(await leg.pipeline(requests))
    assert found[0][2] != found[2][2]
    for request, here, same, different in zip(requests, *found, strict=True):
        assert rules.of(request[0], request).rule is ReplyRule.MEMBERS
        assert rules.equivalent(request[0], here, same, request), request
        assert not rules.equivalent(request[0], here, different, request), request


async def test_only_the_code_of_an_error_counts_where_a_rule_says_so(
    local: LocalMigration,
) -> None:
    """Two servers word a refusal differently. Any reply without an error is a success."""
    rules = Rules([CompareRule(commands=("LPOS",), rule=ReplyRule.ERROR_CODE)])
    replies = []
    for side in Side:
        async with await Leg.connect(local.servers[side].address(), side, name="test") as leg:
            await leg.call("SET", "text", "x")
            await leg.call("RPUSH", "list", *(["a"] if side is Side.SOURCE else ["b", "a"]))
            replies.append(await leg.pipeline([("LPOS", "text", "a"), ("LPOS", "list", "a")]))
    (wrong, found), (wrong_there, found_there) = replies
    assert found != found_there
    assert rules.equivalent(b"LPOS", found, found_there, [b"LPOS", b"list"])
    assert rules.equivalent(b"LPOS", wrong, wrong_there, [b"LPOS", b"text"])
    assert not rules.equivalent(b"LPOS", wrong, found_there, [b"LPOS", b"text"])


async def test_a_server_s_own_trouble_is_no_data(local: LocalMigration) -> None:
    target = local.servers[Side.TARGET].client()
    target.config_set("maxmemory", 1)
    target.config_set("maxmemory-policy", "noeviction")
    address = local.servers[Side.TARGET].address()
    async with await Leg.connect(address, Side.TARGET, name="test") as leg:
        (full,) = await leg.pipeline([("SET", "k", "v")])
        target.config_set("maxmemory", 0)
        target.replicaof("127.0.0.1", 1)
        (replica,) = await leg.pipeline([("SET", "k", "v")])
        target.replicaof("NO", "ONE")
    assert [error_code(full), error_code(replica)] == ["OOM", "READONLY"]
    assert {"OOM", "READONLY", "LOADING", "BUSY", "MOVED", "CLUSTERDOWN"} <= INFRASTRUCTURE


async def test_compare_counts_a_server_s_own_trouble_and_confirms_nothing(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = ["LOADING", "BUSY", "OOM", "READONLY", "MOVED", "CLUSTERDOWN"]
    left = [ReplyError(f"{code} not now") for code in trouble]
    ask = Judge._ask_follower

    async def in_trouble(self: Judge, exchange: Exchange, keys: list[Key]) -> object:
        return left.pop() if exchange.command == b"STRLEN" else await ask(self, exchange, keys)

    monkeypatch.setattr(Judge, "_ask_follower", in_trouble)
    async with comparing(local):
        app = local.app()
        await app.set("k", "v")
        for _ in trouble:
            await app.strlen("k")
        await row_of(local, "STRLEN", "infrastructure", len(trouble))
        await quiet(local)
        assert await counted(local, "STRLEN") == {"infrastructure": len(trouble)}
        assert await ledger(local) == []


async def test_rules_of_the_migration_judge_what_compare_tries(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on two keys: one within the rule, one beyond it. What a rule leaves out is not asked."""
    monkeypatch.setattr(module, "_function", lambda _: _same_letters)
    rules = [
        CompareRule(commands=("GET",), pattern="free:*", rule=ReplyRule.NEVER),
        CompareRule(commands=("GET",), pattern="price:*", rule=ReplyRule.NUMERIC, relative=1e-3),
        CompareRule(commands=("GET",), pattern="word:*", rule=ReplyRule.PYTHON, function="theirs"),
    ]
    local.plan = local.plan.model_copy(update={"compare_rules": tuple(rules)})
    there = {
        "free:1": ("a", "b"),
        "price:1": ("100.0", "100.01"),
        "price:2": ("100.0", "101.0"),
        "word:1": ("Yes", "YES"),
        "word:2": ("Yes", "no"),
        "other": ("100.0", "100.01"),
    }
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        for key, (value, _) in there.items():
            await app.set(key, value)
            await app.get(key)
        await row_of(local, "GET", "equal", 5)
        await quiet(local)
        for key, (_, other) in there.items():
            target.set(key, other)
        for key in there:
            await app.get(key)
        await row_of(local, "GET", "divergences", 3)
        await row_of(local, "GET", "equal", 7)
        assert (await counted(local, "GET"))["not_comparable"] == 2
        rows = {row["key"]: row["detail"] for row in await ledger(local) if row["command"] == "GET"}
        assert rows.keys() == {"price:2", "word:2", "other"}
        assert "rule: numeric tolerance" in rows["price:2"]
        assert "rule: python (theirs)" in rows["word:2"]


def _same_letters(request: object, here: object, there: object) -> bool:
    del request
    assert isinstance(here, bytes)
    assert isinstance(there, bytes)
    return here.lower() == there.lower()


async def test_a_function_that_raises_is_named_and_ends_nothing(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_function", lambda _: lambda *_: {}["missing"])
    rule = CompareRule(commands=("GET",), rule=ReplyRule.PYTHON, function="theirs")
    local.plan = local.plan.model_copy(update={"compare_rules": (rule,)})
    async with comparing(local):
        app = local.app()
        await app.set("k", 1)
        await app.strlen("k")
        await row_of(local, "STRLEN", "equal")
        await quiet(local)
        await app.get("k")

        async def named() -> bool:
            return any("raised KeyError: 'missing'" in row["detail"] for row in await ledger(local))

        await until(named, within_s=15, otherwise="nobody is told that the function raises")
        (beat,) = await heartbeats(local.store, "comparer")
        assert (beat.why, beat.facts.task_failures) == ("", 0)
