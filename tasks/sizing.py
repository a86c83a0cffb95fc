"""Analyze's size of the target, measured by a sample that is restored there, and its growth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from hiredis import ReplyError

from exodus.net.info import buffer_bytes, copied_bytes, data_bytes, databases_of
from exodus.observe.sizing import Sizing, growth, measure
from exodus.plan.bounds import (
    TASKS_SIZING_COPIED,
    TASKS_SIZING_HEADROOM,
    TASKS_SIZING_LOOKS_MAX,
)
from exodus.plan.vocabulary import Side
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

HISTORY = "history.analyze"
_MONTH_DAYS = 30


@kept_task("Measure the size on the target")
@opens_migration
async def measure_size(it: Opened, workload: Json) -> Json:
    """Restore a sample of keys on the target, measure it, and remember the source's size.

    Scratch keys are removed at once. Each run adds a look to the history, so that scheduled runs
    show the growth.
    """
    source = await it.endpoint(Side.SOURCE).each_node()
    target = await it.endpoint(Side.TARGET).each_node()
    infos = [await node.info() for node in source]
    theirs_infos = [await node.info() for node in target]
    databases: Counter[int] = Counter()
    for info in infos:
        databases.update(databases_of(info))
    used, keys = sum(map(data_bytes, infos)), databases.total()
    async with AsyncExitStack() as legs:
        ours = [
            await legs.enter_async_context(await node.connect(name="exodus-sizing"))
            for node in source
        ]
        theirs = await legs.enter_async_context(
            await it.endpoint(Side.TARGET).connect(name="exodus-sizing")
        )
        try:
            found = await measure(ours, theirs, sorted(databases), keys=keys, used_bytes=used)
        except ReplyError as exc:
            found = Sizing(keys, used, why_not=str(exc))
    history = await _remembered(it, used, keys)
    grown = growth(history)
    limits = _numbers(theirs_infos, "maxmemory")
    return {
        "keys": keys,
        "keys_per_s": found.keys_per_s,
        "rows": found.rows(),
        "shards": found.shards(workload["hot_keys"], workload["requests_per_s"]),
        "why_not": found.why_not,
        "sampled": found.sampled,
        "restored": sum(each.restored for each in found.types.values()),
        "refused": {
            f"{kind} {why}": count
            for kind, each in found.types.items()
            for why, count in each.refused.items()
        },
        "source_data_bytes": used,
        "needed_bytes": found.needed_bytes,
        "wanted_bytes": round(found.needed_bytes * TASKS_SIZING_HEADROOM),
        "arithmetic": found.arithmetic(TASKS_SIZING_HEADROOM),
        "target_own_bytes": sum(_numbers(theirs_infos, "used_memory_startup")),
        # Clients and replicas of the source will be the target's
        "buffer_bytes": sum(map(buffer_bytes, infos)),
        # Of the sources' last saves; their target will have the same writes
        "copied_bytes": sum(map(copied_bytes, infos)),
        "target_machine_bytes": min(_numbers(theirs_infos, "total_system_memory")),
        "target_nodes": len(theirs_infos),
        "target_maxmemory": sum(limits) if all(limits) else 0,
        # A client connects to every node.
        "target_maxclients": min(_numbers(theirs_infos, "maxclients")),
        "source_clients": max(_numbers(infos, "connected_clients")),
        "growth_bytes_a_day": None if grown is None else round(grown[0]),
        "growth_explained": None if grown is None else round(grown[1], 3),
        "looks": len(history),
    }


@kept_task("Remember the source's size")
@opens_migration
async def remember_size(it: Opened) -> Json:
    """Add a look at the source's size to the history, and return its growth. It reads INFO only."""
    infos = [await node.info() for node in await it.endpoint(Side.SOURCE).each_node()]
    keys = sum(count for info in infos for count in databases_of(info).values())
    history = await _remembered(it, sum(map(data_bytes, infos)), keys)
    grown = growth(history)
    return {
        "looks": len(history),
        "growth_bytes_a_day": None if grown is None else round(grown[0]),
    }


def _numbers(infos: Sequence[dict[str, str]], name: str) -> list[int]:
    """Return a figure of each node; 0 where it does not tell."""
    return [int(info.get(name, 0)) for info in infos]


