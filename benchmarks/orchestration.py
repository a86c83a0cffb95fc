"""What does Prefect add to a backfill? The same copy as mapped tasks of a real flow, with a real
Prefect server, and without Prefect.

Each task copies for up to its budget (`tasks.backfill.BUDGET_S`), so there are as many keys as keep
all slices busy for about that long. The peers do what the tasks do, without Prefect: in as many
threads, and on one event loop. Redis 6.2 to Valkey 9.1, on one machine; it is Prefect's server's
too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import redis
import uvloop
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from benchmarks.copying import backfill, engine_of
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, seconds_of
from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.backfill.slices import copy_slice
from exodus.control.store import ControlStore
from exodus.copy.scan import Slice, plan_slices
from exodus.engine import open_engine
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.stack.servers import Server, ServerKind
from exodus.topology.endpoint import Endpoint
from flows.migrate import copy_all

_VALUE_BYTES = 100
_PLAN = "bench"


class _Sides:
    """The three servers, and the migration between them in a new epoch."""

    def __init__(self, source: Server, target: Server, control: Server) -> None:
        self.servers = source, target, control
        self.plan = Plan(name=_PLAN, source=source.address(), target=target.address())

    async def begin(self) -> int:
        """Open an epoch in which may be written; its number."""
        async with engine_of(*self.servers) as engine:
            return engine.route.writer_epoch

    async def one_loop(self, run: str) -> None:
        """Return the bare engine."""
        async with engine_of(*self.servers) as engine:
            await backfill(engine, run)

    async def slices(self) -> list[Slice]:
        """Return all of them."""
        return await plan_slices(Endpoint(Side.SOURCE, self.plan.source), self.plan.slices)

    async def copy(self, run: str, piece: Slice) -> None:
        """One slice, as a task copies it."""
        async with await ControlStore.connect(self.servers[2].address(), _PLAN) as store:
            await copy_slice(await open_engine(store, self.plan), run, piece, budget_s=600)

    def copy_now(self, run: str, piece: Slice) -> None:
        """Return the same, in a loop of its own."""
        uvloop.run(self.copy(run, piece))

    def threads(self, run: str) -> None:
        """Return the bare engine, in a thread a slice."""
        uvloop.run(self.begin())
        pieces = uvloop.run(self.slices())
        with ThreadPoolExecutor(len(pieces)) as pool:
            for done in [pool.submit(self.copy_now, run, piece) for piece in pieces]:
                done.result()

    def block(self) -> Migration:
        """What flows know of it."""
        source, target, control = map(_endpoint, self.servers)
        return Migration(migration=_PLAN, source=source, target=target, control_store=control)


def _endpoint(server: Server) -> RedisEndpoint:
    address = server.address()
    secret = address.secret("benchmark")
    return (
        RedisEndpoint(url=address.url)
        if secret is None
        else RedisEndpoint(url=address.url, password=secret)
    )


@flow(name="benchmark", validate_parameters=False)
def _by_prefect(run: str, writer_epoch: int, keys: int) -> float:
    counted: list[Any] = []
    seconds = seconds_of(
        lambda: counted.append(copy_all(_PLAN, {"run": run, "writer_epoch": writer_epoch}))
    )
    if counted[0]["keys_seen"] < keys:
        raise AssertionError(f"{counted[0]} of {keys}")
    return seconds


def _timed_flow(sides: _Sides, run: str, keys: int) -> float:
    return _by_prefect(run, uvloop.run(sides.begin()), keys)


def _timed_loop(sides: _Sides, run: str) -> float:
    return seconds_of(lambda: uvloop.run(sides.one_loop(run)))


def measure(*, full: bool) -> Result:
    """Each way in turn, three times."""
    keys = 1_600_000 if full else 800_000
    runs = []
    with Rig() as rig, prefect_test_harness(server_startup_timeout=120):
        source = rig.server(ServerKind.REDIS_62, "source")
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        sides = _Sides(source, target, control)
        sides.block().save(_PLAN, overwrite=True)
        with client(source) as ours, client(target) as theirs:
            ours.execute_command("DEBUG", "POPULATE", keys, "key", _VALUE_BYTES)
            for number in range(3):
                ways: dict[str, Callable[[], float]] = {
                    "exodus": partial(_timed_flow, sides, f"flow-{number}", keys),
                    "bare engine, threads": partial(
                        seconds_of, partial(sides.threads, f"threads-{number}")
                    ),
                    "bare engine, one loop": partial(_timed_loop, sides, f"loop-{number}"),
                }
                run = {}
                for way, work in ways.items():
                    theirs.flushall()
                    run[way] = work()
                    _check(theirs, way, keys)
                runs.append(run)
    return result(
        name="orchestration",
        what=f"backfill of {keys:,} keys of {_VALUE_BYTES} bytes",
        unit="s",
        runs=runs,
        against="bare engine, threads",
        higher_is_better=False,
    )


def _check(target: redis.Redis, way: str, keys: int) -> None:
    copied = int(target.dbsize())
    if copied < keys:
        raise AssertionError(f"{way} copied {copied} of {keys} keys")
