"""Crashes at each write of the spool and the intent log, files torn at random bytes, and a control
store cut at random bytes of its AOF.

The rule: no acknowledged write is lost without a gap, which blocks the cutover. FULL=1 draws more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import redis.asyncio as redis

from exodus.control import registry
from exodus.control.gaps import open_gaps
from exodus.cutover import switch
from exodus.cutover.preconditions import check_gaps
from exodus.errors import DecisionRefused
from exodus.feeds.feed import JournalFeed
from exodus.gateway.intents import IntentLog
from exodus.gateway.spool import Spool
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from tests.fault.test_journal_losses import aof, cut, lossy
from tests.support.fleet import Fleet
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

ROUNDS = range(int(os.environ.get("ROUNDS", "40"))) if FULL else range(3)

_TEAR = """
import os, resource, sys
from pathlib import Path
from exodus.gateway.spool import Spool
folder, size = Path(sys.argv[1]), int(sys.argv[2])
spool = Spool(folder)
assert spool.append([(0, b"kept")], [])
resource.setrlimit(resource.RLIMIT_FSIZE, (spool.bytes + size, resource.RLIM_INFINITY))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool.append([(0, b"torn" * 5)], [])
os.kill(os.getpid(), signal.SIGKILL)
"""

_APPEND = """
import os, sys
from pathlib import Path
from exodus.control.changes import Barrier
from exodus.gateway.intents import IntentLog
from exodus.gateway.spool import Spool
folder, which = Path(sys.argv[1]), sys.argv[2]
spool, log = Spool(folder), IntentLog(folder, lambda keys: os._exit(3))
for number in range(10**9):
    key = (number % 3 * 40_000, b"%d:" % number + b"k" * (number * 37 % 400))
    if which == "spool":
        assert spool.append([key], [])
    else:
        log.append([key], Barrier("flushdb", (number,)) if number % 7 == 0 else None)
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("size", range(0, 40, 1 if FULL else 5))
def test_a_kill_in_the_middle_of_a_write_of_the_spool_costs_that_record_only(
    tmp_path: Path, size: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TEAR, str(tmp_path), str(size)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "spool.log").stat().st_size % 1_000 > 0
    spool = Spool(tmp_path)
    assert spool.append([(0, b"later")], [])
    again = Spool(tmp_path)
    assert [keys for keys, _ in again.batches([])] == [[(0, b"kept")], [(0, b"later")]]
    assert again.damage == []


@pytest.mark.parametrize("which", ["spool", "intents"])
@pytest.mark.parametrize("seed", ROUNDS)
async def test_what_was_appended_before_a_kill_is_read_after_it(
    tmp_path: Path, which: str, seed: int
) -> None:
    writing = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _APPEND, str(tmp_path), which, stdout=asyncio.subprocess.PIPE
    )
    assert writing.stdout is not None
    await writing.stdout.readline()
    await asyncio.sleep(random.Random(seed).random() / 10)
    writing.kill()
    said = (await writing.stdout.read()).split(b"\n")
    await writing.wait()
    last = int(said[-2]) if len(said) > 1 else 0
    if which == "spool":
        spool = Spool(tmp_path)
        keys, damage = [key for batch, _ in spool.batches([]) for key in batch], spool.damage
    else:
        found = IntentLog(tmp_path, pytest.fail).recover()
        keys, damage = list(found.keys), found.damage
    assert damage == []
    assert [int(key.partition(b":")[0]) for _, key in keys[: last + 1]] == list(range(last + 1))


def _tear(path: Path, draw: random.Random) -> str:
    """Damage a file as crashes, disks and people do."""
    raw = bytearray(path.read_bytes())
    used = max(1, len(raw.rstrip(b"\0")))
    at = draw.randrange(used)
    harm = draw.choice(["cut", "flip", "zeros", "gone"])
    if harm == "gone":
        path.unlink()
        return harm
    if harm == "cut":
        del raw[at:]
    elif harm == "flip":
        raw[at] ^= 1 << draw.randrange(8)
    else:
        raw[at : at + 64] = bytes(min(64, len(raw) - at))
    path.write_bytes(bytes(raw))
    return f"{harm} at {at} of {used}"


async def _writes(port: int, stop: asyncio.Event, name: str) -> int:
    client, count = redis.Redis(port=port), 0
    while not stop.is_set():
        with contextlib.suppress(redis.RedisError, OSError):
            await client.set(f"{name}:{count % 300}", count)
        count += 1
        await asyncio.sleep(0.001)
    await client.aclose()
    return count


async def _gaps(local: LocalMigration | Fleet) -> list[bytes]:
    return list(await local.store.client.hkeys(local.store.keys.gap))


async def _no_loss_without_a_gap(
    local: LocalMigration | Fleet, divergent: list[str], what: str
) -> None:
    found = await _gaps(local)
    assert not divergent or found, (
        f"{what}: {len(divergent)} keys differ and nothing says so: {divergent[:5]}"
    )
    if found:
        with pytest.raises(DecisionRefused, match="open gap"):
            await switch.apply(local.store, local.plan, Side.TARGET)


