"""Business checks of Test where a side is a cluster: the shipped examples, green and red, and what
their clients refuse. The trial copy on a cluster is among other keys.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from exodus.acceptance.business import REPORT
from exodus.acceptance.read_only import NotARead, ReadOnlyCluster, open_read_only
from exodus.acceptance.trial_copy import TrialCopy, copy_trial, remove_trial
from exodus.commands.key_slots import slot_of
from exodus.plan.vocabulary import Side
from tests.support.business import checked, not_ok, plan_with
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.pair_of_clusters import Pair, role_users
from tests.support.roles import denied
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
Box = ClusterBox | DatabaseServer
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "checks"
_SOMEBODYS = b"exodus:trial:others:k:1"
# Of the slot of k:1, as long as no prefix is before both
_TWIN = next(
    f"other:{number}"
    for number in itertools.count()
    if slot_of(b"other:%d" % number) == slot_of(b"k:1")
)


def _fill(box: Box) -> None:
    with box.client() as source:
        for number in range(50):
            source.hset(f"account:{number}", "balance", f"{number}.25")
            source.set(f"user:{number}", "u")
            source.hset(f"session:{number}", "user", number)
        for name in ("a", "b"):
            source.xadd(f"events:{name}", {"f": "v"}, id="1-1")
            source.xgroup_create(f"events:{name}", "g", id="0")


def _copied(box: Box, trial: TrialCopy) -> redis.Redis | redis.RedisCluster:
    """A client of the place of the trial copy, where its keys have `trial.prefix`."""
    return box.client() if isinstance(box, ClusterBox) else box.client(db=trial.database)


@pytest.mark.parametrize("way", ["both", "to", "from"])
async def test_the_shipped_checks_hold_on_a_copy_and_find_what_is_planted(
    way: str,
    pair: Pair,
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Between clusters, from one server to a cluster, and from a cluster to one server. Rows have
    the keys' own names, and keys of others on the target are in no row.
    """
    sides: dict[str, tuple[Box, Box]] = {
        "both": (pair.source, pair.target),
        "to": (redis82, pair.target),
        "from": (pair.source, valkey91),
    }
    source, target = sides[way]
    _fill(source)
    with target.client() as client:  # of somebody
        client.hset("account:99", "balance", "1000")
    async with cluster_migration(source, target, control_server, tmp_path) as local:
        plan = plan_with(local, business_folder=_EXAMPLES)
        trial = await copy_trial(plan, local.store)
        assert bool(trial.prefix) is isinstance(target, ClusterBox)
        rows = await checked(local, plan)
        assert not_ok(rows) == {}
        assert sum(row.judged for row in rows) == 3
        with _copied(target, trial) as client:
            client.hset(f"{trial.prefix}account:7", "balance", "8.25")
            client.delete(f"{trial.prefix}user:9")
            client.xdel(f"{trial.prefix}events:a", "1-1")
            client.xgroup_destroy(f"{trial.prefix}events:b", "g")
        with source.client() as client:
            client.hset("session:99", "user", "nobody")
        red = not_ok(await checked(local, plan))
        assert set(red) == {"business: balances", "business: sessions", "business: streams"}
        assert "sum_source=1237.5, sum_target=1238.5" in red["business: balances"]
        assert "side=source, session=session:99, user=nobody" in red["business: sessions"]
        assert "side=target, session=session:9, user=9" in red["business: sessions"]
        report = await local.store.report(REPORT)
        assert report is not None
        streams = [row["stream"] for row in report["rows"] if row["check"] == "streams"]
        assert sorted(streams) == ["events:a", "events:b"]
        await remove_trial(plan, local.store)


