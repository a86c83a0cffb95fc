"""Give the workload model of Pre-test the rates that the gateways counted."""

from __future__ import annotations

from exodus.acceptance.observed import WEIGHED, WORKLOAD
from exodus.observe.weighing import Weighed, weigh
from exodus.observe.workload import Workload
from exodus.plan.bounds import TASKS_WEIGHING_LEFT_OUT_SHARE, TASKS_WEIGHING_NAMED
from tasks.checks import Level, check
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task
from tasks.profile import kept_windows

_WHAT = "the workload model has what applications send"


@kept_task("Weigh the workload model by the gateways' windows")
@opens_migration
async def weigh_workload(it: Opened) -> Json:
    """Keep the model that the load of Analyze and Test plays.

    Returns:
        `checks`, and `rows` with a row for each command.
    """
    await it.store.drop_report(WEIGHED)
    kept = await it.store.report(WORKLOAD)
    if kept is None:
        found: Weighed | str = "Pre-test has kept no model"
    else:
        found = weigh(Workload.model_validate(kept), await kept_windows(it))
    if isinstance(found, str):
        said = f"not known: {found}"
        row = check(
            _WHAT,
            False,
            said,
            level=Level.INFO,
            why="the load of Analyze and Test is played at the rates of Pre-test",
            next_step="start Analyze again when the gateways have counted for a minute",
        )
        return {"checks": [row], "rows": []}
    await it.store.save_report(WEIGHED, found.model.model_dump(mode="json"))
    return {"checks": judge_weighed(found), "rows": found.rows}


def judge_weighed(found: Weighed) -> list[Json]:
    """Return the check: commands that the copy did not show are a small share. It is no finding:
    what applications send only when they start is often such a command.
    """
    rates, names = found.model.rates, list(found.left_out)
    named = ", ".join(f"{name} {found.left_out[name]:,}" for name in names[:TASKS_WEIGHING_NAMED])
    detail = (
        f"{found.seconds:,.0f} s of the gateways: mean {rates.mean:,.1f} requests/s, "
        f"{rates.peak_minute:,.1f} in the busiest minute, {rates.peak_hour:,.1f} in the busiest "
        f"hour; {found.left_out_share:.1%} of commands that the copy of the traffic did not show"
    )
    said = f"{detail}: {named}" if named else detail
    row = check(
        _WHAT,
        found.left_out_share <= TASKS_WEIGHING_LEFT_OUT_SHARE,
        said,
        level=Level.INFO,
        why="the load of Analyze and Test is played without them",
        next_step="watch for longer: exodus start pre-test --seconds 600",
    )
    return [{**row, "line": f"workload model: {said}"}]
