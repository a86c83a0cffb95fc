"""The masters of services and clusters, as the control store knows them, and the failovers that
there were.

A *topology epoch* counts the masters of a side. Processes that watch a side note a new master here.
The first to notice a failover also notes what it may have lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from pydantic import BaseModel, ConfigDict

from exodus.control.store import ControlStore
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.bounds import FAILOVERS_KEPT
from exodus.plan.vocabulary import Side

_NOTE = lua("exodus.control", "note_master")
_NOTE_SHARDS = lua("exodus.control", "note_shards")


class Topology(BaseModel):
    """The master of one side in one topology epoch, or the masters of a cluster with their slots.
    Addresses are host:port, as announced.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int = 0
    master: str
    config_epoch: int  # the count of the Sentinels, or of the cluster
    run_id: str  # empty for a cluster
    replicas: str = ""  # with commas; Lua's JSON cannot tell an empty list from an object
    at_ms: int  # by the store's clock


class Failover(BaseModel):
    """A failover, and what asynchronous replication may have lost in it."""

    model_config = ConfigDict(frozen=True)

    side: Side
    epoch: int = 0
    before: str = ""
    master: str
    at_ms: int  # when the last process noticed it, by the store's clock
    witnessed: bool = False  # told by a process that had used the old master until then
    safe_until_ms: int | None = None  # what was acknowledged before has reached the new master
    lost_bytes_min: int | None = None  # of the replication stream; null: not known

    @property
    def text(self) -> str:
        """Return the failover in words, with the window of what may be lost."""
        what = f"failover of the {self.side}: {self.before} → {self.master}"
        if self.safe_until_ms is None:
            return f"{what}; writes acknowledged by {self.before} before it may be lost"
        seconds = max(0, self.at_ms - self.safe_until_ms) / 1000
        lost = (
            f"; {self.lost_bytes_min} bytes of its replication stream are lost for certain"
            if self.lost_bytes_min
            else ""
        )
        return (
            f"{what}; writes acknowledged by {self.before} in the {seconds:.1f} s before it was "
            f"noticed may be lost{lost}"
        )


async def note_master(
    store: ControlStore, side: Side, topology: Topology, failover: Failover
) -> int:
    """Note the master of a side, and the failover where another one was known; return the new
    topology epoch, 0 where nothing is new.
    """
    return await _note(
        store, _NOTE, side, topology, failover.model_dump_json(), str(FAILOVERS_KEPT)
    )


async def note_shards(
    store: ControlStore, side: Side, topology: Topology, failovers: Sequence[Failover]
) -> int:
    """Note the shards of a cluster, and the failovers where others were known; return the new
    topology epoch, 0 where nothing is new.
    """
    told = [each.model_dump_json() for each in failovers]
    return await _note(store, _NOTE_SHARDS, side, topology, str(FAILOVERS_KEPT), *told)


async def _note(
    store: ControlStore, script: str, side: Side, topology: Topology, *more: str
) -> int:
    known = (str(side), str(topology.config_epoch), topology.master, topology.model_dump_json())
    names = (store.keys.topology, store.keys.failovers)
    return int(await answered(store.client.eval(script, 2, *names, *known, *more)))


async def read_topologies(store: ControlStore) -> dict[Side, Topology]:
    """Return the masters of the sides that are services or clusters."""
    raw = await answered(store.client.hgetall(store.keys.topology))
    return {Side(side.decode()): Topology.model_validate_json(each) for side, each in raw.items()}


async def read_failovers(store: ControlStore) -> list[Failover]:
    """Return the failovers of both sides, oldest first."""
    raw = await answered(store.client.lrange(store.keys.failovers, 0, -1))
    return [Failover.model_validate(orjson.loads(each)) for each in raw]
