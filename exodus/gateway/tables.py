"""The command tables of both sides, as their servers describe them."""

from __future__ import annotations

import logging
from typing import NamedTuple

from exodus.commands.table import CommandTable
from exodus.errors import SourceError
from exodus.gateway.store_state import STORE_ERRORS
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole

log = logging.getLogger(__name__)
_ROW_FIELDS_OF_7 = 10  # of a row of COMMAND, from Redis 7.0 on


class Tables(NamedTuple):
    """The commands of both sides together."""

    commands: CommandTable
    old: frozenset[Side] = frozenset()  # sides older than Redis 7.0


async def load_table(plan: Plan) -> Tables:
    """Read the commands of both sides. The target's may be missing: it serves nobody yet.

    Raises:
        SourceError: the source does not list its commands.
    """
    replies = []
    old: set[Side] = set()
    for side in Side:
        client = make_side_client(plan.acting(UserRole.GATEWAY).address(side), field=side)
        client.response_callbacks.pop("COMMAND", None)  # redis-py would reshape the rows
        try:
            rows = await answered(client.execute_command("COMMAND"))
            replies.append(rows)
            if rows and len(rows[0]) < _ROW_FIELDS_OF_7:
                old.add(side)
        except STORE_ERRORS as exc:
            if side is Side.SOURCE:
                raise SourceError(
                    f"the source {plan.source.url} does not list its commands",
                    why=str(exc) or type(exc).__name__,
                    next_step="start the source, or let the user in source run COMMAND",
                ) from exc
            log.warning("the target does not list its commands: %s", exc)
        finally:
            await client.aclose()
    return Tables(CommandTable.from_replies(*replies), frozenset(old))
