"""A row of a check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hiredis import ReplyError
from redis.exceptions import RedisError

from exodus.errors import ExodusError
from exodus.plan.bounds import ACCEPTANCE_NAMED
from exodus.topology.node import Node


@dataclass(frozen=True)
class Checked:
    """One thing that holds or not. `why` and `next_step` say what it means that it does not."""

    check: str
    ok: bool
    detail: str = ""
    why: str = ""
    next_step: str = ""
    judged: bool = True  # False: it is only shown, whatever it says
    by_name: bool = False  # it could not be done here: an approval accepts it by name
    line: str = ""  # of the form, where a person has to see it in any case


def not_done(check: str, why: str, next_step: str) -> Checked:
    """Return the row of a check that cannot be done here. A person accepts it by name."""
    return Checked(check, False, "not done", why, next_step, by_name=True)


def told(check: str, detail: str, *, line: str = "") -> Checked:
    """Return a row that is only shown."""
    return Checked(check, True, detail, judged=False, line=line)


# What ends a check that cannot be run to its end.
FAILURES = (ExodusError, ReplyError, RedisError, OSError, TimeoutError)


def broken(name: str, exc: Exception) -> Checked:
    """Return the row of a check that one of `FAILURES` ended: it has failed."""
    if isinstance(exc, ExodusError):
        what, why, next_step = exc.what, exc.why, exc.next_step
    else:
        what, why, next_step = str(exc) or type(exc).__name__, "", "look at the log of this run"
    return Checked(f"{name}: could be run", False, what, why, next_step)


async def on_each(
    nodes: Sequence[Node], work: Callable[[Node], Awaitable[list[Checked]]]
) -> list[Checked]:
    """Do the work on each node of a side, and return one row a check."""
    return of_nodes({node.where: await work(node) for node in nodes})


def of_nodes(found: Mapping[str, Sequence[Checked]]) -> list[Checked]:
    """Return one row for each check of several nodes: what it says where it fails, else what the
    nodes say.

    Args:
        found: node → its rows.
    """
    by_check: dict[str, list[tuple[str, Checked]]] = {}
    for node, rows in found.items():
        for row in rows:
            by_check.setdefault(row.check, []).append((node, row))
    return [
        each[0][1] if len(found) == 1 else _of_several(each, len(found))
        for each in by_check.values()
    ]


def _of_several(rows: Sequence[tuple[str, Checked]], nodes: int) -> Checked:
    failing = [(node, row) for node, row in rows if not row.ok]
    shown = failing or rows
    details = {row.detail for _, row in shown}
    if len(details) == 1 and len(shown) == nodes:
        detail = f"{shown[0][1].detail} (each of {nodes} nodes)".strip()
    else:
        more = len(shown) - ACCEPTANCE_NAMED
        named = [f"{node}: {row.detail}".rstrip(": ") for node, row in shown[:ACCEPTANCE_NAMED]]
        detail = "; ".join(named) + (f"; and {more} more" if more > 0 else "")
    judged = any(row.judged for _, row in rows)
    return replace(shown[0][1], detail=detail, judged=judged)
