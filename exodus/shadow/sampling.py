"""Changing which keys Compare samples, while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from exodus.control import registry
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused, OperatorError
from exodus.plan.bounds import SAMPLING_FOLLOW_S


async def set_sample(
    store: ControlStore, rate: float, include: Sequence[str], exclude: Sequence[str], *, why: str
) -> Route:
    """Sample another share of the keys, or other names. Waits until gateways and comparers do so.

    Keys that are not sampled any more are removed from the target.

    Raises:
        OperatorError: it is no share, a pattern is empty, or a process did not follow.
        DecisionRefused: Compare does not run, or the route was changed at this very moment.
    """
    if not 0 < rate <= 1:
        raise OperatorError(
            f"sample: {rate:g} is no share",
            why="a share of the keys is above 0 and 1 at most; 0.01 is 1 %",
            next_step="exodus sample 0.01 --why …",
        )
    for field, patterns in (("include", include), ("exclude", exclude)):
        if "" in patterns:
            raise OperatorError(
                f"--{field}: '' is no pattern",
                why="it names only a key without a name",
                next_step=f"write a pattern as in KEYS (--{field} 'cart:*'), or leave it out",
            )
    before = await read_route(store)
    if not before.shadow_rate:
        raise DecisionRefused(
            "no keys are sampled now",
            why="Compare does not run",
            next_step="exodus start compare; sample in the migration file is the share to begin "
            "with",
        )
    route = await change_route(
        store,
        before,
        before.next(
            why=why,
            shadow_rate=rate,
            shadow_include=tuple(include),
            shadow_exclude=tuple(exclude),
        ),
    )
    for kind in ("gateway", "comparer"):
        await registry.wait_for(
            store,
            kind,
            lambda beat: beat.epoch >= route.epoch,
            within_s=SAMPLING_FOLLOW_S,
            otherwise=f"a {kind} did not follow the route",
        )
    return route
