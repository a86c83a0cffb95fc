"""Compare the workload with the target: commands, payloads, size, and advice on the strategy."""

from __future__ import annotations

from collections import Counter

from exodus.backfill.forecast import forecast
from exodus.commands.table import CommandTable
from exodus.engine import open_engine
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.bounds import (
    HEAVY_BYTES,
    TASKS_COMPATIBILITY_COPIES_PER_S_MAX,
    TASKS_COMPATIBILITY_NAMED,
)
from exodus.plan.vocabulary import Side
from tasks.checks import Level, check
from tasks.context import Json, Opened, opened, opens_migration, run
from tasks.kept import kept_task

_SIZE_MARGIN = 1.25


async def _tables(it: Opened) -> dict[Side, CommandTable]:
    tables: dict[Side, CommandTable] = {}
    for side in Side:
        client = make_side_client(it.plan.address(side), field=side)
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


def judge_workload(workload: Json, commands: list[Json], direct: list[Json]) -> list[Json]:
    """Return the checks of what was observed."""
    missing = [row["command"] for row in commands if not row["target_has_it"]]
    through = (
        f"{workload['requests']} requests of {workload['connections']} connections in "
        f"{workload['seconds']} s"
    )
    clients = ", ".join(
        f"{row['client']} from {', '.join(row['from'])}: "
        f"{row['connections'] - row['through_gateways']} connection(s)"
        for row in direct
    )
    return [
        check(
            "applications send requests through a gateway",
            bool(commands),
            through,
            next_step="point the applications at the gateway, or watch for longer (--seconds)",
        ),
        check(
            "the target has every observed command",
            not missing,
            ", ".join(missing[:TASKS_COMPATIBILITY_NAMED]) or f"{len(commands)} commands",
            why="applications would get an error for them after the cutover",
            next_step="choose a target that has them, or change the applications",
        ),
        check(
            "every client uses a gateway",
            not direct,
            clients or "none is connected to the source directly",
            level=Level.SHOULD,
            why="a cutover cannot move a client that bypasses the gateways: its writes are refused",
            next_step="point these clients at the gateway, then start Analyze again",
        ),
    ]


def judge_size(facts: Json) -> list[Json]:
    """Return the checks of the target's size, with the arithmetic."""
    used, room = facts["source"]["used_memory"], facts["target"]["maxmemory"]
    needed = int(used * _SIZE_MARGIN)
    return [
        check(
            "the target has room for the copy and a reserve",
            not room or room >= needed,
            f"the source uses {used:,} bytes, times {_SIZE_MARGIN} is {needed:,}; maxmemory of the "
            f"target is {f'{room:,}' if room else 'not set'}",
            level=Level.SHOULD,
            why="encodings differ between versions, and writes go on while the copy runs",
            next_step=f"set maxmemory of the target to {needed:,} or more",
        )
    ]


def workload_line(workload: Json, commands: list[Json]) -> str:
    """Return the workload in one line. A command that waits for data is not slow."""
    busy = [row for row in commands if not row["waits"]]
    if not busy:
        return f"{workload['requests_per_s']:,} requests/s, {len(commands)} commands"
    slowest = max(busy, key=lambda row: row["latency_us_p99"])
    return (
        f"{workload['requests_per_s']:,} requests/s, {len(commands)} commands; slowest p99: "
        f"{slowest['command']} {slowest['latency_us_p99'] / 1000:.1f} ms"
    )


def advice_lines(advice: list[Json]) -> list[str]:
    """Return the advice that a decision needs: the strategy, risks, and large hot keys."""
    wanted = [row for row in advice if row["topic"] in ("strategy", "risk", "large hot key")]
    return [f"{row['finding']}: {row['advice']}" for row in wanted[:TASKS_COMPATIBILITY_NAMED]]


def strategy_line(foreseen: list[Json]) -> str:
    """Return the dry run in one line."""
    by_strategy: Counter[str] = Counter()
    for row in foreseen:
        by_strategy[row["strategy"]] += row["keys_estimated"]
    named = ", ".join(f"{keys:,} keys {how}" for how, keys in by_strategy.most_common(3))
    return f"dry run: {named or 'the source has no keys'} (artifact dry-run)"
