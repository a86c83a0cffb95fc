"""Compare and show the state beside the keys before a decision. The switch compares it again."""

from __future__ import annotations

from exodus.control.route import read_route
from exodus.cutover import beside_keys
from exodus.cutover.beside_rows import StateOutcome
from exodus.plan.bounds import TASKS_BESIDE_NAMED
from exodus.plan.vocabulary import Phase
from tasks.artifacts import create_table_artifact
from tasks.checks import Level, check
from tasks.context import Json, Opened, live_task, opens_migration
from tasks.evidence import artifact_key
from tasks.kept import kept_task


@live_task(name="Compare users, settings and code")
def compare_beside(migration: str, phase: Phase) -> list[str]:
    """Compare users, settings and code of both sides; return lines for a summary."""
    rows = opens_migration(_compare)(migration, phase)
    create_table_artifact(
        key=artifact_key(migration, phase, "beside"),
        table=rows,
        description="What besides keys must be the same",
    )
    return _lines(rows)


@kept_task("Find users, settings and code that differ")
@opens_migration
async def find_beside(it: Opened, phase: Phase) -> list[Json]:
    """Compare users, settings and code of both sides once; return a row a thing."""
    return await _compare(it, phase)


def judge_beside(rows: list[Json]) -> list[Json]:
    """Return the checks of the state beside the keys."""
    must, differ = _of(rows, StateOutcome.REQUIRED), _of(rows, StateOutcome.DIFFERS)
    unknown = _of(rows, StateOutcome.NOT_PROVABLE)
    return [
        check(
            "users, settings and code that applications need are on the target",
            not must,
            _named(must) or f"{len(rows)} compared",
            level=Level.SHOULD,
            why="the cutover is refused until then",
            next_step="; ".join(dict.fromkeys(row["remedy"] for row in must)),
        ),
        check(
            "users, settings and code of both sides are the same",
            not differ and not unknown,
            "; ".join(filter(None, (_named(differ), _named(unknown)))) or f"{len(rows)} compared",
            level=Level.INFO,
            why="the cutover is not refused for it",
            next_step="read the artifact beside",
        ),
    ]


def _of(rows: list[Json], outcome: StateOutcome) -> list[Json]:
    return [row for row in rows if row["outcome"] == outcome]


def _named(rows: list[Json]) -> str:
    more = len(rows) - TASKS_BESIDE_NAMED
    named = "; ".join(f"{row['what']}: {row['means']}" for row in rows[:TASKS_BESIDE_NAMED])
    return named + (f"; and {more} more" if more > 0 else "")


def _lines(rows: list[Json]) -> list[str]:
    lines = [
        f"beside the keys: {len(_of(rows, StateOutcome.SAME))} same, "
        f"{len(_of(rows, StateOutcome.DIFFERS))} "
        f"differ, {len(_of(rows, StateOutcome.NOT_PROVABLE))} not provable"
    ]
    if must := _of(rows, StateOutcome.REQUIRED):
        named = "; ".join(
            f"{row['what']}: {row['means']} ({row['remedy']})" for row in must[:TASKS_BESIDE_NAMED]
        )
        lines.append(
            f"{len(must)} THING(S) MUST BE MENDED; the cutover is refused until then: {named}"
        )
    return lines


async def _compare(it: Opened, phase: Phase) -> list[Json]:
    route = await read_route(it.store)
    ends = [it.endpoint(side) for side in (route.authority, route.follower)]
    async with (
        await ends[0].connect(name="exodus-beside") as authority,
        await ends[1].connect(name="exodus-beside") as follower,
    ):
        rows = [row.as_json() for row in await beside_keys.compare(it.plan, authority, follower)]
    report = {"at_ms": await it.store.now_ms(), "rows": rows}
    await it.store.save_report(f"beside.{phase}", report)
    return rows
