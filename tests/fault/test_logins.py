"""Applications keep the credentials that the source knows, although the target knows others: in
sessions that are handed over, and in new ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from exodus.acceptance.logins import check_logins
from exodus.cutover import switch
from exodus.errors import OperatorError
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair, raise_if_fatal
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
_SECRETS = {"shop": "hunter2", "shop-there": "correct horse", "anybody-there": "battery staple"}


@pytest_asyncio.fixture
async def mapping(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> AsyncIterator[LocalMigration]:  # type: ignore[no-untyped-def]
    source, target = make_server(ServerKind.REDIS_62), make_server(ServerKind.VALKEY_91)
    for box, user in ((source, "shop"), (target, "shop-there"), (target, "anybody-there")):
        box.client().acl_setuser(
            user,
            enabled=True,
            passwords=[f"+{_SECRETS[user]}"],
            commands=["+@all"],
            keys=["*"],
            channels=["*"],
        )
    target.client().acl_setuser("default", enabled=False, keys=["*"], channels=["*"])
    files = {user: tmp_path / user for user in _SECRETS}
    for user, file in files.items():
        file.write_text(_SECRETS[user] + "\n")
    logins = [
        {
            "user": "shop",
            "password_file": files["shop"],
            "target_user": "shop-there",
            "target_password_file": files["shop-there"],
        },
        {"target_user": "anybody-there", "target_password_file": files["anybody-there"]},
    ]
    local = LocalMigration(source, target, control_server, tmp_path, logins=logins)
    await local.open()
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    yield local
    await local.close()


def _apps(local: LocalMigration) -> dict[str, redis.Redis]:
    """By AUTH, by HELLO, and without a login."""
    shop = {"username": "shop", "password": _SECRETS["shop"], "single_connection_client": True}
    return {
        "AUTH": local.app(protocol=2, **shop),
        "HELLO": local.app(protocol=3, **shop),
        "": local.app(single_connection_client=True),
    }


async def test_a_login_is_the_other_one_on_the_other_side_there_and_back(
    mapping: LocalMigration,
) -> None:
    carried = _apps(mapping)
    for to, shop, anybody in (
        (None, "shop", "default"),
        (Side.TARGET, "shop-there", "anybody-there"),
        (Side.SOURCE, "shop", "default"),
    ):
        if to is not None:
            assert (await switch.apply(mapping.store, mapping.plan, to)).switched
        for apps in (carried, _apps(mapping)):
            for how, app in apps.items():
                assert (await app.acl_whoami()) in (
                    (shop, shop.encode()) if how else (anybody, anybody.encode())
                ), (to, how)
                assert await app.incr(f"by:{how}")
        nobody = mapping.app(username="shop", password="wrong", retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis.AuthenticationError):
            await nobody.ping()
        plain = _apps(mapping)[""]
        await plain.execute_command("RESET")
        assert await plain.get("by:AUTH") is not None
    assert dict(mapping.gateways["gw-1"][0].sessions_closed) == {}


async def test_test_logs_in_as_each_user_that_the_target_knows(mapping: LocalMigration) -> None:
    """As the gateways will: with the target's name and password."""
    names = {"login of user shop as shop-there", "login of user default as anybody-there"}

    async def red() -> set[str]:
        rows = await check_logins(mapping.plan, mapping.store)
        assert names <= {row.check for row in rows}
        return {row.check for row in rows if row.judged and not row.ok}

    assert await red() == set()
    target = mapping.servers[Side.TARGET].client()
    target.acl_setuser("anybody-there", reset_passwords=True, passwords=["+another"], enabled=True)
    assert "login of user default as anybody-there" in await red()


async def test_a_login_that_a_side_refuses_is_found_before_anything_begins(
    mapping: LocalMigration,
) -> None:
    async def look() -> None:
        raise_if_fatal(
            await check_pair(
                *[Endpoint(side, mapping.plan.address(side)) for side in Side], mapping.plan
            )
        )

    await look()
    mapping.servers[Side.TARGET].client().acl_setuser("shop-there", enabled=False)
    with pytest.raises(OperatorError, match="the target refuses 'shop-there'"):
        await look()
