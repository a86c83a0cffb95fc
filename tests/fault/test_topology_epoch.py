"""Topology epochs and failovers in the control store: many processes note the same one."""

from __future__ import annotations

import secrets

import pytest

from exodus.control.store import ControlStore
from exodus.control.topology import (
    Failover,
    Topology,
    note_master,
    note_shards,
    read_failovers,
    read_topologies,
)
from exodus.plan.vocabulary import Side
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


def _topology(master: str, config_epoch: int, replicas: str = "") -> Topology:
    return Topology(
        master=master, config_epoch=config_epoch, run_id="run", replicas=replicas, at_ms=1_000
    )


def _failover(
    master: str, safe_until_ms: int | None = None, *, at_ms: int = 5_000, witnessed: bool = True
) -> Failover:
    return Failover(
        side=Side.SOURCE,
        master=master,
        at_ms=at_ms,
        witnessed=witnessed,
        safe_until_ms=safe_until_ms,
        lost_bytes_min=7,
    )


async def test_a_new_master_is_one_epoch_and_one_failover(control_server: DatabaseServer) -> None:
    name = f"t{secrets.token_hex(4)}"
    async with await ControlStore.connect(control_server.address(), name) as store:

        async def note(topology: Topology, failover: Failover) -> int:
            return await note_master(store, Side.SOURCE, topology, failover)

        assert await note(_topology("a:1", 1, "b:1"), _failover("a:1")) == 1
        assert await read_failovers(store) == []
        assert await note(_topology("a:1", 1), _failover("a:1")) == 0
        assert (await read_topologies(store))[Side.SOURCE].replicas == ""
        # Noted first by a process that had not watched the old master, then by one that had.
        stranger = _failover("b:1", at_ms=5_900, witnessed=False)
        assert await note(_topology("b:1", 2), stranger) == 2
        assert await note(_topology("b:1", 2, "a:1"), _failover("b:1", 4_000)) == 0
        assert await note(_topology("b:1", 2, "a:1"), _failover("b:1", 3_000)) == 0
        (failover,) = await read_failovers(store)
        assert failover.at_ms == 5_000
        # A gateway that was frozen used the old master for longer; a task that began later did not.
        assert await note(_topology("b:1", 2, "a:1"), _failover("b:1", 3_000, at_ms=7_000)) == 0
        assert await note(_topology("b:1", 2, "a:1"), stranger) == 0
        (failover,) = await read_failovers(store)
        assert failover.at_ms == 7_000
        assert (failover.before, failover.master, failover.epoch) == ("a:1", "b:1", 2)
        assert (failover.safe_until_ms, failover.lost_bytes_min) == (4_000, 7)
        # A process that still believes the old master changes nothing.
        assert await note(_topology("a:1", 1), _failover("a:1")) == 0
        found = (await read_topologies(store))[Side.SOURCE]
        assert (found.master, found.epoch, found.replicas) == ("b:1", 2, "a:1")


async def test_a_failover_of_a_shard_is_kept_once_whoever_notes_the_shards(
    control_server: DatabaseServer,
) -> None:
    """A task that begins after the failover notes the new shards, and knows of no failover."""
    name = f"t{secrets.token_hex(4)}"
    async with await ControlStore.connect(control_server.address(), name) as store:

        async def note(shards: str, epoch: int, *failovers: Failover) -> int:
            return await note_shards(store, Side.SOURCE, _topology(shards, epoch), failovers)

        def seen(before: str, master: str, at_ms: int, safe_ms: int | None = None) -> Failover:
            told = _failover(master, safe_ms, at_ms=at_ms)
            return told.model_copy(update={"before": before})

        async def told() -> list[tuple[str, str, int]]:
            return [(each.before, each.master, each.epoch) for each in await read_failovers(store)]

        first = "slots 0-16383 a:1"
        assert await note(first, 1) == 1
        assert await note("slots 0-16383 b:1", 2) == 2  # by the task
        assert await told() == []
        assert await note("slots 0-16383 b:1", 2, seen("a:1", "b:1", 5_000)) == 0
        assert await note("slots 0-16383 b:1", 2, seen("a:1", "b:1", 6_000, 4_000)) == 0
        assert await told() == [("a:1", "b:1", 2)]
        (failover,) = await read_failovers(store)
        assert (failover.at_ms, failover.safe_until_ms) == (6_000, 4_000)
        back, again = seen("b:1", "a:1", 7_000), seen("a:1", "b:1", 9_000)
        assert await note(first, 3, back) == 3
        assert await note(first, 2, back) == 0  # an older word of the shards
        assert await note("slots 0-16383 b:1", 4, again) == 4
        assert await told() == [("a:1", "b:1", 2), ("b:1", "a:1", 3), ("a:1", "b:1", 4)]
        assert (await read_topologies(store))[Side.SOURCE].master == "slots 0-16383 b:1"
