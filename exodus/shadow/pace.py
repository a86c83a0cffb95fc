"""The impact budget in Compare: kept on both sides, before whatever is copied, tried or compared.

What Compare cannot do in time, it does not do: sampled requests expire and are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from exodus.copy.impact import Paces
from exodus.engine import Engine


class BothPaces:
    """A pace on each side. The slower one rules: most of what Compare does asks both."""

    def __init__(self, *sides: Paces) -> None:
        self._sides = sides

    @property
    def why(self) -> str:
        """Return why Compare is slow, or empty."""
        return next((pace.why for pace in self._sides if pace.why), "")

    async def turn(self) -> None:
        """Wait as long as the budget asks."""
        for pace in self._sides:
            await pace.turn()


@contextlib.asynccontextmanager
async def both_paces(engine: Engine) -> AsyncIterator[BothPaces]:
    """Measure both sides, and slow what asks for turns.

    Raises:
        SourceError, TargetError: a node of a side does not answer.
        redis.exceptions.RedisError, OSError: the control store does not answer.
    """
    budget = engine.plan.budget
    async with (
        Paces(engine.store, engine.authority, budget, what="comparing, authority") as authority,
        Paces(engine.store, engine.follower, budget, what="comparing, follower") as follower,
    ):
        yield BothPaces(authority, follower)
