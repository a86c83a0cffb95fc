"""Settings, memory, persistence, modules, and replicas of the target against the source's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exodus.acceptance.rows import Checked, told
from exodus.cutover.beside_keys import compare
from exodus.cutover.beside_rows import Row, StateOutcome
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
        ours, theirs = await _info(source), await _info(target)
        saves = await _saves(source), await _saves(target)
        modules = await _modules(source), await _modules(target)
    found = [_beside(row) for row in rows if row.what in _NAMES or row.what.startswith("module")]
    found += [_memory(ours, theirs), _persistence(ours, theirs, *saves), _written(theirs)]
    return found + _versions(*modules)


async def _info(leg: Leg) -> dict[str, str]:
    return info_of(await leg.call("INFO"))


def _beside(row: Row) -> Checked:
    name = f"setting {row.what}" if row.what in _NAMES else row.what
    detail = f"{row.authority or '-'} on the source, {row.follower or '-'} on the target"
    differs = row.outcome is StateOutcome.DIFFERS and row.what in _JUDGED
    if row.outcome is StateOutcome.REQUIRED or differs:
        return Checked(name, False, detail, row.means, row.remedy)
    if row.outcome is StateOutcome.SAME:
        return Checked(name, True, detail)
    return told(name, f"{detail}: {row.means}" if row.means else detail)


def _memory(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Checked:
    used, limit = int(ours.get("used_memory", 0)), int(theirs.get("maxmemory", 0))
    before = int(ours.get("maxmemory", 0))
    needed = max(int(used * MEMORY_MARGIN), before)
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


def _persistence(
    ours: Mapping[str, str], theirs: Mapping[str, str], save: str, target_save: str
) -> Checked:
    def kinds(info: Mapping[str, str], saves: str) -> set[str]:
        found = {"append-only file"} if info.get("aof_enabled") == "1" else set()
        return found | ({"snapshots"} if saves else set())

    here, there = kinds(ours, save), kinds(theirs, target_save)
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
    """Check that the target has as many replicas as the source, each linked and near."""
    async with (
        await Endpoint(Side.SOURCE, plan.source).connect(name="exodus-smoke") as source,
        await Endpoint(Side.TARGET, plan.target).connect(name="exodus-smoke") as target,
    ):
        ours, theirs = await _info(source), await _info(target)
    wanted, there = (int(info.get("connected_slaves", 0)) for info in (ours, theirs))
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
