"""The rehearsal as a fact: its report, its age, and its fingerprint.

The fingerprint says what was rehearsed: versions and settings of both sides, and the fields of the
plan that a switch depends on. A cutover needs a recent rehearsal with the fingerprint of now.
Settings are kept as digests, so no value of a server is in the report.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping

import orjson

from exodus.control import ledger
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.net.info import info_of
from exodus.net.leg import Leg
from exodus.plan.address import Address, Cluster
from exodus.plan.bounds import HOUR_MS, REHEARSAL_NAMED
from exodus.plan.plan import Plan

REPORT = "rehearsal"
PLAN_FIELDS = (
    "source",
    "target",
    "gateway",
    "cutover",
    "feed",
    "fence",
    "hold_seconds_max",
    "logins",
    "partitions",
    "rehearsal_prefix",
    "strategy",
    "users",
)
_NOT_TOLD = "not told"
# What a fence or native replication of Exodus changes, what holds a secret, and what only logs.
_NO_SETTING_OF_A_SWITCH = frozenset(
    {
        "latency-monitor-threshold",
        "loglevel",
        "masterauth",
        "masteruser",
        "min-replicas-max-lag",
        "min-replicas-to-write",
        "min-slaves-max-lag",
        "min-slaves-to-write",
        "primaryauth",
        "primaryuser",
        "replicaof",
        "requirepass",
        "slaveof",
        "slowlog-log-slower-than",
        "slowlog-max-len",
        "tls-client-key-file-pass",
        "tls-key-file-pass",
    }
)


# What another server of the same service or cluster has of its own: a failover voids no rehearsal.
_OF_ONE_SERVER = frozenset(
    {
        "bind",
        "cluster-announce-bus-port",
        "cluster-announce-client-ipv4",
        "cluster-announce-client-ipv6",
        "cluster-announce-hostname",
        "cluster-announce-human-nodename",
        "cluster-announce-ip",
        "cluster-announce-port",
        "cluster-announce-tls-port",
        "cluster-config-file",
        "cluster-port",
        "dir",
        "logfile",
        "pidfile",
        "port",
        "replica-announce-ip",
        "replica-announce-port",
        "slave-announce-ip",
        "slave-announce-port",
        "tls-port",
        "unixsocket",
    }
)


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:16]


def fingerprint_of_plan(plan: Plan) -> dict[str, str]:
    """Return a digest of each field of the plan that a switch depends on."""
    # Of a side, its place: another way to name the same password changes no switch.
    fields = plan.model_dump(mode="json", include=set(PLAN_FIELDS) - {"source", "target"})
    fields |= {"source": plan.source.url, "target": plan.target.url}
    return {f"plan.{name}": _digest(value) for name, value in fields.items()}


async def fingerprint_of_side(leg: Leg) -> dict[str, str]:
    """Return the version and mode of a side in words, and a digest of each of its settings. Of a
    cluster, each is that of all masters, and their number is told too.
    """
    nodes = await leg.nodes()
    left_out = _NO_SETTING_OF_A_SWITCH
    if not isinstance(leg.place, Address):
        left_out |= _OF_ONE_SERVER
    each = [await _fingerprint_of_node(node, left_out) for node in nodes]
    names = {name for of_one in each for name in of_one}
    found = {
        f"{leg.side}.{name}": _of_all([of_one.get(name, "") for of_one in each]) for name in names
    }
    if isinstance(leg.place, Cluster):
        found[f"{leg.side}.masters"] = str(len(nodes))
    return found


def _of_all(values: list[str]) -> str:
    # Sorted and without repeats: a failover only changes which node has which settings.
    return ", ".join(sorted(set(values)))


async def _fingerprint_of_node(leg: Leg, left_out: frozenset[str]) -> dict[str, str]:
    server, config = await leg.pipeline([("INFO", "server"), ("CONFIG", "GET", "*")])
    told = info_of(server) if isinstance(server, bytes) else {}
    engine = "valkey" if told.get("valkey_version") else "redis"
    version = told.get("valkey_version") or told.get("redis_version", _NOT_TOLD)
    found = {
        "version": f"{engine} {version}",
        "mode": told.get("server_mode") or told.get("redis_mode", _NOT_TOLD),
    }
    if not isinstance(config, list):
        return {**found, "settings": _NOT_TOLD}
    texts = [each.decode("utf-8", "replace") for each in config]
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        if name not in left_out:
            found[name] = _digest(value)
    return found


async def fingerprint(plan: Plan, *legs: Leg) -> dict[str, str]:
    """Return the fingerprint of now, of the plan and of the sides that `legs` lead to."""
    found = {"exodus": importlib.metadata.version("exodus"), **fingerprint_of_plan(plan)}
    for leg in legs:
        found |= await fingerprint_of_side(leg)
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what of `now` is not as it was before, by name; what it does not tell is not judged.

    Versions are shown, since they are no secret.
    """
    sides = {name.partition(".")[0] for name in now}
    names = now.keys() | {name for name in before if name.partition(".")[0] in sides}
    return [
        f"{name}: {before.get(name)}, now {now.get(name)}"
        if name == "exodus" or name.endswith((".version", ".mode", ".masters"))
        else name
        for name in sorted(names)
        if before.get(name) != now.get(name)
    ]


async def check_rehearsal(store: ControlStore, plan: Plan, *legs: Leg) -> str:
    """Return when the switch was rehearsed, in words.

    Args:
        store: the control store.
        plan: the plan in force.
        legs: connections to the sides whose fingerprint is compared.

    Raises:
        DecisionRefused: it was never rehearsed, longer ago than `rehearsal_hours_max`, without
            success, or of something else; names what changed.
    """
    if plan.rehearsal_hours_max is None:
        return "no rehearsal is asked for"
    found = await store.report(REPORT)
    age_h = (await store.now_ms() - found["at_ms"]) / HOUR_MS if found is not None else 0.0
    when = f"the last rehearsal, {age_h:.1f} h ago,"
    if found is None:
        why = "the switch was never rehearsed"
    elif (
        voided := ledger.voided_ms(await ledger.read(store), ledger.REHEARSAL)
    ) is not None and voided >= found["at_ms"]:
        why = (
            f"the plan was changed after the last rehearsal, {age_h:.1f} h ago, in what it "
            "rehearses"
        )
    elif not found["ok"]:
        why = f"{when} did not go well: {found['why']}"
    elif age_h > plan.rehearsal_hours_max:
        why = (
            f"the last rehearsal is {age_h:.1f} h old, and counts for "
            f"{plan.rehearsal_hours_max:.0f} h (rehearsal_hours_max)"
        )
    elif other := changed(found.get("fingerprint", {}), await fingerprint(plan, *legs)):
        more = len(other) - REHEARSAL_NAMED
        why = f"{when} was of something else; changed since: {', '.join(other[:REHEARSAL_NAMED])}"
        why += f" and {more} more" if more > 0 else ""
    else:
        return f"rehearsed {age_h:.1f} h ago, longest stall {found['stall_ms_max']} ms"
    raise DecisionRefused(
        "a cutover needs a rehearsal",
        why=why,
        next_step="exodus start test, which rehearses it, then start commit again",
    )
