"""A plan that the control store told, with what only its reader may choose.

Whoever can write to the control store can put any plan there. Taken as it is, it could have this
machine read a file and send it to another host as a password, delete files, or give its work to a
scheduler that answers with code. No I/O.
"""

from __future__ import annotations

from exodus.errors import OperatorError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

_PLACE = ("host", "port", "sentinels", "service", "cluster", "username", "tls", "server_name")
# Logins with their secrets, files of this machine, and who runs code
OURS = (
    "users",
    "logins",
    "compare_user",
    "compare_script_user",
    "candidates",
    "capture_folder",
    "capture_hours_max",
    "workers",
)


def in_place(registered: Plan, own: Plan, *, named: str) -> Plan:
    """Return the registered plan with the logins, secrets, files and workers of one's own.

    Args:
        registered: the plan in the control store.
        own: the plan of the migration file or block that is read here.
        named: what `own` is called.

    Raises:
        OperatorError: they name different servers, so the password is for another one.
    """
    changed: dict[str, object] = {name: getattr(own, name) for name in OURS}
    for side in Side:
        theirs, ours = registered.address(side), own.address(side)
        if any(getattr(theirs, name, None) != getattr(ours, name, None) for name in _PLACE):
            raise OperatorError(
                f"{named} names another {side} than the registered plan",
                why=f"{ours.url} is not {theirs.url}, which is registered",
                next_step=f"put {theirs.url} back if it is right, and cancel or end what runs; "
                "else exodus apply",
            )
        changed[str(side)] = ours
    return registered.model_copy(update=changed)
