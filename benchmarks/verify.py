"""How fast are both sides compared, values and expiries, in both directions?

Peers: the backfill of the same keys, since a verification should not take longer than the copy; and
a redis-py pipeline loop that reads GET and PTTL of every key on both sides. Redis 6.2 to Valkey
9.1, on one machine.
"""

from __future__ import annotations

from functools import partial

import redis
import uvloop

from benchmarks.copying import Data, backfill, each_kind, engine_of
from benchmarks.result import Result, result
from benchmarks.rig import client, seconds_of
from exodus.stack.servers import Server
from exodus.verify.reconcile import verify

_BATCH = 500


async def _copy(source: Server, target: Server, control: Server, run: str) -> None:
    async with engine_of(source, target, control) as engine:
        await backfill(engine, run)


async def _verify(source: Server, target: Server, control: Server, keys: int) -> None:
    async with engine_of(source, target, control) as engine:
        report = await verify(engine)
        if report.keys_verified != keys or report.divergences:
            raise AssertionError(
                f"{report.keys_verified} of {keys} keys verified, {report.divergences_total} "
                "divergences"
            )


def _loop(source: redis.Redis, target: redis.Redis) -> None:
    keys = list(source.scan_iter(count=1000))
    for start in range(0, len(keys), _BATCH):
        found = []
        for side in (source, target):
            pipe = side.pipeline(transaction=False)
            for key in keys[start : start + _BATCH]:
                pipe.get(key)
                pipe.pttl(key)
            found.append(pipe.execute())
        if found[0][::2] != found[1][::2]:
            raise AssertionError("values differ")


def measure(*, full: bool) -> list[Result]:
    """Copy, then compare in both ways, three times, for each kind of data."""
    return each_kind(_measured, full=full)


def _measured(kind: Data, source: Server, target: Server, control: Server) -> Result:
    runs = []
    with client(source) as ours, client(target) as theirs:
        for number in range(3):
            theirs.flushall()
            copy = partial(uvloop.run, _copy(source, target, control, f"{kind.name}-{number}"))
            run = {"exodus backfill": kind.keys / seconds_of(copy)}
            run["exodus"] = kind.keys / seconds_of(
                partial(uvloop.run, _verify(source, target, control, kind.keys))
            )
            if kind.strings:
                run["redis-py loop"] = kind.keys / seconds_of(partial(_loop, ours, theirs))
            runs.append(run)
    return result(
        name=kind.result("verify"),
        what=kind.what,
        unit="keys/s",
        runs=runs,
        against="exodus backfill",
    )
