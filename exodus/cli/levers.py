"""The levers of a migration: `hold`, `release`, `abort`, `canary`, `sample`, `budget`,
`redirect`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from exodus.cli.attesting import ByOption, WhyOption
from exodus.cli.context import FileOption, HomeOption, home_at, migration_at, open_store
from exodus.cli.output import show, show_table
from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.cli.runs import ANSWERED
from exodus.closing.redirect import read_redirect, who_is_connected
from exodus.closing.redirect import redirect as send_away
from exodus.control import journal
from exodus.control.approvers import of_this_process
from exodus.control.ledger import BACK, CUTOVER
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.copy.impact import parse_budget, read_budget, set_budget
from exodus.cutover import levers
from exodus.cutover.canary_share import set_canary
from exodus.errors import DecisionRefused
from exodus.plan.migration_file import MigrationFile
from exodus.plan.vocabulary import Phase
from exodus.shadow.sampling import set_sample


def _at(
    file: Path | None,
    home: Path | None,
    work: Callable[[ControlStore, MigrationFile], Awaitable[str]],
) -> None:
    migration = migration_at(file, home)

    async def opened() -> str:
        async with await open_store(migration) as store:
            return await work(store, migration)

    show(asyncio.run(opened()))


def _stands(route: Route) -> str:
    return (
        f"authority {route.authority}, epoch {route.epoch}, writes "
        f"{'are held' if route.hold == 'writes' else 'go on'}"
    )


def hold(
    why: WhyOption, by: ByOption = None, file: FileOption = None, home: HomeOption = None
) -> None:
    """Postpone a switch: it stays ready and begins when you release it.

    Example: exodus hold --why "the batch job is late"
    """

    async def work(store: ControlStore, migration: MigrationFile) -> str:
        await levers.postpone(store, by=by or of_this_process().person, why=why)
        lag = await journal.lag_entries(store, migration.plan.partitions)
        now = await store.report(levers.NOW)
        at = f"at '{now['step']}'" if now else "not begun"
        return f"postponed until `exodus release`; switch {at}, live sync {lag} entries behind"

    _at(file, home, work)


PercentArgument = Annotated[
    float, typer.Argument(help="percent of the keys whose reads also go to the target; 0 ends it")
]


def canary(
    percent: PercentArgument, why: WhyOption, file: FileOption = None, home: HomeOption = None
) -> None:
    """Send a share of the reads to the target too, before a cutover.

    Example: exodus canary 5 --why "first step"
    """

    async def work(store: ControlStore, migration: MigrationFile) -> str:
        route = await set_canary(store, migration.plan, percent, why=why)
        return (
            f"canary: reads of {route.canary * 100:g} % of the keys also go to the "
            f"{route.follower}; see `exodus status`"
        )

    _at(file, home, work)


RateArgument = Annotated[float, typer.Argument(help="share of the keys, above 0 and 1 at most")]
IncludeOption = Annotated[
    list[str], typer.Option("--include", help="pattern of names that are sampled; repeat it")
]
ExcludeOption = Annotated[
    list[str], typer.Option("--exclude", help="pattern of names that are not; repeat it")
]


def sample(
    rate: RateArgument,
    why: WhyOption,
    include: IncludeOption = [],  # noqa: B006 - typer reads it
    exclude: ExcludeOption = [],  # noqa: B006
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Change which keys Compare samples, while it runs.

    Example: exodus sample 0.2 --include "cart:*" --why "look closer at carts"
    """

    async def work(store: ControlStore, _: MigrationFile) -> str:
        route = await set_sample(store, rate, include, exclude, why=why)
        return f"Compare samples {route.shadow_rate * 100:g} % of the keys; see `exodus status`"

    _at(file, home, work)


BudgetArgument = Annotated[
    str | None,
    typer.Argument(metavar="JSON", help="the new budget; without it the present one is shown"),
]
PlansOption = Annotated[
    bool, typer.Option("--plan", help="return to the budget of the migration file")
]


