"""A database that one side lacks: reported before anything is copied, and harmless to every other
database.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.control import letters
from exodus.copy.guard import DatabaseMissing, Guard, GuardedLeg, replace_write_grant_on
from exodus.copy.payload import Uncarried
from exodus.net.leg import Leg, NoDatabase, ReplyError
from exodus.plan.plan import Plan
from exodus.plan.scope import FilterRule, Filters, Rename
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode_many
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import Finding, check_pair
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _finding(source: DatabaseServer, target: DatabaseServer, **plan: object) -> Finding:
    made = Plan(name="check", source=source.address(), target=target.address(), **plan)  # type: ignore[arg-type]
    found = await check_pair(
        Endpoint(Side.SOURCE, made.source), Endpoint(Side.TARGET, made.target), made
    )
    return next(finding for finding in found if finding.check == "databases")


async def test_preflight_compares_the_databases_of_both_sides(
    make_server, valkey91: DatabaseServer
) -> None:
    many = make_server(ServerKind.REDIS_62, databases="64")
    found = await _finding(many, valkey91)
    assert (found.severity, "64" in found.what, "16" in found.what) == ("warning", True, True)
    with many.client(db=40) as client:
        client.set("k", 1)
    found = await _finding(many, valkey91)
    assert (found.severity, "database 40" in found.what) == ("fatal", True)
    assert "databases 41" in found.next_step
    left_out = Filters(exclude=(FilterRule(databases=(40,)),))
    assert (await _finding(many, valkey91, filters=left_out)).severity == "warning"
    moved = (Rename(database=40, to_database=3, prefix="", to_prefix="forty:"),)
    assert (await _finding(many, valkey91, renames=moved, cutover="own")).severity == "warning"
    far = (Rename(database=0, to_database=50, prefix="a", to_prefix="b"),)
    with many.client() as client:
        client.set("k", 1)
    assert (
        await _finding(many, valkey91, renames=(*moved, *far), cutover="own")
    ).severity == "fatal"
    found = await _finding(valkey91, many, allow_nonempty=True)
    assert (found.severity, "cannot flow back" in found.why) == ("warning", True)
    own = await _finding(valkey91, many, allow_nonempty=True, cutover="own")
    assert own.severity == "ok"


async def test_databases_are_counted_where_the_setting_may_not_be_read(make_server) -> None:
    server = make_server(ServerKind.VALKEY_81, databases="37")
    with server.client() as client:
        client.acl_setuser(
            "blind", enabled=True, passwords=["+p"], commands=["+@all", "-config"], keys=["*"]
        )
    address = server.address().model_copy(
        update={"username": "blind", "password": "p", "password_file": None}
    )
    (node,) = await Endpoint(
        Side.SOURCE, type(address)(**{**address.model_dump(), "password": "p"})
    ).each_node()
    assert (await node.facts()).database_count == 37


@pytest.mark.parametrize("guarded", [False, True])
async def test_no_batch_runs_behind_a_select_that_failed(
    valkey91: DatabaseServer, guarded: bool
) -> None:
    """Before, it ran in database 0, over keys of the same names."""
    key = b"exodus:{batches}:epoch"
    with valkey91.client() as client:
        client.mset({"k": "of database 0", key: "7"})
    guard = Guard(((key, b"7"),)) if guarded else Guard()
    body = encode_many([("SET", "k", "of database 40")])
    async with await Leg.connect(valkey91.address(), Side.TARGET) as leg:
        batches = GuardedLeg(leg, guard)
        for db in (0, 3, 3, 0):
            with pytest.raises(DatabaseMissing, match="no database 40"):
                await batches.run(40, body, 1)
            assert await batches.run(db, encode_many([("SET", "other", db)]), 1) == [b"OK"]
    async with await Leg.connect(valkey91.address(), Side.TARGET, db=3) as leg:
        with pytest.raises(NoDatabase):
            await leg.select(40)
        assert (await leg.call("GET", "k"), leg.db) == (None, 3)
    with valkey91.client() as client:
        assert (client.get("k"), client.get("other")) == (b"of database 0", b"0")
    with valkey91.client(db=3) as client:
        assert (client.get("k"), client.get("other")) == (None, b"3")


@pytest.mark.parametrize("refused", ["-select", "-multi", "-watch"])
async def test_no_batch_runs_behind_a_command_that_the_user_may_not_run(
    valkey91: DatabaseServer, refused: str
) -> None:
    """Behind a MULTI that failed it would run without its guard."""
    key = b"exodus:{batches}:epoch"
    with valkey91.client() as client:
        client.mset({"k": "as it was", key: "7"})
    async with await Leg.connect(valkey91.address(), Side.TARGET) as leg:
        batches = GuardedLeg(leg, Guard(((key, b"7"),)))
        with valkey91.client() as client:
            client.acl_setuser(
                "limited", enabled=True, nopass=True, commands=["+@all", refused], keys=["*"]
            )
        await leg.call("AUTH", "limited", "any")
        with pytest.raises(Exception, match="permissions") as caught:
            await batches.run(
                3, encode_many([("SET", "k", "written"), ("SET", "k2", "written")]), 2
            )
        assert isinstance(caught.value, Uncarried) is (refused == "-select")
    with valkey91.client() as client:
        client.acl_deluser("limited")
        assert (client.get("k"), client.get("k2")) == (b"as it was", None)
    with valkey91.client(db=3) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("refused", ["-multi", "-watch", "-get"])
async def test_no_right_is_given_behind_a_command_that_failed(
    valkey91: DatabaseServer, refused: str
) -> None:
    """A switch changes a side only by commands with a condition."""
    key = b"exodus:{rights}:epoch"
    with valkey91.client() as client:
        client.set(key, "7")
        client.acl_setuser(
            "limited", enabled=True, nopass=True, commands=["+@all", refused], keys=["*"]
        )
    async with await Leg.connect(valkey91.address(), Side.TARGET) as leg:
        await leg.call("AUTH", "limited", "any")
        with pytest.raises(ReplyError, match="permissions"):
            await replace_write_grant_on(leg, "rights", b"7", b"8")
    with valkey91.client() as client:
        client.acl_deluser("limited")
        assert client.get(key) == b"7"


async def test_the_migrate_lane_sends_nothing_to_a_database_that_the_target_lacks(
    make_server, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """The source sends SELECT and keys together. Behind a SELECT that failed, the keys came into
    database 0.
    """
    source, target = (
        make_server(ServerKind.REDIS_62, databases="64"),
        make_server(ServerKind.VALKEY_91),
    )
    local = LocalMigration(source, target, control_server, tmp_path, strategy="migrate")
    await local.open()
    try:
        with target.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-restore")
        for db in (0, 40):
            with source.client(db=db) as client:
                client.mset({f"k{number}": f"of database {db}" for number in range(50)})
        await local.start_live_sync()
        await local.backfill()
        with target.client() as client:
            assert set(client.mget([f"k{number}" for number in range(50)])) == {b"of database 0"}
        assert len(await letters.open_letters(local.store)) == 50
    finally:
        await local.close()


@pytest.mark.parametrize("back", [False, True])
async def test_keys_of_a_database_that_the_follower_lacks_are_dead_letters(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    back: bool,
) -> None:
    """In backfill, live sync, after a flush, in verification, and in reverse sync."""
    many = make_server(ServerKind.REDIS_62, databases="64")
    local = LocalMigration(
        *((valkey91, many) if back else (many, valkey91)), control_server, tmp_path
    )
    await local.open()
    try:
        with many.client(db=40) as client:
            client.mset({f"k{number}": "of database 40" for number in range(100)})
            client.set("expires", "of database 40", px=3_600_000)
            client.rpush("list", *[b"x" * 1000] * 2_000)
        for box in (many, valkey91):
            with box.client() as client:
                client.mset({f"k{number}": "of database 0" for number in range(100)})
        await local.gateway()
        await local.syncer()
        if back:
            await local.change(authority=Side.TARGET)
            with valkey91.client() as client:
                client.set(f"exodus:{{{local.plan.name}}}:epoch", 0)
            await local.change(journal="all", sync=True)
        else:
            await local.start_live_sync()
        await local.backfill()
        app, zero = local.app(db=40), local.app()
        await app.set("k7", "written later")
        await app.set("k8", "x")
        await zero.set("after", "1")
        await app.delete("k8")
        await local.drained()
        with valkey91.client() as client:
            assert set(client.mget([f"k{number}" for number in range(100)])) == {b"of database 0"}
            assert client.get("after") == b"1"

        async def listed() -> bool:
            found = await letters.open_letters(local.store)
            return len(found) == 101 and all(
                "no database 40" in letter["reason"] for letter in found.values()
            )

        await until(listed, within_s=10, otherwise="-")
        report = await local.verify()
        assert {(found.kind, found.db) for found in report.divergences} == {("missing", 40)}
        await app.flushdb()
        await local.drained()
        assert (await local.verify()).divergences == []
    finally:
        await local.close()
