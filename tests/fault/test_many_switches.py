"""Cutovers and rollbacks in a row, through two gateways, under the self-checking application and
clients on shared keys, with three client libraries each.

FULL=1: fifty of them. A second application, in a process of its own, writes to a database of its
own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.control import registry
from exodus.control.route import read_route
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.plan.vocabulary import Side
from exodus.stack.prefect import project_root
from tests.support.fleet import Application, Fleet
from tests.support.full import FULL
from tests.support.history import Historian
from tests.support.libraries import LIBRARIES
from tests.support.servers import DatabaseServer
from tests.support.shop import checked as shop_checked
from tests.support.wait import until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800 if FULL else 300)]

SWITCHES = 50 if FULL else 4
WRITES_PER_S = 1_500 if FULL else 600
BESIDE_PER_S = 1_500
PIPELINED = 10


@pytest_asyncio.fixture
async def fleet(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis62, valkey91, control_server, tmp_path / "fleet", hold_seconds_max=5.0)
    await fleet.open()
    yield fleet
    await fleet.close()


class OwnProcess:
    """The shop as a process of its own, in database 1, through one gateway; its model is its
    own.
    """

    def __init__(self, port: int, folder: Path, writes_per_s: int) -> None:
        self._folder = folder
        folder.mkdir()
        command = [
            sys.executable,
            "-m",
            "examples.shop",
            "--url",
            f"redis://127.0.0.1:{port}/1",
            "--keys",
            "2000",
            "--writes",
            str(writes_per_s),
        ]
        command += ["--pipelined", str(PIPELINED)]
        files = [
            "--stop-file",
            str(folder / "stop"),
            "--report",
            str(folder / "told.json"),
            "--ready-file",
            str(folder / "ready"),
        ]
        self.process = subprocess.Popen(
            [*command, *files, "--seconds-max", "900"], cwd=project_root()
        )

    async def writes(self) -> None:
        async def ready() -> bool:
            return (self._folder / "ready").exists()

        await until(ready, within_s=60, otherwise="the second application never filled its keys")
        self._began = time.monotonic()

    async def end(self, box: DatabaseServer) -> float:
        """Stop it, compare it with its authority, and return the acknowledged writes per second."""
        (self._folder / "stop").touch()
        seconds = time.monotonic() - self._began
        await asyncio.to_thread(self.process.wait, 90)
        told = json.loads((self._folder / "told.json").read_text())
        assert told["app_errors"] == 0, told["errors"]
        found = await asyncio.to_thread(shop_checked, told["model"], f"{box.url}/1")
        assert found.returncode == 0, found.stdout
        return float(told["acknowledged_writes"]) / seconds

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def beside(fleet: Fleet, tmp_path: Path) -> Iterator[list[OwnProcess]]:
    """More applications, in the long form."""
    found = [OwnProcess(fleet.ports[0], tmp_path / "beside", BESIDE_PER_S)] if FULL else []
    yield found
    for each in found:
        each.kill()


async def _one_with_a_gateway_that_sleeps_through_it(
    fleet: Fleet, application: Application
) -> None:
    """The gateway freezes after it said that it holds, with writes in its hands. It wakes when all
    is over. These writes go to the new side only.
    """
    sleeper = fleet.members["gateway-2"]

    def tell(_: Switch, step: switch.Step) -> None:
        if step.name == "close the epoch":
            sleeper.signal(signal.SIGSTOP)

    to = (await read_route(fleet.store)).authority.other
    done = await switch.apply(fleet.store, fleet.plan, to, tell=tell)
    assert done.switched
    assert "gateway-2" in str(done.facts["late_gateways"])
    written = application.tally.acknowledged
    sleeper.signal(signal.SIGCONT)
    await fleet.settled()
    await application.flows(200)
    assert application.tally.acknowledged > written
    await fleet.agrees(application)
    # Its legs to the old side were ended as strays: its sessions are closed, and nothing else is
    # said to anybody.
    assert {text.split(":")[0] for text in application.tally.texts} <= {"ConnectionError"}


async def test_there_and_back_again_and_again(fleet: Fleet, beside: list[OwnProcess]) -> None:
    """Nothing is lost, duplicated or resurrected. No error. Every key's history is that of a single
    server.
    """
    application = await fleet.application(
        keys=2_000,
        writers=16 if FULL else 6,
        writes_per_s=WRITES_PER_S,
        libraries=LIBRARIES,
        pipelined=PIPELINED,
    )
    historian = Historian(fleet.ports, clients=6, libraries=LIBRARIES)
    historian.start()
    for each in beside:
        await each.writes()
    holds, began, before = [], time.monotonic(), application.tally.acknowledged
    collects: dict[str, bool] = {}
    for number in range(SWITCHES):
        to = Side.TARGET if number % 2 == 0 else Side.SOURCE
        done = await switch.apply(
            fleet.store,
            fleet.plan,
            to,
            tell=lambda _, step: collects.__setitem__(step.name, gc.isenabled()),
        )
        assert done.switched
        assert "late_gateways" not in done.facts
        assert (await read_route(fleet.store)).authority is to
        fleet.was_authority.add(to)
        holds.append(done.facts["hold_ms"])
        await application.flows(200)
    names = list(collects)
    held = names[names.index("drain") : names.index("kill strays")]
    assert [name for name in names if not collects[name]] == held, (
        "writes would wait for a pass of the garbage collector"
    )
    seconds = time.monotonic() - began
    per_s = (application.tally.acknowledged - before) / seconds
    await historian.end()
    await fleet.settled()
    per_s += sum(
        [
            await each.end(fleet.servers[(await read_route(fleet.store)).authority])
            for each in beside
        ]
    )
    await fleet.agrees(application)
    assert application.tally.texts == []
    assert historian.errors == []
    checked = historian.check()
    assert checked > SWITCHES * 50
    assert application.tally.acknowledged > SWITCHES * 200
    closed = [
        beat.facts.sessions_closed for beat in await registry.heartbeats(fleet.store, "gateway")
    ]
    assert closed == [{}, {}], "every session of these could be carried"
    await _one_with_a_gateway_that_sleeps_through_it(fleet, application)
    await application.end()
    print(
        f"{SWITCHES} switches in {seconds:.0f} s under {per_s:,.0f} writes/s, and {checked} "
        f"operations on shared keys; holds in ms: {sorted(holds)}"
    )
