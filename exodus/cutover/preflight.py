"""The checks before a migration begins: both sides, and whether each can be fenced.

Otherwise the cutover would find out that a server cannot be fenced, after everything is copied.
"""

from __future__ import annotations

from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.cutover.fence import read_record
from exodus.cutover.fence_cluster import fence_for
from exodus.cutover.fence_methods import FenceMethod, choose_fence_method
from exodus.errors import DecisionRefused, ExodusError
from exodus.plan.address import Address, Cluster
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover, Feed, FenceKind, Side, UserRole
from exodus.topology.cluster_checks import check_clusters
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import Finding, check_pair
from exodus.topology.service_checks import check_services


async def check_all(plan: Plan, store: ControlStore) -> list[Finding]:
    """Return the findings of both sides and of their fences. Changes nothing.

    Raises:
        SourceError, TargetError, OperatorError: a side does not answer or refuses the login.
    """
    source, target = (Endpoint(side, plan.address(side)) for side in Side)
    found = [*await check_services(plan), *await check_clusters(plan)]
    if any(finding.severity == "fatal" for finding in found):
        return found
    found += [
        *await check_pair(source, target, plan, store),
        *await _check_roles(plan, store),
        *await _check_rules(plan, source),
    ]
    if plan.cutover is Cutover.GATEWAY and not any(
        finding.severity == "fatal" for finding in found
    ):
        found += [
            await _check_fence(plan, side, store)
            for side in Side
            if await read_record(store, side) is None
        ]
    return found


async def _check_rules(plan: Plan, source: Endpoint) -> list[Finding]:
    """Find rules of Compare that can never apply."""
    names = sorted({name for rule in plan.compare_rules for name in rule.commands})
    if not names:
        return []
    async with await (await source.any_node()).connect(name="exodus-check") as leg:
        told = await leg.pipeline([("COMMAND", "INFO", name) for name in names])
    unknown = [name for name, reply in zip(names, told, strict=True) if reply == [None]]
    if not unknown:
        return []
    return [
        Finding(
            "compare_rules",
            "warning",
            f"the source has no command {', '.join(unknown)}",
            "the rule never applies, so Exodus's own does",
            "correct commands in compare_rules: names without subcommands",
        )
    ]


async def _check_roles(plan: Plan, store: ControlStore) -> list[Finding]:
    """Find a server that is a replica of another, unless Exodus made it one."""
    if (await read_route(store)).native:
        return []
    found = []
    for side in Side:
        place = plan.address(side)
        if not isinstance(place, Address) or await read_record(store, side) is not None:
            continue
        info = await (await Endpoint(side, place).any_node()).info()
        if info.get("role", "master") == "master":
            continue
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        found.append(
            Finding(
                f"role of the {side}",
                "fatal" if side is Side.TARGET else "warning",
                f"the {side} is a replica of {master}",
                "it refuses writes, or loses them when it loads its master's data again"
                if side is Side.TARGET
                else "it refuses writes, so no application can write through a gateway",
                f"name the master in {side}, or make this server a master (REPLICAOF NO ONE)",
            )
        )
    return found


async def _check_fence(plan: Plan, side: Side, store: ControlStore) -> Finding:
    check, named = f"fence of the {side}", plan.fence.of(side)
    if named is FenceKind.PROVIDER:
        return Finding(
            check, "ok", f"the {side} is fenced by a person: {plan.fence.instruction(side)}"
        )
    try:
        if isinstance(plan.address(side), Cluster):
            return await _check_fence_of_cluster(plan, side, store)
        method, reasons = await fence_of(plan, side, Feed.GATEWAY)
    except ExodusError as exc:
        return Finding(
            check,
            "fatal",
            f"nobody knows whether the {side} can be fenced",
            f"{exc.what}: {exc.why}",
            exc.next_step,
        )
    if method is not None:
        return Finding(check, "ok", f"the {side} can be fenced by {method.kind}")
    return Finding(
        check,
        "fatal",
        f"the {side} cannot be fenced",
        "; ".join(reasons),
        f"give {side} a user of Exodus's own that may run ACL (exodus users), or choose "
        f"fence.{side} in the migration file "
        "(docs/operating/fences.md)",
    )


async def _check_fence_of_cluster(plan: Plan, side: Side, store: ControlStore) -> Finding:
    """Return whether every node can be fenced, masters and replicas."""
    check = f"fence of the {side}"
    async with fence_for(store, side, plan) as fence:
        try:
            method = await fence.check_possible()
        except DecisionRefused as exc:
            return Finding(check, "fatal", exc.what, exc.why, exc.next_step)
    return Finding(check, "ok", f"every node of the {side} can be fenced by {method.kind}")


async def fence_of(plan: Plan, side: Side, feed: Feed) -> tuple[FenceMethod | None, list[str]]:
    """Return the method by which a side would be fenced under a change feed, and why each stronger
    one cannot be.
    """
    node = await Endpoint(side, plan.acting(UserRole.SWITCH).address(side)).any_node()
    async with await node.connect(name="exodus-fence") as leg:
        return await choose_fence_method(
            lambda *commands: leg.pipeline(commands), plan, side, feed, None
        )
