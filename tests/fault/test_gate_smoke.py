"""The smoke checks of Test on real servers: each planted defect turns its row red, and without one
no row is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from exodus.acceptance.commands import check_commands
from exodus.acceptance.delivery import check_delivery
from exodus.acceptance.latency import check_latency
from exodus.acceptance.logins import check_logins
from exodus.acceptance.rows import Checked
from exodus.acceptance.standing import check_replicas, check_settings
from exodus.control.registry import heartbeats
from exodus.plan.address import Address, Credentials
from exodus.plan.bounds import ACCEPTANCE_REPLICA_LAG_BYTES_MAX
from exodus.plan.gate_checks import CheckLevel, GateChecks
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.rights import UsedFeatures
from tasks import acceptance
from tasks.checks import failing, open_findings, summary_lines, why_not_accepted
from tasks.context import Opened
from tests.support.local_migration import LocalMigration
from tests.support.roles import administrator, denied, make_users
from tests.support.servers import DatabaseServer
from tests.support.shelf_module import NAME, shelf_module
from tests.support.wait import until

pytestmark = pytest.mark.fault
_RIGHTS = ("on", ">secret", "~order:*", "&*", "+@all", "-@dangerous")
_APP = "shop"


def _red(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


async def _all(local: LocalMigration) -> list[Checked]:
    plan, store = local.plan, local.store
    return [
        *await check_logins(plan, store),
        *await check_commands(plan, store),
        *await check_delivery(plan, store),
        *await check_settings(plan),
        *await check_replicas(plan),
    ]


def _users(local: LocalMigration) -> None:
    for box in local.servers.values():
        box.client().execute_command("ACL", "SETUSER", _APP, *_RIGHTS)


async def _observe(local: LocalMigration, *commands: str) -> None:
    rows = [{"command": name, "calls": 1} for name in commands]
    await local.store.save_report("profile.analyze", {"commands": rows})


async def test_nothing_is_red_where_nothing_is_wrong_and_nothing_is_left(
    local: LocalMigration,
) -> None:
    _users(local)
    await _observe(local, "GET", "SET", "EVAL", "XGROUP|CREATE", "BLPOP", "HGETALL", "PUBLISH")
    await local.gateway()
    rows = [*await _all(local), *await check_latency(local.plan, local.store)]
    assert _red(rows) == {}
    shown = {row.check: row.detail for row in rows}
    assert shown[f"rights of user {_APP}"] == "7 observed commands allowed on both sides"
    assert shown["latency from gateway gw-1"].startswith("PING p50 ")
    for box in local.servers.values():
        with box.client(decode_responses=True) as client:
            assert client.keys("*") == []
            assert sorted(client.acl_users()) == ["default", "exodus", _APP]


class Defect(NamedTuple):
    """The defect, and the row that reports it."""

    name: str
    plant: Callable[[redis.Redis, redis.Redis], object]  # source, target
    red: str


def _on_target(*command: object) -> Callable[[redis.Redis, redis.Redis], object]:
    return lambda _, target: target.execute_command(*command)


def _on_source(*command: object) -> Callable[[redis.Redis, redis.Redis], object]:
    return lambda source, _: source.execute_command(*command)


DEFECTS = [
    Defect("user missing", _on_target("ACL", "DELUSER", _APP), f"login of user {_APP}"),
    Defect("user off", _on_target("ACL", "SETUSER", _APP, "off"), f"login of user {_APP}"),
    Defect(
        "another password",
        _on_target("ACL", "SETUSER", _APP, "resetpass", ">other"),
        f"login of user {_APP}",
    ),
    Defect("command", _on_target("ACL", "SETUSER", _APP, "-set"), f"rights of user {_APP}"),
    Defect("category", _on_target("ACL", "SETUSER", _APP, "-@scripting"), f"rights of user {_APP}"),
    Defect(
        "key pattern",
        _on_target("ACL", "SETUSER", _APP, "resetkeys", "~cart:*"),
        f"rights of user {_APP}",
    ),
    Defect(
        "login asked for",
        _on_target("ACL", "SETUSER", "default", "resetpass", ">p"),
        "clients without a login",
    ),
    Defect(
        "eviction policy",
        lambda source, target: (
            source.config_set("maxmemory-policy", "noeviction"),
            target.config_set("maxmemory-policy", "allkeys-random"),
        ),
        "setting maxmemory-policy",
    ),
    Defect(
        "smaller maxmemory",
        lambda source, target: (
            source.config_set("maxmemory", 200_000_000),
            target.config_set("maxmemory", 100_000_000),
        ),
        "maxmemory of the target",
    ),
    Defect(
        "append-only file",
        _on_source("CONFIG", "SET", "appendonly", "yes"),
        "persistence of the target",
    ),
    Defect("snapshots", _on_source("CONFIG", "SET", "save", "60 1"), "persistence of the target"),
    Defect(
        "keyspace events",
        _on_source("CONFIG", "SET", "notify-keyspace-events", "KEA"),
        "delivery: keyspace events",
    ),
    Defect(
        "largest value",
        _on_target("CONFIG", "SET", "proto-max-bulk-len", 2_000_000),
        "setting proto-max-bulk-len",
    ),
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
async def test_a_planted_defect_is_found(local: LocalMigration, defect: Defect) -> None:
    _users(local)
    await _observe(local, "GET", "SET", "EVAL")
    with (
        local.servers[Side.SOURCE].client() as source,
        local.servers[Side.TARGET].client() as target,
    ):
        defect.plant(source, target)
        red = _red(await _all(local))
        assert defect.red in red, red


async def test_an_observed_request_that_the_target_lacks_or_refuses_is_found(
    local: LocalMigration, make_server: Callable[..., DatabaseServer]
) -> None:
    await _observe(local, "GET", "HSET", "XGROUP|CREATE", "FLUSHALL")
    rows = await check_commands(local.plan, local.store)
    assert _red(rows) == {}
    assert "FLUSHALL" in rows[-1].detail
    older = make_server(ServerKind.REDIS_62)
    plan = local.plan.model_copy(update={"target": older.address()})
    await _observe(local, "GET", "SINTERCARD", "EXPIRETIME")
    red = _red(await check_commands(plan, local.store))
    assert list(red) == ["the target has every observed kind of request"]
    assert "SINTERCARD" in str(red)
    assert "EXPIRETIME" in str(red)
    await _observe(local, "SET", "GET")
    local.servers[Side.TARGET].client().config_set("maxmemory", 1)
    red = _red(await check_commands(local.plan, local.store))
    assert list(red) == ["the target answers every observed kind of request"]
    assert local.servers[Side.TARGET].client().keys("*") == []


@pytest.mark.parametrize(
    ("right", "red"),
    [
        ("-@transaction", "delivery: transaction"),
        ("-@scripting", "delivery: script"),
        ("-@pubsub", "delivery: publish and subscribe"),
        ("-@blocking", "delivery: blocking pop"),
        ("-@blocking", "delivery: time limit of a blocking pop"),
        ("-watch", "delivery: watched key that changes"),
    ],
)
async def test_what_applications_may_not_do_there_is_found(
    local: LocalMigration, right: str, red: str
) -> None:
    secret = local.folder / "secret"
    secret.write_text("secret\n")
    local.servers[Side.TARGET].client().execute_command(
        "ACL", "SETUSER", _APP, "on", ">secret", "~*", "&*", "+@all", right
    )
    user = Credentials(username=_APP, password_file=secret)
    plan = local.plan.model_copy(update={"compare_user": user})
    assert red in _red(await check_delivery(plan, local.store))


async def test_a_script_and_a_library_that_the_target_does_not_take_are_found(
    modern: LocalMigration,
) -> None:
    keys = modern.store.keys
    await modern.store.client.hset(keys.scripts, "a" * 40, "this is no Lua")
    source = modern.servers[Side.SOURCE].client()
    source.execute_command(
        "FUNCTION",
        "LOAD",
        "#!lua name=good\nredis.register_function('good', function() return 1 end)",
    )
    red = _red(await check_delivery(modern.plan, modern.store))
    assert set(red) == {"scripts of the applications"}
    assert "aaaaaaaaaaaa…" in red["scripts of the applications"]
    await modern.store.client.delete(keys.scripts)
    # A library that only the source's version takes
    source.execute_command(
        "FUNCTION",
        "LOAD",
        "#!lua name=newer\nif redis.REDIS_VERSION_NUM < 524288 then redis.older() end\n"
        "redis.register_function('newer', function() return 1 end)",
    )
    red = _red(await check_delivery(modern.plan, modern.store))
    assert set(red) == {"function libraries"}
    assert modern.servers[Side.TARGET].client().execute_command("FUNCTION", "LIST") == []


async def test_a_script_that_was_flushed_meanwhile_is_loaded_again(local: LocalMigration) -> None:
    await local.gateway()
    app = local.app()
    await app.eval("return 1", 0)
    await asyncio.sleep(0.6)  # until the next heartbeat keeps the text
    rows = {row.check: row for row in await check_delivery(local.plan, local.store)}
    assert rows["scripts of the applications"].detail == "1 are loaded on the target"
    assert rows["scripts called by digest only"].line == ""
    digest = local.servers[Side.SOURCE].client().script_load("return 2")  # past the gateways
    assert await app.evalsha(digest, 0) == 2
    await asyncio.sleep(0.6)
    rows = {row.check: row for row in await check_delivery(local.plan, local.store)}
    assert rows["scripts called by digest only"].line.startswith("1 scripts are called by EVALSHA")


@pytest.mark.parametrize(
    ("version", "red"),
    [
        (20_600, {"version of module shelf": "20810 on the source, 20600 on the target"}),
        (20_810, {}),
    ],
)
async def test_an_older_module_is_found(
    make_server: Callable[..., DatabaseServer],
    tmp_path: Path,
    version: int,
    red: dict[str, str],
) -> None:
    may_load = {"enable-module-command": "yes"}
    sides = [make_server(ServerKind.REDIS_82, **may_load) for _ in Side]
    file = str(shelf_module(tmp_path))
    for server, loaded in zip(sides, (20_810, version), strict=True):
        server.client().execute_command("MODULE", "LOAD", file, loaded)
    plan = Plan(name="shop", source=sides[0].address(), target=sides[1].address())
    rows = await check_settings(plan)
    assert {row.check: row.detail for row in rows if NAME in row.check and not row.ok} == red


async def test_a_missing_module_and_missing_replicas_are_found(
    modern: LocalMigration, make_server: Callable[..., DatabaseServer]
) -> None:
    modern.servers[Side.SOURCE].client().execute_command("VADD", "v", "VALUES", 1, 1, "e")
    assert "module vectorset" in _red(await check_settings(modern.plan))
    replica = make_server(ServerKind.REDIS_82)
    source = modern.servers[Side.SOURCE]
    with replica.client() as client:
        address = source.address()
        client.config_set("masteruser", address.username or "")
        client.config_set("masterauth", address.secret("test") or "")
        client.replicaof("127.0.0.1", source.port)
    while source.client().info("replication")["connected_slaves"] == 0:
        await asyncio.sleep(0.05)
    assert "replicas of the target" in _red(await check_replicas(modern.plan))


async def test_a_replica_that_does_not_keep_up_is_found(
    make_server: Callable[..., DatabaseServer],
) -> None:
    """The target has as many replicas as the source. One of them answers nobody."""
    source, target, replica = (make_server(ServerKind.REDIS_82) for _ in range(3))
    plan = Plan(name="shop", source=source.address(), target=target.address())
    address = target.address()
    with replica.client() as client:
        client.config_set("masteruser", address.username or "")
        client.config_set("masterauth", address.secret("test") or "")
        client.replicaof("127.0.0.1", target.port)

    async def online() -> bool:
        return target.client().info("replication").get("slave0", {}).get("state") == "online"

    await until(online, within_s=20, otherwise="the replica never came online")
    assert _red(await check_replicas(plan)) == {}
    replica.pause()
    target.client().set("large", b"x" * (2 * ACCEPTANCE_REPLICA_LAG_BYTES_MAX))
    try:
        red = _red(await check_replicas(plan))
    finally:
        replica.resume()
    assert list(red) == ["the target's replicas keep up"]
    assert f":{replica.port}" in red["the target's replicas keep up"]


async def test_a_target_that_cannot_write_its_files_is_found(
    make_server: Callable[..., DatabaseServer],
) -> None:
    source, target = (make_server(ServerKind.REDIS_62) for _ in Side)
    plan = Plan(name="shop", source=source.address(), target=target.address())
    assert _red(await check_settings(plan)) == {}
    with target.client() as client:
        # A folder stands where the file is to be.
        folder = Path(client.config_get("dir")["dir"])
        (folder / client.config_get("dbfilename")["dbfilename"] / "in the way").mkdir(parents=True)
        client.bgsave()

        async def failed() -> bool:
            return client.info("persistence")["rdb_last_bgsave_status"] != "ok"

        await until(failed, within_s=20, otherwise="the server saved nevertheless")
    red = _red(await check_settings(plan))
    assert red == {"the target can write its files": "rdb_last_bgsave_status"}


async def test_what_could_not_be_tried_is_not_called_in_order(local: LocalMigration) -> None:
    (row,) = await check_commands(local.plan, local.store)
    assert (row.ok, row.by_name, row.why) == (False, True, "nothing was observed")
    with local.servers[Side.SOURCE].client() as source:
        source.config_set("notify-keyspace-events", "KEA")
        source.execute_command("ACL", "SETUSER", "exodus", "-config")
    rows = {row.check: row for row in await check_delivery(local.plan, local.store)}
    with redis.Redis(port=local.servers[Side.SOURCE].port) as other:
        other.execute_command("ACL", "SETUSER", "exodus", "+@all")
    row = rows["delivery: keyspace events"]
    assert (row.ok, row.by_name) == (False, True)
    assert "does not tell" in row.why


_UNTRIED = "rights of the applications' users"


@pytest.mark.parametrize(
    ("rules", "untried"),
    [
        ((), False),  # equal rules are equal rights
        (("resetkeys", "~*", "+@all"), False),  # the target allows everything
        (("-set",), True),
        (("+@dangerous", "-@dangerous"), False),
        (("resetkeys", "~cart:*"), True),
        (("resetchannels",), True),
    ],
)
async def test_rights_that_nobody_tried_are_accepted_by_name(
    local: LocalMigration,
    make_server: Callable[..., DatabaseServer],
    rules: tuple[str, ...],
    untried: bool,
) -> None:
    """Redis 6.2 has no ACL DRYRUN. Before, the required check passed with a line in the form."""
    older = make_server(ServerKind.REDIS_62)
    _users(local)
    older.client().execute_command("ACL", "SETUSER", _APP, *_RIGHTS, *rules)
    await _observe(local, "GET", "SET")
    plan = local.plan.model_copy(update={"target": older.address()})
    rows = await inspect.unwrap(acceptance.check_logins.fn)(Opened(plan, local.store, plan))
    found = {row["check"]: row for row in rows if not row["ok"]}
    assert (set(found), failing(rows)) == ({_UNTRIED} if untried else set(), [])
    shown = {row["check"]: row["detail"] for row in rows}[f"rights of user {_APP}"]
    assert shown.startswith("the rules differ" if untried else "by its rules (ACL GETUSER)")
    approval = {"decision": "approve", "accept_findings": ""}
    why = why_not_accepted(rows, approval)
    if not untried:
        assert why is None
        return
    assert f"not tried for {_APP}: the rules differ" in found[_UNTRIED]["why"]
    assert "the target does not tell (ACL DRYRUN)" in found[_UNTRIED]["why"]
    assert "ACL SETUSER, DELUSER and DRYRUN" in found[_UNTRIED]["next_step"]
    assert f"1 finding(s) are neither resolved nor accepted: {_UNTRIED}" in str(why)
    assert why_not_accepted(rows, {**approval, "accept_findings": _UNTRIED}) is None


async def test_rights_without_an_observed_command_are_judged_by_rules(
    local: LocalMigration,
) -> None:
    """Before, the row said "0 observed commands allowed on both sides", and held."""
    _users(local)
    rows = {row.check: row for row in await check_logins(local.plan, local.store)}
    assert rows[f"rights of user {_APP}"].detail.startswith("by its rules (ACL GETUSER)")
    assert _UNTRIED not in rows
    local.servers[Side.TARGET].client().execute_command("ACL", "SETUSER", _APP, "-set")
    rows = {row.check: row for row in await check_logins(local.plan, local.store)}
    assert (rows[_UNTRIED].ok, rows[_UNTRIED].by_name) == (False, True)
    assert "no command was observed" in rows[_UNTRIED].why
    await _observe(local, "GET", "SET")
    rows = {row.check: row for row in await check_logins(local.plan, local.store)}
    assert rows[f"rights of user {_APP}"].detail == "not allowed there: SET"


async def test_a_user_with_selectors_has_more_rights_than_its_rules_tell(
    local: LocalMigration, make_server: Callable[..., DatabaseServer]
) -> None:
    older, newer = make_server(ServerKind.REDIS_62), make_server(ServerKind.REDIS_82)
    for box, more in ((newer, ("(+get ~cart:*)",)), (older, ())):
        box.client().execute_command("ACL", "SETUSER", _APP, *_RIGHTS, *more)
    await _observe(local, "GET")
    plan = local.plan.model_copy(update={"source": newer.address(), "target": older.address()})
    rows = {row.check: row for row in await check_logins(plan, local.store)}
    assert "the rules differ (selectors)" in rows[_UNTRIED].why
    assert rows[_UNTRIED].by_name


async def test_a_slow_and_a_silent_target_are_found(local: LocalMigration) -> None:
    gateway = await local.gateway()
    target = local.servers[Side.TARGET]

    async def registered() -> bool:
        return bool(await heartbeats(local.store, "gateway"))

    await until(registered, within_s=10, otherwise="the gateway did not tell of itself")

    async def slow(side: Side, _: Address) -> list[float]:
        return sorted([0.2, 0.3, 0.4] if side is Side.SOURCE else [5.5, 5.6, 9.0])

    measured, gateway.probe._pings = gateway.probe._pings, slow  # type: ignore[method-assign]
    red = _red(await check_latency(local.plan, local.store))
    assert "5.60 ms to the target" in red["latency from gateway gw-1"]
    gateway.probe._pings = measured  # type: ignore[method-assign]
    target.stop()
    red = _red(await check_latency(local.plan, local.store))
    target.start()
    assert "the target does not answer" in red["latency from gateway gw-1"]


async def test_without_a_gateway_latency_is_red(local: LocalMigration) -> None:
    assert _red(await check_latency(local.plan, local.store)) == {
        "latency from the gateways": "no gateway is registered"
    }


@pytest.mark.parametrize(
    ("level", "must", "should"),
    [(CheckLevel.REQUIRED, 1, 0), (CheckLevel.ADVISORY, 0, 1), (CheckLevel.OFF, 0, 0)],
)
async def test_the_migration_file_says_what_a_failure_means(
    local: LocalMigration, level: CheckLevel, must: int, should: int
) -> None:
    plan = local.plan.model_copy(update={"test_checks": GateChecks(latency=level)})
    rows = await inspect.unwrap(acceptance.check_latency.fn)(Opened(plan, local.store, plan))
    assert (len(failing(rows)), len(open_findings(rows))) == (must, should)
    said = "latency: not run, since test_checks has it off" in summary_lines(rows)
    assert said is (level is CheckLevel.OFF)


async def test_a_check_that_cannot_be_run_has_failed(local: LocalMigration) -> None:
    local.servers[Side.TARGET].stop()
    it = Opened(local.plan, local.store, local.plan)
    rows = await inspect.unwrap(acceptance.check_replicas.fn)(it)
    local.servers[Side.TARGET].start()
    (row,) = rows
    assert (row["ok"], row["check"]) == (False, "replicas: could be run")


async def test_with_the_users_of_its_roles_nothing_is_red(
    make_server: Callable[..., DatabaseServer], control_server: DatabaseServer, tmp_path: Path
) -> None:
    """What these users may not ask is reported as such, not as a defect."""
    kinds = {Side.SOURCE: ServerKind.REDIS_62, Side.TARGET: ServerKind.VALKEY_91}
    servers = {side: make_server(kind) for side, kind in kinds.items()}
    own, users = make_users(servers, dict.fromkeys(Side, UsedFeatures()), tmp_path)
    local = LocalMigration(*servers.values(), control_server, tmp_path)
    local.plan = local.reached().model_copy(
        update={str(side): address for side, address in own.items()} | {"users": users}
    )
    await local.open()
    administrator(servers[Side.SOURCE]).set("k", "v")
    for box in servers.values():
        administrator(box).execute_command("ACL", "SETUSER", _APP, *_RIGHTS)
    await local.gateway()
    await _observe(local, "GET", "SET", "EVAL")
    it = Opened(local.plan, local.store, local.plan)
    rows = []
    for name in (
        "check_logins",
        "check_commands",
        "check_delivery",
        "check_settings",
        "check_replicas",
        "check_latency",
        "check_data",
        "rehearse_rounds",
    ):
        rows += await inspect.unwrap(getattr(acceptance, name).fn)(it)
    await local.close()
    assert [row for row in rows if not row["ok"]] == []
    shown = {row["check"]: row["detail"] for row in rows}
    assert "Exodus's user may not ask for them" in shown[f"rights of user {_APP}"]
    assert shown[f"rights of user {_APP}"].startswith("by its rules (ACL GETUSER)")
    assert "may not make and remove a user" in shown["the rehearsal's fence"]
    assert denied(servers) == []
