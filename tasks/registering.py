"""Check and register a changed Migration block when a phase begins.

The checks are those of `exodus apply` (exodus/registration.py). Nobody confirms here what a change
voids. The ledger records it, and a phase whose approval is void does not begin.
"""

from __future__ import annotations

from prefect.logging import get_run_logger

from exodus.control.approvers import PersonIdentity
from exodus.control.store import ControlStore
from exodus.plan.address import Address, Service
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.registration import examine, register
from exodus.topology.pair_checks import raise_if_fatal
from tasks.context import in_place, registered_plan

_LOCAL = ("password", "password_env", "password_file", "ca_file", "cert_file", "key_file")
_SENTINEL_LOCAL = tuple(f"sentinel_{name}" for name in _LOCAL if name != "password")


async def register_block(store: ControlStore, proposed: Plan, control_store: Address) -> Plan:
    """Register the block's plan if it differs from the registered one; return the plan in force.

    Raises:
        OperatorError: a check is fatal. Nothing was registered.
    """
    registered = await registered_plan(store)
    if registered is not None and _meant(registered, proposed) == registered:
        return in_place(registered, proposed)
    examined = await examine(MigrationFile(plan=proposed, control_store=control_store))
    raise_if_fatal(examined.findings)
    by = PersonIdentity(person="whoever saved the block in Prefect")
    await register(store, proposed, examined, by)
    fields = ", ".join(change.field for change in examined.changes) or "new plan"
    get_run_logger().info(
        "registered the plan of the Migration block (%s); void: %s",
        fields,
        ", ".join(examined.voids) or "nothing",
    )
    return proposed


def _meant(registered: Plan, proposed: Plan) -> Plan:
    """Return the block's plan with the registered plan's file names.

    Other file names do not count as a change.
    """
    same = {}
    for side in Side:
        address = registered.address(side)
        names = (*_LOCAL, *_SENTINEL_LOCAL) if isinstance(address, Service) else _LOCAL
        local = {name: getattr(address, name) for name in names}
        same[str(side)] = proposed.address(side).model_copy(update=local)
    return proposed.model_copy(update=same)
