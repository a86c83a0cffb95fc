"""State beside keys that both sides must share.

Each difference is planted on real servers: what blocks the switch, and what Exodus carries over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import redis

from exodus.cutover import beside_carry, beside_keys, switch
from exodus.cutover.beside_keys import BesideRow, StateOutcome
from exodus.errors import DecisionRefused
from exodus.net.leg import Leg
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault

_CODE = "#!lua name=shop\nredis.register_function('price', function(keys, args) return 1 end)"


@pytest.fixture
def source(make_server) -> Iterator[redis.Redis]:  # type: ignore[no-untyped-def]
    """A server whose settings this test may change."""
    yield make_server(ServerKind.VALKEY_81).client()


@pytest_asyncio.fixture
async def pair(
    make_server, control_server: DatabaseServer, tmp_path
) -> AsyncIterator[LocalMigration]:  # type: ignore[no-untyped-def]
    local = LocalMigration(
        make_server(ServerKind.VALKEY_81),
        make_server(ServerKind.VALKEY_91),
        control_server,
        tmp_path,
    )
    await local.open()
    yield local
    await local.close()


async def _legs(local: LocalMigration) -> list[Leg]:
    return [await Leg.connect(local.plan.address(side), side) for side in Side]


async def rows(local: LocalMigration) -> dict[str, BesideRow]:
    authority, follower = await _legs(local)
    async with authority, follower:
        return {row.what: row for row in await beside_keys.compare(local.plan, authority, follower)}


def clients(local: LocalMigration) -> tuple[redis.Redis, redis.Redis]:
    return local.servers[Side.SOURCE].client(), local.servers[Side.TARGET].client()


def _user(source: redis.Redis, target: redis.Redis) -> None:
    source.acl_setuser(
        "shop",
        enabled=True,
        passwords=["+secret"],
        categories=["+@all"],
        keys=["*"],
        channels=["*"],
    )


def _user_off(source: redis.Redis, target: redis.Redis) -> None:
    _user(source, target)
    target.acl_setuser(
        "shop", enabled=False, passwords=["+secret"], categories=["+@all"], keys=["*"]
    )


def _user_with_another_password(source: redis.Redis, target: redis.Redis) -> None:
    _user(source, target)
    target.acl_setuser(
        "shop", enabled=True, passwords=["+other"], categories=["+@all"], keys=["*"], channels=["*"]
    )


def _events(source: redis.Redis, target: redis.Redis) -> None:
    source.config_set("notify-keyspace-events", "Ex")
    target.config_set("notify-keyspace-events", "Kg")


def _bulk(source: redis.Redis, target: redis.Redis) -> None:
    target.config_set("proto-max-bulk-len", 1024 * 1024)


def _library(source: redis.Redis, target: redis.Redis) -> None:
    source.function_load(_CODE)


def _default_user(source: redis.Redis, target: redis.Redis) -> None:
    target.acl_setuser("default", enabled=False)


REQUIRED = [
    (_user, "user shop"),
    (_user_off, "user shop"),
    (_user_with_another_password, "user shop"),
    (_default_user, "user default"),
    (_events, "notify-keyspace-events"),
    (_bulk, "proto-max-bulk-len"),
    (_library, "function library shop"),
]


@pytest.mark.parametrize(
    ("plant_it", "what"), REQUIRED, ids=[each[0].__name__ for each in REQUIRED]
)
async def test_what_must_be_mended_is_found(pair: LocalMigration, plant_it, what: str) -> None:  # type: ignore[no-untyped-def]
    assert not beside_keys.required(list((await rows(pair)).values()))
    plant_it(*clients(pair))
    found = (await rows(pair))[what]
    assert found.outcome is StateOutcome.REQUIRED
    assert found.means
    assert found.remedy


async def test_fewer_databases_and_a_used_module_must_be_mended_and_an_unused_one_not(
    make_server, redis82: DatabaseServer, control_server: DatabaseServer, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    local = LocalMigration(
        redis82, make_server(ServerKind.VALKEY_91, databases="4"), control_server, tmp_path
    )
    found = await rows(local)
    assert (
        found["databases"].outcome,
        found["databases"].authority,
        found["databases"].follower,
    ) == (StateOutcome.REQUIRED, "16", "4")
    (module,) = [row for row in found.values() if row.what.startswith("module ")]
    redis82.client().config_resetstat()
    assert (await rows(local))[module.what].outcome is StateOutcome.DIFFERS
    redis82.client().execute_command("VADD", "v", "VALUES", 1, 1, "e")
    assert (await rows(local))[module.what].outcome is StateOutcome.REQUIRED
    redis82.client().config_resetstat()


WARNED = [
    ("timeout", "0", "60"),
    ("client-query-buffer-limit", "1gb", "1mb"),
    ("maxclients", "5000", "100"),
    ("maxmemory-policy", "noeviction", "allkeys-lru"),
    ("lua-time-limit", "5000", "10"),
    ("hash-max-listpack-entries", "512", "64"),
    ("set-max-intset-entries", "512", "8"),
    ("zset-max-listpack-value", "64", "8"),
    ("list-max-listpack-size", "-2", "-1"),
]


@pytest.mark.parametrize(("name", "ours", "theirs"), WARNED, ids=[each[0] for each in WARNED])
async def test_what_only_differs_is_said_and_does_not_block(
    pair: LocalMigration, name: str, ours: str, theirs: str
) -> None:
    source, target = clients(pair)
    source.config_set(name, ours)
    target.config_set(name, theirs)
    found = (await rows(pair))[name]
    assert found.outcome is StateOutcome.DIFFERS
    assert found.means


async def test_scripts_and_narrower_rules_are_said(pair: LocalMigration) -> None:
    source, target = clients(pair)
    source.script_load("return 1")
    _user(source, target)
    target.acl_setuser(
        "shop",
        enabled=True,
        passwords=["+secret"],
        categories=["+@read"],
        keys=["*"],
        channels=["*"],
    )
    found = await rows(pair)
    assert (found["scripts"].outcome, found["scripts"].authority) == (
        StateOutcome.DIFFERS,
        "1 cached",
    )
    assert found["user shop"].outcome is StateOutcome.DIFFERS
    assert "+@read" in found["user shop"].follower


async def test_what_a_side_does_not_tell_is_not_provable(pair: LocalMigration) -> None:
    source, target = clients(pair)
    for client in (source, target):
        client.acl_setuser(
            "exodus",
            reset=False,
            enabled=True,
            commands=["-config", "-acl", "-function", "-module"],
        )
    found = await rows(pair)
    assert {name for name, row in found.items() if row.outcome is StateOutcome.NOT_PROVABLE} >= {
        "users",
        "settings",
        "modules",
        "function libraries",
    }
    assert "the source does not tell" in found["settings"].means
    assert not beside_keys.required(list(found.values()))


async def test_the_switch_refuses_what_must_be_mended_and_goes_through_once_it_is_carried(
    pair: LocalMigration,
) -> None:
    source, target = clients(pair)
    await pair.gateway()
    await pair.syncer()
    await pair.start_live_sync()
    _user(source, target)
    _events(source, target)
    _bulk(source, target)
    with pytest.raises(DecisionRefused, match="3 thing"):
        await switch.apply(pair.store, pair.plan, Side.TARGET)
    authority, follower = await _legs(pair)
    async with authority, follower:
        settings = await beside_carry.carry_settings(pair.plan, authority, follower)
        users = await beside_carry.carry_users(pair.plan, authority, follower)
    assert set(settings.done) == {
        "CONFIG SET notify-keyspace-events EKgx",
        f"CONFIG SET proto-max-bulk-len {512 * 1024 * 1024}",
    }
    assert all("secret" not in line and "#…" in line for line in users.done)
    assert len(users.done) == 1
    assert (await switch.apply(pair.store, pair.plan, Side.TARGET)).switched
    shop = redis.Redis(port=pair.servers[Side.TARGET].port, username="shop", password="secret")
    assert shop.set("k", 1)
    assert await pair.app(username="shop", password="secret").get("k") == b"1"


async def test_what_the_follower_refuses_is_left_as_commands(pair: LocalMigration) -> None:
    source, target = clients(pair)
    _user(source, target)
    _bulk(source, target)
    target.acl_setuser(
        "exodus", reset=False, enabled=True, commands=["-config|set", "-acl|setuser"]
    )
    authority, follower = await _legs(pair)
    async with authority, follower:
        settings = await beside_carry.carry_settings(pair.plan, authority, follower)
        users = await beside_carry.carry_users(pair.plan, authority, follower)
    assert (settings.done, users.done) == ([], [])
    assert settings.left[0].startswith(
        f"CONFIG SET proto-max-bulk-len {512 * 1024 * 1024}    # refused"
    )
    assert users.left[0].startswith("ACL SETUSER shop reset on")


async def test_users_of_6_2_and_of_newer_servers_are_the_same(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    local = LocalMigration(redis62, valkey91, control_server, tmp_path)
    for client in clients(local):
        client.acl_setuser(
            "shop",
            enabled=True,
            passwords=["+secret"],
            categories=["+@all"],
            keys=["a*", "b*"],
            reset_channels=True,
            channels=["c*"],
        )
    try:
        assert {row.what: row.outcome for row in (await rows(local)).values()}[
            "user shop"
        ] is StateOutcome.SAME
    finally:
        for client in clients(local):
            client.acl_deluser("shop")
