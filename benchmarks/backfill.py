"""How fast are keys copied, with checkpoints, exact expiry, the guard and the journal check on?

Peers: MIGRATE in batches of 100; a redis-py pipeline loop as anyone would write it; REPLICAOF,
which is the limit. Redis 6.2 to Valkey 9.1, on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from functools import partial

import redis
import uvloop

from benchmarks.copying import Data, backfill, each_kind, engine_of
from benchmarks.result import Result, result
from benchmarks.rig import client, seconds_of
from exodus.plan.vocabulary import CopyStrategy
from exodus.stack.servers import Server

_BATCH = 100


async def _exodus(
    source: Server, target: Server, control: Server, run: str, strategy: CopyStrategy
) -> None:
    async with engine_of(source, target, control, strategy=strategy) as engine:
        await backfill(engine, run)


def _by_lane(work: Coroutine[None, None, None], target: redis.Redis) -> None:
    # Which the lane asks for, and the other ways need
    target.execute_command("ACL", "SETUSER", "default", "-restore")
    try:
        uvloop.run(work)
    finally:
        target.execute_command("ACL", "SETUSER", "default", "+restore")


def _migrate(source: redis.Redis, target: Server) -> None:
    for keys in _batches(source):
        source.execute_command(
            "MIGRATE", "127.0.0.1", target.port, "", 0, 60_000, "COPY", "REPLACE", "KEYS", *keys
        )


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


def measure(*, full: bool) -> list[Result]:
    """Return every way in turn, three times, for each kind of data."""
    return each_kind(_measured, full=full, repl_diskless_sync_delay="0", repl_diskless_sync="yes")


def _measured(kind: Data, source: Server, target: Server, control: Server) -> Result:
    runs = []
    with client(source) as ours, client(target) as theirs:
        for number in range(3):
            ways = {
                "exodus": partial(
                    uvloop.run,
                    _exodus(source, target, control, f"{kind.name}-{number}", CopyStrategy.KEYS),
                ),
                "exodus, MIGRATE lane": partial(
                    _by_lane,
                    _exodus(
                        source, target, control, f"{kind.name}-lane-{number}", CopyStrategy.MIGRATE
                    ),
                    theirs,
                ),
                "MIGRATE by 100": partial(_migrate, ours, target),
                "redis-py loop": partial(_loop, ours, theirs),
                "REPLICAOF": partial(_replicate, source, theirs, kind.keys),
            }
            run = {}
            for way, work in ways.items():
                theirs.flushall()
                run[way] = kind.keys / seconds_of(work)
                copied = sum(1 for key in theirs.scan_iter(count=1000) if key.startswith(b"key:"))
                if copied != kind.keys:
                    raise AssertionError(f"{way} copied {copied} of {kind.keys} keys")
            runs.append(run)
    return result(
        name=kind.result("backfill"),
        what=kind.what,
        unit="keys/s",
        runs=runs,
        against="MIGRATE by 100",
    )
