"""A schedule compares samples between two phases: they add up, and disturb no phase."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest
import redis
from prefect.client.schemas.objects import State

from exodus.backfill import runs
from exodus.closing import ends
from exodus.control import turn
from exodus.control.phases import PhaseState, PhaseStatus
from exodus.control.route import read_route
from exodus.control.turn import SAMPLING, Holder
from exodus.errors import DecisionRefused
from exodus.net.client import answered
from exodus.plan.vocabulary import JournalMode, Phase, Side
from flows import renew
from tasks import comparison, ledger, renewal
from tasks.context import Opened
from tests.support.compare_flow import approve, save_block, traffic
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _renewed(local: LocalMigration, seconds: float = 1.0) -> State[str]:
    """Run the flow as the schedule does; return how it ended."""
    name = local.plan.name

    def run() -> State[str]:
        return renew.renew(name, "sample", seconds, return_state=True)

    return await asyncio.to_thread(run)


async def test_scheduled_samples_add_up_until_the_next_decision(
    local: LocalMigration, prefect_server: None
) -> None:
    await save_block(local)
    state = await _renewed(local)
    assert (state.name, "compare was not decided yet" in str(state.message)) == ("Skipped", True)
    await approve(local, Phase.COMPARE)
    async with traffic(local, [f"a{number}" for number in range(10)]):
        state = await _renewed(local)
    assert state.name == "Completed", state
    assert str(state.message).startswith("0 of 10 keys differ")
    assert str(state.message).endswith("(1 runs); 0 open divergences")
    local.servers[Side.SOURCE].client().set("cold", "v")
    async with traffic(local, [f"b{number}" for number in range(9)], read="cold"):
        state = await _renewed(local)
    assert str(state.message).startswith("0 of 20 keys differ")
    assert str(state.message).endswith("(2 runs); 0 open divergences")
    target = local.servers[Side.TARGET].client()
    spoiling = asyncio.create_task(_spoil(target, "cold"))
    async with traffic(local, read="cold"):
        state = await _renewed(local, 4.0)
    await spoiling
    assert str(state.message).startswith("1 of 21 keys differ"), state
    # Its reply and its state, where both were looked at.
    assert re.search(r"\(3 runs\); [12] open divergences$", str(state.message)), state
    assert [key for key in target.keys("*") if not key.startswith(b"exodus:")] == []
    route = await read_route(local.store)
    assert (route.shadow_rate, route.journal) == (0.0, JournalMode.OFF)
    assert await turn.held_by(local.store, SAMPLING) is None
    kept = await answered(local.store.client.keys(local.store.keys.steps("*")))
    assert len(kept) == 4
    for key in kept:
        assert await answered(local.store.client.pttl(key)) > 0


async def _spoil(target: redis.Redis, key: str) -> None:
    """Change a key of the target once the sample has it."""

    async def copied() -> bool:
        return bool(target.exists(key))

    await until(copied, within_s=20, otherwise=f"{key} was not sampled")
    target.set(key, "spoiled")


async def test_a_sample_is_refused_where_it_would_disturb(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "is_open", lambda state: state.open)
    it = Opened(local.plan, local.store, local.plan)

    async def why() -> str:
        return str(await inspect.unwrap(renewal.why_not_now.fn)(it, "sample"))

    assert await why() == "compare may not begin: analyze was not approved"
    for phase in (Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE):
        await approve(local, phase)
    assert await why() == "None"
    for status in (PhaseStatus.RUNNING, PhaseStatus.WAITING):
        await local.store.save_phase(Phase.TEST, PhaseState(state=status, flow_run_id="run"))
        assert await why() == f"test is {status}"
    await local.store.save_phase(Phase.TEST, PhaseState(state=PhaseStatus.APPROVED))
    old = it.plan.model_copy(update={"evidence_hours_max": 1e-6})
    aged = Opened(old, local.store, old)
    assert "the approval of analyze is" in str(
        await inspect.unwrap(renewal.why_not_now.fn)(aged, "sample")
    )
    await runs.begin(local.store, local.plan, epoch=1, writer_epoch=1)
    assert await why() == "migrate has begun: renew comparison"


async def test_no_phase_begins_during_a_sample_and_a_rollback_ends_it(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase would change the route under the sample, and the sample would remove its keys."""
    ended: list[str] = []
    monkeypatch.setattr(ledger, "is_open", lambda state: state.open)
    monkeypatch.setattr(ledger, "cancel", lambda state: ended.append(state.flow_run_id))
    it = Opened(local.plan, local.store, local.plan)
    sampler = Holder(run="renew-1", worker="host:1", instance="a")
    assert await turn.take(local.store, SAMPLING, sampler) is None
    state = PhaseState(state=PhaseStatus.RUNNING, flow_run_id="phase-1")
    with pytest.raises(DecisionRefused, match="migrate may not begin: a schedule compares"):
        await ledger._claim(it, Phase.MIGRATE, "phase-1", state)
    assert await local.store.phases() == {}
    await ledger._claim(it, Phase.ROLLBACK, "phase-1", state)
    assert ended == ["renew-1"]
    await local.store.client.delete(local.store.keys.phase)
    await turn.give_back(local.store, SAMPLING, sampler)
    await ledger._claim(it, Phase.MIGRATE, "phase-1", state)


async def test_a_rollback_ends_a_sampling_whose_process_was_killed(local: LocalMigration) -> None:
    """Its own end did not run. Before, gateways went on publishing sampled requests."""
    await local.gateway()
    await local.syncer()
    await local.change(shadow_rate=0.5, shadow_salt=7, journal=JournalMode.SAMPLE)
    await ends.stop(local.store, local.plan, "rollback")
    route = await read_route(local.store)
    assert (route.shadow_rate, route.journal) == (0.0, JournalMode.OFF)


async def test_a_sample_leaves_live_sync_alone(local: LocalMigration) -> None:
    """Its end would switch off the journal that live sync needs, and remove copied keys."""
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    it = Opened(local.plan, local.store, local.plan)
    with pytest.raises(DecisionRefused, match="no sample can be compared now"):
        await inspect.unwrap(comparison.shadow.fn)(it, 1.0)
    before = await read_route(local.store)
    await comparison._end(it, before.shadow_salt)
    assert await read_route(local.store) == before
    assert (before.sync, before.journal) == (True, JournalMode.ALL)
