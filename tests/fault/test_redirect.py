"""Gateways leave the path: real clients are disconnected one by one, lose nothing, and go where
their configuration points.
"""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import redis
import redis.asyncio as aredis

from examples.shop.place import connect
from exodus.closing.redirect import read_redirect, redirect, who_is_connected
from exodus.control.route import read_route
from exodus.errors import DecisionRefused, OperatorError
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.home import free_port
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


class Name:
    """What a client connects to: a name that the test can point elsewhere."""

    def __init__(self, port: int) -> None:
        self.port = port


class NamedConnection(redis.Connection):
    """Looks its port up at each connect, as clients do with a host name."""

    def __init__(self, *, name: Name, **more: object) -> None:
        super().__init__(**more)
        self._service = name

    def _connect(self):
        self.port = self._service.port
        return super()._connect()


class Worker(threading.Thread):
    """A client that counts. Without an answer, it looks whether the increment was done before it
    repeats it.
    """

    def __init__(self, number: int, name: Name) -> None:
        super().__init__(daemon=True)
        pool = redis.ConnectionPool(
            connection_class=NamedConnection,
            name=name,
            client_name=f"worker-{number}",
            retry=None,
            max_connections=1,
        )
        self.client = redis.Redis(connection_pool=pool)
        self.key = f"worker:{number}"
        self.count = 0
        self.cut = 0
        self.failed: Exception | None = None
        self.stop = threading.Event()

    def _look(self) -> int:
        while True:
            try:
                return int(self.client.get(self.key) or 0)
            except redis.ConnectionError:
                self.cut += 1  # sent away once more, before this was asked

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                try:
                    self.count = int(self.client.incr(self.key))
                except redis.ConnectionError:
                    self.cut += 1
                    assert self._look() == self.count, "a write without an answer was executed"
                time.sleep(0.005)  # the gateways share the interpreter with these threads
        except (redis.RedisError, AssertionError) as exc:
            self.failed = exc
        finally:
            self.client.connection_pool.disconnect()


async def _finalised(local: LocalMigration) -> list[int]:
    """Two gateways in front of the target after finalise; return their ports."""
    other = free_port()
    # At once: a free port may be an outgoing connection's a moment later
    await local.gateway("gw-2", port=other)
    await local.gateway()
    with pytest.raises(DecisionRefused, match="may not be sent away"):
        await redirect(local.store, 5, refuse_new=False, busy=False, why="too early")
    await local.change(authority=Side.TARGET, journal=JournalMode.OFF, sync=False)
    with pytest.raises(OperatorError, match="cannot be"):
        await redirect(local.store, -1, refuse_new=False, busy=False, why="nonsense")
    return [local.port, other]


async def _listed(local: LocalMigration, wanted: dict[str, int]) -> None:
    async def there() -> bool:
        found: dict[str, int] = {}
        for row in await who_is_connected(local.store):
            found[row["kind"]] = found.get(row["kind"], 0) + row["connections"]
        return found == wanted

    await until(there, within_s=10, otherwise=f"not connected: {wanted}")


async def test_clients_go_one_by_one_to_where_their_names_point(local: LocalMigration) -> None:
    ports = await _finalised(local)
    names = [Name(port) for port in ports]
    workers = [Worker(number, names[number % 2]) for number in range(6)]
    for worker in workers:
        worker.start()
    async with (
        aredis.Redis(port=ports[0], client_name="queue") as held,
        aredis.Redis(port=ports[1], client_name="listener") as listener,
    ):
        pipe = held.pipeline()
        await pipe.watch("account")  # a session that is in the middle of something
        subscription = listener.pubsub()
        await subscription.subscribe("news")

        async def written() -> bool:
            return all(worker.count > 10 for worker in workers)

        await until(written, within_s=10, otherwise="the workers never wrote")

        async def named() -> bool:
            rows = {row["name"]: row["host"] for row in await who_is_connected(local.store)}
            return rows.get("worker-0") == rows.get("queue") == "127.0.0.1"

        await until(named, within_s=10, otherwise="who is connected is not told")
        for name in names:
            name.port = local.servers[Side.TARGET].port
        await redirect(local.store, 20, refuse_new=True, busy=False, why="test")

        async def gone() -> bool:
            found = await read_redirect(local.store)
            return found["left"] == 2 and found["closed"].get("idle", 0) >= 6

        await until(gone, within_s=15, otherwise="clients stay at the gateways")
        await _listed(local, {"in a transaction": 1, "subscribed": 1})
        found = await read_redirect(local.store)
        assert (found["stopped"], found["came_back"]) == ([], 0)
        assert [gateway.health()[0] for gateway, _ in local.gateways.values()] == [False, False], (
            "a load balancer sends nobody here"
        )
        pipe.multi()
        pipe.set("account", 1)
        assert await pipe.execute() == [True], "it was left alone"
        await pipe.reset()
        stranger = connect(f"redis://127.0.0.1:{ports[0]}")
        with pytest.raises(redis.ConnectionError):
            await stranger.ping()
        await stranger.aclose()
        await redirect(local.store, 20, refuse_new=True, busy=True, why="the rest too")
        await _listed(local, {})
        await subscription.aclose()
    for worker in workers:
        worker.stop.set()
        await asyncio.to_thread(worker.join, 10)
    assert [worker.failed for worker in workers] == [None] * 6
    with local.servers[Side.TARGET].client() as target:
        assert [int(target.get(worker.key)) for worker in workers] == [
            worker.count for worker in workers
        ]
    assert all(worker.cut <= 1 for worker in workers), "each was disturbed once"


async def test_it_stops_by_itself_where_clients_come_back(local: LocalMigration) -> None:
    """Their names still point to the gateway. Each client would be disconnected again and again."""
    ports = await _finalised(local)
    workers = [Worker(number, Name(ports[number % 2])) for number in range(8)]
    for worker in workers:
        worker.start()

    async def written() -> bool:
        return all(worker.count > 10 for worker in workers)

    await until(written, within_s=10, otherwise="the workers never wrote")
    await redirect(local.store, 20, refuse_new=False, busy=False, why="test")

    async def stopped() -> bool:
        return (await read_route(local.store)).redirect is None

    await until(stopped, within_s=15, otherwise="it went on")
    assert "connections came while" in (await read_route(local.store)).why
    assert sum((await read_redirect(local.store))["closed"].values()) < 20
    counts = [worker.count for worker in workers]

    async def goes_on() -> bool:
        return all(
            worker.count > before + 10 for worker, before in zip(workers, counts, strict=True)
        )

    await until(goes_on, within_s=10, otherwise="the clients were not served again")
    for worker in workers:
        worker.stop.set()
        await asyncio.to_thread(worker.join, 10)
    assert [worker.failed for worker in workers] == [None] * 8
