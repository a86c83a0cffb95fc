"""Whole migrations with exactly the rights that `exodus users` prints, on every server that the
packages bring.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from exodus.cutover import switch
from exodus.cutover.fence import blocks_exodus, record_confirmation
from exodus.cutover.settle import settle
from exodus.engine import open_engine
from exodus.errors import OperatorError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, Feed, FenceKind, Side, UserRole
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair, raise_if_fatal
from exodus.topology.permits import try_rights, wanted_of
from exodus.topology.rights import UsedFeatures, rights_of, rule_of, server_of
from exodus.verify.reconcile import reconcile
from tests.support.comparing import comparing, ledger, quiet, row_of
from tests.support.local_migration import LocalMigration
from tests.support.roles import ADMINISTRATOR, administrator, denied, make_users
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


async def _local(
    make_server: Any,
    control: DatabaseServer,
    folder: Path,
    kinds: tuple[ServerKind, ServerKind],
    **plan: object,
) -> LocalMigration:
    """a local migration whose roles have users of their own, and nothing but their rights."""
    servers = {
        side: make_server(kind, repl_diskless_sync_delay="0")
        for side, kind in zip(Side, kinds, strict=True)
    }
    local = LocalMigration(servers[Side.SOURCE], servers[Side.TARGET], control, folder, **plan)
    own, users = make_users(servers, {side: wanted_of(local.plan, side) for side in Side}, folder)
    local.plan = local.plan.model_copy(
        update={"users": users, **{str(side): address for side, address in own.items()}}
    )
    await local.open()
    return local


def _fill(box: DatabaseServer) -> int:
    """One key and more of each type."""
    with administrator(box) as client:
        for number in range(300):
            client.set(f"s:{number}", "x" * 50, px=600_000 if number % 3 == 0 else None)
        client.set("large", "y" * 3_000_000)
        client.rpush("list", *range(3_000))
        client.hset("hash", mapping={f"f{number}": number for number in range(2_000)})
        client.sadd("set", *range(2_000))
        client.zadd("zset", {f"m{number}": number for number in range(2_000)})
        client.xadd("stream", {"a": 1})
        client.xgroup_create("stream", "group", "0")
        client.xreadgroup("group", "worker", {"stream": ">"})
        return int(client.dbsize())


@pytest.mark.parametrize(
    ("kinds", "plan"),
    [
        ((ServerKind.REDIS_62, ServerKind.VALKEY_91), {}),
        ((ServerKind.REDIS_82, ServerKind.VALKEY_91), {}),
        ((ServerKind.VALKEY_81, ServerKind.REDIS_82), {"feed": Feed.REPLICATION}),
        ((ServerKind.REDIS_62, ServerKind.VALKEY_81), {"feed": Feed.TRACKING}),
        ((ServerKind.REDIS_82, ServerKind.VALKEY_91), {"feed": Feed.NOTIFICATIONS}),
        (
            (ServerKind.REDIS_62, ServerKind.VALKEY_91),
            {"strategy": CopyStrategy.MIGRATE, "feed": Feed.GATEWAY},
        ),
        ((ServerKind.VALKEY_81, ServerKind.VALKEY_91), {"strategy": CopyStrategy.NATIVE}),
        (
            (ServerKind.REDIS_82, ServerKind.VALKEY_91),
            {"feed": Feed.GATEWAY, "fence": {"source": "replica", "target": "replica"}},
        ),
        (
            (ServerKind.REDIS_62, ServerKind.VALKEY_91),
            {"feed": Feed.GATEWAY, "fence": {"source": "replica", "target": "min-replicas"}},
        ),
    ],
    ids=str,
)
async def test_a_whole_migration_there_and_back_with_exactly_these_rights(
    make_server,
    control_server: DatabaseServer,
    tmp_path: Path,
    kinds: tuple[ServerKind, ServerKind],
    plan: dict[str, Any],
) -> None:
    """From the checks to the way back, no server refuses Exodus anything."""
    local = await _local(make_server, control_server, tmp_path, kinds, **plan)
    try:
        count = _fill(local.servers[Side.SOURCE])
        raise_if_fatal(
            await check_pair(
                *(Endpoint(side, local.plan.address(side)) for side in Side),
                local.plan,
                local.store,
            )
        )
        if local.plan.strategy is CopyStrategy.MIGRATE:
            with administrator(local.servers[Side.TARGET]) as client:
                client.execute_command("ACL", "SETUSER", "default", "-restore")
        if local.plan.feed is Feed.NOTIFICATIONS:
            for box in local.servers.values():
                with administrator(box) as client:
                    client.config_set("notify-keyspace-events", "AKE")
        native = local.plan.strategy is CopyStrategy.NATIVE
        await local.gateway(settle=settle)
        await local.syncer()
        await local.start_live_sync()
        app = local.app()
        await app.set("before", 1)
        if not native:
            await local.backfill()
            await local.drained()
        for number, to in enumerate((Side.TARGET, Side.SOURCE)):
            assert (await switch.apply(local.store, local.plan, to)).switched
            await app.set(f"after:{number}", number)
            await asyncio.sleep(0.3)
            if await blocks_exodus(local.store, to.other):
                continue  # its fence refuses Exodus too
            await local.drained()
            engine = await open_engine(local.store, local.plan.acting(UserRole.VERIFIER))
            report = await reconcile(engine, f"after-{number}", settle_s=0.1)
            assert report["divergences_total"] == 0, report
            assert report["keys_authority"] >= count
        assert denied(local.servers) == []
    finally:
        await local.close()


async def test_compare_needs_no_right_beyond_the_comparer_s(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Reads, draws, and writes that are run again on scratch copies."""
    kinds = (ServerKind.REDIS_62, ServerKind.VALKEY_91)
    local = await _local(make_server, control_server, tmp_path, kinds)
    try:
        async with comparing(local):
            app = local.app()
            await app.mset({"a": 1, "b": 2})
            await app.sadd("s", *range(5))
            await app.zadd("z", {"m": 1, "n": 2})
            await row_of(local, "ZADD", "compared")
            await quiet(local)
            await app.incr("a")
            await app.spop("s")
            await app.zpopmin("z")
            await app.srandmember("s")
            for command in ("INCRBY", "SPOP", "ZPOPMIN", "SRANDMEMBER"):
                await row_of(local, command, "by_reply")
        assert await ledger(local) == []
        assert denied(local.servers) == []
    finally:
        await local.close()


