"""Which clients are still connected to the source directly, and not through a gateway."""

from __future__ import annotations

import asyncio
from collections import Counter

import orjson

from exodus.closing.collect import connected_clients
from exodus.control import registry
from exodus.net.client import answered
from exodus.plan.bounds import TASKS_CLIENTS_BETWEEN_S
from exodus.plan.vocabulary import Side
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task


@kept_task("Find clients that bypass the gateways")
@opens_migration
async def direct_clients(it: Opened) -> list[Json]:
    """Return clients of the source that no gateway explains, by name, user, and host.

    A gateway opens one connection to the source for each of its clients, under the client's own
    name. So the source's connections of a name, less those through gateways, are direct ones. Each
    gateway process also has one connection without a name, its probe.
    """
    first = await _look(it)
    await asyncio.sleep(TASKS_CLIENTS_BETWEEN_S)
    second = await _look(it)
    return [row for name, row in sorted(second.items()) if name in first]


async def _look(it: Opened) -> dict[str, Json]:
    through: Counter[str] = Counter()
    for beat in await registry.heartbeats(it.store, "gateway"):
        raw = await answered(it.store.client.get(it.store.keys.telemetry(beat.process)))
        if raw is None or beat.stale(await it.store.now_ms()):
            continue
        through[""] += 1
        for row in orjson.loads(raw)["clients"]:
            through[row["name"]] += row["connections"]
    found: dict[str, Json] = {}
    there: Counter[str] = Counter()
    for row in await connected_clients(it.plan, Side.SOURCE):
        if row["kind"] == "replica":
            continue
        there[row["name"]] += row["connections"]
        where = found.setdefault(row["name"], {"client": row["name"] or "(no name)", "from": []})
        where["from"].append(f"{row['user']}@{row['host']}")
    return {
        name: {**row, "connections": there[name], "through_gateways": through[name]}
        for name, row in found.items()
        if there[name] > through[name]
    }
