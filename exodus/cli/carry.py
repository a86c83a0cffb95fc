"""`exodus carry`: compare users, settings and functions, and copy them to the follower."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, Literal

import typer

from exodus.cli.context import FileOption, HomeOption, JsonOption, migration_at, open_store
from exodus.cli.output import show, show_json, show_table
from exodus.control.route import read_route
from exodus.cutover import beside_carry, beside_keys
from exodus.cutover.beside_carry import Carried
from exodus.cutover.beside_rows import BesideRow
from exodus.cutover.functions import carry_functions
from exodus.engine import open_engine
from exodus.net.leg import Leg
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.topology.endpoint import Endpoint

ReadMode = Literal["settings", "users", "functions"]
Json = dict[str, Any]
_BY_SERVER: dict[str, Callable[[Plan, Leg, Leg], Awaitable[Carried]]] = {
    "settings": beside_carry.carry_settings,
    "users": beside_carry.carry_users,
}


async def _carry(
    migration: MigrationFile, what: ReadMode | None
) -> tuple[Carried, list[BesideRow]]:
    plan, carried = migration.plan, Carried()
    async with await open_store(migration) as store:
        route = await read_route(store)
        ends = [Endpoint(side, plan.address(side)) for side in (route.authority, route.follower)]
        async with (
            await ends[0].connect(name="exodus-beside") as authority,
            await ends[1].connect(name="exodus-beside") as follower,
        ):
            if what in _BY_SERVER:
                to_one = partial(_BY_SERVER[what], plan)
                carried = await _to_each_node(to_one, ends[1], authority, follower)
            elif what == "functions":
                found = await carry_functions(await open_engine(store, plan, route))
                carried = Carried(
                    [f"FUNCTION LOAD REPLACE {name}" for name in found.carried],
                    [f"# {name}: {why}" for name, why in found.failed.items()],
                )
            return carried, await beside_keys.compare(plan, authority, follower)


async def _to_each_node(
    to_one: Callable[[Leg, Leg], Awaitable[Carried]], to: Endpoint, authority: Leg, follower: Leg
) -> Carried:
    """Carry to every server of the follower.

    Nodes of a cluster share neither settings nor users, and a replica may be a master next.
    """
    found = Carried()
    here, there = await authority.any_leg(), await follower.nodes()
    async with AsyncExitStack() as opened:
        if to.cluster is not None:
            for node in to.replicas():
                leg = await node.connect(name="exodus-beside")
                there.append(await opened.enter_async_context(leg))
        for leg in there:
            part = await to_one(here, leg)
            where = f"{leg.address.place}: " if len(there) > 1 else ""
            found.done += [f"{where}{line}" for line in part.done]
            found.left += [f"{where}{line}" for line in part.left]
    return found


def carry(
    what: Annotated[
        ReadMode | None,
        typer.Argument(
            help="settings, users or functions; without it both sides are only compared"
        ),
    ] = None,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy settings, users or functions to the follower; print the commands that it refuses.

    Example: exodus carry users
    """
    carried, rows = asyncio.run(_carry(migration_at(file, home), what))
    must = beside_keys.required(rows)
    if json:
        show_json(
            {"done": carried.done, "left": carried.left, "rows": [row.as_json() for row in rows]}
        )
    elif what is None:
        columns = ["what", "outcome", "authority", "follower", "means", "remedy"]
        show_table(
            "Beside the keys",
            columns,
            [
                (row.what, str(row.outcome), row.authority, row.follower, row.means, row.remedy)
                for row in rows
            ],
        )
    else:
        for line in carried.done:
            show(f"done: {line}")
        for line in carried.left:
            show(f"left: {line}")
        for row in must:
            show(f"must still be mended: {row.what}: {row.means} ({row.remedy})")
    if must:
        raise typer.Exit(1)
