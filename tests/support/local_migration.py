"""A whole data plane in the test's own process, over real servers: gateway, syncer, and the orders
that flows give.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_asyncio
import redis.asyncio as redis
import yaml

from exodus.backfill.slices import copy_slice
from exodus.control import registry
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.copy.scan import plan_slices
from exodus.engine import Engine, open_engine
from exodus.feeds.feed import JournalFeed
from exodus.gateway.hub import Gateway
from exodus.gateway.options import GatewayOptions
from exodus.gateway.tables import load_table
from exodus.live.syncer import Syncer
from exodus.native import link, possible, replica
from exodus.plan.gate_checks import GateChecks
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import CopyStrategy, Feed, JournalMode, Side
from exodus.stack.home import free_port
from exodus.topology.endpoint import Endpoint
from exodus.topology.watch import TopologyWatch
from exodus.verify.passes import VerificationReport
from exodus.verify.reconcile import verify
from tests.support.servers import DatabaseServer
from tests.support.wait import until


class LocalMigration:
    """Starts what a test needs; everything ends with the test."""

    def __init__(
        self,
        source: DatabaseServer,
        target: DatabaseServer,
        control: DatabaseServer,
        folder: Path,
        **plan: object,
    ) -> None:
        self.servers = {Side.SOURCE: source, Side.TARGET: target}
        self.control = control
        self.folder = folder
        self.port = free_port()
        name = f"t{secrets.token_hex(4)}"
        fields = {
            "hold_seconds_max": 5.0,
            "rehearsal_hours_max": None,
            "test_checks": GateChecks(rehearsal_rounds=1, rehearsal_kill=False),
            **plan,
        }
        self.plan = Plan(name=name, source=source.address(), target=target.address(), **fields)  # type: ignore[arg-type]
        self.store: ControlStore
        self.gateways: dict[str, tuple[Gateway, asyncio.Task[None]]] = {}
        self.syncers: dict[str, tuple[Syncer, asyncio.Task[None]]] = {}
        self.clients: list[redis.Redis] = []

    async def open(self) -> None:
        self.store = await ControlStore.connect(self.control.address(), self.plan.name)
        await self.store.save_plan(self.plan)

    def reached(self, plan: Plan | None = None, **tls: object) -> Plan:
        """Return a plan (or this one's) whose gateway is where ours listens."""
        return (plan or self.plan).model_copy(update={"gateway": Listen(port=self.port, **tls)})

    async def gateway(
        self,
        process: str = "gw-1",
        port: int | None = None,
        host: str = "127.0.0.1",
        **options: object,
    ) -> Gateway:
        await TopologyWatch(self.plan, self.store).begin()
        gateway = Gateway(
            self.store,
            self.plan,
            await load_table(self.plan),
            GatewayOptions(
                process,
                self.folder / process,
                host,
                port or self.port,
                drain_s=0.1,
                **options,
            ),  # type: ignore[arg-type]
        )
        ready = asyncio.Event()
        task = asyncio.create_task(gateway.run(await read_route(self.store), ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        self.gateways[process] = (gateway, task)
        return gateway

    async def syncer(self, process: str = "syncer-1") -> Syncer:
        syncer = Syncer(self.store, self.plan, process)
        self.syncers[process] = (syncer, asyncio.create_task(syncer.run()))
        return syncer

    def app(self, **more: object) -> redis.Redis:
        """Return an application's client, through the gateway."""
        client = redis.Redis(port=self.port, **more)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    async def change(self, **changes: object) -> Route:
        """Begin the next epoch, and wait until every process follows it."""
        before = await read_route(self.store)
        route = await change_route(self.store, before, before.next(**{"why": "test", **changes}))  # type: ignore[arg-type]
        for kind, processes in (("gateway", self.gateways), ("syncer", self.syncers)):
            if processes:
                await registry.wait_for(
                    self.store,
                    kind,
                    lambda beat: beat.epoch == route.epoch,
                    within_s=8,
                    otherwise=f"a {kind} did not follow",
                )
        return route

    async def start_live_sync(self) -> None:
        route = await read_route(self.store)
        if self.plan.strategy is CopyStrategy.NATIVE:
            await self.replicate(route)
            return
        await set_writer_epoch(
            Endpoint(Side.TARGET, self.plan.target), self.plan.name, route.writer_epoch
        )
        await self.change(journal=JournalMode.ALL, sync=True, feed=self.feed)

    @property
    def feed(self) -> Feed:
        """Return the feed in force: that of the plan, or the gateways' journal."""
        return Feed.GATEWAY if self.plan.feed is Feed.AUTO else self.plan.feed

    async def replicate(self, route: Route) -> None:
        """Begin native replication, as Migrate does, in place of live sync by keys."""
        await possible.check_possible(self.plan, self.store)
        await replica.grant_writes(self.plan, route.writer_epoch + 1)
        route = await self.change(
            journal=JournalMode.ALL,
            sync=True,
            native=True,
            feed=self.feed,
            writer_epoch=route.writer_epoch + 1,
        )
        await replica.attach(self.plan, route.writer_epoch)
        await self.filled()

    async def filled(self) -> None:
        async def up() -> bool:
            return (await link.look(self.plan)).up

        await until(
            up, within_s=20, otherwise="the target never became a replica that has the data"
        )

    async def engine(self) -> Engine:
        return await open_engine(self.store, self.plan)

    async def backfill(self, run: str = "run") -> None:
        engine = await self.engine()
        for piece in await plan_slices(engine.authority, self.plan.slices):
            await copy_slice(engine, run, piece, budget_s=60)

    def file(self, folder: Path) -> Path:
        """Write a migration file for a process of its own."""
        servers = {str(side): box for side, box in self.servers.items()} | {
            "control_store": self.control
        }
        more = self.plan.model_dump(mode="json", exclude={"source", "target"})
        path = folder / "migration.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    **more,
                    **{
                        n: {"url": b.address().url, "password_file": str(b.address().password_file)}
                        for n, b in servers.items()
                    },
                }
            )
        )
        return path

    async def flushed(self) -> None:
        async def quiet() -> bool:
            return all(not gateway.journaler.unflushed for gateway, _ in self.gateways.values())

        await until(quiet, within_s=20, otherwise="a gateway never flushed its journal")

    async def drained(self) -> None:
        feed = JournalFeed(self.store, self.plan.partitions)
        began_ms = await self.store.now_ms()

        async def quiet() -> bool:
            return (
                all(not gateway.journaler.unflushed for gateway, _ in self.gateways.values())
                and await self._others_flushed(began_ms)
                and await feed.drained()
            )

        await until(quiet, within_s=20, otherwise="the journal never drained")

    async def _others_flushed(self, since_ms: int) -> bool:
        """Return whether each gateway in a process of its own said since then that all is in the
        journal.
        """
        now_ms = await self.store.now_ms()
        return all(
            beat.at_ms > since_ms and not beat.facts.unflushed + beat.facts.writes_in_flight
            for beat in await registry.heartbeats(self.store, "gateway")
            if beat.pid != os.getpid() and not beat.stale(now_ms)
        )

    async def feed_drained(self) -> bool:
        """Return whether the feed in force is drained."""
        return await (await self.engine()).feed.drained()

    async def verify(self) -> VerificationReport:
        return await verify(await self.engine(), settle_s=0.1, attempts=4)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        for syncer, _ in self.syncers.values():
            syncer.stop()
        for gateway, _ in self.gateways.values():
            gateway.stop()
        for _, task in (*self.syncers.values(), *self.gateways.values()):
            await asyncio.wait([task], timeout=10)
        await self.store.close()


@asynccontextmanager
async def between(
    source: DatabaseServer, target: DatabaseServer, control: DatabaseServer, folder: Path
) -> AsyncIterator[LocalMigration]:
    """A migration between other servers than the fixtures'."""
    local = LocalMigration(source, target, control, folder)
    await local.open()
    try:
        yield local
    finally:
        await local.close()


@pytest_asyncio.fixture
async def local(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    """Redis 6.2 to Valkey 9.1, as in the demo."""
    local = LocalMigration(redis62, valkey91, control_server, tmp_path)
    await local.open()
    yield local
    await local.close()


@pytest_asyncio.fixture
async def modern(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    """Redis 8.2 to Valkey 9.1: payloads that fit neither way, and a replication stream without
    data.
    """
    local = LocalMigration(redis82, valkey91, control_server, tmp_path)
    await local.open()
    yield local
    await local.close()
