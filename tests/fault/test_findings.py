"""A catalogue of defects for Pre-test and Analyze: each becomes the right check at the right level.

Without a defect nothing is found. Each defect is planted on real servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import redis.asyncio

from exodus.plan.vocabulary import Phase, Side
from exodus.stack.servers import ServerKind
from tasks import (
    advice,
    beside,
    capacity,
    clients,
    compatibility,
    predictions,
    probe,
    profile,
    shapes,
    sizing,
    trials,
)
from tasks.advice import judge_provider, recommend
from tasks.beside import judge_beside
from tasks.checks import Level, failing, open_findings
from tasks.compatibility import judge_workload
from tasks.context import Json, Opened
from tasks.proofs import judge_copy, judge_mix
from tasks.shapes import judge_scripts, judge_shapes
from tasks.sizing import judge_size
from tests.fault.test_pretest import opened, recorded, shopping, watched
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

MUST, SHOULD, INFO = Level.MUST, Level.SHOULD, Level.INFO
BESIDE = "users, settings and code that applications need are on the target"
SAME = "users, settings and code of both sides are the same"
_USER = ("ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all")
_NEWER_LIBRARY = (
    "#!lua name=newer\nif redis.REDIS_VERSION_NUM < 524288 then redis.older() end\n"
    "redis.register_function('newer', function() return 1 end)"
)
_LIBRARY = "#!lua name=shop\nredis.register_function('price', function(keys) return 1 end)"
_BUSY_KEYS = 3_000


class Defect(NamedTuple):
    """A defect of one side, and the check that must find it."""

    name: str
    check: str
    level: Level
    says: str  # a word of the check's detail
    source: tuple[tuple[object, ...], ...] = ()  # commands on the source
    target: tuple[tuple[object, ...], ...] = ()  # commands on the target
    asked: tuple[tuple[object, ...], ...] = ()  # of an application, through the gateway
    kinds: tuple[ServerKind, ServerKind] = (ServerKind.REDIS_62, ServerKind.VALKEY_91)
    config: tuple[tuple[str, str], ...] = ()  # of the target's start
    plan: tuple[tuple[str, object], ...] = ()


_NEW, _OLD = ServerKind.REDIS_82, ServerKind.REDIS_62


def _keys(count: int) -> tuple[object, ...]:
    script = f"for n=1,{count} do redis.call('SET','k'..n,string.rep('x',1000)) end"
    return ("EVAL", script, 0)


_KEYS = _keys(_BUSY_KEYS)
CATALOGUE = [
    Defect("user missing", BESIDE, SHOULD, "user shop", source=(_USER,)),
    Defect(
        "user off",
        BESIDE,
        SHOULD,
        "user shop",
        source=(_USER,),
        target=((*_USER, "off"),),
    ),
    Defect(
        "another password",
        BESIDE,
        SHOULD,
        "user shop",
        source=(_USER,),
        target=((*_USER, "resetpass", ">other"),),
    ),
    Defect(
        "narrower rights",
        SAME,
        INFO,
        "user shop",
        source=(_USER,),
        target=((*_USER, "-set"),),
    ),
    Defect(
        "observed command not allowed",
        "rights of user shop",
        SHOULD,
        "not allowed there: SET",
        source=(_USER,),
        target=((*_USER, "-set"),),
    ),
    Defect(
        "notifications off",
        BESIDE,
        SHOULD,
        "notify-keyspace-events",
        source=(("CONFIG", "SET", "notify-keyspace-events", "KEA"),),
    ),
    Defect(
        "smaller largest value",
        BESIDE,
        SHOULD,
        "proto-max-bulk-len",
        target=(("CONFIG", "SET", "proto-max-bulk-len", 2_000_000),),
    ),
    Defect(
        "shorter time limit",
        SAME,
        INFO,
        "timeout",
        target=(("CONFIG", "SET", "timeout", 600),),
    ),
    Defect("fewer databases", "databases", SHOULD, "the target 4", config=(("databases", "4"),)),
    Defect(
        "a used database missing",
        "databases",
        MUST,
        "database 9",
        source=(("SELECT", 9), ("SET", "k", 1)),
        config=(("databases", "4"),),
    ),
    Defect(
        "older target",
        "payloads",
        SHOULD,
        "does not fit",
        kinds=(_NEW, _OLD),
    ),
    Defect(
        "expiry of fields unknown",
        "payloads",
        MUST,
        "hash field TTLs",
        source=(("HSET", "h", "f", 1), ("HPEXPIRE", "h", 9_999_999, "FIELDS", 1, "f")),
        kinds=(_NEW, _OLD),
    ),
    Defect(
        "command missing",
        "the target has every observed command",
        MUST,
        "SINTERCARD",
        asked=(("SINTERCARD", 1, "s"),),
        kinds=(_NEW, _OLD),
    ),
    Defect(
        "module missing",
        BESIDE,
        SHOULD,
        "module vectorset",
        source=(("VADD", "v", "VALUES", 1, 1, "e"), ("DEL", "v")),
        kinds=(_NEW, ServerKind.VALKEY_91),
    ),
    Defect(
        "library missing",
        BESIDE,
        SHOULD,
        "function library shop",
        source=(("FUNCTION", "LOAD", _LIBRARY),),
        kinds=(ServerKind.VALKEY_81, ServerKind.VALKEY_91),
    ),
    Defect(
        "library that the target refuses",
        "function libraries",
        SHOULD,
        "newer",
        source=(("FUNCTION", "LOAD", _NEWER_LIBRARY),),
        kinds=(_NEW, ServerKind.VALKEY_91),
    ),
    Defect(
        "maxmemory below the use",
        "memory",
        MUST,
        "maxmemory",
        source=(_KEYS,),
        target=(("CONFIG", "SET", "maxmemory", "3mb"),),
    ),
    Defect(
        "maxmemory without a reserve",
        "the target has room for the copy and a reserve",
        SHOULD,
        "maxmemory of the target",
        # 22 MB of data, and some of buffers: room for the source as it is, and no reserve
        source=(_keys(20_000),),
        target=(("CONFIG", "SET", "maxmemory", "26000000"),),
    ),
    Defect(
        "target evicts",
        "eviction",
        SHOULD,
        "allkeys-lru",
        target=(("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),),
    ),
    Defect(
        "source evicts",
        "eviction on the source",
        SHOULD,
        "volatile-lru",
        source=(
            ("CONFIG", "SET", "maxmemory", "500mb"),
            ("CONFIG", "SET", "maxmemory-policy", "volatile-lru"),
        ),
        plan=(("feed", "gateway"),),
    ),
    Defect(
        "target has keys of others",
        "empty target",
        MUST,
        "holds 1 keys",
        target=(("SET", "foreign", 1),),
    ),
    Defect(
        "right missing",
        "rights on the target",
        MUST,
        "SADD",
        target=(("ACL", "SETUSER", "exodus", "-sadd"),),
    ),
    Defect(
        "right that only slows",
        "rights on the source",
        SHOULD,
        "DUMP",
        source=(("ACL", "SETUSER", "exodus", "-dump"),),
    ),
    Defect(
        "target full of clients",
        "the target takes the connections",
        SHOULD,
        "maxclients",
        target=(("CONFIG", "SET", "maxclients", 20),),
    ),
    Defect(
        "rule of no command",
        "compare_rules",
        SHOULD,
        "no command GTE",
        plan=(("compare_rules", [{"commands": ["GTE", "GET"], "rule": "never"}]),),
    ),
    Defect(
        "source is a replica",
        "role of the source",
        SHOULD,
        "replica of 127.0.0.1:1",
        source=(("CONFIG", "SET", "replica-read-only", "no"), ("REPLICAOF", "127.0.0.1", 1)),
    ),
    Defect(
        "target is a replica",
        "role of the target",
        MUST,
        "replica of 127.0.0.1:1",
        target=(("REPLICAOF", "127.0.0.1", 1),),
    ),
]


@contextlib.asynccontextmanager
async def _applications(
    local: LocalMigration, asked: tuple[tuple[object, ...], ...]
) -> AsyncIterator[None]:
    """Twenty clients through a gateway."""
    await local.gateway()
    stop = asyncio.Event()
    apps = [local.app(client_name="shop") for _ in range(20)]

    async def work(app: redis.asyncio.Redis) -> None:
        while not stop.is_set():
            await app.set("order", "x", ex=60)
            await app.get("order")
            for words in asked:
                with contextlib.suppress(redis.ResponseError):
                    await app.execute_command(*words)
            await asyncio.sleep(0.02)

    async def reported() -> bool:
        found = await profile.snapshots(Opened(local.plan, local.store, local.plan))
        return any(each["connections"] == 20 and each["requests"] > 80 for each in found.values())

    tasks = [asyncio.create_task(work(app)) for app in apps]
    try:
        await until(reported, within_s=20, otherwise="the gateway did not tell its counters")
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def _task(task: object) -> Callable[..., Awaitable[list[Json]]]:
    return inspect.unwrap(task.fn)  # type: ignore[attr-defined]


async def analysed(local: LocalMigration) -> list[Json]:
    """Do what the flow of Analyze does, without Prefect; return its checks."""
    it = Opened(local.plan, local.store, local.plan)
    sides = await _task(probe.check_sides)(it)
    if failing(sides):
        return sides
    workload: Json = await _task(profile.learn_workload)(it, 1.0)  # type: ignore[assignment]
    direct = await _task(clients.direct_clients)(it)
    commands = await _task(compatibility.check_commands)(it, workload["commands"])
    risks = await _task(advice.find_provider_risks)(it, workload["commands"])
    found = await _task(beside.find_beside)(it, Phase.ANALYZE)
    tried = await _task(shapes.prove_shapes)(it, workload["commands"])
    scripts: Json = await _task(shapes.try_scripts)(it)  # type: ignore[assignment]
    size: Json = await _task(sizing.measure_size)(it, workload)  # type: ignore[assignment]
    checks = [
        *sides,
        *judge_workload(workload, commands, direct),
        *judge_provider(risks),
        *judge_beside(found),
        *await _task(capacity.check_rights)(it),
        *await _task(capacity.try_libraries)(it),
        *judge_shapes(tried),
        *judge_scripts(scripts),
        *judge_size(size),
    ]
    facts: Json = await _task(probe.describe_sides)(it)  # type: ignore[assignment]
    predicted = await _task(predictions.keep_predictions)(it, size, workload)
    verdict = recommend(local.plan.model_dump(mode="json"), facts, size, checks, predicted, [])[0][
        "finding"
    ]
    wanted = (
        "do not migrate yet"
        if failing(checks)
        else "migrate once these are resolved or accepted"
        if open_findings(checks)
        else "migrate"
    )
    assert verdict == wanted
    return checks


def _red(checks: list[Json]) -> dict[str, Json]:
    return {row["check"]: row for row in checks if not row["ok"]}


def _run(box: DatabaseServer, commands: tuple[tuple[object, ...], ...]) -> None:
    with box.client(single_connection_client=True) as client:
        for words in commands:
            client.execute_command(*words)


@pytest.fixture
async def migrations(
    make_server: Callable[..., DatabaseServer], control_server: DatabaseServer, tmp_path: Path
) -> AsyncIterator[Callable[[Defect], Awaitable[LocalMigration]]]:
    made: list[LocalMigration] = []

    async def make(defect: Defect) -> LocalMigration:
        source, target = defect.kinds
        servers = make_server(source), make_server(target, **dict(defect.config))
        local = LocalMigration(*servers, control_server, tmp_path, **dict(defect.plan))
        await local.open()
        made.append(local)
        return local

    yield make
    for local in made:
        await local.close()


async def test_without_a_defect_nothing_is_found(migrations) -> None:
    local = await migrations(Defect("none", "", MUST, ""))
    async with _applications(local, ()):
        assert _red(await analysed(local)) == {}


@pytest.mark.parametrize("defect", CATALOGUE, ids=lambda defect: defect.name)
async def test_each_defect_is_found_at_its_level(migrations, defect: Defect) -> None:
    local = await migrations(defect)
    _run(local.servers[Side.SOURCE], defect.source)
    _run(local.servers[Side.TARGET], defect.target)
    async with _applications(local, defect.asked):
        red = _red(await analysed(local))
    assert defect.check in red, red
    row = red[defect.check]
    assert row["level"] == defect.level
    assert defect.says in row["detail"], row
    assert row["next_step"] if defect.level is not INFO else True


def test_the_catalogue_is_as_long_as_it_must_be() -> None:
    assert len({defect.name for defect in CATALOGUE}) == len(CATALOGUE) >= 20


async def test_a_client_that_is_still_direct_is_named(local: LocalMigration) -> None:
    source = local.servers[Side.SOURCE]
    login = source.address()
    async with (
        _applications(local, ()),
        redis.asyncio.Redis(
            port=source.port,
            username=login.username,
            password=login.secret("test"),
            client_name="billing",
        ) as direct,
    ):
        await direct.ping()
        row = _red(await analysed(local))["every client uses a gateway"]
    assert row["level"] == SHOULD
    assert "billing from exodus@127.0.0.1: 1 connection" in row["detail"]


@pytest.mark.parametrize(
    ("text", "check", "level"),
    [
        ("return +", "the target takes every script that was seen", MUST),
        (None, "the text of every called script was seen", SHOULD),
    ],
)
async def test_a_script_that_the_target_does_not_take_or_nobody_saw(
    local: LocalMigration, text: str | None, check: str, level: Level
) -> None:
    with local.servers[Side.SOURCE].client() as source:
        digest = source.script_load("return 7")
    if text is not None:
        await local.store.client.hset(local.store.keys.scripts, b"a" * 40, text)
        digest = ""
    asked = (("EVALSHA", digest, 0),) if digest else ()
    async with _applications(local, asked):
        red = _red(await analysed(local))
    assert red[check]["level"] == level


async def test_an_option_that_only_pre_test_sees_is_missing(migrations) -> None:
    """EXPIRE NX came with Redis 7.0. Gateways count commands without their options."""
    local = await migrations(Defect("option missing", "", MUST, "", kinds=(_NEW, _OLD)))
    source = local.servers[Side.SOURCE]
    async with shopping(source, ("EXPIRE", "order:1", 60, "NX")):
        await watched(opened(local))
    tried = await inspect.unwrap(trials.try_mix.fn)(opened(local))
    assert _red(judge_mix(tried))["the target takes the observed mix"]["level"] == MUST
    async with _applications(local, ()):
        row = _red(await analysed(local))["the target takes every observed kind of request"]
    assert row["level"] == MUST
    assert "EXPIRE NX" in row["detail"]


async def test_a_capture_of_tls_names_the_way_out(local: LocalMigration, tmp_path: Path) -> None:
    """A client that speaks TLS, on the watched port, among others that do not."""
    source = local.servers[Side.SOURCE]
    hello = b"\x16\x03\x01\x00\x40\x01" + secrets.token_bytes(63)
    record = b"\x17\x03\x03\x04\x00" + secrets.token_bytes(1024)

    def encrypted() -> None:
        for _ in range(20):
            with (
                socket.create_connection(("127.0.0.1", source.port)) as sock,
                contextlib.suppress(OSError),
            ):
                sock.sendall(hello + 50 * record)

    with recorded(source.port, tmp_path):
        async with shopping(source):
            watching = asyncio.create_task(watched(opened(local, capture_folder=tmp_path), 3.0))
            await asyncio.sleep(1)
            await asyncio.to_thread(encrypted)
            report = await watching
    row = _red(judge_copy(report))["the packets can be read"]
    assert row["level"] == MUST
    assert "20 connections use TLS" in row["detail"]
    assert "TLS termination" in row["next_step"]
