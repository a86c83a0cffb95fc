"""200 clients without a login do whatever a stranger can, all at once, while the self-checking
application runs through a cutover and back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from tests.support.fleet import ROOT, Fleet
from tests.support.full import FULL
from tests.support.strangers import ACTS, INLINE_COMMANDS

pytestmark = pytest.mark.fault
SOAK_S = float(os.environ.get("SOAK_S") or (300 if FULL else 12))
CLIENTS = 200
RSS_BYTES_MAX = 250 * 1024 * 1024  # of a gateway, whatever strangers send
# By which the control store grows: the application's own journal
STORE_BYTES_MAX = 32 * 1024 * 1024
_PASSWORD = "application"
_ATTEMPTS = 3  # of a switch: strangers may cost one its time limit, and it is then undone


@asynccontextmanager
async def _strangers(ports: list[int], seconds: float) -> AsyncIterator[dict[str, int]]:
    """Run the strangers; the yielded counts are complete at the end."""
    done: dict[str, int] = {}
    command = [
        sys.executable,
        "-m",
        "tests.support.strangers",
        str(seconds),
        str(CLIENTS),
        *map(str, ports),
    ]
    process = await asyncio.create_subprocess_exec(
        "nice", "-n", "19", *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield done
        assert process.stdout is not None
        async with asyncio.timeout(seconds + 60):
            done.update(json.loads(await process.stdout.read()))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _latencies_ms(port: int, seconds: float) -> list[float]:
    """Return the latencies of a read, made a hundred times a second, in ascending order."""
    found: list[float] = []
    async with redis.Redis(port=port, password=_PASSWORD) as client:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            try:
                await client.get("shop:latency")
            except RedisError:
                continue  # the switch's own answers are the application's to check
            found.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(0.01)
    return sorted(found)


def _p99(ascending_ms: list[float]) -> float:
    return round(ascending_ms[int(len(ascending_ms) * 0.99)], 2)


async def _switch(fleet: Fleet, to: Side) -> list[str]:
    """Try until it switched; return the outcome of each attempt."""
    outcomes: list[str] = []
    while not outcomes or (outcomes[-1] != "switched" and len(outcomes) < _ATTEMPTS):
        switcher = fleet.switcher(to)
        await switcher.start()
        ended = await switcher.ended()
        outcomes.append(
            str(ended["outcome"])
            if ended["outcome"] == "switched"
            else f"{ended['outcome']}: {ended.get('what')}: {ended.get('why')}"
        )
        await fleet.settled()
    assert outcomes[-1] == "switched", outcomes
    return outcomes


def _rss(fleet: Fleet) -> dict[str, int]:
    return {
        name: psutil.Process(member.process.pid).memory_info().rss
        for name, member in fleet.members.items()
        if name.startswith("gateway")
    }


async def test_a_cutover_and_a_rollback_among_hostile_clients(
    make_server, tmp_path: Path, record_property
) -> None:
    """Memory is bounded, both switches succeed, nothing is lost.

    The application's p99 is told. With FULL=1 it is judged: at most twice that with the same
    strangers at a server that nobody uses, since they take time from these cores wherever they go.
    """
    source, target = make_server(ServerKind.REDIS_62), make_server(ServerKind.VALKEY_91)
    control = make_server(ServerKind.VALKEY_91, appendonly="yes")
    another = make_server(ServerKind.REDIS_62)
    for box in (source, target, another):
        with box.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{_PASSWORD}")
    fleet = Fleet(source, target, control, tmp_path / "fleet", hold_seconds_max=5.0)
    await fleet.open()
    try:
        application = await fleet.application(password=_PASSWORD)
        await application.flows()
        without = await _latencies_ms(fleet.ports[0], SOAK_S / 4)
        # What they cost on this machine without a gateway of ours in their way: at a server that
        # the application does not use, and at the source.
        beside = {}
        for place, box in (("another_server", another), ("the_source", source)):
            async with _strangers([box.port], SOAK_S / 4):
                await asyncio.sleep(SOAK_S / 20)
                beside[place] = await _latencies_ms(fleet.ports[0], SOAK_S / 6)
        stored = control.client().info("memory")["used_memory"]
        async with _strangers(fleet.ports, SOAK_S) as done:
            await asyncio.sleep(SOAK_S / 10)
            among = await _latencies_ms(fleet.ports[0], SOAK_S / 4)
            switching = asyncio.create_task(_latencies_ms(fleet.ports[0], SOAK_S / 4))
            outcomes = {}
            for to in (Side.TARGET, Side.SOURCE):
                outcomes[str(to)] = await _switch(fleet, to)
                await application.flows(within_s=60)
            through = await switching
            await application.flows(within_s=60)
            grown = _rss(fleet)
        facts = {
            "p99_ms_without": _p99(without),
            **{f"p99_ms_strangers_at_{place}": _p99(found) for place, found in beside.items()},
            "p99_ms_with": _p99(among),
            "p99_ms_with_and_a_switch": _p99(through),
            "rss_mb": {name: size // 2**20 for name, size in grown.items()},
            "switches": outcomes,
            "done": done,
        }
        record_property("facts", json.dumps(facts))
        print(json.dumps(facts, indent=1))
        for act in ACTS:
            assert done.get(act.__name__, 0) + done.get(f"{act.__name__}, cut off", 0) > 0, (
                "a stranger never came to it"
            )
        assert (SOAK_S < 10) or done["pipelined_inline"] * INLINE_COMMANDS >= 900_000 or not FULL
        beside_p99 = max(_p99(without), _p99(beside["another_server"]))
        assert not FULL or _p99(among) <= 2 * beside_p99, facts
        await fleet.agrees(application)
        await application.end()
        assert max(grown.values()) < RSS_BYTES_MAX, grown
        assert control.client().info("memory")["used_memory"] - stored < STORE_BYTES_MAX
    finally:
        await fleet.close()
