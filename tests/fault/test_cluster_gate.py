"""Test's checks where both sides are clusters: each looks at every node, and a defect of one node
turns its row red and is named.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import redis.asyncio

from exodus.acceptance import latency, load
from exodus.acceptance.commands import check_commands
from exodus.acceptance.delivery import check_delivery
from exodus.acceptance.load import check_load
from exodus.acceptance.logins import check_logins
from exodus.acceptance.rows import Checked
from exodus.acceptance.standing import check_replicas, check_settings
from exodus.acceptance.trial_copy import REPORT, copy_trial, remove_trial, verify_trial
from exodus.cutover.preflight import check_all
from exodus.gateway.tables import load_table
from exodus.observe.traffic_copy import watch_monitor
from exodus.observe.workload import workload_of
from exodus.plan.gate_checks import CheckLevel, GateChecks
from exodus.plan.vocabulary import Cutover, Side
from exodus.rehearsal.rehearse import rehearse
from exodus.topology.endpoint import Endpoint
from tasks.acceptance import rehearse_rounds
from tasks.checks import Level
from tasks.context import Opened
from tests.support.cluster_gateway import cluster_migration
from tests.support.local_migration import LocalMigration
from tests.support.pair_of_clusters import Pair, role_users, setting
from tests.support.roles import denied
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
_APP = "shop"
_RIGHTS = ("on", ">secret", "~order:*", "&*", "+@all", "-@dangerous")


@pytest.fixture(autouse=True)
def _users(pair: Pair) -> Iterator[None]:
    nodes = (*pair.source.nodes, *pair.target.nodes)
    for node in nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", _APP, *_RIGHTS)
    yield
    for node in nodes:
        with node.client() as client:
            client.execute_command("ACL", "DELUSER", _APP)


@asynccontextmanager
async def migration(
    pair: Pair, control: DatabaseServer, folder: Path, **more: object
) -> AsyncIterator[LocalMigration]:
    fields = {"cutover": Cutover.GATEWAY, **more}
    async with cluster_migration(pair.source, pair.target, control, folder, **fields) as local:
        yield local


def _red(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


async def _observe(local: LocalMigration, *commands: str) -> None:
    rows = [{"command": name, "calls": 1} for name in commands]
    await local.store.save_report("profile.analyze", {"commands": rows})


async def _all(local: LocalMigration) -> list[Checked]:
    plan, store = local.plan, local.store
    return [
        *await check_logins(plan, store),
        *await check_commands(plan, store),
        *await check_delivery(plan, store),
        *await check_settings(plan),
        *await check_replicas(plan),
    ]


def _left(pair: Pair) -> list[str]:
    found: list[str] = []
    for node in (*pair.source.masters(), *pair.target.masters()):
        with node.client(decode_responses=True) as client:
            found += client.scan_iter(match="exodus*", count=10_000)
    return found


async def test_nothing_is_red_where_nothing_is_wrong_and_nothing_is_left(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with migration(pair, control_server, tmp_path, prove_on_source=True) as local:
        await local.gateway()
        await _observe(local, "GET", "MSET", "EVAL", "BLPOP", "LMPOP", "XREAD", "PUBLISH", "BITOP")
        rows = await _all(local)
        assert _red(rows) == {}
        shown = {row.check: row.detail for row in rows}
        assert shown[f"rights of user {_APP}"].endswith("(each of 4 nodes)")
        assert shown["the target has every observed kind of request"].endswith("(each of 2 nodes)")
        assert "not same" not in str(shown)
        untried = shown["kinds of request that were not tried"]
        assert untried == "none (each of 2 nodes)", untried
        measured = await latency.check_latency(local.plan, local.store)
        assert _red(measured) == {}
        (told,) = measured
        assert "the slowest of 3 masters" in told.detail
        assert "the slowest of 2 masters" in told.detail
        silent = pair.source.masters()[1]
        silent.pause()
        try:
            (told,) = await latency.check_latency(local.plan, local.store)
        finally:
            silent.resume()
            await asyncio.to_thread(pair.source.wait_ready)
        assert not told.ok
        assert f"the source does not answer: 127.0.0.1:{silent.port}" in told.detail
    assert _left(pair) == []


class Defect(NamedTuple):
    """The defect of one node of the target, and the row that reports it."""

    index: int  # of the master
    plant: tuple[object, ...]
    cure: tuple[object, ...]
    check: str
    red: str
    of_replica: bool = False


_USER = ("ACL", "SETUSER", _APP, "reset", *_RIGHTS)
_FULL = (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"))
_POLICY = ("CONFIG", "SET", "maxmemory-policy")
_NOBODY = ("ACL", "SETUSER", "default")
DEFECTS = [
    Defect(1, ("ACL", "DELUSER", _APP), _USER, "logins", f"login of user {_APP}"),
    Defect(0, ("ACL", "DELUSER", _APP), _USER, "logins", f"login of user {_APP}", True),
    Defect(1, (*_USER[:3], "-get"), _USER, "logins", f"rights of user {_APP}", True),
    Defect(
        1,
        (*_NOBODY, "resetpass", ">p"),
        (*_NOBODY, "nopass"),
        "logins",
        "clients without a login",
    ),
    Defect(1, *_FULL, "commands", "the target answers every observed kind of request"),
    Defect(1, *_FULL, "delivery", "delivery: transaction"),
    Defect(1, *_FULL, "settings", "maxmemory of the target"),
    Defect(
        0,
        (*_POLICY, "allkeys-lru"),
        (*_POLICY, "noeviction"),
        "settings",
        "setting maxmemory-policy",
    ),
]


async def test_a_defect_of_one_node_is_found_and_named(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with migration(pair, control_server, tmp_path) as local:
        await _observe(local, "GET", "SET")
        checks: dict[str, Callable[[], Awaitable[list[Checked]]]] = {
            "logins": lambda: check_logins(local.plan, local.store),
            "commands": lambda: check_commands(local.plan, local.store),
            "delivery": lambda: check_delivery(local.plan, local.store),
            "settings": lambda: check_settings(local.plan),
        }
        for defect in DEFECTS:
            node = pair.target.masters()[defect.index]
            if defect.of_replica:
                (node,) = pair.target.replicas_of(node)
            with node.client() as client:
                client.execute_command(*defect.plant)
                try:
                    red = _red(await checks[defect.check]())
                finally:
                    client.execute_command(*defect.cure)
            assert defect.red in red, (defect, red)
            if defect.red != "clients without a login":
                assert f":{node.port}" in red[defect.red], (defect, red)
        with _events(pair, 1):
            red = _red(await check_delivery(local.plan, local.store))
        assert f":{pair.target.masters()[1].port}" in red["delivery: keyspace events"]


@contextmanager
def _events(pair: Pair, without: int) -> Iterator[None]:
    """Keyspace events everywhere, but on one master of the target."""
    nodes = [*pair.source.nodes, *pair.target.nodes]
    for node in nodes:
        with node.client() as client:
            client.config_set("notify-keyspace-events", "KEA")
    with pair.target.masters()[without].client() as client:
        client.config_set("notify-keyspace-events", "")
    try:
        yield
    finally:
        for node in nodes:
            with node.client() as client:
                client.config_set("notify-keyspace-events", "")


async def test_a_trial_copy_beside_other_keys_is_compared_on_every_node(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A cluster has one database: the copy is there, under a prefix that nobody has."""
    with pair.source.client() as source, pair.target.client() as target:
        for number in range(200):
            source.set(f"order:{number}", f"value {number}")
            source.hset(f"user:{{{number}}}", mapping={"name": "n"})
        target.set("order:7", "somebody's")
    checks = GateChecks(data_keys=1_000)
    async with migration(pair, control_server, tmp_path, test_checks=checks) as local:
        trial = await copy_trial(local.plan, local.store)
        assert (len(trial.keys), trial.failed) == (400, {})
        report = await local.store.report(REPORT)
        assert report is not None
        names = [bytes.fromhex(name) for name in report["keys"]]
        spoilt = next(name for name in names if name.endswith(b"order:9"))
        rows = await verify_trial(local.plan, local.store, trial)
        assert _red(rows) == {}
        with pair.target.client() as target:
            assert target.get(spoilt) == b"value 9"
            target.set(spoilt, "other")
        red = _red(await verify_trial(local.plan, local.store, trial))
        assert "order:9" in red["trial copy: values are equal"]
        # A report that names other keys removes nothing.
        await local.store.save_report(REPORT, {**report, "keys": [b"order:7".hex()]})
        with pytest.raises(Exception, match="is not removed"):
            await remove_trial(local.plan, local.store)
        await local.store.save_report(REPORT, report)
        assert await remove_trial(local.plan, local.store) == 400
        with pair.target.client() as target:
            assert target.get("order:7") == b"somebody's"
        with setting(pair.target.masters()[1], "maxmemory", "1"):
            full = await copy_trial(local.plan, local.store)
            assert "trial copy: memory" in _red(await verify_trial(local.plan, local.store, full))
            await remove_trial(local.plan, local.store)
    assert _left(pair) == []


