"""The replication link: what the target reports of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exodus.net.info import databases_of, info_of
from exodus.net.leg import Leg
from exodus.plan.address import one_server
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.resp.encode import Arg
from exodus.topology.endpoint import Endpoint

Command = Sequence[Arg]
NO_ONE: Command = ("REPLICAOF", "NO", "ONE")


@dataclass(frozen=True)
class ReplicationLink:
    """What the target says of itself as a replica."""

    follows: str  # host:port; empty for a server of its own
    up: bool  # the first copy is loaded, and the stream is followed
    replid: str
    offset: int  # applied
    percent: float  # of the first copy, as far as the target knows
    keys: int

    @property
    def text(self) -> str:
        """Return the link as `exodus status` shows it."""
        if not self.follows:
            return "the target is a server of its own"
        return (
            f"the target follows {self.follows}"
            if self.up
            else f"the target takes the data of {self.follows}: {self.percent:.0f} %, {self.keys} "
            "keys"
        )


def replication_link_of(info: dict[str, str]) -> ReplicationLink:
    """Read the replication link out of an INFO reply."""
    replica = info.get("role") == "slave"
    busy = info.get("master_sync_in_progress", "0") != "0" or info.get("loading", "0") != "0"
    return ReplicationLink(
        follows=f"{info['master_host']}:{info['master_port']}" if replica else "",
        up=replica and not busy and info.get("master_link_status") == "up",
        replid=info.get("master_replid", ""),
        offset=int(info.get("slave_repl_offset" if replica else "master_repl_offset", 0)),
        percent=max(
            float(info.get("master_sync_perc", 0)), float(info.get("loading_loaded_perc", 0))
        ),
        keys=sum(databases_of(info).values()),
    )


async def replication_link_on(leg: Leg) -> ReplicationLink:
    """Return what a server reports of itself as a replica."""
    return replication_link_of(info_of(await leg.call("INFO")))


async def look(plan: Plan) -> ReplicationLink:
    """Return the same of the target.

    Raises:
        TargetError: it does not answer.
    """
    async with await connect_side(plan, Side.TARGET) as leg:
        return await replication_link_on(leg)


def replication_source(plan: Plan) -> str:
    """Return the name by which the target knows its source."""
    return one_server(plan.source).place


async def connect_side(plan: Plan, side: Side) -> Leg:
    """Connect to a side as the user that changes replication."""
    return await Endpoint(side, plan.address(side)).connect(name="exodus-native")
