"""Through Compare or a canary, no client can run on the target what the source refuses it, or what
only Exodus may run.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from exodus.cancellation import end_all
from exodus.control.registry import heartbeats
from exodus.control.route import read_route
from exodus.control.shadow_pairs import pack_pair
from exodus.cutover.canary_share import set_canary
from exodus.plan.address import Credentials
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.shadow.comparer import Comparer
from exodus.verify.reconcile import reconcile
from tests.support.comparing import comparer_follows, comparing, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until, wait_until

pytestmark = pytest.mark.fault
_ENDLESS = "while true do end"


def _calls(local: LocalMigration) -> dict[str, int]:
    """Command → how often the target ran it."""
    with local.servers[Side.TARGET].client() as client:
        return {
            name.removeprefix("cmdstat_"): row["calls"]
            for name, row in client.info("commandstats").items()
        }


def _ran(target: redis.Redis, script: str) -> bool:
    """Return whether a server was given a script. Exodus runs scripts of its own there."""
    return bool(target.script_exists(hashlib.sha1(script.encode()).hexdigest())[0])


async def test_what_a_client_without_a_login_sends_runs_nowhere(local: LocalMigration) -> None:
    """The source asks for a password. Requests that it refuses cost the target nothing."""
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "v")
    source.rpush("list", *range(1_000))
    payload = source.dump("k")
    source.config_set("requirepass", "secret")
    source.acl_setuser(
        "default", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"]
    )
    try:
        async with comparing(local):
            stranger, owner = (
                local.app(protocol=2, retry=Retry(NoBackoff(), 0)),
                local.app(password="secret"),
            )
            before = _calls(local)
            for command in (
                ("DEL", "k"),
                ("RESTORE", "k", 0, payload, "REPLACE"),
                ("EVAL_RO", _ENDLESS, 0),
                ("EVAL", _ENDLESS, 1, "k"),
                ("LRANGE", "list", 0, -1),
                ("GET", "k"),
                ("SET", "k", "theirs"),
            ):
                with pytest.raises(
                    RedisError, match=r"Authentication required|NOAUTH|unknown command"
                ):
                    await stranger.execute_command(*command)
            await owner.get("k")
            await row_of(local, "GET", "compared")
            ran = {name: count - before.get(name, 0) for name, count in _calls(local).items()}
            # Exodus calls EVAL_RO itself, so `_ran` looks for the stranger's script.
            assert {name for name in ("del", "lrange") if ran.get(name)} == set()
            assert not _ran(target, _ENDLESS)
            assert target.get("k") == b"v"
    finally:
        source.config_set("requirepass", "")
        source.execute_command("ACL", "SETUSER", "default", "nopass")


async def test_no_canary_read_of_a_refused_client_reaches_the_target(local: LocalMigration) -> None:
    source = local.servers[Side.SOURCE].client()
    source.rpush("list", *range(1_000))
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    assert (await reconcile(await local.engine(), "test"))["divergences_total"] == 0
    await set_canary(local.store, local.plan, 100, why="test")
    app = local.app()

    async def asked() -> bool:
        await app.lrange("list", 0, -1)
        return bool(_calls(local).get("lrange"))

    await until(asked, within_s=10, otherwise="no canary read came to the target")
    source.execute_command("ACL", "SETUSER", "default", "-lrange")
    before = _calls(local)["lrange"]
    for _ in range(20):
        with pytest.raises(RedisError, match="no permissions"):
            await app.lrange("list", 0, -1)
    assert _calls(local)["lrange"] == before


async def test_compare_tries_only_what_it_knows(local: LocalMigration) -> None:
    """Neither a writer of the control store nor an application with all rights makes Exodus run
    anything else on the target.
    """
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"k": "v", "other": "safe"})
    async with comparing(local):
        before = _calls(local)
        for args in (
            ("FLUSHALL",),
            ("EVAL", _ENDLESS, 0),
            ("EVAL_RO", _ENDLESS, 1, "k"),
            ("ACL", "SETUSER", "default", "on"),
            ("RENAME", "other", "gone"),
            ("CONFIG", "SET", "maxmemory", 1),
            ("MIGRATE", "h", 1, "other", 0, 1),
            ("COPY", "k", "other", "REPLACE"),
            ("TOUCH", "k"),
        ):
            pair = pack_pair(0, True, encode(*args), b"+OK\r\n", b"")
            await local.store.client.xadd(local.store.keys.shadow, {"p": pair})
        await local.app().get("k")
        await row_of(local, "GET", "compared")
        await row_of(local, "TOUCH", "not_tried")
        ran = {name: count - before.get(name, 0) for name, count in _calls(local).items()}
        names = (
            "flushall",
            "acl|setuser",
            "rename",
            "config|set",
            "migrate",
            "copy",
            "touch",
        )
        assert {name: ran[name] for name in names if ran.get(name)} == {}
        assert target.get("other") == b"safe"
        assert not _ran(target, _ENDLESS)


async def test_compare_tries_as_the_application_where_the_plan_names_its_user(
    local: LocalMigration, tmp_path: Path
) -> None:
    """It has that user's rights alone: a command that Exodus does not know is tried, unless the
    user may not run it.
    """
    target = local.servers[Side.TARGET].client()
    local.servers[Side.SOURCE].client().mset({"app:k": "v", "other": "v"})
    secret = tmp_path / "app"
    secret.write_text("app-secret")
    target.execute_command(
        "ACL",
        "SETUSER",
        "shop",
        "reset",
        "on",
        ">app-secret",
        "~app:*",
        "+@read",
        "+select",
        "+client|setname",
    )
    local.plan = local.plan.model_copy(
        update={"compare_user": Credentials(username="shop", password_file=secret)}
    )
    try:
        async with comparing(local):
            for key in ("app:k", "other"):
                await local.app().execute_command("TOUCH", key)
            await row_of(local, "TOUCH", "compared")
            await row_of(local, "TOUCH", "divergences")
            by_user = [
                row
                for row in target.client_list()
                if row["name"] == "exodus-compare" and row["user"] == "shop"
            ]
            assert len(by_user) == 1
    finally:
        target.execute_command("ACL", "DELUSER", "shop")


async def test_a_request_that_takes_too_long_is_waited_for_no_more(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.set("k", "v")
    async with comparing(local):
        app = local.app()
        await app.get("k")
        await row_of(local, "GET", "compared")
        target.execute_command("CLIENT", "PAUSE", 8_000, "ALL")
        await app.strlen("k")
        await row_of(local, "STRLEN", "too_slow")
        await app.strlen("k")
        await row_of(local, "STRLEN", "not_tried")
        await app.get("k")
        await row_of(local, "GET", "compared", 2)


_READ = "return redis.call('GET', KEYS[1])"
_OTHER_HERE = (
    "if redis.call('EXISTS', 'only-here') == 1 then return 'other' end return "
    "redis.call('GET', KEYS[1])"
)
_ENDLESS_HERE = "while redis.call('EXISTS', 'only-here') == 1 do end return 1"


async def test_read_only_scripts_are_tried_where_the_plan_says_so(
    modern: LocalMigration, tmp_path: Path
) -> None:
    """They run as the application's user, on the target alone. A script that does not end is
    killed.
    """
    source, target = (modern.servers[side].client() for side in Side)
    source.mset({"app:k": "v", "app:other": "w"})
    target.set("only-here", 1)
    target.config_set("busy-reply-threshold", 100)
    secret = tmp_path / "app"
    secret.write_text("app-secret")
    target.execute_command(
        "ACL",
        "SETUSER",
        "shop",
        "reset",
        "on",
        ">app-secret",
        "~*",
        "+@read",
        "+@scripting",
        "+select",
        "+client|setname",
    )
    user = {"compare_user": Credentials(username="shop", password_file=secret)}
    modern.plan = modern.plan.model_copy(update={**user, "compare_scripts": True})
    async with comparing(modern):
        app = modern.app()
        await app.eval_ro(_READ, 1, "app:k")
        await app.get("app:k")
        await row_of(modern, "GET", "compared")
        (beat,) = await heartbeats(modern.store, "comparer")
        assert "EVAL_RO" not in beat.facts.rows  # the route asks for none
        await modern.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(modern)
        await app.eval_ro(_READ, 1, "app:k")
        await row_of(modern, "EVAL_RO", "equal")
        source.config_set("slowlog-log-slower-than", 0)
        source.config_set("slowlog-max-len", 10_000)
        assert await app.eval_ro(_OTHER_HERE, 1, "app:other") == b"w"
        await row_of(modern, "EVAL_RO", "divergences")
        on_source = [  # by its script, since Exodus calls EVAL_RO itself
            entry
            for entry in source.slowlog_get(10_000)
            if entry["command"].startswith(f"EVAL_RO {_OTHER_HERE}".encode())
        ]
        assert len(on_source) == 1  # the application's own
        # It might write, and its user may run SELECT: never tried
        assert await app.eval("return redis.call('GET', KEYS[1])", 1, "app:k") == b"v"
        assert await app.eval_ro(_ENDLESS_HERE, 1, "app:k") == 1
        await row_of(modern, "EVAL_RO", "too_slow")

        async def serves() -> bool:
            try:
                return not target.execute_command("EXISTS", "nothing")
            except ResponseError as exc:
                assert "running a script" in str(exc)
                return False

        await until(serves, within_s=15, otherwise="the target still runs the script")
        await app.eval_ro(_READ, 1, "app:k")
        await row_of(modern, "EVAL_RO", "not_tried")
        (beat,) = await heartbeats(modern.store, "comparer")
        assert beat.facts.rows["EVAL"] == {"not_tried": 1}


async def test_a_script_that_a_lost_connection_left_is_ended(modern: LocalMigration) -> None:
    """Such a script blocks the target. The comparer kills it before it asks the target anything
    else.
    """
    target = modern.servers[Side.TARGET].client()
    target.set("only-here", 1)
    target.config_set("busy-reply-threshold", 100)
    client = modern.servers[Side.TARGET].client()
    script = asyncio.create_task(asyncio.to_thread(client.eval, _ENDLESS_HERE, 0))
    comparer = Comparer(modern.store, modern.plan, "comparer-1")
    comparer._slow.script_runs = True

    def busy() -> bool:
        try:
            return not target.ping()
        except RedisError as exc:
            return "running a script" in str(exc)

    await asyncio.to_thread(wait_until, busy, within_s=15, otherwise="the script never began")
    task = asyncio.create_task(comparer._keep_comparing(await read_route(modern.store)))
    try:
        with pytest.raises(ResponseError, match="killed"):
            await asyncio.wait_for(asyncio.shield(script), 20)
    finally:
        await end_all([task])
        if not script.done():
            target.script_kill()


def test_scripts_are_tried_as_an_applications_user_only(local: LocalMigration) -> None:
    with pytest.raises(ValueError, match="name it in compare_user"):
        Plan.model_validate({**local.plan.model_dump(mode="json"), "compare_scripts": True})
