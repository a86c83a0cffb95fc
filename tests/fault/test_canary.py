"""Canary reads on real servers.

No client reads an old value through any gateway. A follower that is slow, refuses, or goes away is
not asked again.
"""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis

from exodus.control.route import read_route
from exodus.cutover import switch
from exodus.cutover.canary_share import read_canary, set_canary
from exodus.errors import DecisionRefused, OperatorError
from exodus.plan.vocabulary import Side
from exodus.stack.home import free_port
from exodus.verify.reconcile import reconcile
from tests.support.history import Historian
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _copied(local: LocalMigration, *, keys: int = 300) -> list[int]:
    """Two gateways, everything copied and verified; their ports."""
    local.servers[Side.SOURCE].client().mset(
        {f"cold:{number}": f"value {number}" for number in range(keys)}
    )
    other = free_port()
    await local.gateway()
    await local.gateway("gw-2", port=other)
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    assert (await reconcile(await local.engine(), "test"))["divergences_total"] == 0
    return [local.port, other]


async def _read(client: redis.Redis, stop: asyncio.Event, *, keys: int = 300) -> int:
    """Read the cold keys repeatedly; each must have its value. Return how many were read."""
    count = 0
    while not stop.is_set():
        number = count % keys
        assert await client.get(f"cold:{number}") == b"value %d" % number
        count += 1
        await asyncio.sleep(0.001)
    return count


async def test_reads_of_all_keys_are_those_of_one_server_under_writes(
    local: LocalMigration,
) -> None:
    """Reads are linearizable per key at every share, with writes through both gateways and one
    client past them. The switch ends the canary.
    """
    ports = await _copied(local)
    with pytest.raises(OperatorError, match="no percentage"):
        await set_canary(local.store, local.plan, 101, why="test")
    historian = Historian(ports, clients=6)
    historian.start()
    stop = asyncio.Event()
    three = redis.Redis(port=ports[1], protocol=3)
    reading = [asyncio.create_task(_read(client, stop)) for client in (local.app(), three)]
    # Live sync never sees this: the follower keeps another value than the authority.
    local.servers[Side.SOURCE].client().set("past-the-gateways", "new")
    local.servers[Side.TARGET].client().set("past-the-gateways", "old")
    for percent in (1, 5, 25, 100):
        await set_canary(local.store, local.plan, percent, why="test")
        await asyncio.sleep(0.3)
    for port in ports:
        async with redis.Redis(port=port) as client:
            assert await client.get("past-the-gateways") == b"new"
            pipe = client.pipeline(transaction=False)
            for number in range(20):
                pipe.set("mine", number).get("mine").get("cold:1").ping()
            assert await pipe.execute() == [
                answer
                for number in range(20)
                for answer in (True, b"%d" % number, b"value 1", True)
            ]

    async def counted() -> bool:
        reads = (await read_canary(local.store))["reads"]
        return reads.get("served", 0) > 100 and reads.get("not fresh", 0) > 0

    await until(
        counted, within_s=20, otherwise="no read was served by the follower, or all of them were"
    )
    # While writes are held, reads go on, and the canary has ended.
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert done.switched
    route = await read_route(local.store)
    assert (route.canary, route.authority) == (0.0, Side.TARGET)
    with pytest.raises(DecisionRefused, match="may not begin"):
        await set_canary(local.store, local.plan, 5, why="test")
    stop.set()
    assert min(await asyncio.gather(*reading)) > 50
    await three.aclose()
    await historian.end()
    assert historian.errors == []
    assert historian.check() > 500


@pytest.mark.parametrize("fault", ["frozen", "refusing", "gone"])
async def test_a_follower_that_fails_is_asked_no_more(local: LocalMigration, fault: str) -> None:
    """No read fails or is wrong. Every gateway returns to the authority, and the route gives the
    reason.
    """
    ports = await _copied(local)
    target = local.servers[Side.TARGET]
    await set_canary(local.store, local.plan, 100, why="test")
    stop = asyncio.Event()
    other = redis.Redis(port=ports[1])
    reading = [asyncio.create_task(_read(client, stop)) for client in (local.app(), other)]

    async def served() -> bool:
        return (await read_canary(local.store))["reads"].get("served", 0) > 50

    await until(served, within_s=10, otherwise="no read was served by the follower")
    if fault == "frozen":
        target.pause()
    elif fault == "refusing":
        target.client().acl_setuser(
            str(target.address().username), commands=["-get"], enabled=True, keys=["*"]
        )
    else:
        with target.client() as client:
            named = [row for row in client.client_list() if row["name"] == "exodus-canary"]
            assert len(named) == 4, "one for each protocol and gateway"
            for row in named:
                client.client_kill_filter(_id=row["id"])

    async def returned() -> bool:
        return not (await read_route(local.store)).canary

    try:
        await until(returned, within_s=10, otherwise="the canary was not given up")
    finally:
        target.resume()
        target.client().acl_setuser(
            str(target.address().username), commands=["+@all"], enabled=True, keys=["*"]
        )
    route = await read_route(local.store)
    assert "canary reads given up" in route.why

    async def everybody() -> bool:
        return all(not gateway.canary.share for gateway, _ in local.gateways.values())

    await until(everybody, within_s=5, otherwise="a gateway goes on asking the follower")
    bad = "late" if fault == "frozen" else "failed"
    assert (await read_canary(local.store))["reads"].get(bad, 0) > 0
    stop.set()
    assert min(await asyncio.gather(*reading)) > 10
    await other.aclose()
