"""A plan is checked against real servers before anything is stored. What a change of it voids no
longer counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from exodus.control import ledger
from exodus.control.approvers import of_this_process
from exodus.control.freshness import last_pass, record_pass
from exodus.control.ledger import NEXT, LedgerEntry
from exodus.control.phase_order import check_may_begin
from exodus.control.store import ControlStore
from exodus.cutover.rehearsal_report import REPORT, check_rehearsal, fingerprint
from exodus.errors import DecisionRefused
from exodus.plan.address import Address
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.settings import CanaryPlan, Fencing, Listen
from exodus.plan.vocabulary import FenceKind, Phase
from exodus.registration import Examined, examine, register
from exodus.stack.home import free_port
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


def _file(source: Address, target: Address, control: Address, **more: object) -> MigrationFile:
    given = {"gateway": Listen(port=free_port()), **more}
    return MigrationFile(
        plan=Plan(name="orders", source=source, target=target, **given), control_store=control
    )  # type: ignore[arg-type]


@pytest.fixture
def servers(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer
) -> Iterator[list[DatabaseServer]]:
    """Source, target, control store. Whatever a check finds, it leaves no key on any of them."""
    servers = [redis62, valkey91, control_server]
    yield servers
    for box in servers:
        with box.client() as client:
            assert client.keys("*") == []


def _fatal(examined: Examined) -> str:
    return "; ".join(finding.what for finding in examined.fatal)


async def test_a_plan_that_fits_is_not_refused(servers: list[DatabaseServer]) -> None:
    examined = await examine(_file(*(box.address() for box in servers)))
    assert _fatal(examined) == ""
    assert (examined.registered, examined.changes, examined.voids) == (False, [], [])


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ((0, 0, 2), "target is the source"),
        ((0, 1, 0), "control_store is the source"),
        ((0, 1, 1), "control_store is the target"),
    ],
)
async def test_one_server_has_one_role(
    servers: list[DatabaseServer], roles: tuple[int, int, int], said: str
) -> None:
    examined = await examine(_file(*(servers[number].address() for number in roles)))
    assert said in _fatal(examined)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ((0, 0, 2), "is the source"),
        ((0, 1, 0), "the control store is the source"),
        ((0, 1, 1), "the control store is the target"),
    ],
)
async def test_one_server_by_two_names_has_one_role(
    servers: list[DatabaseServer], roles: tuple[int, int, int], said: str
) -> None:
    """Addresses do not show it, so the servers are asked for their run ids."""
    addresses = [servers[number].address() for number in roles]
    again = max(number for number in range(3) if roles.count(roles[number]) == 2)
    async with _second_name(addresses[again].port) as port:
        addresses[again] = addresses[again].model_copy(update={"port": port})
        assert said in _fatal(await examine(_file(*addresses)))


@contextlib.asynccontextmanager
async def _second_name(port: int) -> AsyncIterator[int]:
    """Another port of the same server."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, to_there), pump(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_a_server_that_does_not_answer_is_named(
    servers: list[DatabaseServer], missing: int
) -> None:
    addresses = [box.address() for box in servers]
    addresses[missing] = addresses[missing].model_copy(update={"port": free_port()})
    assert ["source", "target", "control store"][missing] in _fatal(
        await examine(_file(*addresses))
    )


