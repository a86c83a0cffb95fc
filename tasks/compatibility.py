"""Compare the workload with the target: commands, payloads, size, and advice on the strategy."""

from __future__ import annotations

from collections import Counter

from exodus.backfill.forecast import forecast
from exodus.commands.table import CommandTable
from exodus.engine import open_engine
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.bounds import (
    TASKS_COMPATIBILITY_COPIES_PER_S_MAX,
    TASKS_COMPATIBILITY_NAMED,
)
from exodus.plan.vocabulary import Side
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

_SHOWN = frozenset({"recommendation", "strategy", "duration", "risk", "large hot key"})


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


def heavy_rows(workload: Json) -> list[Json]:
    """Return advice on large keys that are used often."""
    return [_heavy(row) for row in workload["large_hot_keys"]]


def _heavy(row: Json) -> Json:
    per_s = row["bytes"] * min(row["requests_per_s"], TASKS_COMPATIBILITY_COPIES_PER_S_MAX)
    return {
        "topic": "large hot key",
        "finding": f"{row['key']} of database {row['db']}: {row['type']}, {row['bytes']:,} bytes, "
        f"{row['requests_per_s']:,} requests/s",
        "advice": f"if these are writes, live sync copies up to {per_s / 1e6:,.1f} MB/s for this "
        "key: trim or split it, write it less often, or set strategy: native",
    }


def risk_rows(workload: Json) -> list[Json]:
    """Return what the gateways met that the journal cannot see, as rows of advice."""
    return [
        {
            "topic": "risk",
            "finding": f"{risk}: {count}",
            "advice": "these keys are not in the journal: verify before the cutover, or declare "
            "the keys",
        }
        for risk, count in workload.get("risks", {}).items()
    ]


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
    """Return the advice that a decision needs, the recommendation first."""
    wanted = [row for row in advice if row["topic"] in _SHOWN]
    return [
        f"{row['topic']}: {row['finding']}; {row['advice']}"
        for row in wanted[:TASKS_COMPATIBILITY_NAMED]
    ]


def strategy_line(foreseen: list[Json]) -> str:
    """Return the dry run in one line."""
    by_strategy: Counter[str] = Counter()
    for row in foreseen:
        by_strategy[row["strategy"]] += row["keys_estimated"]
    named = ", ".join(f"{keys:,} keys {how}" for how, keys in by_strategy.most_common(3))
    return f"dry run: {named or 'the source has no keys'} (artifact dry-run)"
