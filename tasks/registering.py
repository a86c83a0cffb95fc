"""A Migration block that was saved or changed in the Prefect UI: checked and registered when a phase begins.

The checks are those of `exodus apply` (exodus/registration.py). Nobody confirms what a change voids, as apply
asks; the ledger has it, and a phase whose approval was voided does not begin.
"""

from __future__ import annotations

from prefect.logging import get_run_logger

from exodus.control.approvers import Identity
from exodus.control.store import ControlStore
from exodus.plan.address import Address
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.registration import examine, register
from exodus.topology.pair_checks import raise_if_fatal
from tasks.context import in_place, registered_plan

_LOCAL = ("password", "password_env", "password_file", "ca_file", "cert_file", "key_file")


async def register_block(store: ControlStore, proposed: Plan, control_store: Address) -> Plan:
    """Register the block's plan where it is another than the registered one; the plan that counts now.

    Raises:
        OperatorError: a check of it is fatal, and nothing was registered.
    """
    registered = await registered_plan(store)
    if registered is not None and _meant(registered, proposed) == registered:
        return in_place(registered, proposed)
    examined = await examine(MigrationFile(plan=proposed, control_store=control_store))
    raise_if_fatal(examined.findings)
    by = Identity(person="whoever saved the block in Prefect")
    await register(store, proposed, examined, by)
    fields = ", ".join(change.field for change in examined.changes) or "all of it, for the first time"
    get_run_logger().info(
        "the plan of the Migration block was registered (%s); void with it: %s",
        fields,
        ", ".join(examined.voids) or "nothing",
    )
    return proposed


def _meant(registered: Plan, proposed: Plan) -> Plan:
    """Return the block's plan, with files named as the registered one names them: those are no change."""
    same = {}
    for side in Side:
        address = registered.address(side)
        local = {name: getattr(address, name) for name in _LOCAL}
        same[str(side)] = proposed.address(side).model_copy(update=local)
    return proposed.model_copy(update=same)
