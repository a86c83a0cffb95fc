"""What the workload would meet on the target: commands, payloads, size, and what follows for the strategy."""

from __future__ import annotations

from exodus.backfill.forecast import forecast
from exodus.commands.table import CommandTable
from exodus.engine import open_engine
from exodus.net.client import answered, make_client
from exodus.plan.bounds import HEAVY_BYTES
from exodus.plan.vocabulary import Side
from tasks.context import Json, Opened, opened, run
from tasks.kept import kept_task

_SIZE_MARGIN = 1.25
COPIES_PER_S_MAX = 50  # of one key: lanes look every 20 ms, and copy what changed meanwhile once


async def _tables(it: Opened) -> dict[Side, CommandTable]:
    tables: dict[Side, CommandTable] = {}
    for side in Side:
        client = make_client(it.plan.address(side), field=side)
        client.response_callbacks.pop("COMMAND", None)
        try:
            tables[side] = CommandTable.from_replies(await answered(client.execute_command("COMMAND")))
        finally:
            await client.aclose()
    return tables


@kept_task("check the commands against the target")
def check_commands(migration: str, commands: list[Json]) -> list[Json]:
    """Each command that was seen, and whether the target has it."""

    async def work() -> list[Json]:
        async with opened(migration) as it:
            tables = await _tables(it)
            missing = tables[Side.SOURCE].without(tables[Side.TARGET])
            return [{**row, "target_has_it": row["command"].partition("|")[0].encode() not in missing} for row in commands]

    return run(work())


@kept_task("see how keys would be carried")
def foresee_strategies(migration: str) -> list[Json]:
    """A dry run over a sample: strategy and reason by type and size."""

    async def work() -> list[Json]:
        async with opened(migration) as it:
            return await forecast(await open_engine(it.store, it.plan))

    return run(work())


@kept_task("weigh the hot keys")
def weigh_hot_keys(migration: str, hot: list[Json]) -> list[Json]:
    """Advice on keys that are large and used often: live sync copies all of such a key after each write of it."""

    async def work() -> list[Json]:
        rows: list[Json] = []
        async with opened(migration) as it:
            node = await it.endpoint(Side.SOURCE).any_node()
            databases = sorted((await node.facts()).databases)
            for row in hot:
                key = row["key"].encode()
                for db in databases:
                    async with await node.connect(db, name="exodus-weigh") as leg:
                        kind, used = await leg.pipeline([("TYPE", key), ("MEMORY", "USAGE", key)])
                    if isinstance(used, int) and used >= HEAVY_BYTES:
                        per_s = used * min(row["requests_per_s"], COPIES_PER_S_MAX)
                        rows.append(
                            {
                                "topic": "large hot key",
                                "finding": f"{row['key']} of database {db}: {kind!s}, {used:,} bytes, {row['requests_per_s']:,} requests/s",
                                "advice": f"where these are writes live sync copies up to {per_s / 1e6:,.1f} MB/s for it: "
                                "trim or split the key, write it less often, or set strategy: native",
                            }
                        )
        return rows

    return run(work())


@kept_task("recommend size and strategy")
def recommend(migration: str, facts: Json, workload: Json) -> list[Json]:
    """Target sizing, strategy and risks as rows of `topic`, `finding`, `advice`."""
    del migration
    source, target = facts["source"], facts["target"]
    needed = int(source["used_memory"] * _SIZE_MARGIN)
    rows = [
        {
            "topic": "target size",
            "finding": f"the source uses {source['used_memory']:,} bytes for {sum(source['databases'].values()):,} keys",
            "advice": f"maxmemory of the target: {needed:,} bytes or more"
            + ("" if not target["maxmemory"] or target["maxmemory"] >= needed else f" (it is {target['maxmemory']:,})"),
        },
        {
            "topic": "strategy",
            "finding": f"DUMP version {source['payload_version']} to {target['payload_version']}",
            "advice": "dump-restore; what the target refuses is copied type by type",
        },
        {
            "topic": "reverse sync",
            "finding": f"DUMP version {target['payload_version']} to {source['payload_version']}",
            "advice": "whole payloads where they fit, else type by type: new types of the target could not flow back",
        },
    ]
    for side, node in facts.items():
        lacking = sorted(name for name, able in node["capabilities"].items() if not able)
        rows.append(
            {
                "topic": f"{side} capabilities",
                "finding": f"not available: {', '.join(lacking) or 'none'}",
                "advice": "found by probing; nothing to do",
            }
        )
    for risk, count in workload.get("risks", {}).items():
        rows.append(
            {"topic": "risk", "finding": f"{risk}: {count}", "advice": "its keys are not in the journal: verify before cutover, or declare the keys"}
        )
    return rows
