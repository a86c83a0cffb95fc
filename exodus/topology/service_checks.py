"""Checks of a service behind Sentinel before a migration: its topology, and what a failover needs.

They ask each Sentinel and each server, as Exodus's own user, and change nothing.
"""

from __future__ import annotations

from exodus.errors import ExodusError
from exodus.net.leg import ReplyError
from exodus.net.masters import Believed, Lookout, master_of
from exodus.plan.address import Service
from exodus.plan.bounds import SENTINELS_MIN
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.pair_checks import Finding


async def check_services(plan: Plan) -> list[Finding]:
    """Return the findings of the sides that are services."""
    found: list[Finding] = []
    for side in Side:
        place = plan.address(side)
        if isinstance(place, Service):
            found += await _check(side, place)
    return found


async def _check(side: Side, service: Service) -> list[Finding]:
    check = f"Sentinels of the {side}"
    try:
        async with Lookout(service) as lookout:
            await lookout.look()
    except ExodusError as exc:
        return [Finding(check, "fatal", exc.what, exc.why, exc.next_step)]
    master = master_of(service)
    believed = master.believed
    if believed is None or not believed.role.run_id:
        return [
            Finding(
                check,
                "fatal",
                f"no master of {service.service} is known",
                master.why,
                f"correct {side}.sentinels and {side}.service; where Exodus cannot reach what the "
                f"Sentinels announce, map it in {side}.address_map",
            )
        ]
    shown = f"{service.service}: {topology_text(believed)}"
    if master.why:
        found = [
            Finding(
                check,
                "warning",
                shown,
                master.why,
                "start the Sentinels: no switch begins while a majority does not answer",
            )
        ]
    else:
        found = [Finding(check, "ok", shown)]
    if len(service.sentinels) < SENTINELS_MIN:
        found.append(
            Finding(
                check,
                "warning",
                f"{side}.sentinels names {len(service.sentinels)}",
                "a stale Sentinel is known from the others only",
                f"name all Sentinels in {side}.sentinels, {SENTINELS_MIN} at least",
            )
        )
    for node in Endpoint(side, service).replicas():
        found += await _check_replica(side, node)
    return found


def topology_text(believed: Believed) -> str:
    """Return the servers of a service in words."""
    replicas = ", ".join(believed.replicas) or "none"
    away = f", {', '.join(believed.down)} away" if believed.down else ""
    return f"master {believed.announced}, replicas {replicas}{away}"


async def _check_replica(side: Side, node: Node) -> list[Finding]:
    """A replica must let Exodus fence it, and must take no writes itself."""
    check = f"replica {node.name} of the {side}"
    try:
        async with await node.connect(name="exodus-check") as leg:
            whoami, read_only = await leg.pipeline(
                [("ACL", "WHOAMI"), ("CONFIG", "GET", "replica-read-only")]
            )
    except ExodusError as exc:
        return [
            Finding(
                check,
                "fatal",
                f"Exodus does not reach the replica {node.name}",
                f"{exc.what}: {exc.why}",
                f"map its address in {side}.address_map; give every server of the service the "
                "same user (docs/operating/sentinel.md)",
            )
        ]
    if isinstance(read_only, list) and read_only[1:] == [b"no"]:
        return [
            Finding(
                check,
                "warning",
                f"{node.name} takes writes as a replica",
                "after a failover an application that still writes to it loses these writes",
                f"on {node.name}: CONFIG SET replica-read-only yes",
            )
        ]
    user = "" if isinstance(whoami, ReplyError) else f" as {whoami.decode()}"
    return [Finding(check, "ok", f"{node.name} answers{user}")]
