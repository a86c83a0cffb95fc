"""What Test will require of the target, looked at in Analyze already: capacity, users' rights, and
function libraries.

Nothing here must hold yet. What does not is accepted by name, or mended before Test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from exodus.acceptance import delivery, load, logins
from exodus.acceptance.rows import FAILURES, Checked, broken
from exodus.plan.bounds import TASKS_CAPACITY_SECONDS
from exodus.plan.gate_checks import CheckLevel
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

_STEPS = "capacity.analyze"


@kept_task("Measure the capacity of the target")
@opens_migration
async def measure_capacity(it: Opened) -> Json:
    """Play the observed load on scratch keys of the target, a second each at its rate and above.

    Returns:
        `checks`, and `steps` with a row for each speed.
    """
    wanted = it.plan.test_checks
    if wanted.load is CheckLevel.OFF:
        return {"checks": [], "steps": []}
    short = {"load_seconds": min(wanted.load_seconds, TASKS_CAPACITY_SECONDS)}
    plan = it.plan.model_copy(update={"test_checks": wanted.model_copy(update=short)})
    await it.store.drop_report(_STEPS)
    try:
        found = await load.check_load(plan, it.store, keep=_STEPS)
    except FAILURES as exc:
        found = [broken("load", exc)]
    steps = (await it.store.report(_STEPS) or {}).get("steps", [])
    return {"checks": _early(found), "steps": steps}


@kept_task("Hold users' rights against what was observed")
@opens_migration
async def check_rights(it: Opened) -> list[Json]:
    """Ask the target whether each user may do there what it was observed to do."""
    level = it.plan.test_checks.logins
    return await _tried("rights of users", level, lambda: logins.check_rights(it.plan, it.store))


@kept_task("Load the function libraries on the target")
@opens_migration
async def try_libraries(it: Opened) -> list[Json]:
    """Load each function library of the source on the target, and remove it at once."""
    level = it.plan.test_checks.delivery
    return await _tried("function libraries", level, lambda: delivery.check_libraries(it.plan))


async def _tried(
    what: str, level: CheckLevel, look: Callable[[], Awaitable[list[Checked]]]
) -> list[Json]:
    """Return the rows of one of Test's checks, unless it is off."""
    if level is CheckLevel.OFF:
        return []
    try:
        return _early(await look())
    except FAILURES as exc:
        return _early([broken(what, exc)])


def _early(found: Sequence[Checked]) -> list[Json]:
    """Return rows of Test at the level that they have in Analyze."""
    rows = []
    for each in found:
        level = Level.SHOULD if each.judged and not each.by_name else Level.INFO
        mend = each.next_step.replace("exodus start test", "exodus start analyze")
        row = check(each.check, each.ok, each.detail, level=level, why=each.why, next_step=mend)
        rows.append({**row, "line": each.line})
    return rows