async def test_without_an_administrators_right_another_fence_holds(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """`provider` needs no right at all, and `min-replicas` no `+acl`: no user of Exodus's may give
    itself rights.
    """
    for fence in (FenceKind.PROVIDER, FenceKind.MIN_REPLICAS):
        folder = tmp_path / str(fence)
        folder.mkdir()
        told = {"source": fence, "target": fence}
        if fence is FenceKind.PROVIDER:
            told |= {"source_instruction": "close the way", "target_instruction": "close the way"}
        kinds = (ServerKind.REDIS_82, ServerKind.VALKEY_91)
        local = await _local(make_server, control_server, folder, kinds, fence=told)
        try:
            _fill(local.servers[Side.SOURCE])
            for side, box in local.servers.items():
                with administrator(box) as client:
                    rules = [client.acl_getuser(f"exodus-{role}")["commands"] for role in UserRole]
                assert not any("+acl|setuser" in rule or "+acl" in rule for rule in rules)
                assert ("+config|set" in " ".join(map(str, rules))) is (
                    fence is FenceKind.MIN_REPLICAS
                )
                await record_confirmation(local.store, local.plan, side, "a test")
            ends = [Endpoint(side, local.plan.address(side)) for side in Side]
            raise_if_fatal(await check_pair(*ends, local.plan, local.store))
            await local.gateway(settle=settle)
            await local.syncer()
            await local.start_live_sync()
            await local.backfill()
            await local.drained()
            done = await switch.apply(local.store, local.plan, Side.TARGET)
            assert done.switched
            assert done.facts["fence"] == str(fence)
            await local.app().set("after", 1)
            assert denied(local.servers) == []
        finally:
            await local.close()


async def test_a_fence_leaves_exodus_own_users_alone(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """The fence by ACL takes writes from every user that the plan does not name, and from no user
    that it names.
    """
    local = await _local(
        make_server, control_server, tmp_path, (ServerKind.REDIS_62, ServerKind.VALKEY_91)
    )
    try:
        await local.gateway(settle=settle)
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        await switch.apply(local.store, local.plan, Side.TARGET)
        with administrator(local.servers[Side.SOURCE]) as client:
            rules = {name: str(client.acl_getuser(name)) for name in client.acl_users()}
            assert {name for name, rule in rules.items() if "-@write" in rule} == {
                "default",
                ADMINISTRATOR,
            }
    finally:
        await local.close()


@pytest.mark.parametrize("kind", list(ServerKind), ids=str)
async def test_each_missing_right_is_named_before_anything_is_changed(
    make_server, tmp_path: Path, kind: ServerKind
) -> None:
    """The rights are taken away one by one. The checks name side, user, command, and what to
    type.
    """
    box = make_server(kind)
    wanted = UsedFeatures(FenceKind.ACL, Feed.REPLICATION)
    file = tmp_path / "password"
    file.write_text("secret")
    engine, version = server_of(str(kind))
    address = box.address().model_copy(update={"username": "exodus-one", "password_file": file})
    plan = Plan(
        name="check", source=address, target=address, fence={"source": "acl"}, feed=Feed.REPLICATION
    )
    rule = rule_of(UserRole, Side.SOURCE, engine, version, wanted).split()
    with box.client() as client:
        client.execute_command("ACL", "SETUSER", "exodus-one", "on", ">secret", *rule)
        assert await try_rights(plan, Side.SOURCE, engine, version) == []
        for word in [word for word in rule if word.startswith("+") and word != "+client|setname"]:
            client.execute_command(
                "ACL",
                "SETUSER",
                "exodus-one",
                "reset",
                "on",
                ">secret",
                *[other for other in rule if other != word],
            )
            found = await try_rights(plan, Side.SOURCE, engine, version)
            assert word[1:] in {each.command for each in found}, word
            assert all(each.side is Side.SOURCE and each.user == "exodus-one" for each in found)
            assert f"ACL SETUSER exodus-one {word}" in next(
                each.remedy for each in found if each.command == word[1:]
            )
        assert client.dbsize() == 0
        client.execute_command(
            "ACL",
            "SETUSER",
            "exodus-one",
            "reset",
            "on",
            ">secret",
            *[word for word in rule if word != "+client|setname"],
        )
        with pytest.raises(OperatorError, match="exodus-one") as caught:
            await try_rights(plan, Side.SOURCE, engine, version)
        assert "+client|setname" in caught.value.next_step
        client.execute_command(
            "ACL", "SETUSER", "exodus-one", "reset", "on", ">secret", *rule, "resetkeys", "~app:*"
        )
        assert any(
            "~*" in each.remedy for each in await try_rights(plan, Side.SOURCE, engine, version)
        )


@pytest.mark.parametrize("kind", list(ServerKind), ids=str)
def test_every_right_has_its_reason_and_the_server_takes_the_rule(
    make_server, kind: ServerKind
) -> None:
    """For each role, fence, feed and strategy. Redis 6.2 refuses a rule with an unknown command."""
    box, server = make_server(kind), server_of(str(kind))
    with box.client() as client:
        for role in UserRole:
            for wanted in [
                *map(UsedFeatures, FenceKind),
                *(UsedFeatures(strategy=way) for way in CopyStrategy),
                *(UsedFeatures(feed=feed) for feed in Feed),
                UsedFeatures(sentinel=True),
            ]:
                for side in Side:
                    client.execute_command(
                        "ACL",
                        "SETUSER",
                        "user",
                        "reset",
                        *rule_of([role], side, *server, wanted).split(),
                    )
                    assert all(right.why for _, right in rights_of(role, side, *server, wanted))
