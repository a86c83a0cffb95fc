"""What does Compare cost the gateway? CPU of a request, at 1 % sampling and at none.

Reads and writes of 1,000 keys go through one gateway as fast as it takes them, from 20 connections:
one by one, and in pipelines of ten. It samples in every other window. The figures are of one run:
the ratio counts, not the microseconds.

A comparer compares what is sampled in a first window. In the others it is stopped. It is no part of
the gateway, and on few cores it takes half of one: the gateway is interrupted more often, and then
takes more processor time for the same work.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import psutil
import uvloop

from benchmarks.livesync import migration_file
from benchmarks.result import Result, result
from benchmarks.rig import Rig, cpu_s
from exodus.control.heartbeats import ComparerHeartbeat, GatewayHeartbeat
from exodus.control.registry import heartbeats, wait_for
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.sample import KeySample
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.servers import ServerKind, answers
from exodus.topology.endpoint import Endpoint

_SHARE = 0.01
_KEYS = 1_000  # of benchmarks.load
_PIPELINES = {"compare": 1, "compare-pipelined": 10}  # result → requests in one pipeline


def _salt(at_least: int) -> int:
    """Return a salt with which just the share of the load's keys is sampled."""
    keys = [b"bench:%d" % number for number in range(_KEYS)]
    return next(
        salt
        for salt in itertools.count(at_least)
        if sum(KeySample(_SHARE, salt).test()(0, key) for key in keys) == int(_KEYS * _SHARE)
    )


async def _sample(plan: Plan, control: Address, share: float) -> None:
    """Sample this share of the keys from now on."""
    async with await ControlStore.connect(control, plan.name) as store:
        await store.save_plan(plan)
        await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, 0)
        before = await read_route(store)
        route = await change_route(
            store,
            before,
            before.next(
                why="benchmark",
                journal=JournalMode.SAMPLE if share else JournalMode.OFF,
                shadow_rate=share,
                shadow_salt=_salt(before.shadow_salt + 1),
            ),
        )
        for kind in ("gateway", "comparer"):
            await wait_for(
                store,
                kind,
                lambda beat: beat.epoch >= route.epoch,
                within_s=10,
                otherwise=f"a {kind} did not follow",
            )


async def _beats(plan: Plan, control: Address) -> tuple[GatewayHeartbeat, ComparerHeartbeat]:
    async with await ControlStore.connect(control, plan.name) as store:
        (gateway,), (comparer,) = (
            await heartbeats(store, "gateway"),
            await heartbeats(store, "comparer"),
        )
        return gateway, comparer


async def _registered(plan: Plan, control: Address) -> bool:
    async with await ControlStore.connect(control, plan.name) as store:
        return bool(await heartbeats(store, "comparer"))


def _us_a_request(
    gateway: psutil.Process,
    port: int,
    seconds: float,
    pipeline: int,
    kinds: tuple[str, ...] = ("set", "get"),
) -> float:
    """CPU of the gateway for one request, of each kind as many connections."""
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(port)]
    command += ["--pipeline", str(pipeline)]
    before = cpu_s(gateway)
    loads = [
        subprocess.Popen(
            [*command, "--command", kind, "--connections", "10", "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
        )
        for kind in kinds
    ]
    said = [json.loads(load.communicate()[0]) for load in loads]
    requests = sum(float(each["requests"]) for each in said)
    return (cpu_s(gateway) - before) / requests * 1e6


def measure(*, full: bool) -> list[Result]:
    """Windows with and without sampling, one after the other."""
    windows, seconds = (10, 8.0) if full else (7, 3.0)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in _PIPELINES}
    with Rig() as rig:
        source = rig.server(ServerKind.REDIS_62, "source")
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        plan, path = migration_file(rig, source, target, control)
        command, more = [sys.executable, "-m", "exodus.cli.app"], ["--file", str(path), "--id"]
        address = control.address()
        uvloop.run(_save(plan, address))
        gateway = rig.process(
            "gateway",
            [*command, "gateway", *more, "gw", "--state-dir", str(rig.folder / "gw")],
            lambda: answers(plan.gateway.port),
        )
        comparer = rig.process(
            "comparer",
            [*command, "comparer", *more, "comparer"],
            lambda: uvloop.run(_registered(plan, address)),
        )
        port = plan.gateway.port
        _us_a_request(gateway, port, 1.0, 10, ("set",))  # makes the keys
        uvloop.run(_sample(plan, address, _SHARE))
        _us_a_request(gateway, port, seconds, 10)
        _, beat = uvloop.run(_beats(plan, address))
        compared = sum(row.get("compared", 0) for row in beat.facts.rows.values())
        for _, (name, pipeline) in itertools.product(range(windows), _PIPELINES.items()):
            found = {}
            for way, share in (("no sampling", 0.0), ("exodus", _SHARE)):
                uvloop.run(_sample(plan, address, share))
                comparer.suspend()
                try:
                    found[way] = _us_a_request(gateway, port, seconds, pipeline)
                finally:
                    comparer.resume()
            runs[name].append(found)
        if not compared:
            raise AssertionError("the comparer compared nothing: the figures are of no sampling")
    return [
        result(
            name=name,
            what=f"CPU of the gateway for a request, at {_SHARE:.0%} sampling, "
            + ("one by one" if pipeline == 1 else f"in pipelines of {pipeline}"),
            unit="µs",
            runs=runs[name],
            against="no sampling",
            higher_is_better=False,
        )
        for name, pipeline in _PIPELINES.items()
    ]


async def _save(plan: Plan, control: Address) -> None:
    async with await ControlStore.connect(control, plan.name) as store:
        await store.save_plan(plan)
