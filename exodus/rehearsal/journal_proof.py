"""The proof that the gateways journal what applications write to each node of a cluster.

A key that does not exist is deleted, through the listener of each master of the source. No
application hears of it, and the gateway journals it.
"""

from __future__ import annotations

from redis.exceptions import RedisError

from exodus.errors import DecisionRefused
from exodus.feeds.feed import ChangeFeed, until_heard
from exodus.feeds.reader import probe_name
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.rehearsal.nodes import RehearsalNodes
from exodus.rehearsal.sessions import RehearsalSession
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node


async def prove_listeners(
    feed: ChangeFeed, plan: Plan, nodes: RehearsalNodes, *, within_s: float
) -> list[str]:
    """Write probe keys to each master through its listener until one is in the feed; return them.

    `within_s` is the time for one node.

    Raises:
        DecisionRefused: of a node, none comes: the feed must not be relied on.
        SourceError: no node of the source says who has which slots.
    """
    # The login is Exodus's own, which the source checks.
    session = RehearsalSession(
        plan.through_gateway(Side.SOURCE),
        nodes.listeners,
        name="exodus-feed",
        timeout_s=within_s,
        told_port=plan.gateway.told_port,
    )
    try:
        await session.come()
        return [
            await _heard(feed, session, node, plan.rehearsal_prefix, within_s)
            for node in await Endpoint(Side.SOURCE, plan.source).each_node()
        ]
    except (RedisError, OSError) as exc:
        raise DecisionRefused(
            "no probe could be written through the gateway",
            why=str(exc),
            next_step="start the gateway (exodus gateway), and the source",
        ) from exc
    finally:
        await session.close()


async def _heard(
    feed: ChangeFeed, session: RehearsalSession, node: Node, prefix: str, within_s: float
) -> str:
    """Return the name of the probe key of one node that came."""

    async def write() -> bytes:
        name = probe_name(prefix, node.shard)
        await session.ask(name.decode(), "DEL", name)
        return name

    where = f" to {node.name} through the gateway"
    return await until_heard(feed, write, within_s=within_s, where=where)