async def test_the_observed_load_is_played_on_every_node(
    pair: Pair,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other tests on this machine make its player late.
    monkeypatch.setattr(load, "LOAD_LATE_US_MAX", 10_000_000)
    checks = GateChecks(load_seconds=0.5, load_speed_max=2.0)
    async with migration(pair, control_server, tmp_path, test_checks=checks) as local:
        table = (await load_table(local.plan)).commands
        nodes = await Endpoint(Side.SOURCE, local.plan.source).each_node()
        watching = asyncio.create_task(watch_monitor(nodes, table, seconds=1.0))
        app, number = (
            redis.asyncio.RedisCluster(host="127.0.0.1", port=pair.source.nodes[0].port),
            0,
        )
        async with app:
            while not watching.done():
                await app.set(f"order:{number % 50}", "v" * 40)
                number += 1
                await asyncio.sleep(0.004)
        model = workload_of((await watching).profile, source="monitor")
        await local.store.save_report("workload.pre-test", model.model_dump(mode="json"))
        for node in pair.target.masters():
            with node.client() as client:
                client.config_resetstat()
        assert _red(await check_load(local.plan, local.store)) == {}
        for node in pair.target.masters():
            with node.client() as client:
                assert client.info("commandstats")["cmdstat_set"]["calls"] > 5
        second = pair.target.masters()[1]
        with second.client() as client:
            client.execute_command("ACL", "SETUSER", "exodus", "-set")
        try:
            rows = await check_load(local.plan, local.store)
        finally:
            with second.client() as client:
                client.execute_command("ACL", "SETUSER", "exodus", "+@all")
        assert any("Exodus's user may run none of it" in row.why for row in rows), rows
        with (
            setting(second, "maxmemory", "1"),
            pytest.raises(Exception, match="may run out of memory"),
        ):
            await check_load(local.plan, local.store)
    assert _left(pair) == []


async def test_with_the_users_of_its_roles_nothing_is_refused(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """On masters and replicas: of the pre-flight rows, of Test's checks, and of the rehearsal."""
    with pair.source.client() as client:
        client.set("k", "v")
    checks = GateChecks(rehearsal_rounds=1, rehearsal_kill=False)
    with role_users(pair, tmp_path) as (sides, users):
        async with migration(pair, control_server, tmp_path, test_checks=checks) as local:
            local.plan = local.plan.model_copy(update={**sides, "users": users})
            await local.store.save_plan(local.plan)
            await local.gateway()
            await _observe(local, "GET", "SET")
            found = await check_all(local.plan, local.store)
            assert [each.what for each in found if each.severity != "ok"] == []
            trial = await copy_trial(local.plan, local.store)
            rows = [*await _all(local), *await verify_trial(local.plan, local.store, trial)]
            await remove_trial(local.plan, local.store)
            assert _red(rows) == {}
            assert (await rehearse(local.store, local.plan))["ok"]
        servers = {Side.SOURCE: pair.source.nodes, Side.TARGET: pair.target.nodes}
        refused = [denied({side: node}) for side, nodes in servers.items() for node in nodes]
        assert refused == [[]] * 7


async def test_what_is_not_done_on_a_cluster_is_a_row_to_be_accepted(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Applications that pass no gateway cannot be switched, so the switch is not rehearsed."""
    checks = GateChecks(rehearsal=CheckLevel.REQUIRED)
    async with migration(
        pair, control_server, tmp_path, cutover=Cutover.OWN, test_checks=checks
    ) as local:
        it = Opened(local.plan, local.store, local.plan)
        (row,) = await inspect.unwrap(rehearse_rounds.fn)(it)
        assert (row["ok"], row["detail"], row["level"]) == (False, "not done", Level.SHOULD)


async def test_fewer_replicas_of_one_master_are_found(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    first, second = pair.target.masters()
    replicas = pair.target.replicas_of(second)

    async def follows(master: DatabaseServer, *, second_has: int) -> None:
        with master.client() as client:
            ident = client.execute_command("CLUSTER", "MYID")
        with replicas[0].client() as client:
            client.config_set("cluster-allow-replica-migration", "no")
            client.execute_command("CLUSTER", "REPLICATE", ident)

        async def done() -> bool:
            with replicas[0].client() as client, second.client() as there:
                up = client.info("replication")["master_link_status"] == "up"
                return up and there.info("replication")["connected_slaves"] == second_has

        await until(done, within_s=20, otherwise="the replica follows nobody")

    async with migration(pair, control_server, tmp_path) as local:
        plan = local.plan.model_copy(update={"source": local.plan.target})
        assert _red(await check_replicas(plan)) == {}
        await follows(first, second_has=0)
        try:
            red = _red(await check_replicas(plan))
        finally:
            await follows(second, second_has=1)
            await asyncio.to_thread(pair.target.wait_ready)
    said = f"127.0.0.1:{second.port}: 2 on the source, 0 on the target"
    assert red == {"replicas of the target": said}
