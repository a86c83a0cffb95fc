"""Race rule 6, for each process at each step: one that froze in a switch and wakes when it is over
changes nothing on either side.

A gateway and a syncer sleep through the rest of a switch. A switcher sleeps until the gateways have
settled what it left, and another one has switched. FULL=1 takes each at each step. The short form
takes only the switcher, where it holds all its rights; `test_races.py` has a syncer,
`test_many_switches.py` a gateway.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.control.route import read_route
from exodus.cutover.switch import steps
from tests.support.fleet import Application, Fleet
from tests.support.full import FULL
from tests.support.servers import DatabaseServer

WHO = ("gateway-2", "syncer-2", "switcher")
SHORT = [("switcher", "close the epoch")]
pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800 if FULL else 300)]


@pytest_asyncio.fixture
async def fleet(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis62, valkey91, control_server, tmp_path / "fleet")
    await fleet.open()
    yield fleet
    await fleet.close()


async def _one(fleet: Fleet, application: Application, who: str, step: str) -> str:
    switcher = fleet.switcher((await read_route(fleet.store)).authority.other, step)
    await switcher.start()
    assert await switcher.reached(), switcher.said
    sleeper = switcher if who == "switcher" else fleet.members[who]
    sleeper.signal(signal.SIGSTOP)
    switcher.go_on()
    if sleeper is switcher:
        # A hold that it began is ended by the gateways, and its fence taken down, or its switch
        # finished
        await fleet.settled()
        other = fleet.switcher((await read_route(fleet.store)).authority.other)
        await other.start()
        told = await other.ended()
        assert told["outcome"] == "switched", told
        await fleet.settled()
    else:
        told = await switcher.ended()
    before = await read_route(fleet.store)
    sleeper.signal(signal.SIGCONT)
    if sleeper is switcher:
        late = await switcher.ended()
        assert before == await read_route(fleet.store), f"it woke and changed the route: {late}"
    said = f"{who} asleep from '{step}' on: {told['outcome']}, authority {before.authority}"
    print(said, told.get("what", ""), told.get("why", ""), flush=True)
    await fleet.settled()
    after = await read_route(fleet.store)
    assert (after.authority, after.writer_epoch) == (before.authority, before.writer_epoch), said
    await application.flows()
    await fleet.agrees(application)
    return said


async def test_who_slept_through_a_switch_changes_nothing_when_it_wakes(fleet: Fleet) -> None:
    application = await fleet.application()
    names = [
        step.name for step in steps(fleet.plan, (await read_route(fleet.store)).authority.other)
    ]
    said = [
        await _one(fleet, application, who, step)
        for who, step in ([(who, name) for who in WHO for name in names] if FULL else SHORT)
    ]
    await application.end()
    assert any(": switched" in line for line in said)
    assert not [
        text for text in application.tally.texts if "NoPermission" in text or "stale read" in text
    ], application.tally.texts
