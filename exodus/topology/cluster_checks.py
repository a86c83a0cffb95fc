"""Checks of a cluster before a migration: its slots, and whether Exodus reaches every node.

They ask each node, as Exodus's own user, and change nothing.
"""

from __future__ import annotations

from exodus.errors import ExodusError
from exodus.net.clusters import NodeLookout, cluster_of
from exodus.plan.address import Cluster
from exodus.plan.bounds import CLUSTER_GUARD_EVERY
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover, Side
from exodus.topology.node import Node, NodeFacts
from exodus.topology.node_checks import check_nodes
from exodus.topology.pair_checks import Finding


async def check_clusters(plan: Plan) -> list[Finding]:
    """Return the findings of the sides that are clusters."""
    found: list[Finding] = []
    sides = [side for side in Side if isinstance(plan.address(side), Cluster)]
    for side in sides:
        place = plan.address(side)
        assert isinstance(place, Cluster)
        # Exodus writes to the target, and through a gateway also back to the source.
        written = side is Side.TARGET or plan.cutover is Cutover.GATEWAY
        found += await _check(side, place, written=written)
    if sides and not any(each.severity == "fatal" for each in found):
        found += await check_nodes(plan, sides)
    return found


async def _check(side: Side, cluster: Cluster, *, written: bool) -> list[Finding]:
    check = f"nodes of the {side}"
    state = cluster_of(cluster)
    try:
        async with NodeLookout(cluster) as lookout:
            await lookout.look()
    except ExodusError as exc:
        return [Finding(check, "fatal", exc.what, exc.why, exc.next_step)]
    view = state.view
    if view is None or not view.shards:
        return [
            Finding(
                check,
                "fatal",
                f"no node of the {side} says who has which slots",
                state.why or "no node has slots",
                f"correct {side}.cluster; name a server that is no cluster by {side}.url",
            )
        ]
    if view.uncovered:
        return [
            Finding(
                check,
                "fatal",
                f"{view.uncovered} slots of the {side} have no master",
                f"{view.text}; keys of the other slots can be neither read nor written",
                "repair the cluster (redis-cli --cluster fix), then check again",
            )
        ]
    found = [Finding(check, "ok", view.text)]
    facts: list[NodeFacts] = []
    for shard in view.shards:
        node = Node(side, cluster.server(shard.master), shard=shard)
        try:
            facts.append(await node.facts())
        except ExodusError as exc:
            found.append(_unreachable(side, shard.master, exc))
        if written and not shard.multiples(CLUSTER_GUARD_EVERY):
            found.append(
                Finding(
                    check,
                    "fatal",
                    f"{shard.master} has no slot with a guard key",
                    f"every {CLUSTER_GUARD_EVERY}th slot has one, and {shard.text} has none of "
                    "these; the node could not be written to",
                    f"give it {CLUSTER_GUARD_EVERY} slots in a row, or none",
                )
            )
        found += [
            each
            for replica in shard.replicas
            if (each := await _check_replica(side, cluster, replica)) is not None
        ]
    versions = {f"{each.engine} {each.version_text}" for each in facts}
    if len(versions) > 1:
        found.append(
            Finding(
                check,
                "warning",
                f"the nodes of the {side} have several versions: {', '.join(sorted(versions))}",
                "keys are copied type by type, which is exact but slower",
                "finish the upgrade first",
            )
        )
    return found


def _unreachable(side: Side, announced: str, exc: ExodusError) -> Finding:
    return Finding(
        f"nodes of the {side}",
        "fatal",
        f"Exodus does not reach the master {announced}",
        f"{exc.what}: {exc.why}",
        f"map its address in {side}.address_map; give every node the same user "
        "(docs/operating/cluster.md)",
    )


async def _check_replica(side: Side, cluster: Cluster, announced: str) -> Finding | None:
    """Return what is wrong with a replica: after a failover it is the master."""
    try:
        async with await Node(side, cluster.server(announced)).connect(name="exodus-check"):
            return None
    except ExodusError as exc:
        return Finding(
            f"nodes of the {side}",
            "warning",
            f"Exodus does not reach the replica {announced}",
            f"{exc.what}: {exc.why}; after a failover the copy would wait for it",
            f"map its address in {side}.address_map; give every node the same user "
            "(docs/operating/cluster.md)",
        )
