"""One run of a phase at a time: a lock in the control store, and the limit of Prefect."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from exodus.control.phases import PhaseState, PhaseStatus
from exodus.errors import DecisionRefused
from exodus.plan.vocabulary import Phase
from flows import deploy
from tasks import ledger
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


async def test_of_runs_that_begin_at_once_one_gets_the_phase(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock each of them sees that no other phase runs."""
    monkeypatch.setattr(ledger, "is_open", lambda state: state.open)
    opened: Any = SimpleNamespace(store=local.store)

    async def claim(run: int) -> str | None:
        phase = (Phase.MIGRATE, Phase.TEST)[run % 2]
        state = PhaseState(state=PhaseStatus.RUNNING, flow_run_id=f"run-{run}")
        try:
            await ledger._claim(opened, phase, f"run-{run}", state)
        except DecisionRefused:
            return None
        return f"run-{run}"

    for _ in range(5):
        await local.store.client.delete(local.store.keys.phase)
        begun = [run for run in await asyncio.gather(*map(claim, range(8))) if run is not None]
        assert len(begun) == 1
        kept = await local.store.phases()
        assert [state.flow_run_id for state in kept.values()] == begun


def test_prefect_runs_each_phase_of_a_migration_once_at_a_time(tmp_path: Path) -> None:
    made = yaml.safe_load(deploy._of_migration("orders", tmp_path).read_text())["deployments"]
    assert len(made) >= len(Phase)
    for each in made:
        assert each["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert each["parameters"]["migration"] == "orders"
        for schedule in each.get("schedules", []):
            assert schedule["parameters"]["migration"] == "orders"
            assert schedule["active"] is False
