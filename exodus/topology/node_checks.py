"""Whether the nodes of a cluster are alike, and whether each of them has room.

Settings, modules and users are not replicated: a node that differs shows after a failover, or for
the keys of its slots only. Masters and replicas are asked, as Exodus's own user. Nothing changes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exodus.commands.key_slots import SLOTS
from exodus.net.leg import ReplyError
from exodus.net.routed import together
from exodus.plan.bounds import NODE_CHECKS_NAMED
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.pair_checks import Finding

_COVERAGE = "cluster-require-full-coverage"
_SETTINGS = {
    "maxmemory": "the smallest node is full first, and refuses or evicts what others take",
    "maxmemory-policy": "keys of one node are evicted, and others are not",
    "cluster-databases": "SELECT of a higher database is refused by one node",
    "notify-keyspace-events": "subscribers hear of the keys of some nodes only",
    "proto-max-bulk-len": "a large value is refused by one node",
    "timeout": "idle connections to one node are closed, and others are not",
    "appendonly": "a restart of one node loses more than one of another",
    "save": "a restart of one node loses more than one of another",
    "maxclients": "one node refuses clients that others take",
    _COVERAGE: "while slots have no master, some nodes serve their keys and others refuse all",
    "min-replicas-to-write": "one node refuses writes when its replicas are away",
}


@dataclass(frozen=True)
class _Told:
    """What one node says of itself."""

    settings: dict[str, str]
    modules: str
    users: dict[str, str]  # name → digest of its rules, which hold hashes of passwords
    refused: str  # why something is not known


async def check_nodes(plan: Plan, sides: Sequence[Side]) -> list[Finding]:
    """Return the findings about the nodes of sides that are clusters.

    Raises:
        SourceError, TargetError, OperatorError: a node does not answer, or refuses the login.
    """
    found: list[Finding] = []
    coverage: dict[Side, str] = {}
    for side in sides:
        servers = await Endpoint(side, plan.address(side)).each_server()
        asked = await together(_ask(server) for server in servers)
        told = dict(zip((server.where for server in servers), asked, strict=True))
        own = plan.own_users(side)
        found += _alike(side, told, own)
        coverage[side] = asked[0].settings.get(_COVERAGE, "")
    if len(sides) == len(Side):
        found.append(_check_coverage(coverage))
    if Side.TARGET in sides:
        found.append(await _check_room(plan))
    return found


async def _ask(server: Node) -> _Told:
    async with await server.connect(name="exodus-check") as leg:
        *values, modules, users = await leg.pipeline(
            [
                *(("CONFIG", "GET", name) for name in _SETTINGS),
                ("MODULE", "LIST"),
                ("ACL", "LIST"),
            ]
        )
    refused = [str(reply) for reply in (*values, modules, users) if isinstance(reply, ReplyError)]
    return _Told(
        {
            reply[0].decode(): reply[1].decode("utf-8", "replace")
            for reply in values
            if isinstance(reply, list) and reply
        },
        _modules(modules) if isinstance(modules, list) else "",
        _users(users) if isinstance(users, list) else {},
        refused[0] if refused else "",
    )


def _modules(reply: list[list[Any]]) -> str:
    found = []
    for flat in reply:
        fields = {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}
        found.append(f"{fields['name'].decode()} {fields['ver']}")
    return ", ".join(sorted(found)) or "none"


def _users(reply: list[bytes]) -> dict[str, str]:
    found = {}
    for line in reply:
        _, name, rules = line.decode("utf-8", "replace").split(" ", 2)
        found[name] = hashlib.sha256(rules.encode()).hexdigest()
    return found


def _alike(side: Side, told: Mapping[str, _Told], own: set[str]) -> list[Finding]:
    """Return what differs between the nodes of a side; one row where nothing does."""
    found = [
        Finding(
            f"{name} of the nodes of the {side}",
            "warning",
            text,
            means,
            f"CONFIG SET {name} to one value on every node, and in their configuration files",
        )
        for name, means in _SETTINGS.items()
        if (text := _differing({node: each.settings.get(name) for node, each in told.items()}))
    ]
    if text := _differing({node: each.modules for node, each in told.items()}):
        found.append(
            Finding(
                f"modules of the nodes of the {side}",
                "warning",
                text,
                "a module's commands are refused by one node",
                "load the same modules, of the same versions, on every node",
            )
        )
    names = {name for each in told.values() for name in each.users} - own
    others = [
        f"{name}: {text}"
        for name in sorted(names)
        if (
            text := _differing(
                {node: each.users.get(name) for node, each in told.items()}, shown=False
            )
        )
    ]
    if others:
        found.append(
            Finding(
                f"users of the nodes of the {side}",
                "warning",
                "; ".join(others[:NODE_CHECKS_NAMED]),
                "ACL rules are not replicated: one node refuses what others allow",
                "ACL SETUSER on every node, masters and replicas",
            )
        )
    refused = [f"{node}: {each.refused}" for node, each in told.items() if each.refused]
    if refused:
        found.append(
            Finding(
                f"what the nodes of the {side} tell",
                "warning",
                "; ".join(refused[:NODE_CHECKS_NAMED]),
                "what a node does not tell was not compared with the others",
                "let Exodus's user run CONFIG GET, MODULE LIST and ACL LIST on every node",
            )
        )
    return found or [
        Finding(
            f"settings of the nodes of the {side}",
            "ok",
            f"the {len(told)} nodes of the {side} have the same settings, modules and users",
        )
    ]


def _differing(values: Mapping[str, str | None], *, shown: bool = True) -> str:
    """Return which nodes have another value than most; empty where none has."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return ""
    most = counts.most_common(1)[0][0]
    others = [
        f"{_shown(value, shown=shown)} on {node}" for node, value in values.items() if value != most
    ]
    more = len(others) - NODE_CHECKS_NAMED
    text = "; ".join(others[:NODE_CHECKS_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return f"{text}; {_shown(most, shown=shown)} on the other {counts[most]}" if shown else text


def _shown(value: str | None, *, shown: bool) -> str:
    if value is None:
        return "missing"
    return (value or '""') if shown else "other rules"


def _check_coverage(coverage: Mapping[Side, str]) -> Finding:
    """Compare what both clusters do while slots have no master."""
    ours, theirs = coverage[Side.SOURCE], coverage[Side.TARGET]
    worse = ours == "no" and theirs == "yes"
    return Finding(
        _COVERAGE,
        "warning" if worse else "ok",
        f"{_COVERAGE} is {ours or 'not told'} on the source, {theirs or 'not told'} on the target",
        "a target that loses one master refuses every request" if worse else "",
        f"CONFIG SET {_COVERAGE} no on every node of the target" if worse else "",
    )


async def _check_room(plan: Plan) -> Finding:
    """See whether each master of the target has room for its share of the source's memory.

    Keys are taken to be spread over the slots evenly. Analyze measures it.
    """
    source = await Endpoint(Side.SOURCE, plan.source).facts()
    short = []
    for node in await Endpoint(Side.TARGET, plan.target).each_node():
        assert node.shard is not None
        limit = (await node.facts()).maxmemory
        needed = source.used_memory * node.shard.slot_count // SLOTS
        if limit and limit < needed:
            short.append(
                f"{node.where} allows {limit:,} bytes, and its {node.shard.slot_count} slots need "
                f"about {needed:,}"
            )
    return Finding(
        "memory of each node of the target",
        "warning" if short else "ok",
        "; ".join(short[:NODE_CHECKS_NAMED]) or "each has room for the keys of its slots",
        "this node would be full before the others" if short else "",
        "raise maxmemory of that node, or give it fewer slots" if short else "",
    )
