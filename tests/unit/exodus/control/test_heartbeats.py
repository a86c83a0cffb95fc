"""Heartbeats: processes of another version are understood, and what a switch needs is required."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from exodus.control.heartbeats import (
    HEARTBEATS,
    GatewayFacts,
    GatewayHeartbeat,
    ProcessKind,
    ProcessState,
    SyncerFacts,
    SyncerHeartbeat,
)

FACTS = {"authority": "source", "unflushed": 3, "writes_in_flight": 1, "connections": 2}


def _stored(**facts: object) -> dict[str, object]:
    return {
        "kind": "gateway",
        "process": "gw-1",
        "at_ms": 1_000,
        "epoch": 7,
        "state": "held",
        "facts": {**FACTS, **facts},
    }


def test_a_field_of_a_newer_version_is_ignored() -> None:
    beat = HEARTBEATS[ProcessKind.GATEWAY].model_validate(_stored(invented_later=1))
    assert isinstance(beat, GatewayHeartbeat)
    assert (beat.state, beat.facts.unflushed) == (ProcessState.HELD, 3)


@pytest.mark.parametrize("field", ["unflushed", "writes_in_flight"])
def test_a_heartbeat_without_what_a_switch_relies_on_is_refused(field: str) -> None:
    stored = _stored()
    del stored["facts"][field]  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match=field):
        GatewayHeartbeat.model_validate(stored)


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValidationError, match="state"):
        GatewayHeartbeat.model_validate({**_stored(), "state": "perhaps"})


def test_a_heartbeat_is_stored_and_read_without_loss() -> None:
    beat = GatewayHeartbeat(
        process="gw-1", at_ms=5, epoch=1, state=ProcessState.SERVING, facts=GatewayFacts(**FACTS)
    )
    assert GatewayHeartbeat.model_validate_json(beat.model_dump_json()) == beat


def test_people_see_counters_beside_the_rest_and_nothing_unset() -> None:
    facts = SyncerFacts(
        direction="source to target",
        partitions=[1],
        lag_entries=0,
        oldest_dirty_ms=0,
        counts={"copied": 4},
    )
    shown = SyncerHeartbeat(
        process="s", at_ms=1, epoch=1, state=ProcessState.SYNCING, facts=facts
    ).shown_facts()
    assert shown["copied"] == 4
    assert "replica" not in shown
    assert "counts" not in shown
