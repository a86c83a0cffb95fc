"""Settings, memory, persistence, modules, and replicas of the target against the source's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exodus.acceptance.rows import Checked, of_nodes, told
from exodus.commands.key_slots import SLOTS
from exodus.cutover.beside_keys import compare
from exodus.cutover.beside_rows import BesideRow, StateOutcome
from exodus.cutover.beside_settings import SETTINGS
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import ACCEPTANCE_REPLICA_LAG_BYTES_MAX, MEMORY_MARGIN
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint

_JUDGED = ("maxmemory-policy", "timeout")  # a difference of them is seen by applications
_NAMES = {setting.names[0] for setting in SETTINGS}


async def check_settings(plan: Plan) -> list[Checked]:
    """Check settings that applications depend on, memory, persistence, and modules."""
    async with (
        await Endpoint(Side.SOURCE, plan.source).connect(name="exodus-smoke") as source,
        await Endpoint(Side.TARGET, plan.target).connect(name="exodus-smoke") as target,
    ):
        rows = await compare(plan, source, target)
        ours = [await _standing(leg) for leg in await source.nodes()]
        theirs = {leg.address.place: await _standing(leg) for leg in await target.nodes()}
    shares = await _shares(plan)
    needed = max(
        int(sum(each.number("used_memory") for each in ours) * MEMORY_MARGIN),
        sum(each.number("maxmemory") for each in ours),
    )
    found = [_beside(row) for row in rows if row.what in _NAMES or row.what.startswith("module")]
    return found + of_nodes(
        {
            place: [
                _memory(ours, there, int(needed * shares.get(place, 1.0))),
                _persistence(ours[0], there),
                _written(there.info),
                *_versions(ours[0].modules, there.modules),
            ]
            for place, there in theirs.items()
        }
    )


@dataclass(frozen=True)
class _Standing:
    """What one server says of itself."""

    info: dict[str, str]
    saves: str
    modules: dict[str, int]

    def number(self, name: str) -> int:
        return int(self.info.get(name, 0))

    @property
    def persistence(self) -> set[str]:
        found = {"append-only file"} if self.info.get("aof_enabled") == "1" else set()
        return found | ({"snapshots"} if self.saves else set())


async def _standing(leg: Leg) -> _Standing:
    return _Standing(await _info(leg), await _saves(leg), await _modules(leg))


async def _shares(plan: Plan) -> dict[str, float]:
    """Return which share of all slots each node of the target has; nothing for a single server."""
    nodes = await Endpoint(Side.TARGET, plan.target).each_node()
    return {node.where: node.shard.slot_count / SLOTS for node in nodes if node.shard is not None}


async def _info(leg: Leg) -> dict[str, str]:
    return info_of(await leg.call("INFO"))


def _beside(row: BesideRow) -> Checked:
    name = f"setting {row.what}" if row.what in _NAMES else row.what
    detail = f"{row.authority or '-'} on the source, {row.follower or '-'} on the target"
    differs = row.outcome is StateOutcome.DIFFERS and row.what in _JUDGED
    if row.outcome is StateOutcome.REQUIRED or differs:
        return Checked(name, False, detail, row.means, row.remedy)
    if row.outcome is StateOutcome.SAME:
        return Checked(name, True, detail)
    return told(name, f"{detail}: {row.means}" if row.means else detail)


def _memory(ours: Sequence[_Standing], theirs: _Standing, needed: int) -> Checked:
    """Judge a server's limit; `needed` bytes are its share of the source's."""
    used = sum(each.number("used_memory") for each in ours)
    before = sum(each.number("maxmemory") for each in ours)
    limit = theirs.number("maxmemory")
    return Checked(
        "maxmemory of the target",
        not limit or limit >= needed,
        f"{limit:,} bytes; the source uses {used:,} of {f'{before:,}' if before else 'no limit'}"
        if limit
        else "no limit",
        "the target would evict keys, or refuse writes, that the source takes",
        f"set maxmemory of the target to {needed:,} or more",
    )


async def _saves(leg: Leg) -> str:
    reply = (await leg.pipeline([("CONFIG", "GET", "save")]))[0]
    return reply[1].decode() if isinstance(reply, list) and reply else ""


def _persistence(ours: _Standing, theirs: _Standing) -> Checked:
    here, there = ours.persistence, theirs.persistence
    # Each write is on disk with an append-only file only.
    less = bool(here) and ("append-only file" in here - there or not there)
    return Checked(
        "persistence of the target",
        not less,
        f"{', '.join(sorted(here)) or 'none'} on the source, "
        f"{', '.join(sorted(there)) or 'none'} on the target",
        "a restart of the target would lose more than one of the source",
        "CONFIG SET appendonly yes (or save) on the target, and in its configuration file",
    )


def _written(theirs: Mapping[str, str]) -> Checked:
    names = ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")
    failed = [name for name in names if theirs.get(name, "ok") != "ok"]
    return Checked(
        "the target can write its files",
        not failed,
        ", ".join(failed) or "no failed save",
        "it refuses writes, or loses them at a restart",
        "look at the disk of the target and at its log",
    )


async def _modules(leg: Leg) -> dict[str, int]:
    reply = (await leg.pipeline([("MODULE", "LIST")]))[0]
    if isinstance(reply, ReplyError) or not isinstance(reply, list):
        return {}
    found: dict[str, int] = {}
    for flat in reply:
        fields: dict[str, Any] = {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}
        found[fields["name"].decode()] = int(fields["ver"])
    return found


def _versions(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[Checked]:
    return [
        Checked(
            f"version of module {name}",
            theirs[name] >= version,
            f"{version} on the source, {theirs[name]} on the target",
            "an older module may lack commands, or not load what a newer one wrote",
            "load the source's version, or a newer one, on the target",
        )
        for name, version in sorted(ours.items())
        if name in theirs
    ]


async def check_replicas(plan: Plan) -> list[Checked]:
    """Check that each master of the target has as many replicas as one of the source, linked and
    near.
    """
    async with (
        await Endpoint(Side.SOURCE, plan.source).connect(name="exodus-smoke") as source,
        await Endpoint(Side.TARGET, plan.target).connect(name="exodus-smoke") as target,
    ):
        ours = [await _info(leg) for leg in await source.nodes()]
        theirs = {leg.address.place: await _info(leg) for leg in await target.nodes()}
    wanted = max(int(info.get("connected_slaves", 0)) for info in ours)
    return of_nodes({place: _replicas(wanted, info) for place, info in theirs.items()})


def _replicas(wanted: int, theirs: Mapping[str, str]) -> list[Checked]:
    there = int(theirs.get("connected_slaves", 0))
    offset = int(theirs.get("master_repl_offset", 0))
    late = []
    for number in range(there):
        fields = dict(
            part.partition("=")[::2] for part in theirs.get(f"slave{number}", "").split(",")
        )
        behind = offset - int(fields.get("offset", offset))
        if fields.get("state") != "online" or behind > ACCEPTANCE_REPLICA_LAG_BYTES_MAX:
            late.append(f"{fields.get('ip')}:{fields.get('port')} ({fields.get('state')})")
    return [
        Checked(
            "replicas of the target",
            there >= wanted,
            f"{wanted} on the source, {there} on the target",
            "a failure of the target would find fewer copies than one of the source does now",
            "attach the replicas before the cutover",
        ),
        Checked(
            "the target's replicas keep up",
            not late,
            ", ".join(late) or f"{there} online",
            "a failover would lose writes",
            "wait until they are online, or look at their logs",
        ),
    ]
