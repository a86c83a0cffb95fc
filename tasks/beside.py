"""Compare and show the state beside the keys before a decision. The switch compares it again."""

from __future__ import annotations

from exodus.control.route import read_route
from exodus.cutover import beside_keys
from exodus.cutover.beside_rows import Row, StateOutcome
from exodus.plan.bounds import TASKS_BESIDE_NAMED
from exodus.plan.vocabulary import Phase
from tasks.artifacts import create_table_artifact
from tasks.context import Opened, live_task, opens_migration
from tasks.evidence import artifact_key


@live_task(name="Compare users, settings and code")
def compare_beside(migration: str, phase: Phase) -> list[str]:
    """Compare users, settings and code of both sides; return lines for a summary."""
    rows = _compared(migration, phase)
    create_table_artifact(
        key=artifact_key(migration, phase, "beside"),
        table=[row.as_json() for row in rows],
        description="What besides keys must be the same",
    )
    counts = {outcome: [row for row in rows if row.outcome is outcome] for outcome in StateOutcome}
    lines = [
        f"beside the keys: {len(counts[StateOutcome.SAME])} same, "
        f"{len(counts[StateOutcome.DIFFERS])} "
        f"differ, {len(counts[StateOutcome.NOT_PROVABLE])} not provable"
    ]
    if must := counts[StateOutcome.REQUIRED]:
        named = "; ".join(
            f"{row.what}: {row.means} ({row.remedy})" for row in must[:TASKS_BESIDE_NAMED]
        )
        lines.append(
            f"{len(must)} THING(S) MUST BE MENDED; the cutover is refused until then: {named}"
        )
    return lines


@opens_migration
async def _compared(it: Opened, phase: Phase) -> list[Row]:
    route = await read_route(it.store)
    ends = [it.endpoint(side) for side in (route.authority, route.follower)]
    async with (
        await ends[0].connect(name="exodus-beside") as authority,
        await ends[1].connect(name="exodus-beside") as follower,
    ):
        rows = await beside_keys.compare(it.plan, authority, follower)
    report = {"at_ms": await it.store.now_ms(), "rows": [row.as_json() for row in rows]}
    await it.store.save_report(f"beside.{phase}", report)
    return rows
