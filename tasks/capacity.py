"""What Test will require of the target, looked at before it: capacity, users' rights and function
libraries in Analyze; settings, modules, logins and function libraries in Compare.

Nothing here must hold yet. What does not is accepted by name, or mended before Test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from exodus.acceptance import delivery, load, logins, standing
from exodus.acceptance.rows import FAILURES, Checked, broken
from exodus.plan.bounds import TASKS_CAPACITY_SECONDS
from exodus.plan.gate_checks import CheckLevel
from exodus.plan.vocabulary import Phase
from exodus.shadow.causes import cause_of_setup
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


@kept_task("Check settings, modules, logins and libraries")
@opens_migration
async def check_setup(it: Opened) -> list[Json]:
    """Hold what the target has beside its keys against the source: what no reply may show.

    Each row has its cause.
    """
    return await setup_rows(it)


async def setup_rows(it: Opened) -> list[Json]:
    """Return the rows of `check_setup`."""
    levels, rows = it.plan.test_checks, []
    looks: dict[str, tuple[CheckLevel, Callable[[], Awaitable[list[Checked]]]]] = {
        "settings": (levels.settings, lambda: standing.check_settings(it.plan)),
        "logins": (levels.logins, lambda: logins.check_users(it.plan)),
        "function libraries": (levels.delivery, lambda: delivery.check_libraries(it.plan)),
    }
    for what, (level, look) in looks.items():
        rows += await _tried(what, level, look, phase=Phase.COMPARE)
    return [{**row, "cause": cause_of_setup(row["check"])} for row in rows]


async def _tried(
    what: str,
    level: CheckLevel,
    look: Callable[[], Awaitable[list[Checked]]],
    *,
    phase: Phase = Phase.ANALYZE,
) -> list[Json]:
    """Return the rows of one of Test's checks, unless it is off."""
    if level is CheckLevel.OFF:
        return []
    try:
        return _early(await look(), phase)
    except FAILURES as exc:
        return _early([broken(what, exc)], phase)


def _early(found: Sequence[Checked], phase: Phase = Phase.ANALYZE) -> list[Json]:
    """Return rows of Test at the level that they have in an earlier phase."""
    rows = []
    for each in found:
        level = Level.SHOULD if each.judged and not each.by_name else Level.INFO
        mend = each.next_step.replace("exodus start test", f"exodus start {phase}")
        row = check(each.check, each.ok, each.detail, level=level, why=each.why, next_step=mend)
        rows.append({**row, "line": each.line})
    return rows
