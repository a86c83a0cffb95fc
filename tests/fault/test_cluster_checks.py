"""What a cluster must be like before it is copied: each check with its defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from exodus.cutover.preflight import check_all
from exodus.plan.address import Cluster
from exodus.plan.plan import Plan
from exodus.plan.scope import Rename
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.stack.servers import USER, ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import Finding
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
MakeCluster = Callable[..., ClusterBox]
MakeServer = Callable[..., DatabaseServer]


async def checked(
    source: ClusterBox | DatabaseServer,
    target: ClusterBox | DatabaseServer,
    control: DatabaseServer,
    folder: Path,
    plan: Plan | None = None,
    **more: object,
) -> list[Finding]:
    """Return the findings that are not ok."""
    fields = {"cutover": Cutover.OWN, "feed": Feed.TRACKING, **more}
    local = LocalMigration(source, target, control, folder, **fields)  # type: ignore[arg-type]
    await local.open()
    try:
        found = await check_all(plan or local.plan, local.store)
        return [finding for finding in found if finding.severity != "ok"]
    finally:
        await local.close()


def fatal(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.severity == "fatal"]


async def test_two_clusters_fit(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.REDIS_82, masters=2, replicas=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    assert fatal(await checked(source, target, control_server, tmp_path)) == []


async def test_slots_without_a_master_are_refused(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, cluster_require_full_coverage="no")
    target = make_server(ServerKind.VALKEY_91)
    for node in source.nodes:
        with node.client() as client:
            client.execute_command("CLUSTER", "DELSLOTS", 3, 4)
    assert fatal(await checked(source, target, control_server, tmp_path)) == [
        "2 slots of the source have no master"
    ]


async def test_a_server_that_is_no_cluster_is_refused(
    make_server: MakeServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source, target = make_server(ServerKind.VALKEY_81), make_server(ServerKind.VALKEY_91)
    address = source.address()
    named = Cluster(cluster=(address.place,), username=USER, password_file=address.password_file)
    plan = Plan(name="t", source=named, target=target.address(), cutover=Cutover.OWN)
    (finding,) = await checked(source, target, control_server, tmp_path, plan)
    assert finding.what == "no node of the source says who has which slots"
    assert "cluster support disabled" in finding.why


async def test_a_node_without_the_user_is_named(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, masters=2, replicas=1)
    target = make_server(ServerKind.VALKEY_91)
    replica = source.replicas_of(source.masters()[1])[0]
    with redis.Redis(port=replica.port) as client:
        client.acl_deluser(USER)
    found = await checked(source, target, control_server, tmp_path)
    assert fatal(found) == []
    assert f"Exodus does not reach the replica 127.0.0.1:{replica.port}" in [
        finding.what for finding in found
    ]
    master = source.masters()[1]
    with redis.Redis(port=master.port) as client:
        client.acl_deluser(USER)
    assert f"Exodus does not reach the master 127.0.0.1:{master.port}" in fatal(
        await checked(source, target, control_server, tmp_path)
    )


async def test_a_right_that_one_node_lacks_is_named(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source, target = make_server(ServerKind.VALKEY_81), make_cluster(ServerKind.VALKEY_91)
    with target.masters()[2].client() as client:
        client.execute_command("ACL", "SETUSER", USER, "-hset")
    (refused,) = fatal(await checked(source, target, control_server, tmp_path))
    assert "may not run HSET" in refused


async def test_databases_that_a_cluster_lacks_are_listed(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source, target = make_server(ServerKind.REDIS_62), make_cluster(ServerKind.VALKEY_91)
    for db in (0, 3, 5):
        with source.client(db=db) as client:
            client.set("k", db)
    (finding,) = [
        each
        for each in await checked(source, target, control_server, tmp_path)
        if each.severity == "fatal"
    ]
    assert finding.what.endswith("keys of the source belong in database 3, 5")
    assert "cluster-databases 6" in finding.next_step
    renames = tuple(
        Rename(database=db, to_database=0, prefix="", to_prefix=f"{db}:") for db in (3, 5)
    )
    assert fatal(await checked(source, target, control_server, tmp_path, renames=renames)) == []
    wide = make_cluster(ServerKind.VALKEY_91, cluster_databases="16")
    assert fatal(await checked(source, wide, control_server, tmp_path)) == []


async def test_a_master_without_a_guard_slot_is_refused(
    make_cluster: MakeCluster,
    make_server: MakeServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_server(ServerKind.VALKEY_81)
    target = make_cluster(ServerKind.VALKEY_91, spare=1)
    target.reshard(range(1, 4), target.nodes[-1])
    assert fatal(await checked(source, target, control_server, tmp_path)) == [
        f"127.0.0.1:{target.nodes[-1].port} has no slot with a guard key"
    ]


async def test_a_node_of_the_source_as_the_target_is_refused(
    make_cluster: MakeCluster, control_server: DatabaseServer, tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81)
    assert fatal(await checked(source, source.nodes[2], control_server, tmp_path)) == [
        f"target {source.nodes[2].address().url} is the source"
    ]


async def test_announced_addresses_that_are_not_reachable_are_mapped(
    make_cluster: MakeCluster,
) -> None:
    """Host names that nobody resolves, one of them mapped to an IPv6 address."""
    box = make_cluster(
        ServerKind.VALKEY_91,
        bind="127.0.0.1 ::1",
        cluster_preferred_endpoint_type="hostname",
    )
    for number, node in enumerate(box.nodes):
        with node.client() as client:
            client.config_set("cluster-announce-hostname", f"node-{number}.inner")
    box.wait_hosts({f"node-{number}.inner" for number in range(3)})
    with box.master_of("k").client() as client:
        client.set("k", "v")
    ports = [node.port for node in box.nodes]
    address_map = {
        "node-0.inner": "127.0.0.1",
        f"node-1.inner:{ports[1]}": f"[::1]:{ports[1]}",
        "node-2.inner": "localhost",
    }
    endpoint = Endpoint(Side.SOURCE, box.address(address_map=address_map))
    assert (await endpoint.facts()).databases == {0: 1}
    async with await endpoint.connect(name="test") as leg:
        assert await leg.call("GET", b"k") == b"v"
    unmapped = Endpoint(Side.SOURCE, box.address(address_map={"node-9": "127.0.0.1"}))
    with pytest.raises(Exception, match="node-"):
        await unmapped.facts()
