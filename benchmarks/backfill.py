"""How fast are keys copied, with checkpoints, exact expiry, the guard and the journal check on?

Peers: MIGRATE in batches of 100; a redis-py pipeline loop as anyone would write it; REPLICAOF, which is the limit. Redis 6.2 to
Valkey 9.1, on one machine.
"""

from __future__ import annotations

import random
import time
from functools import partial

import redis
import uvloop

from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, seconds_of
from exodus.config import JournalMode, Plan, Side
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.endpoint import Endpoint
from exodus.stack.servers import Server, ServerKind
from exodus.sync.backfill import copy_slice
from exodus.sync.engine import open_engine
from exodus.sync.guard import set_writer_epoch
from exodus.sync.scan import plan_slices

_VALUE_BYTES = 100
_BATCH = 100
_TIMED_SHARE = 5


def _load(source: redis.Redis, keys: int) -> None:
    draw = random.Random(1)  # noqa: S311 - reproducible, not secret
    pipe = source.pipeline(transaction=False)
    for number in range(keys):
        expiry_ms = 3_600_000 + number if number % _TIMED_SHARE == 0 else None
        pipe.set(b"key:%d" % number, draw.randbytes(_VALUE_BYTES), px=expiry_ms)
        if number % 10_000 == 0:
            pipe.execute()
    pipe.execute()


async def _exodus(source: Server, target: Server, control: Server, run: str) -> None:
    plan = Plan(name="bench", source=source.address(), target=target.address())
    async with await ControlStore.connect(control.address(), plan.name) as store:
        await store.save_plan(plan)
        route = await read_route(store)
        route = await change_route(store, route, route.next(why="benchmark", journal=JournalMode.ALL, sync=True, writer_epoch=route.writer_epoch + 1))
        await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, route.writer_epoch)
        engine = await open_engine(store, plan, route)
        for piece in await plan_slices(engine.authority, plan.slices):
            progress = await copy_slice(engine, run, piece, budget_s=600)
            if progress.keys_failed or not progress.done:
                raise AssertionError(f"slice {piece.slice_id} did not end well: {progress}")


def _migrate(source: redis.Redis, target: Server) -> None:
    for keys in _batches(source):
        source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 60_000, "COPY", "REPLACE", "KEYS", *keys)


def _loop(source: redis.Redis, target: redis.Redis) -> None:
    for keys in _batches(source):
        reading = source.pipeline(transaction=False)
        for key in keys:
            reading.dump(key)
            reading.pttl(key)
        found = reading.execute()
        writing = target.pipeline(transaction=False)
        for key, payload, left_ms in zip(keys, found[::2], found[1::2], strict=True):
            if payload is not None:
                writing.restore(key, max(left_ms, 0), payload, replace=True)
        writing.execute()


def _batches(source: redis.Redis) -> list[list[bytes]]:
    keys = list(source.scan_iter(count=1000))
    return [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]


def _replicate(source: Server, target: redis.Redis, keys: int) -> None:
    target.replicaof("127.0.0.1", source.port)
    while target.info("replication").get("master_link_status") != "up" or target.dbsize() < keys:
        time.sleep(0.01)
    target.replicaof("NO", "ONE")


def measure(*, full: bool) -> Result:
    """Every way in turn, three times."""
    keys = 300_000 if full else 100_000
    runs = []
    with Rig() as rig:
        source = rig.server(ServerKind.REDIS_62, "source", repl_diskless_sync_delay="0", repl_diskless_sync="yes")
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        with client(source) as ours, client(target) as theirs:
            _load(ours, keys)
            for number in range(3):
                ways = {
                    "exodus": partial(uvloop.run, _exodus(source, target, control, f"run-{number}")),
                    "MIGRATE by 100": partial(_migrate, ours, target),
                    "redis-py loop": partial(_loop, ours, theirs),
                    "REPLICAOF": partial(_replicate, source, theirs, keys),
                }
                run = {}
                for way, work in ways.items():
                    theirs.flushall()
                    run[way] = keys / seconds_of(work)
                    copied = sum(1 for key in theirs.scan_iter(count=1000) if key.startswith(b"key:"))
                    if copied != keys:
                        raise AssertionError(f"{way} copied {copied} of {keys} keys")
                runs.append(run)
    return result(name="backfill", what=f"{keys:,} keys of {_VALUE_BYTES} random bytes", unit="keys/s", runs=runs, against="MIGRATE by 100")
