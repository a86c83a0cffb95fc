"""A migration that has ended stays ended, and can be archived."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exodus.closing import bundle
from exodus.closing.archive import archive, archived
from exodus.control import ledger, registry
from exodus.control.heartbeats import GatewayFacts, GatewayHeartbeat, ProcessState
from exodus.control.ledger import CUTOVER, FINALISE, NEXT, LedgerEntry, PhaseEnd
from exodus.control.phase_order import check_may_begin
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Phase
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@pytest.fixture
async def store(control_server: DatabaseServer) -> AsyncIterator[ControlStore]:
    async with await ControlStore.connect(control_server.address(), "orders") as store:
        await store.save_plan(_plan(control_server))
        yield store


def _plan(box: DatabaseServer) -> Plan:
    return Plan(name="orders", source=box.address(), target=box.address())


async def _said(
    store: ControlStore, phase: Phase, event: str, verdict: str, gate: str = "", run: str = "r"
) -> None:
    entry = LedgerEntry(
        at_ms=int(time.time() * 1000),
        phase=phase,
        event=event,
        gate=gate,
        verdict=verdict,
        decided_by="ada",
        flow_run_id=f"{phase}-{run}",
    )  # type: ignore[arg-type]
    await ledger.record(store, entry)


async def _finalised(store: ControlStore) -> None:
    await _said(store, Phase.MIGRATE, "decided", "approve")
    await _said(store, Phase.COMMIT, "decided", "approve", CUTOVER)
    await _said(store, Phase.COMMIT, "decided", "approve", FINALISE)
    await _said(store, Phase.COMMIT, "finished", "approved")


@pytest.mark.parametrize("phase", list(Phase))
async def test_nothing_begins_after_the_end(store: ControlStore, phase: Phase) -> None:
    await _finalised(store)
    with pytest.raises(DecisionRefused, match="the migration is done") as caught:
        await check_may_begin(store, await store.plan(), phase)
    assert "finalised by ada" in caught.value.why


async def test_an_end_is_not_taken_back(store: ControlStore) -> None:
    """Before, Commit could start again after it had finalised, and its first question reopened the
    migration.
    """
    await _finalised(store)
    await _said(store, Phase.COMMIT, "decided", "approve", CUTOVER, run="second")
    found = ledger.ending(await ledger.read(store))
    assert found is not None
    assert found[0] is PhaseEnd.FINALISED


async def test_a_decision_whose_run_did_not_do_it_is_no_end(store: ControlStore) -> None:
    await _said(store, Phase.ROLLBACK, "decided", "abandon", NEXT)
    assert ledger.ending(await ledger.read(store)) is None
    await _said(store, Phase.ROLLBACK, "failed", "failed")
    assert ledger.ending(await ledger.read(store)) is None
    await _said(store, Phase.ROLLBACK, "finished", "approved")
    found = ledger.ending(await ledger.read(store))
    assert found is not None
    assert found[0] is PhaseEnd.ABANDONED


async def test_a_retry_is_no_end(store: ControlStore) -> None:
    await _said(store, Phase.ROLLBACK, "decided", "retry", NEXT)
    await _said(store, Phase.ROLLBACK, "finished", "approved")
    assert ledger.ending(await ledger.read(store)) is None


async def test_only_what_has_ended_and_is_used_by_nobody_is_archived(
    store: ControlStore, tmp_path: Path
) -> None:
    await _said(store, Phase.PRE_TEST, "decided", "approve")
    with pytest.raises(DecisionRefused, match="has not ended"):
        await archive(store, await store.plan(), tmp_path / "bundle", by="ada", why="done")
    await _finalised(store)
    beat = GatewayHeartbeat(
        process="gw-1",
        at_ms=await store.now_ms(),
        epoch=0,
        state=ProcessState.SERVING,
        facts=GatewayFacts(authority="source", unflushed=0, writes_in_flight=0, connections=0),
    )
    await registry.beat(store, beat)
    with pytest.raises(DecisionRefused, match="1 of its processes run"):
        await archive(store, await store.plan(), tmp_path / "bundle", by="ada", why="done")
    assert not (tmp_path / "bundle").exists()


async def test_an_archive_keeps_the_evidence_and_leaves_nothing_but_a_note(
    store: ControlStore, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with await ControlStore.connect(control_server.address(), "orders-2") as other:
        await other.save_plan(_plan(control_server).model_copy(update={"name": "orders-2"}))
        await _finalised(store)
        note = await archive(store, await store.plan(), tmp_path / "bundle", by="ada", why="done")
        assert (note["ended"], note["by"]) == ("finalised", "ada")
        assert bundle.check(tmp_path / "bundle", head=note["head"]).problems == []
        assert await archived(store, "orders") == [note]
        with control_server.client() as client:
            assert sorted(client.keys("*")) == [b"exodus:archive", b"exodus:{orders-2}:plan"]
        assert await archived(other, "orders-2") == []


async def test_a_migration_that_never_began_is_archived(
    store: ControlStore, tmp_path: Path
) -> None:
    note = await archive(
        store, await store.plan(), tmp_path / "bundle", by="ada", why="a wrong name"
    )
    assert note["ended"] == "never begun"
