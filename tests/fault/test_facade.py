"""A single server behind a gateway with `facade: cluster`: cluster clients use it as a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from exodus.control.gaps import open_gaps
from exodus.control.run_ids import known_run_ids
from exodus.control.topology import read_failovers
from exodus.plan.vocabulary import Feed, Side
from exodus.resp.encode import encode
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.fault.test_gateway_cluster_switch import begin_live_sync, switch
from tests.fault.test_gateway_clusters import PROGRAM, ask, run
from tests.support.cluster_app import ClusterApp
from tests.support.cluster_gateway import cluster_migration, gateway_process
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.sentinels import ServiceBox
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
# The oldest and the newest; FULL=1 has all.
KINDS = list(ServerKind) if FULL else [ServerKind.REDIS_62, ServerKind.VALKEY_91]
MakeCluster = Callable[..., ClusterBox]
MakeServer = Callable[..., DatabaseServer]
FACADE: dict[str, object] = {"facade": "cluster"}


def slot_error(client: RedisCluster, *words: object) -> str:
    """Return the error that CLUSTER answers."""
    (node,) = client.get_nodes()
    with pytest.raises(ResponseError) as refused:
        client.execute_command("CLUSTER", *words, target_nodes=node)
    return str(refused.value)


async def agree(local: LocalMigration, app: ClusterApp) -> None:
    """Check that the application met no error, and that both sides have all that it wrote."""
    await local.drained()
    assert app.errors == {}
    for box in local.servers.values():
        await asyncio.to_thread(app.check, box)
    assert (await local.verify()).divergences == []


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cluster_client_gets_the_replies_of_a_cluster_of_one_node(
    kind: ServerKind,
    protocol: int,
    make_server: MakeServer,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    server, twin = make_server(kind), make_cluster(kind, masters=1)
    async with cluster_migration(
        server, make_server(ServerKind.VALKEY_91), control_server, tmp_path, listen=FACADE
    ) as local:
        await local.gateway()

        def compare() -> None:
            with (
                RedisCluster(host="127.0.0.1", port=local.port, protocol=protocol) as client,
                twin.client(protocol=protocol) as direct,
            ):
                ours, theirs = run(client, PROGRAM), run(direct, PROGRAM)
                assert ours == theirs
                (node,) = client.get_nodes()
                assert node.port == local.port
                assert client.cluster_keyslot("k") == direct.cluster_keyslot("k")
                for each in (client, direct):
                    assert each.readonly(target_nodes=RedisCluster.PRIMARIES)
                    mode = each.info("server", target_nodes=RedisCluster.RANDOM)
                    assert mode.get("redis_mode", mode.get("server_mode")) == "cluster"
                    state = each.cluster_info(target_nodes=RedisCluster.RANDOM)
                    assert (state["cluster_state"], state["cluster_size"]) == ("ok", "1")
                    (shown,) = each.cluster_nodes().values()
                    assert shown["slots"] == [["0", "16383"]]
                    assert shown["flags"] == "myself,master"
                for words in (("COUNTKEYSINSLOT", 16_384), ("GETKEYSINSLOT", 16_384, 1)):
                    said = [slot_error(each, *words) for each in (client, direct)]
                    assert said[0] == said[1]
                # A number that is not true would mislead who moves slots.
                assert "no list of keys by slot" in slot_error(client, "COUNTKEYSINSLOT", 1)
                assert "no list of keys by slot" in slot_error(client, "GETKEYSINSLOT", 1, 10)
                assert client.set("k", 2)  # the connection is in order

        await asyncio.to_thread(compare)
        hello = await asyncio.to_thread(ask, local.port, encode("HELLO", protocol))
        assert b"$4\r\nmode\r\n$7\r\ncluster\r\n" in hello[0]


@pytest.mark.parametrize("way", ["to a cluster", "from a cluster"])
async def test_a_cluster_client_follows_a_move_between_a_server_and_a_cluster(
    way: str,
    make_server: MakeServer,
    make_cluster: MakeCluster,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    single = make_server(ServerKind.REDIS_62)
    cluster = make_cluster(ServerKind.VALKEY_91)
    sides = (single, cluster) if way == "to a cluster" else (cluster, single)
    async with cluster_migration(
        *sides, control_server, tmp_path, listen=FACADE, feed=Feed.AUTO
    ) as local:
        with gateway_process(local):
            await begin_live_sync(local)
            await local.syncer()
            await local.backfill()
            with ClusterApp(lambda: RedisCluster(host="127.0.0.1", port=local.port)) as app:
                for to in (Side.TARGET, Side.SOURCE, Side.TARGET):
                    await asyncio.to_thread(app.wait_more, 1_000)
                    await switch(local, to)
                await asyncio.to_thread(app.wait_more, 1_000)
            await agree(local, app)


@pytest.mark.parametrize("way", ["to a cluster", "from a cluster"])
async def test_a_service_behind_sentinel_and_a_cluster_follow_each_other(
    way: str,
    make_cluster: MakeCluster,
    source_service: ServiceBox,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """The service fails over while it is the follower, and no application notices."""
    cluster = make_cluster(ServerKind.VALKEY_91)
    sides = (source_service, cluster) if way == "to a cluster" else (cluster, source_service)
    service = Side.SOURCE if way == "to a cluster" else Side.TARGET
    async with cluster_migration(
        *sides, control_server, tmp_path, listen=FACADE, feed=Feed.AUTO
    ) as local:
        with gateway_process(local):
            await begin_live_sync(local)
            syncer = await local.syncer()
            await local.backfill()
            with ClusterApp(lambda: RedisCluster(host="127.0.0.1", port=local.port)) as app:
                await asyncio.to_thread(app.wait_more, 1_000)
                if service is Side.SOURCE:
                    await switch(local, Side.TARGET)
                before = source_service.master()
                source_service.failover()
                await asyncio.to_thread(source_service.wait_other, before)

                async def recovered() -> bool:
                    known = (await known_run_ids(local.store))[service]
                    now = await Endpoint(service, local.plan.address(service)).life()
                    gaps = await open_gaps(local.store)
                    return known == now and not gaps and not syncer.heartbeat(0).why

                await until(recovered, within_s=40, otherwise="live sync never recovered")
                for to in (service, service.other, service):
                    await asyncio.to_thread(app.wait_more, 1_000)
                    await switch(local, to)
                await asyncio.to_thread(app.wait_more, 1_000)
            await agree(local, app)
            (failover,) = await read_failovers(local.store)
            assert failover.side is service