async def test_a_check_that_writes_to_a_cluster_is_red_and_changes_nothing(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    calls = {
        "set": "target.set('k', 1)",
        "script": "source.eval(\"return redis.call('SET', KEYS[1], 1)\", 1, 'k')",
        "pipe": "source.pipeline().delete('k').execute()",
        "node": "source.get_redis_connection(source.get_primaries()[0]).flushall()",
        "all": "target.flushall(target_nodes=target.ALL_NODES)",
    }
    folder = tmp_path / "checks"
    folder.mkdir(mode=0o700)
    for name, call in calls.items():
        (folder / f"{name}.py").write_text(f"def check(source, target):\n    {call}\n")
        (folder / f"{name}.py").chmod(0o600)
    for box in pair:
        with box.client() as client:
            client.set("k", "v")
    async with cluster_migration(*pair, control_server, tmp_path) as local:
        red = not_ok(await checked(local, plan_with(local, business_folder=folder)))
    assert set(red) == {f"business: {name}" for name in calls}
    assert all("is not a read" in why for why in red.values()), red
    for box in pair:
        assert {key: value for key, (_, value, _) in box.contents().items()} == {b"k": b"v"}
    shutil.rmtree(folder)


def _refused(client: ReadOnlyCluster) -> list[Callable[[], object]]:
    node = client.get_redis_connection(client.get_primaries()[0])
    return [
        lambda: client.set("k", 1),
        lambda: client.delete("k"),
        client.flushall,
        lambda: client.config_set("maxmemory", 1),
        lambda: client.execute_command("ACL SETUSER", "x"),
        lambda: client.getdel("k"),
        client.register_script("return 1"),
        lambda: client.pipeline().set("k", 1),
        lambda: client.pipeline().delete("k"),
        lambda: client.pipeline().unlink("k"),
        lambda: client.pipeline().pipeline_execute_command("SET", "k", 1),
        lambda: client.pipeline(transaction=True).set("k", 1),
        lambda: client.execute_command("SET", "k", 1, target_nodes=client.get_primaries()),
        lambda: client.mset_nonatomic({"k": 1}),
        lambda: client.execute_command("CLUSTER RESET"),
        lambda: node.set("k", 1),
        lambda: node.pipeline().delete("k"),
    ]


@pytest.mark.parametrize("prefix", ["", "exodus:trial:0123abcd:"])
def test_a_client_of_a_cluster_reads_and_refuses_the_rest(pair: Pair, prefix: str) -> None:
    with pair.target.client() as client:
        for number in range(600):
            client.set(f"{prefix}k:{number}", number)
        client.mset({f"{prefix}{{t}}a": 1, f"{prefix}{{t}}b": 2})
        client.xadd(f"{prefix}s", {"f": "v"}, id="1-1")
        client.set(f"{prefix}k", "v")
        client.set(_SOMEBODYS, "somebody's")
    before = pair.target.contents()
    names = {f"k:{number}".encode() for number in range(600)}
    with open_read_only(
        pair.target.address(), "target", db=0, timeout_s=5, prefix=prefix
    ) as client:
        assert isinstance(client, ReadOnlyCluster)
        assert client.get("k") == b"v"
        assert set(client.scan_iter(match="k:*", count=10)) == names
        others = {b"{t}a", b"{t}b", b"s", b"k"} | (set() if prefix else {_SOMEBODYS})
        assert set(client.scan_iter()) == names | others
        assert set(client.keys("k:*", target_nodes=client.PRIMARIES)) == names
        some = [f"k:{number}" for number in range(600)]
        assert client.mget_nonatomic(some) == [b"%d" % number for number in range(600)]
        assert client.exists(*some, "none") == 600
        assert client.mget_nonatomic("k:1", _TWIN) == [b"1", None]
        assert client.exists("k:1", _TWIN) == 1
        assert client.mget("{t}a", "{t}b") == [b"1", b"2"]
        assert client.xinfo_stream("s")["length"] == 1
        found = client.xread({"s": "0"})
        assert dict(found)[b"s"] or found[b"s"]
        assert client.object("encoding", "k:1") == b"int"
        pipe = client.pipeline(transaction=False)
        assert pipe.get("k:1").exists("k:2").strlen("k:3").execute() == [b"1", 1, 1]
        assert client.pipeline(transaction=True).get("{t}a").get("{t}b").execute() == [b"1", b"2"]
        node = client.get_redis_connection(client.get_node_from_key(f"{prefix}k"))
        assert node.get("k") == b"v"
        for number, refused in enumerate(_refused(client)):
            with pytest.raises(NotARead):
                refused()
                pytest.fail(f"number {number} was sent")
        if prefix:  # they would count others' keys
            for sees_all in (client.dbsize, client.randomkey):
                with pytest.raises(NotARead, match="beside the trial copy"):
                    sees_all()
    assert pair.target.contents() == before


def test_announced_addresses_are_mapped(pair: Pair) -> None:
    port = pair.target.masters()[1].port
    place = pair.target.address(address_map={"10.9.9.9:7000": f"127.0.0.1:{port}"})
    with open_read_only(place, "target", db=0, timeout_s=5) as client:
        assert isinstance(client, ReadOnlyCluster)
        assert client.nodes_manager.remap_host_port("10.9.9.9", 7000) == ("127.0.0.1", port)


async def test_with_the_users_of_its_roles_nothing_is_refused(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    _fill(pair.source)
    with role_users(pair, tmp_path) as (sides, users):
        async with cluster_migration(*pair, control_server, tmp_path) as local:
            local.plan = local.plan.model_copy(update={**sides, "users": users})
            await local.store.save_plan(local.plan)
            plan = plan_with(local, business_folder=_EXAMPLES)
            await copy_trial(plan, local.store)
            rows = await checked(local, plan)
            await remove_trial(plan, local.store)
            assert not_ok(rows) == {}
        servers = {Side.SOURCE: pair.source.nodes, Side.TARGET: pair.target.nodes}
        refused = [denied({side: node}) for side, nodes in servers.items() for node in nodes]
        assert refused == [[]] * 7
