"""How much faster do more copying processes make a backfill, and a second machine?

One, two and four processes of Dask on this machine; and a process on each of two hosts, which are
network namespaces where this machine allows it, against one. Source, target and control store run
beside them on the same cores, so the figures are of these cores, not of two machines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.copying import begin_epoch, data
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client
from exodus.backfill.slices import copy_slice
from exodus.control.store import ControlStore
from exodus.copy.scan import Slice, plan_slices
from exodus.engine import open_engine
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.stack.home import free_port
from exodus.stack.processes import Started, end
from exodus.stack.servers import Server, ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.hosts import Host, Network, answers, network

_SLICES = 16
_WITHIN_S = 60.0


def copy_one(plan: str, secret: str, store: str, run: str, slice_id: str) -> int:
    """Copy one slice, in a worker of Dask; how many keys."""

    async def work() -> int:
        address = Address.model_validate_json(store).model_copy(
            update={"password_file": Path(secret)}
        )
        async with await ControlStore.connect(address, "scale") as opened:
            progress = await copy_slice(
                await open_engine(opened, Plan.model_validate_json(plan)),
                run,
                Slice.parse(slice_id),
                budget_s=600,
            )
            return progress.keys_copied

    return uvloop.run(work())


def _at(server: Server, host: str) -> Address:
    return server.address().model_copy(update={"host": host})


async def _begin(plan: Plan, control: Address) -> list[str]:
    async with await ControlStore.connect(control, plan.name) as store:
        await begin_epoch(store, plan)
        return [
            piece.slice_id
            for piece in await plan_slices(Endpoint(Side.SOURCE, plan.source), plan.slices)
        ]


def _workers(net: Network, scheduler: str, hosts: Sequence[Host], folder: Path) -> list[Started]:
    started = []
    for number, host in enumerate(hosts):
        address = host.address if host.name != "here" else net.here
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            scheduler,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--no-nanny",
        ]
        command += ["--host", address, "--local-directory", str(folder / f"{host.name}-{number}")]
        root = str(Path(__file__).resolve().parents[1])
        started.append(
            host.start(
                f"dask-worker-{number}", command, folder / host.name, env={"PYTHONPATH": root}
            )
        )
    return started


def measure(*, full: bool) -> Result:
    """Three runs of each way in turn."""
    import logging

    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.ERROR)
    kind = next(each for each in data(full=full) if each.name == "random")
    with Rig() as rig, network("host-a", "host-b") as net:
        config = {
            "bind": f"{net.here} 127.0.0.1" if net.real else "127.0.0.1",
            "protected_mode": "no",
        }
        source = rig.server(ServerKind.REDIS_62, "source", **config)
        target = rig.server(ServerKind.VALKEY_91, "target", **config)
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes", **config)
        with client(source) as ours:
            kind.load(ours)
        plan = Plan(
            name="scale", source=_at(source, net.here), target=_at(target, net.here), slices=_SLICES
        )
        store = _at(control, net.here)
        port = free_port()
        scheduler = f"tcp://{net.here}:{port}"
        here = Host("here", net.here, None)
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            net.here,
            "--port",
            str(port),
            "--no-dashboard",
        ]
        rig.process("dask-scheduler", command, lambda: answers(net.here, port))
        ways = {
            "exodus": [net.hosts["host-a"], net.hosts["host-b"]],
            "one host": [net.hosts["host-a"]],
            "1 process": [here],
            "2 processes": [here] * 2,
            "4 processes": [here] * 4,
        }
        runs: list[dict[str, float]] = []
        for number in range(3):
            run: dict[str, float] = {}
            for way, hosts in ways.items():
                with client(target) as theirs:
                    theirs.flushall()
                pieces = uvloop.run(_begin(plan, store))
                started = _workers(net, scheduler, hosts, rig.folder)
                with Client(scheduler) as dask:
                    dask.wait_for_workers(len(hosts), timeout=_WITHIN_S)
                    given: tuple[Any, ...] = (
                        plan.model_dump_json(),
                        str(store.password_file),
                        store.model_dump_json(),
                        f"{way}-{number}",
                    )
                    dask.gather([dask.submit(len, "warm", pure=False) for _ in hosts])
                    began = time.perf_counter()
                    keys = sum(
                        dask.gather(
                            [dask.submit(copy_one, *given, piece, pure=False) for piece in pieces]
                        )
                    )
                    run[way] = kind.keys / (time.perf_counter() - began)
                end([each.running() for each in started])
                for each in started:
                    each.process.wait()
                here.started.clear()
                if keys < kind.keys:
                    raise AssertionError(f"{way} copied {keys} of {kind.keys} keys")
            runs.append(run)
    where = (
        "two hosts (network namespaces)"
        if net.real
        else "two hosts (addresses of loopback: no namespaces here)"
    )
    return result(
        name="scale",
        what=f"{kind.what}, copied by {where}",
        unit="keys/s",
        runs=runs,
        against="one host",
    )
