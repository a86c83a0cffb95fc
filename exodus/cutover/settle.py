"""Settling what a dead switch left behind. Any process can do it, any number of times.

If the route does not name the new authority, the switch is undone: its fence is lowered and writers
get their grant back. If the route does name it, the switch is finished: strays on the old side are
ended, then changes flow back there.

It does not matter when this runs. Each change on a side is a transaction that first checks whether
it is still wanted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import replace_write_grant
from exodus.cutover.fence import Record, read_record
from exodus.cutover.fence_cluster import fence_for
from exodus.errors import DecisionRefused, ExodusError
from exodus.native import replica
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, JournalMode, Side, UserRole
from exodus.topology.endpoint import Endpoint


def closed(switch: str) -> bytes:
    """Return the follower's guard value between the old epoch's end and the new epoch."""
    return b"closed by " + switch.encode()


def unfinished(route: Route) -> bool:
    """Return whether a switch changed the authority and did not come to its end."""
    return (
        bool(route.switch)
        and route.hold is Hold.NONE
        and not route.sync
        and route.journal is JournalMode.ALL
    )


async def settle(store: ControlStore, plan: Plan) -> list[str]:
    """Put right what is left of a switch that ended early; what could not be done yet, in words
    (empty: all is well).

    Does nothing while writes are held: a switch is under way then.
    """
    try:
        # Before the route: a fence that is recorded now, under a route without a hold that is read
        # after it, is of a switch that has ended.
        fences = {side: await read_record(store, side) for side in Side}
        route = await read_route(store)
    except (RedisError, OSError) as exc:
        return [f"the control store is away: {type(exc).__name__}"]
    if route.hold is Hold.WRITES:
        return ["writes are held"]
    work: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        (
            f"lift the fence on the {route.authority}",
            lambda: _lower(store, plan, route.authority, fences[route.authority]),
        ),
        (
            f"put the fence on the {route.follower} up again",
            lambda: _keep_raised(store, plan, route.follower, fences[route.follower]),
        ),
        (f"give writers their right to the {route.follower} back", lambda: _reopen(plan, route)),
        (f"let changes flow back to the {route.follower}", lambda: _finish(store, plan, route)),
    ]
    left: list[str] = []
    for what, do in work:
        try:
            await do()
        except (ExodusError, RedisError, OSError) as exc:
            left.append(
                f"{what}: {exc.why if isinstance(exc, ExodusError) else type(exc).__name__}"
            )
    return left


async def _lower(store: ControlStore, plan: Plan, side: Side, record: Record | None) -> None:
    if record is not None:
        async with fence_for(store, side, plan) as fence:
            await fence.lower(record)


async def _keep_raised(store: ControlStore, plan: Plan, side: Side, record: Record | None) -> None:
    if record is not None:
        async with fence_for(store, side, plan) as fence:
            await fence.keep_raised(record)


async def _reopen(plan: Plan, route: Route) -> None:
    """After a switch that was given up the writers' epoch is a new one, since lanes that lost their
    right do not come back to an old one.
    """
    if not (route.switch and route.sync):
        return
    await replica.reopen(plan, route, closed(route.switch))
    endpoint = Endpoint(route.follower, plan.acting(UserRole.SWITCH).address(route.follower))
    # It had come so far, or it had not; of a cluster, on some nodes
    for before in (
        closed(route.switch),
        b"%d" % (route.writer_epoch - 1),
    ):
        if await replace_write_grant(endpoint, plan.name, before, b"%d" % route.writer_epoch):
            return


async def _finish(store: ControlStore, plan: Plan, route: Route) -> None:
    if not unfinished(route):
        return
    async with fence_for(store, route.follower, plan) as fence:
        await fence.kill_strays()
    try:
        await change_route(
            store,
            route,
            route.next(sync=True, why=f"the {route.authority} is the authority; changes flow back"),
        )
    except DecisionRefused:
        return  # somebody else changed the route meanwhile, and looks after it
