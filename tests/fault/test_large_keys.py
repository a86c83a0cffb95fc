"""Keys of millions of elements: copied whole, by short commands, while other clients are served.

The short form has keys just large enough to go in pieces. FULL=1 has 2,000,000 elements in each
type and a string of 512 MB. How long other clients waited is printed (`pytest -s`), and not
asserted. The test asserts the cause: no command on either side touches a whole key.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from random import randbytes

import pytest
import redis

from exodus.control.checkpoint import load_progress
from exodus.copy.key import CopyMethod
from exodus.plan.vocabulary import Side
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800 if FULL else 300)]

ELEMENTS = 2_000_000 if FULL else 40_000
STRING_BYTES = 512 * 1024 * 1024 if FULL else 4 * 1024 * 1024
# Not DUMP: each engine asks with one of a single byte what the servers can do
WHOLE = ("restore", "migrate", "hgetall", "smembers")
_STEP = 10_000


def fill_huge(client: redis.Redis) -> set[bytes]:
    """Write one key of each type, by commands of `_STEP` elements."""
    for start in range(0, ELEMENTS, _STEP):
        part = range(start, start + _STEP)
        pipe = client.pipeline(transaction=False)
        pipe.hset("hash", mapping={f"field:{n}": n for n in part})
        pipe.sadd("set", *[f"member:{n}" for n in part])
        pipe.zadd("zset", {f"member:{n}": n / 7 for n in part})
        pipe.rpush("list", *[f"element:{n:>40}" for n in part])
        for number in part:
            pipe.execute_command("XADD", "stream", f"{number + 1}-1", "n", f"{number:>40}")
        pipe.execute()
    piece = randbytes(1024 * 1024)
    for _ in range(STRING_BYTES // len(piece)):
        client.append("string", piece)
    return {b"hash", b"set", b"zset", b"list", b"stream", b"string"}


async def pinger(box: DatabaseServer) -> asyncio.subprocess.Process:
    """Another client, which makes small requests all the while."""
    address = box.address()
    arguments = ["-m", "tests.support.pinger", str(box.port), address.username or "default"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    process.stdin.write(f"{address.secret('test')}\n".encode())
    return process


def calls(box: DatabaseServer) -> dict[str, int]:
    """Return how often each command ran."""
    stats = box.client().info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in WHOLE}


async def test_no_command_is_about_a_whole_huge_key(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    local = LocalMigration(redis82, valkey91, control_server, tmp_path, slices=1)
    await local.open()
    wanted = fill_huge(redis82.client())
    await local.start_live_sync()
    servers = {Side.SOURCE: redis82, Side.TARGET: valkey91}
    before = {side: calls(box) for side, box in servers.items()}
    pingers = {side: await pinger(box) for side, box in servers.items()}
    began = time.monotonic()
    await local.backfill()
    seconds = time.monotonic() - began
    waits = {
        side: sorted(map(float, (await process.communicate(b""))[0].split()))
        for side, process in pingers.items()
    }
    after = {side: calls(box) for side, box in servers.items()}
    for side, found in waits.items():
        print(
            f"{side}: {len(found)} pings, p50 {found[len(found) // 2]:.1f} ms, p99 "
            f"{found[-len(found) // 100 - 1]:.1f} ms, max {found[-1]:.1f} ms"
        )
    print(f"{len(wanted)} keys of {ELEMENTS} elements and {STRING_BYTES} bytes in {seconds:.1f} s")
    (progress,) = (await load_progress(local.store, "run")).values()
    assert progress.strategies == {CopyMethod.PIECES: len(wanted)}
    assert after == before
    assert (await local.verify()).divergences == []
    await local.close()
