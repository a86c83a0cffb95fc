"""Function libraries are not keys: copy and show them before a phase relies on them."""

from __future__ import annotations

from exodus.control import registry
from exodus.cutover import held_comparison, script_loading
from exodus.cutover.functions import Libraries, carry_functions
from exodus.engine import open_engine
from exodus.plan.bounds import TASKS_FUNCTIONS_NAMED
from exodus.plan.vocabulary import Phase
from tasks.artifacts import create_table_artifact
from tasks.context import Opened, live_task, opens_migration
from tasks.evidence import artifact_key


@live_task(name="Copy function libraries")
def carry_libraries(migration: str, phase: Phase) -> list[str]:
    """Load the authority's libraries on the follower; return lines for a decision's summary."""
    found = _carried(migration, phase)
    rows = found.as_rows()
    if rows:
        create_table_artifact(
            key=artifact_key(migration, phase, "functions"),
            table=rows,
            description="Function libraries",
        )
    lines = (
        [f"function libraries: {len(found.carried)} copied, {len(found.equal)} already equal"]
        if found.carried or found.equal
        else []
    )
    if found.failed:
        named = "; ".join(
            f"{name}: {why}" for name, why in list(found.failed.items())[:TASKS_FUNCTIONS_NAMED]
        )
        lines.append(
            f"{len(found.failed)} FUNCTION LIBRARIES FAILED TO COPY, calls of them will fail "
            f"there: {named}"
        )
    return lines


@opens_migration
async def _carried(it: Opened, phase: Phase) -> Libraries:
    found = await carry_functions(await open_engine(it.store, it.plan))
    await it.store.save_report(f"functions.{phase}", found.as_json())
    return found


@live_task(name="Check scripts before the cutover")
@opens_migration
async def say_scripts(it: Opened) -> list[str]:
    """Return lines about unreported writes of scripts, and scripts that the target may lack."""
    missing = script_loading.told(
        script_loading.unseen(await registry.heartbeats(it.store, "gateway"))
    )
    return [*await held_comparison.told(it.store, it.plan), *([missing] if missing else [])]
