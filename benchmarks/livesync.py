"""How far behind is the follower under writes? From an entry of the journal to its keys being equal
there, by the control store's clock.

`WRITES` writes a second over 10,000 keys go through a gateway; a syncer follows. The peer is a
native replica of the same source at the same time, asked for the age of what it has by a probe key:
the nearest thing to compare with, though it measures another stretch of the way.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import orjson
import redis
import uvloop

from benchmarks.result import Result, result
from benchmarks.rig import Rig, client
from exodus.control.heartbeats import SyncerHeartbeat
from exodus.control.registry import heartbeats
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.home import free_port
from exodus.stack.servers import Server, ServerKind, answers
from exodus.topology.endpoint import Endpoint

_WRITES_PER_S = 5_000
_PIPELINE = 25
_KEYS = 10_000
_PROBES = 40


async def _start(plan: Plan, control: Address) -> None:
    async with await ControlStore.connect(control, plan.name) as store:
        await store.save_plan(plan)
        route = await read_route(store)
        await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, 1)
        await change_route(
            store,
            route,
            route.next(why="benchmark", journal=JournalMode.ALL, sync=True, writer_epoch=1),
        )


async def _syncer(plan: Plan, control: Address) -> SyncerHeartbeat | None:
    async with await ControlStore.connect(control, plan.name) as store:
        return next(iter(await heartbeats(store, "syncer")), None)


def _probe(source: redis.Redis, replica: redis.Redis, number: int) -> float:
    """Ms until a native replica has a key that was written just now."""
    began = time.perf_counter()
    source.set("probe", number)
    while replica.get("probe") != b"%d" % number:
        if time.perf_counter() - began > 5:
            raise AssertionError("the replica never had the probe")
    return (time.perf_counter() - began) * 1000


def _write(app: redis.Redis, deadline: float, number: int) -> int:
    """One second's writes, evenly; the next number."""
    batches = _WRITES_PER_S // _PIPELINE
    began = time.perf_counter()
    for batch in range(batches):
        pipe = app.pipeline(transaction=False)
        for _ in range(_PIPELINE):
            pipe.set(f"k{number % _KEYS}", number)
            number += 7
        pipe.execute()
        ahead = began + (batch + 1) / batches - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        if time.perf_counter() > deadline:
            break
    return number


def migration_file(rig: Rig, source: Server, target: Server, control: Server) -> tuple[Plan, Path]:
    """A plan between two servers, and the file that its processes read."""
    port = free_port()
    plan = Plan.model_validate(
        {
            "name": "bench",
            "source": source.address(),
            "target": target.address(),
            "gateway": {"host": "127.0.0.1", "port": port},
        }
    )
    document = {
        "name": "bench",
        **{
            name: {
                "url": f"redis://exodus@127.0.0.1:{server.port}",
                "password_file": str(server.password_file),
            }
            for name, server in (("source", source), ("target", target), ("control_store", control))
        },
        "gateway": {"host": "127.0.0.1", "port": port},
    }
    path = rig.folder / "migration.yaml"
    path.write_bytes(orjson.dumps(document))  # JSON is YAML
    return plan, path


def measure(*, full: bool) -> Result:
    """Windows of a few seconds each, while all goes on."""
    windows, seconds = (10, 5) if full else (3, 4)
    runs: list[dict[str, float]] = []
    with Rig() as rig:
        source = rig.server(
            ServerKind.REDIS_62, "source", repl_diskless_sync="yes", repl_diskless_sync_delay="0"
        )
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        native = rig.server(ServerKind.REDIS_62, "native")
        plan, path = migration_file(rig, source, target, control)
        with client(native) as replica, client(source) as direct:
            replica.replicaof("127.0.0.1", source.port)
            uvloop.run(_start(plan, control.address()))
            command = [sys.executable, "-m", "exodus.cli.app"]
            more = ["--file", str(path), "--id"]
            rig.process(
                "gateway",
                [*command, "gateway", *more, "gw", "--state-dir", str(rig.folder / "gw")],
                lambda: answers(plan.gateway.port),
            )
            rig.process(
                "syncer",
                [*command, "syncer", *more, "syncer"],
                lambda: uvloop.run(_syncer(plan, control.address())) is not None,
            )
            app = redis.Redis(port=plan.gateway.port)
            number = _write(app, time.perf_counter() + 3, 0)  # warm
            for _ in range(windows):
                deadline = time.perf_counter() + seconds
                while time.perf_counter() < deadline:
                    number = _write(app, deadline, number)
                beat = uvloop.run(_syncer(plan, control.address()))
                if beat is None or not beat.facts.lag_ms_p99:
                    raise AssertionError(f"the syncer measured nothing: {beat}")
                probes = sorted(_probe(direct, replica, number + probe) for probe in range(_PROBES))
                runs.append(
                    {
                        "exodus": beat.facts.lag_ms_p99,
                        "exodus p50": beat.facts.lag_ms_p50,
                        "native replica (probe, p99)": probes[-1],
                    }
                )
            app.close()
    return result(
        name="livesync",
        what=f"lag p99 at {_WRITES_PER_S:,} writes/s",
        unit="ms",
        runs=runs,
        against="native replica (probe, p99)",
        higher_is_better=False,
    )
