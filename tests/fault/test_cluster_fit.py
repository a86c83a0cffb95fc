"""Analyze before a move to a cluster: which requests a cluster would refuse, and which clients
cannot use one. The source is a single server; the target is a cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from exodus.gateway.misfits import IN_COMMAND, IN_SCRIPT, IN_TRANSACTION, OTHER_DATABASE, SWAP
from exodus.gateway.reporting import snapshot
from exodus.stack.servers import ServerKind
from tasks.cluster_fit import judge_cluster_fit
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
MISFITS = [
    ("MGET", IN_COMMAND, 1),
    ("RENAME", IN_COMMAND, 1),
    ("EVAL", IN_SCRIPT, 2),
    ("MULTI", IN_TRANSACTION, 2),
    ("MSET", IN_COMMAND, 1),
    ("SELECT", OTHER_DATABASE, 1),
    ("MOVE", OTHER_DATABASE, 1),
    ("COPY", OTHER_DATABASE, 1),
    ("SORT", IN_COMMAND, 2),
    ("SWAPDB", SWAP, 1),
]


def plain(port: int) -> None:
    """Use the server as an application does that knows of no cluster."""
    with redis.Redis(port=port, client_name="orders") as client:
        client.set("a", 1)
        client.mget("a", "b")
        client.rename("a", "b")
        for _ in range(2):
            client.eval("return redis.call('GET', KEYS[1])", 2, "a", "b")
            with client.pipeline() as pipe:
                pipe.set("a", 1)
                pipe.set("b", 1)
                pipe.set("c", 1)
                pipe.execute()
        with client.pipeline() as pipe:
            pipe.mset({"d": 1, "e": 1})
            pipe.execute()
        client.move("d", 1)
        client.copy("b", "b", destination_db=4)
        client.rpush("l", 2, 1)
        client.sort("l", by="weight_*")
        client.sort("l", by="nosort", get=["#", "value_*"])
        client.swapdb(2, 3)
    with redis.Redis(port=port, client_name="orders", db=1) as client:
        client.get("d")


def fits(port: int) -> None:
    """What a cluster takes, and what the server refuses or does not run."""
    with redis.Redis(port=port, client_name="reports") as client:
        client.mset({"{u}a": 1, "{u}b": 2})
        client.eval("return 1", 0)
        client.select(0)
        client.copy("{u}a", "{u}c", destination_db=0)
        client.rpush("{u}l", 2, 1)
        client.sort("{u}l", by="{u}weight_*", get=["#", "{u}value_*"], desc=True)
        client.sort("{u}l", by="nosort", store="{u}sorted")
        with client.pipeline() as pipe:
            pipe.set("{u}a", 1)
            pipe.incr("{u}b")
            pipe.execute()
        for words in (("EVAL", "no Lua", 2, "a", "b"), ("MGET",), ("SMOVE", "{u}a", "x", 1)):
            with pytest.raises(RedisError):
                client.execute_command(*words)
        with client.pipeline() as pipe:
            pipe.watch("a")
            pipe.multi()
            pipe.set("a", 1)
            pipe.set("b", 1)
            client.set("a", 2)
            with pytest.raises(redis.WatchError):
                pipe.execute()


async def test_requests_and_clients_that_a_cluster_would_refuse_are_named(
    make_server: Callable[..., DatabaseServer],
    make_cluster: Callable[..., ClusterBox],
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A request that fits, fails, or does not run is not among them."""
    source, target = make_server(ServerKind.REDIS_62), make_cluster(ServerKind.VALKEY_91, masters=3)
    async with cluster_migration(
        source, target, control_server, tmp_path, listen={"facade": "cluster"}
    ) as local:
        gateway = await local.gateway()

        def workload() -> dict:
            told = snapshot(gateway)
            commands = [{"command": "GET", "calls": 1}]
            return {**told, "commands": commands}

        await asyncio.to_thread(fits, local.port)
        assert workload()["misfits"] == []
        shop = await asyncio.to_thread(
            RedisCluster, host="127.0.0.1", port=local.port, client_name="shop"
        )
        with shop:
            await asyncio.to_thread(shop.set, "{u}a", 1)
            assert all(row["ok"] for row in judge_cluster_fit(workload(), 1))
            held = redis.Redis(port=local.port, client_name="orders")
            await asyncio.to_thread(held.ping)
            clients, requests, whole = judge_cluster_fit(workload(), 1)
            assert (clients["ok"], requests["ok"], whole["ok"]) == (False, True, True)
            assert "orders" in clients["detail"]
            assert "shop" not in clients["detail"]
            await asyncio.to_thread(plain, local.port)
            held.close()
        found = [(row["command"], row["why"], row["calls"]) for row in workload()["misfits"]]
        assert sorted(found) == sorted(MISFITS)
        requests = judge_cluster_fit(workload(), 1)[1]
        assert not requests["ok"]
        assert f"EVAL: {IN_SCRIPT} (2 calls)" in requests["detail"]
        several = judge_cluster_fit(workload(), 16)[1]["detail"]
        assert "SELECT" not in several
        assert "SWAPDB" in several
        scans = {**workload(), "commands": [{"command": "SCAN", "calls": 3}]}
        assert judge_cluster_fit(scans, 1)[2]["detail"] == "SCAN: 3 calls"


async def test_nothing_is_counted_where_the_target_is_no_cluster(local) -> None:
    gateway = await local.gateway()
    await asyncio.to_thread(plain, local.port)
    assert snapshot(gateway)["misfits"] is None
    assert judge_cluster_fit({"misfits": None}, 16) == []