async def _remembered(it: Opened, used: int, keys: int) -> list[dict[str, Any]]:
    """Add a look to the history, and return it."""
    kept = await it.store.report(HISTORY)
    looks: list[dict[str, Any]] = [*(kept or {}).get("looks", [])]
    looks.append({"at_ms": await it.store.now_ms(), "used_memory": used, "keys": keys})
    looks = looks[-TASKS_SIZING_LOOKS_MAX:]
    await it.store.save_report(HISTORY, {"looks": looks})
    return looks


def _room_to_save(size: Json, wanted: int) -> Json:
    """Return the check of the machine's memory: a save in the background copies each page that is
    written meanwhile, beside maxmemory.
    """
    machine, nodes = size["target_machine_bytes"], size["target_nodes"]
    if size["copied_bytes"]:
        copied = size["copied_bytes"]
        said = "as the last saves of the source did"
    else:
        copied = round(wanted * TASKS_SIZING_COPIED)
        said = f"{TASKS_SIZING_COPIED:.0%} of the data; the source has saved nothing yet"
    needed = (wanted + copied) // nodes
    return check(
        "the target's machine has memory for a background save",
        not machine or machine >= needed,
        f"a save copies {copied:,} bytes ({said}); with the data that is {needed:,}"
        + (f" a node of {nodes}" if nodes > 1 else "")
        + f"; the machine has {f'{machine:,}' if machine else 'a size that the server hides'}",
        level=Level.SHOULD,
        why="without it the machine ends the server or swaps, or the save fails",
        next_step="take a larger machine, or save on a replica",
    )


def wanted_room(size: Json) -> int:
    """Return the bytes that `maxmemory` of the target should allow."""
    wanted: int = size["wanted_bytes"] + size["target_own_bytes"] + size["buffer_bytes"]
    return wanted


def judge_size(size: Json) -> list[Json]:
    """Return the checks of the target's size, with the arithmetic."""
    room, wanted = size["target_maxmemory"], wanted_room(size)
    clients, clients_max = size["source_clients"], size["target_maxclients"]
    day = size["growth_bytes_a_day"]
    full_in = (room - wanted) / day if room and day and day > 0 else None
    checks = [
        check(
            "the target has room for the copy and a reserve",
            not room or room >= wanted,
            f"{size['arithmetic']}; with {size['target_own_bytes']:,} of the server itself and "
            f"{size['buffer_bytes']:,} of buffers, as the source has them now, it is {wanted:,}; "
            f"maxmemory of the target is {f'{room:,}' if room else 'not set'}",
            level=Level.SHOULD,
            why="writes go on while the copy runs",
            next_step=f"set maxmemory of the target to {wanted:,} or more",
        ),
        _room_to_save(size, wanted),
        check(
            "a sample of the keys can be restored on the target",
            not size["why_not"] and not size["refused"],
            size["why_not"]
            or (
                f"{size['restored']:,} of {size['sampled']:,} keys"
                + "".join(f"; {why} {count}" for why, count in size["refused"].items())
            ),
            level=Level.SHOULD,
            why="these keys are copied by type, which is slower; their size is a guess",
            next_step="read the artifact sizing; choose a target of a version that loads them",
        ),
        check(
            "the target takes the connections",
            not clients_max or clients_max >= clients * TASKS_SIZING_HEADROOM,
            f"{clients:,} on the source now, times {TASKS_SIZING_HEADROOM}; maxclients of the "
            f"target is {clients_max:,}",
            level=Level.SHOULD,
            why="clients beyond it are refused",
            next_step="raise maxclients of the target",
        ),
    ]
    if day is not None:
        checks.append(
            check(
                "the target has room for a month of growth",
                full_in is None or full_in > _MONTH_DAYS,
                f"{day:,} bytes a day over {size['looks']} looks "
                f"({size['growth_explained']:.0%} explained)"
                + ("" if full_in is None else f"; full in {full_in:,.0f} days"),
                level=Level.SHOULD,
                why="the target would be full soon after the cutover",
                next_step="raise maxmemory of the target",
            )
        )
    return checks
