"""The control store: whether it keeps what it is told, and what follows where it did not."""

from __future__ import annotations

import pytest

from exodus.control.durable import check_store
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair, raise_if_fatal
from tests.fault.test_journal_losses import opened
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def found(box: DatabaseServer, sides: dict[str, str] | None = None) -> dict[str, str]:
    async with await ControlStore.connect(box.address(), "m") as store:
        return {finding.what: finding.severity for finding in await check_store(store, sides or {})}


async def test_a_store_that_loses_what_it_was_told_is_found(make_server) -> None:  # type: ignore[no-untyped-def]
    good = make_server(ServerKind.VALKEY_91, appendonly="yes")
    assert set((await found(good)).values()) == {"ok"}
    client = good.client()
    assert await found(good, {"source": client.info()["run_id"]}) == {
        "the control store is the source": "fatal"
    }
    client.config_set("appendfsync", "no")
    assert await found(good) == {
        "the control store never fsyncs by itself: appendfsync no": "warning"
    }
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert (await found(good))[
        "the control store evicts keys: maxmemory-policy allkeys-lru"
    ] == "warning"
    client.config_set("maxmemory", "100mb")
    assert (await found(good))[
        "the control store evicts keys: maxmemory-policy allkeys-lru"
    ] == "fatal"
    client.config_set("appendonly", "no")
    assert (await found(good))["the control store has no append-only file"] == "fatal"
    client.acl_setuser("exodus", reset=False, enabled=True, commands=["-config"])
    assert (await found(good))["the control store does not tell appendfsync"] == "warning"


async def test_the_checks_before_a_phase_refuse_such_a_store(
    local: LocalMigration, make_server
) -> None:  # type: ignore[no-untyped-def]
    forgetful = make_server(ServerKind.VALKEY_91)
    async with await ControlStore.connect(forgetful.address(), local.plan.name) as store:
        findings = await check_pair(
            *(Endpoint(side, local.plan.address(side)) for side in Side), local.plan, store
        )
    with pytest.raises(OperatorError, match="no append-only file"):
        raise_if_fatal(findings)


async def test_a_route_that_went_back_is_put_back_and_is_a_gap(local: LocalMigration) -> None:
    """An older copy of the store would send applications to a side that is fenced."""
    gateway = await local.gateway()
    older = await local.change(journal=JournalMode.ALL)
    newer = await local.change(authority=Side.TARGET)
    await local.store.client.set(local.store.keys.route, older.model_dump_json())

    async def back() -> bool:
        return await read_route(local.store) == newer

    await until(back, within_s=10, otherwise="the route stayed old")
    assert gateway.groups.main.orders.authority is Side.TARGET
    await opened(local, "lost the newest route")
