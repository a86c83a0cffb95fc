"""What the benchmarks of the sync engine share: servers with data, and an engine that may write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import redis

from benchmarks.result import Result
from benchmarks.rig import Rig, client
from exodus.backfill.slices import copy_slice
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.copy.scan import Slice, nodes_in_turn, plan_slices
from exodus.engine import Engine, open_engine
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, JournalMode, Side
from exodus.stack.servers import Server, ServerKind
from exodus.topology.endpoint import Endpoint

VALUE_BYTES = 100
LARGE_BYTES = 20_000
SLICES_AT_A_TIME = 3
_TIMED_SHARE = 5
_ELEMENTS = 10


@dataclass(frozen=True)
class Data:
    """Keys to copy or compare."""

    name: str
    what: str
    keys: int
    put: Callable[[redis.client.Pipeline, bytes, random.Random], object]
    strings: bool = True

    def result(self, question: str) -> str:
        """Return the name of what was measured with them; that of the question itself with the
        first kind.
        """
        return question if self.name == "random" else f"{question}-{self.name}"

    def load(self, source: redis.Redis | redis.RedisCluster) -> None:
        """Write them, a fifth of them with an expiry."""
        draw = random.Random(1)  # noqa: S311 - reproducible, not secret
        source.flushall()
        pipe = source.pipeline(transaction=False)
        for number in range(self.keys):
            self.put(pipe, b"key:%d" % number, draw)
            if number % _TIMED_SHARE == 0:
                pipe.pexpire(b"key:%d" % number, 3_600_000 + number)
            if number % 1_000 == 0:
                pipe.execute()
        pipe.execute()


def data(*, full: bool) -> list[Data]:
    """What the goals are about."""
    many, mixed, large = (300_000, 100_000, 20_000) if full else (100_000, 30_000, 5_000)
    return [
        Data(
            "random",
            f"{many:,} keys of {VALUE_BYTES} random bytes",
            many,
            lambda pipe, key, draw: pipe.set(key, draw.randbytes(VALUE_BYTES)),
        ),
        Data(
            "repetitive",
            f"{many:,} keys of {VALUE_BYTES} equal bytes",
            many,
            lambda pipe, key, _: pipe.set(key, b"x" * VALUE_BYTES),
        ),
        Data(
            "mix",
            f"{mixed:,} keys of all types, {_ELEMENTS} elements each",
            mixed,
            _any_type,
            strings=False,
        ),
        Data(
            "large",
            f"{large:,} keys of {LARGE_BYTES:,} random bytes",
            large,
            lambda pipe, key, draw: pipe.set(key, draw.randbytes(LARGE_BYTES)),
        ),
    ]


def _any_type(pipe: redis.client.Pipeline, key: bytes, draw: random.Random) -> None:
    elements = [draw.randbytes(VALUE_BYTES // _ELEMENTS) for _ in range(_ELEMENTS)]
    kind = draw.randrange(6)
    if kind == 0:
        pipe.set(key, b"".join(elements))
    elif kind == 1:
        pipe.rpush(key, *elements)
    elif kind == 2:
        pipe.sadd(key, *elements)
    elif kind == 3:
        pipe.zadd(key, {element: draw.random() for element in elements})
    elif kind == 4:
        pipe.hset(
            key, mapping={b"f%d" % number: element for number, element in enumerate(elements)}
        )
    else:
        for number, element in enumerate(elements):
            pipe.xadd(key, {b"f": element}, id=f"{number + 1}-1")
        pipe.xgroup_create(key, "group", id="3-1")


def each_kind(
    measured: Callable[[Data, Server, Server, Server], Result], *, full: bool, **config: str
) -> list[Result]:
    """Measure with each kind of data, from Redis 6.2 (with this configuration) to Valkey 9.1."""
    found = []
    with Rig() as rig:
        source = rig.server(ServerKind.REDIS_62, "source", **config)
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        with client(source) as ours:
            for kind in data(full=full):
                kind.load(ours)
                found.append(measured(kind, source, target, control))
    return found


async def begin_epoch(store: ControlStore, plan: Plan) -> Route:
    """Register a plan and begin a new epoch with the journal on; return its route."""
    await store.save_plan(plan)
    route = await read_route(store)
    changes = {"journal": JournalMode.ALL, "sync": True, "writer_epoch": route.writer_epoch + 1}
    route = await change_route(store, route, route.next(why="benchmark", **changes))
    await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, route.writer_epoch)
    return route


@asynccontextmanager
async def engine_of(
    source: Server, target: Server, control: Server, *, strategy: CopyStrategy = CopyStrategy.KEYS
) -> AsyncIterator[Engine]:
    """Return the engine of a new epoch, with the journal on."""
    plan = Plan(name="bench", source=source.address(), target=target.address(), strategy=strategy)
    async with await ControlStore.connect(control.address(), plan.name) as store:
        yield await open_engine(store, plan, await begin_epoch(store, plan))


async def backfill(engine: Engine, run: str) -> None:
    """Return every slice, some at a time, as the threads of a flow run do it: while we handle one's
    batch, the source reads another's.
    """
    turn = asyncio.Semaphore(SLICES_AT_A_TIME)

    async def copy(piece: Slice) -> None:
        async with turn:
            progress = await copy_slice(engine, run, piece, budget_s=600)
        if progress.keys_failed or not progress.done:
            raise AssertionError(f"slice {piece.slice_id} did not end well: {progress}")

    async with asyncio.TaskGroup() as group:
        slices = await plan_slices(engine.authority, engine.plan.slices)
        for piece in nodes_in_turn(slices):
            group.create_task(copy(piece))