async def _at_rest(local: LocalMigration | Fleet, pid: int, since_ms: int = 0) -> None:
    """Wait until the journal has everything that this process's gateway knows, and all of it is
    synced.

    Only a report of the gateway after this call began, and after `since_ms`, counts. An older one
    is from before the last writes, and a store that lost its tail still has one.
    """
    feed, asked = JournalFeed(local.store, local.plan.partitions), list[int]()

    async def quiet() -> bool:
        nonlocal since_ms
        with contextlib.suppress(redis.RedisError, OSError):
            now_ms = await local.store.now_ms()
            if not asked:
                asked.append(now_ms)
                since_ms = max(since_ms, now_ms)
            beats = await registry.heartbeats(local.store, "gateway")
            fresh = bool(beats) and all(
                beat.pid == pid
                and beat.at_ms > since_ms
                and not beat.stale(now_ms)
                and not beat.facts.unflushed
                for beat in beats
            )
            return fresh and await feed.drained()
        return False

    await until(quiet, within_s=40, otherwise="the journal never came to rest")


async def _differ(local: LocalMigration | Fleet) -> list[str]:
    source, target = (local.servers[side].client() for side in Side)
    with source, target:
        names = sorted(
            name
            for name in {*source.keys("*"), *target.keys("*")}
            if not name.startswith(b"exodus")
        )
        pairs = zip(names, source.mget(names), target.mget(names), strict=True)
        return [f"{name!r}: {ours!r} {theirs!r}" for name, ours, theirs in pairs if ours != theirs]


@pytest.mark.parametrize("seed", ROUNDS)
async def test_a_killed_gateway_with_torn_files_loses_nothing_in_silence(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path, seed: int
) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(seed)
    control = make_server(ServerKind.VALKEY_91, appendonly="yes")
    fleet = Fleet(redis62, valkey91, control, tmp_path / "fleet", gateways=1, syncers=1)
    await fleet.open()
    try:
        await fleet.migrate()
        stop = asyncio.Event()
        writing = asyncio.create_task(_writes(fleet.ports[0], stop, "k"))
        await asyncio.sleep(0.3)
        if draw.random() < 0.7:  # so that there is a spool
            control.stop()
        await asyncio.sleep(0.5 + draw.random())
        member = fleet.members["gateway-1"]
        os.kill(member.process.pid, signal.SIGKILL)
        member.process.wait()
        stop.set()
        await writing
        folder = fleet.folder / "gateway-1"
        files = [*folder.glob("intent-*.log"), *folder.glob("spool.log")]
        what = "; ".join(
            f"{path.name}: {_tear(path, draw)}"
            for path in draw.sample(files, draw.randrange(len(files) + 1))
        )
        if control.server.started.process.poll() is not None:
            control.start()
        await fleet.store.client.connection_pool.disconnect()
        member.start()
        await _at_rest(fleet, member.process.pid)
        await _no_loss_without_a_gap(fleet, await _differ(fleet), f"seed {seed}: {what}")
    finally:
        await fleet.close()


@pytest.mark.parametrize("seed", ROUNDS)
async def test_a_control_store_that_is_cut_anywhere_loses_nothing_in_silence(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path, seed: int
) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(seed)
    local = await lossy(redis62, valkey91, make_server, tmp_path)
    try:
        begun = aof(local.control).stat().st_size
        stop = asyncio.Event()
        writing = asyncio.create_task(_writes(local.port, stop, "k"))
        await asyncio.sleep(0.5 + 3 * draw.random())
        if draw.random() < 0.5:
            stop.set()
            await writing
        size = aof(local.control).stat().st_size
        where = draw.randrange(begun if draw.random() < 0.3 else max(begun, size - 20_000), size)
        await cut(local, where)
        cut_ms = await local.store.now_ms()
        await asyncio.sleep(draw.random())
        stop.set()
        await writing
        await _at_rest(local, os.getpid(), cut_ms)
        await _no_loss_without_a_gap(
            local, await _differ(local), f"seed {seed}: cut at {where} of {size}, begun at {begun}"
        )
    finally:
        await local.close()


@pytest.mark.parametrize("orderly", [False, True], ids=["it went down", "it was shut down"])
async def test_a_host_that_went_down_is_a_gap(local: LocalMigration, orderly: bool) -> None:
    """The intent log survives the end of its process, but not of its host. Nobody knows what it
    lacks then.
    """
    await local.change(journal="all")
    first = GatewayProcess(local)
    first.wait_said("listens on")
    await local.app().set("k", 1)
    if orderly:
        first.end()
    else:
        first.kill()
    (instance,) = local.folder.glob("state/**/instance.json")
    instance.write_bytes(
        orjson.dumps(
            {**orjson.loads(instance.read_bytes()), "boot": "of another start of the host"}
        )
    )
    second = GatewayProcess(local, name="second")
    try:
        second.wait_said("listens on")
        if orderly:
            await local.app().set("k", 2)
            await asyncio.sleep(0.5)
            assert await open_gaps(local.store) == {}
            return

        async def said() -> bool:
            return any(
                "the host was restarted" in str(gap["why"])
                for gap in (await open_gaps(local.store)).values()
            )

        await until(said, within_s=20, otherwise="the loss of the host opened no gap")
        with pytest.raises(DecisionRefused, match="open gap"):
            await check_gaps(local.store, scripts_later=True)
    finally:
        second.end()
