"""What applications were seen to do: read from the reports of Pre-test and Analyze."""

from __future__ import annotations

from exodus.control.store import ControlStore
from exodus.observe.workload import Workload
from exodus.plan.address import Place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import UserRole

WORKLOAD, LEARNT = "workload.pre-test", "profile.analyze"
WEIGHED = "workload.analyze"  # the same model with the gateways' rates


def tried_as(plan: Plan) -> Place:
    """Return the target with the user as which requests are tried: `compare_user`, else the
    comparer's.
    """
    if plan.compare_user is not None:
        return plan.compare_user.at(plan.target)
    return plan.acting(UserRole.COMPARER).target


async def observed_workload(store: ControlStore) -> Workload | None:
    """Return the workload model of the last Pre-test, as Analyze weighed it since. None: no
    model.
    """
    kept = await store.report(WEIGHED) or await store.report(WORKLOAD)
    return Workload.model_validate(kept) if kept is not None else None


async def observed_commands(store: ControlStore) -> dict[str, int]:
    """Return each observed command (`XGROUP|CREATE` with its subcommand) with its calls."""
    workload = await observed_workload(store)
    found = workload.calls() if workload is not None else {}
    for row in (await store.report(LEARNT) or {}).get("commands", []):
        name = str(row["command"]).upper()
        found[name] = max(found.get(name, 0), int(row["calls"]))
    return found