async def test_a_login_that_is_refused_is_named(
    servers: list[DatabaseServer], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password\n")
    addresses = [box.address() for box in servers]
    addresses[0] = addresses[0].model_copy(update={"password_file": wrong})
    assert "source" in _fatal(await examine(_file(*addresses)))


async def test_a_gateway_has_a_port_of_its_own(servers: list[DatabaseServer]) -> None:
    addresses = [box.address() for box in servers]
    for name, address in zip(("source", "target", "control_store"), addresses, strict=True):
        examined = await examine(_file(*addresses, gateway=Listen(port=address.port)))
        assert f"gateway.port is {address.port}, the port of the {name}" in _fatal(examined)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        examined = await examine(_file(*addresses, gateway=Listen(port=stranger.getsockname()[1])))
        assert "is in use" in _fatal(examined)


async def _approve(store: ControlStore, *phases: Phase) -> None:
    for phase in phases:
        entry = LedgerEntry(
            at_ms=int(time.time() * 1000),
            phase=phase,
            event="decided",
            verdict="approve",
            decided_by="ada",
            flow_run_id=f"{phase}",
        )
        await ledger.record(store, entry)


async def test_what_a_change_voids_does_not_count_any_more(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    addresses = [box.address() for box in (redis62, valkey91, control_server)]
    file = _file(*addresses)
    async with await ControlStore.connect(file.control_store, "orders") as store:
        await register(store, file.plan, await examine(file), of_this_process())
        await _approve(
            store, Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE, Phase.TEST, Phase.MIGRATE
        )
        await store.save_report(
            REPORT,
            {
                "at_ms": await store.now_ms(),
                "ok": True,
                "stall_ms_max": 1.0,
                "fingerprint": await fingerprint(file.plan),
            },
        )
        await record_pass(store, await store.now_ms(), {0: b"0-0"}, 10)
        await check_may_begin(store, file.plan, Phase.COMMIT)
        assert await check_rehearsal(store, file.plan)

        same = await examine(file)
        assert (same.registered, same.changes, same.voids) == (True, [], [])
        await register(store, file.plan, same, of_this_process())
        await check_may_begin(store, file.plan, Phase.COMMIT)

        harmless = file.model_copy(
            update={"plan": file.plan.model_copy(update={"canary": CanaryPlan(steps=(5,))})}
        )
        examined = await examine(harmless)
        assert [(change.field, change.before, change.after) for change in examined.changes] == [
            ("canary.steps", [], [5])
        ]
        assert examined.voids == []
        await register(store, harmless.plan, examined, of_this_process())
        await check_may_begin(store, file.plan, Phase.COMMIT)

        fence = Fencing(source=FenceKind.PROVIDER, source_instruction="close the firewall")
        fenced = harmless.model_copy(
            update={"plan": harmless.plan.model_copy(update={"fence": fence})}
        )
        examined = await examine(fenced)
        assert examined.voids == ["test", "rehearsal"]
        await register(store, fenced.plan, examined, of_this_process())
        with pytest.raises(DecisionRefused, match="test was not approved under this plan"):
            await check_may_begin(store, fenced.plan, Phase.MIGRATE)
        with pytest.raises(DecisionRefused, match="needs a rehearsal") as caught:
            await check_rehearsal(store, fenced.plan)
        assert "the plan was changed" in caught.value.why
        assert ledger.next_due(await ledger.read(store)) is Phase.TEST
        assert await last_pass(store) is not None

        moved = fenced.model_copy(update={"plan": fenced.plan.model_copy(update={"partitions": 4})})
        examined = await examine(moved)
        assert examined.voids == ["test", "migrate", "verification"]
        await register(store, moved.plan, examined, of_this_process())
        assert await last_pass(store) is None
        with pytest.raises(DecisionRefused, match="migrate was not approved under this plan"):
            await check_may_begin(store, moved.plan, Phase.COMMIT)
        # An old run's entry is not repeated, and nothing older counts
        await _approve(store, Phase.COMPARE)
        (first, second, third) = [
            entry for entry in await ledger.read(store) if entry.event == "applied"
        ]
        assert (first.facts["fields"], second.facts["fields"], third.facts["fields"]) == (
            "canary.steps",
            "fence.source, fence.source_instruction",
            "partitions",
        )
        assert first.known_by == "operating system"
        assert ledger.broken(await ledger.read_stored(store)) == []


async def test_a_migration_that_is_done_is_not_applied_again(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    file = _file(*(box.address() for box in (redis62, valkey91, control_server)))
    async with await ControlStore.connect(file.control_store, "orders") as store:
        await register(store, file.plan, await examine(file), of_this_process())
        for event, verdict, gate in (("decided", "abandon", NEXT), ("finished", "approved", "")):
            entry = {
                "at_ms": 1,
                "phase": Phase.ROLLBACK,
                "event": event,
                "verdict": verdict,
                "gate": gate,
                "decided_by": "ada",
                "flow_run_id": "r",
            }
            await ledger.record(store, LedgerEntry.model_validate(entry))
    (found,) = (await examine(file)).fatal
    assert found.what == "the migration orders is done"
    assert "abandoned by ada" in found.why
