"""Does what Exodus needs grow with the keyspace? Peak resident memory of a backfill and a
verification, of ten times as many keys.

The peer is the same work on a tenth of the keys. Each runs in a process of its own, which ends with
it. Redis 6.2 to Valkey 9.1, on one machine.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from benchmarks.copying import backfill, engine_of
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client
from exodus.stack.servers import Server, ServerKind
from exodus.verify.reconcile import verify

_VALUE_BYTES = 20


def _peak_mb() -> float:
    """Of this process (Linux)."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) / 1024


async def _copy_and_compare(
    source: Server, target: Server, control: Server, keys: int, answer: Connection
) -> None:
    async with engine_of(source, target, control) as engine:
        await backfill(engine, f"run-{keys}")
        copied_mb = _peak_mb()
        report = await verify(engine)
        if report.keys_verified != keys:
            raise AssertionError(f"{report.keys_verified} of {keys} keys verified")
    answer.send((copied_mb, _peak_mb()))


def _work(source: Server, target: Server, control: Server, keys: int, answer: Connection) -> None:
    uvloop.run(_copy_and_compare(source, target, control, keys, answer))


def measure(*, full: bool) -> list[Result]:
    """One number for the backfill, and one for both together."""
    sizes = (300_000, 3_000_000) if full else (30_000, 300_000)
    found: dict[int, tuple[float, float]] = {}
    with Rig() as rig:
        source, target = (
            rig.server(ServerKind.REDIS_62, "source"),
            rig.server(ServerKind.VALKEY_91, "target"),
        )
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        for keys in sizes:
            with client(source) as ours, client(target) as theirs:
                ours.flushall()
                theirs.flushall()
                ours.execute_command("DEBUG", "POPULATE", keys, "key", _VALUE_BYTES)
            forking = multiprocessing.get_context("fork")
            answer, theirs_end = forking.Pipe(duplex=False)
            child = forking.Process(target=_work, args=(source, target, control, keys, theirs_end))
            child.start()
            theirs_end.close()
            found[keys] = answer.recv()
            child.join()
    few, many = sizes
    return [
        result(
            name=f"memory-{what}",
            what=f"peak memory of a {what}, {many:,} keys",
            unit="MB",
            higher_is_better=False,
            against=f"{few:,} keys",
            runs=[{"exodus": found[many][number], f"{few:,} keys": found[few][number]}],
        )
        for number, what in enumerate(("backfill", "verification"))
    ]
