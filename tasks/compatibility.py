"""Compare the workload with the target: commands, payloads, size, and advice on the strategy."""

from __future__ import annotations

from exodus.backfill.forecast import forecast
from exodus.commands.table import CommandTable
from exodus.engine import open_engine
from exodus.net.client import answered, make_client
from exodus.plan.bounds import HEAVY_BYTES, TASKS_COMPATIBILITY_COPIES_PER_S_MAX
from exodus.plan.vocabulary import Side
from tasks.context import Json, Opened, opened, opens_migration, run
from tasks.kept import kept_task

_SIZE_MARGIN = 1.25


async def _tables(it: Opened) -> dict[Side, CommandTable]:
    tables: dict[Side, CommandTable] = {}
    for side in Side:
        client = make_client(it.plan.address(side), field=side)
        client.response_callbacks.pop("COMMAND", None)
        try:
            tables[side] = CommandTable.from_replies(
                await answered(client.execute_command("COMMAND"))
            )
        finally:
            await client.aclose()
    return tables


@kept_task("Check commands against the target")
@opens_migration
async def check_commands(it: Opened, commands: list[Json]) -> list[Json]:
    """Return each observed command, and whether the target has it."""
    tables = await _tables(it)
    missing = tables[Side.SOURCE].without(tables[Side.TARGET])
    return [
        {**row, "target_has_it": row["command"].partition("|")[0].encode() not in missing}
        for row in commands
    ]


@kept_task("Dry run of the copy")
@opens_migration
async def foresee_strategies(it: Opened) -> list[Json]:
    """Return strategy and reason by type and size for a sample of keys."""
    return await forecast(await open_engine(it.store, it.plan))


@kept_task("Find large hot keys")
def weigh_hot_keys(migration: str, hot: list[Json]) -> list[Json]:
    """Return advice on large keys that are used often.

    Live sync copies the full key after each write.
    """

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
                        per_s = used * min(
                            row["requests_per_s"], TASKS_COMPATIBILITY_COPIES_PER_S_MAX
                        )
                        rows.append(
                            {
                                "topic": "large hot key",
                                "finding": f"{row['key']} of database {db}: {kind!s}, "
                                f"{used:,} bytes, {row['requests_per_s']:,} requests/s",
                                "advice": "if these are writes, live sync copies up to "
                                f"{per_s / 1e6:,.1f} MB/s for this key: "
                                "trim or split it, write it less often, or set strategy: native",
                            }
                        )
        return rows

    return run(work())


@kept_task("Recommend size and strategy")
def recommend(migration: str, facts: Json, workload: Json) -> list[Json]:
    """Return target sizing, strategy and risks as rows of `topic`, `finding`, `advice`."""
    del migration
    source, target = facts["source"], facts["target"]
    needed = int(source["used_memory"] * _SIZE_MARGIN)
    rows = [
        {
            "topic": "target size",
            "finding": f"the source uses {source['used_memory']:,} bytes for "
            f"{sum(source['databases'].values()):,} keys",
            "advice": f"maxmemory of the target: {needed:,} bytes or more"
            + (
                ""
                if not target["maxmemory"] or target["maxmemory"] >= needed
                else f" (it is {target['maxmemory']:,})"
            ),
        },
        {
            "topic": "strategy",
            "finding": f"DUMP version {source['payload_version']} to {target['payload_version']}",
            "advice": "dump-restore; payloads that the target refuses are copied by type",
        },
        {
            "topic": "reverse sync",
            "finding": f"DUMP version {target['payload_version']} to {source['payload_version']}",
            "advice": "payloads if they fit, else by type; types that only the target has "
            "cannot flow back",
        },
    ]
    for side, node in facts.items():
        lacking = sorted(name for name, able in node["capabilities"].items() if not able)
        rows.append(
            {
                "topic": f"{side} capabilities",
                "finding": f"not available: {', '.join(lacking) or 'none'}",
                "advice": "found by probing; no action needed",
            }
        )
    for risk, count in workload.get("risks", {}).items():
        rows.append(
            {
                "topic": "risk",
                "finding": f"{risk}: {count}",
                "advice": "these keys are not in the journal: verify before the cutover, or "
                "declare the keys",
            }
        )
    return rows
