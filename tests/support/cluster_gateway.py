"""A gateway in front of clusters, in the test's process or in one of its own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvloop

from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.gateway.hub import Gateway
from exodus.gateway.options import GatewayOptions
from exodus.gateway.supervisor import Supervisor
from exodus.gateway.tables import load_table
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import Cutover, Feed
from exodus.topology.watch import TopologyWatch
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

LISTENERS = 8
_STEPS = itertools.count()
_COMMAND = [sys.executable, "-m", "tests.support.cluster_gateway"]


def free_ports(count: int) -> int:
    """Return the first of some ports in a row on which nobody listens now.

    They are used later, so they are none that the kernel gives to connections, and each worker of
    the tests has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        first = 20_000 + 1_500 * worker + next(_STEPS) * count % 1_400
        sockets: list[socket.socket] = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))  # noqa: PERF401
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()


@asynccontextmanager
async def cluster_migration(
    source: ClusterBox | DatabaseServer,
    target: ClusterBox | DatabaseServer,
    control: DatabaseServer,
    folder: Path,
    *,
    listen: dict[str, object] | None = None,
    **plan: object,
) -> AsyncIterator[LocalMigration]:
    """A migration whose gateways have `LISTENERS` listeners, from `local.port` on."""
    port = free_ports(LISTENERS)
    gateway = Listen.model_validate({"port": port, "listeners": LISTENERS, **(listen or {})})
    fields = {"cutover": Cutover.OWN, "feed": Feed.TRACKING, "slices": 2, **plan}
    local = LocalMigration(source, target, control, folder, gateway=gateway, **fields)  # type: ignore[arg-type]
    local.port = port
    await local.open()
    try:
        yield local
    finally:
        await local.close()


async def serve(
    control: Address, migration: str, process: str, folder: Path, fds: tuple[int, ...]
) -> None:
    """Run one gateway process until SIGTERM, as `exodus gateway` does."""
    store = await ControlStore.connect(control, migration)
    plan = await store.plan()
    await TopologyWatch(plan, store).begin()
    port = plan.gateway.port
    options = GatewayOptions(process, folder, "127.0.0.1", port, drain_s=0.1, listen_fds=fds)
    gateway = Gateway(store, plan, await load_table(plan), options)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, gateway.stop)
    await gateway.run(await read_route(store))
    await store.close()


def supervise(control: str, migration: str, process: str, folder: Path, workers: int) -> None:
    """Run several workers until SIGTERM, as `exodus gateway --workers` does."""

    def command(worker: str, own: Path, fds: list[int]) -> list[str]:
        numbers = ",".join(map(str, fds))
        return [*_COMMAND, control, migration, worker, str(own), "0", numbers]

    plan = asyncio.run(_plan(Address.model_validate_json(control), migration))
    Supervisor(
        id_=process,
        workers=workers,
        state_dir=folder,
        host="127.0.0.1",
        port=plan.gateway.port,
        listeners=plan.listener_count,
        drain_s=0.1,
        command=command,
    ).run()


async def _plan(control: Address, migration: str) -> Plan:
    async with await ControlStore.connect(control, migration) as store:
        return await store.plan()


@contextmanager
def gateway_process(
    local: LocalMigration, process: str = "gw-1", *, workers: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway in a process of its own, or several workers; it serves when this returns."""
    control = local.control.address().model_dump_json()
    command = [*_COMMAND, control, local.plan.name, process, str(local.folder / process)]
    with (local.folder / f"{process}.log").open("ab") as output:
        running = subprocess.Popen([*command, str(workers), ""], stdout=output, stderr=output)
    try:
        wait_until(
            lambda: accepts(local.port), within_s=20, otherwise="the gateway does not listen"
        )
        yield running
    finally:
        running.terminate()
        running.wait(20)


def accepts(port: int) -> bool:
    """Return whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    control_json, name, given_id, state, count, lent = sys.argv[1:]
    if int(count):
        supervise(control_json, name, given_id, Path(state), int(count))
    else:
        sockets = tuple(int(each) for each in lent.split(",") if each)
        at = Address.model_validate_json(control_json)
        uvloop.run(serve(at, name, given_id, Path(state), sockets))
