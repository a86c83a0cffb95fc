"""The switch under faults: each kind in turn, at a step drawn from a seed, on real processes, under
the self-checking application's writes.

The outcome is switched or not switched, never both: the route, the fences, the write grants and the
switch's own report agree. The application's model agrees with the authority. Writes continue
without anybody's help. FULL=1 draws 200 seeds, with three client libraries.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.control.route import read_route
from exodus.cutover.switch import steps
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from tests.support.fleet import Application, Fleet, Switcher
from tests.support.full import FULL
from tests.support.libraries import LIBRARIES
from tests.support.servers import DatabaseServer

_FIRST, _, _END = os.environ.get("SEEDS", "0-200" if FULL else "0-20").partition("-")
SEEDS = range(int(_FIRST), int(_END))
pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(300 + 60 * len(SEEDS)),
    # coredis leaves these behind when it loses a connection (long form).
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function "
        "MemoryObject:pytest.PytestUnraisableExceptionWarning"
    ),
]

FAULTS = (
    "nothing",
    "kill gateway",
    "freeze gateway",
    "kill syncer",
    "freeze syncer",
    "kill store",
    "freeze store",
    "slow store",
    "kill switcher",
    "freeze switcher",
    "freeze target",
    "freeze source",
    "cut source",
    "cut target",
    "cut store",
    "step gateway",
    "step syncer",
    "step switcher",
)
STEPS_S = (3600.0, -3600.0, 5.0, -5.0)  # of a wall clock


@pytest_asyncio.fixture
async def fleet(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path
) -> AsyncIterator[Fleet]:
    store = make_server(ServerKind.VALKEY_91, appendonly="yes", enable_debug_command="yes")
    fleet = Fleet(
        redis62, valkey91, store, tmp_path / "fleet", hold_seconds_max=2.0 if FULL else 1.0
    )
    await fleet.open()
    yield fleet
    await fleet.close()


async def _cut(box: DatabaseServer) -> None:
    """End every connection but ours."""
    with box.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def _slow(box: DatabaseServer, seconds: float) -> None:
    """Stop the server for four fifths of the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        box.pause()
        await asyncio.sleep(0.08)
        box.resume()
        await asyncio.sleep(0.02)


async def _inject(fleet: Fleet, switcher: Switcher, fault: str, draw: random.Random) -> None:
    """Inject a fault, let the switch continue, and heal after a while."""
    what, _, whom = fault.partition(" ")
    seconds = draw.choice((0.1, 0.5, 1.25, 2.0)) * fleet.plan.hold_seconds_max
    number = draw.choice((1, 2))
    if what == "step":
        clock = switcher.clock if whom == "switcher" else fleet.members[f"{whom}-{number}"].clock
        clock.step(draw.choice(STEPS_S))
        switcher.go_on()
        await asyncio.sleep(seconds)
        clock.step(0.0)
        return
    if whom == "switcher":
        switcher.signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if what == "freeze":
            switcher.go_on()
            await asyncio.sleep(seconds)
            switcher.signal(signal.SIGCONT)
        return
    servers = {
        "store": fleet.store_box,
        "source": fleet.servers[Side.SOURCE],
        "target": fleet.servers[Side.TARGET],
    }
    if whom in servers:
        box = servers[whom]
        if what == "cut":
            await _cut(box)
            switcher.go_on()
        elif what == "slow":
            switcher.go_on()
            await _slow(box, seconds)
        elif what == "freeze":
            box.pause()
            switcher.go_on()
            await asyncio.sleep(seconds)
            box.resume()
        else:
            box.kill()
            switcher.go_on()
            await asyncio.sleep(seconds)
            box.start()
        return
    if whom:
        member = fleet.members[f"{whom}-{number}"]
        member.signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        switcher.go_on()
        await asyncio.sleep(seconds)
        if what == "kill":
            member.process.wait()
            member.start()
        else:
            member.signal(signal.SIGCONT)
        return
    switcher.go_on()


async def _one(fleet: Fleet, application: Application, seed: int) -> str:
    draw = random.Random(seed)
    to = (await read_route(fleet.store)).authority.other
    step = draw.choice(steps(fleet.plan, to)).name
    fault = FAULTS[seed % len(FAULTS)]
    switcher = fleet.switcher(to, step)
    await switcher.start()
    if await switcher.reached():
        await asyncio.sleep(draw.choice((0.0, 0.0, 0.1)))
        await _inject(fleet, switcher, fault, draw)
    told = await switcher.ended()
    await fleet.settled()
    authority = (await read_route(fleet.store)).authority
    said = (
        f"seed {seed}: {fault} at '{step}' of the switch to the {to}: {told['outcome']}, "
        f"authority {authority}"
    )
    print(said, told.get("what", ""), told.get("why", ""), flush=True)
    if told["outcome"] == "switched":
        assert authority is to, said
    elif told["outcome"] in ("refused", "cutover-aborted"):
        assert authority is to.other, said
    await application.flows()
    await fleet.agrees(application)
    return said


async def test_switched_or_not_and_never_both(fleet: Fleet) -> None:
    application = await fleet.application(libraries=LIBRARIES if FULL else LIBRARIES[:1])
    said = [await _one(fleet, application, seed) for seed in SEEDS]
    await application.end()
    gc.collect()  # the next test must not find what libraries left
    assert any(": switched" in line for line in said), "no switch of all came to its end"
    refused = [
        text for text in application.tally.texts if "NoPermission" in text or "stale read" in text
    ]
    assert refused == []