def budget(
    json: BudgetArgument = None,
    plan: PlansOption = False,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Show or change the load that backfill and verification may cause, while they run.

    Example: exodus budget '{"probe_ms_added_max": 0.3}'
    """

    async def work(store: ControlStore, migration: MigrationFile) -> str:
        if json is not None or plan:
            await set_budget(store, None if json is None else parse_budget(json))
        asked = await read_budget(store)
        return (
            f"{(asked or migration.plan.budget).model_dump_json()} "
            f"({'set by exodus budget' if asked else 'from the migration file'})"
        )

    _at(file, home, work)


PaceArgument = Annotated[
    float | None,
    typer.Argument(
        metavar="PER_SECOND",
        help="connections that each gateway process ends a second; 0 stops; without it "
        "clients are listed",
    ),
]
RefuseOption = Annotated[bool, typer.Option("--refuse-new", help="close new connections at once")]
BusyOption = Annotated[
    bool,
    typer.Option(
        "--busy",
        help="also end sessions that watch keys, are in a transaction, blocked or subscribed",
    ),
]


def redirect(
    per_second: PaceArgument = None,
    why: WhyOption = "redirected by hand",
    refuse_new: RefuseOption = False,
    busy: BusyOption = False,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """After the finalise: list clients of the gateways, and end their connections one by one.

    Example: exodus redirect 2 --why "DNS is switched"
    """

    async def work(store: ControlStore, _: MigrationFile) -> str:
        if per_second is not None:
            await send_away(store, per_second, refuse_new=refuse_new, busy=busy, why=why)
        rows = [
            (row["name"] or "(no name)", row["host"], row["kind"], row["connections"])
            for row in await who_is_connected(store)
        ]
        show_table("Clients of the gateways", ["Client", "Host", "State", "Connections"], rows)
        now = await read_redirect(store)
        orders = now["orders"]
        pace = (
            "redirect is off"
            if orders is None
            else f"redirect: each gateway process ends {orders['per_s']:g} connections a second"
        )
        stopped = "".join(f"; stopped by itself: {each}" for each in now["stopped"])
        return (
            f"{pace}; {sum(now['closed'].values())} ended, {now['came_back']} came since, "
            f"{now['left']} left{stopped}"
        )

    _at(file, home, work)


def release(
    why: WhyOption = "released by hand", file: FileOption = None, home: HomeOption = None
) -> None:
    """Continue a postponed switch, or end a hold of writes that nobody ended.

    Example: exodus release --why "the batch job is done"
    """

    async def work(store: ControlStore, migration: MigrationFile) -> str:
        return _stands(await levers.release_hold(store, migration.plan, why))

    _at(file, home, work)


async def _check_answered(migration: MigrationFile, api: PrefectApi | None) -> None:
    """Check that a switch is about to begin. Only Prefect knows whether its decision is answered.

    Raises:
        DecisionRefused: no switch is about to begin.
    """
    status = await read_status(migration, api)
    asked = [
        state
        for name in (Phase.COMMIT, Phase.ROLLBACK)
        if (state := status["phases"].get(name, {})).get("gate") in (CUTOVER, BACK)
    ]
    if any(
        state["state"] == ANSWERED or (state["state"] == "waiting" and status["prefect_away"])
        for state in asked
    ):
        return
    raise DecisionRefused(
        "no switch is under way",
        why=f"authority {status['authority']}, writes go on; {status['why_waiting']}",
        next_step="no action needed; exodus reject rejects a decision, exodus hold "
        "postpones the next switch",
    )


def abort(why: WhyOption, file: FileOption = None, home: HomeOption = None) -> None:
    """Give up a switch at any step: writes go on at the present authority.

    Example: exodus abort --why "the target is slow"
    """

    async def work(store: ControlStore, migration: MigrationFile) -> str:
        if not await levers.under_way(store):
            await _check_answered(migration, PrefectApi.known(home_at(home)))
        return _stands(await levers.give_up(store, migration.plan, why))

    _at(file, home, work)
