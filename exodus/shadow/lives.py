"""Whether both sides are still the servers on which keys were copied and compared.

A server that restarted, or took over in a failover, may have less than it answered before. What
differs then is no fault of the copying. So nothing is confirmed before this was looked at, and the
copies are made again (`SampledCopies.copy_again`). With live sync on, it makes them equal again
(`exodus/live/server_runs.py`), and Compare waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exodus.control.run_ids import covered, known_run_ids
from exodus.engine import Engine
from exodus.net.leg import error_of
from exodus.plan.bounds import COMPARE_LIVES_FRESH_S
from exodus.plan.vocabulary import Side


class Lives:
    """The lives of both sides since the connections of one engine were made."""

    def __init__(self, engine: Engine, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now
        self._looked_at = now()  # the engine has just asked

    async def check(self) -> None:
        """See that no server may have lost keys since the engine was opened. A look of the last
        `COMPARE_LIVES_FRESH_S` is enough: a difference was seen twice before it is confirmed.

        Raises:
            SourceError, TargetError: one may have, or does not answer.
        """
        if self._now() - self._looked_at < COMPARE_LIVES_FRESH_S:
            return
        engine = self._engine
        known = await known_run_ids(engine.store) if engine.route.sync else engine.run_ids
        for endpoint in (engine.authority, engine.follower):
            life = await endpoint.life()
            if not covered(known.get(endpoint.side, life), life):
                raise error_of(endpoint.side)(
                    f"the {endpoint.side} restarted, or another server took over",
                    why="it may have lost keys",
                    next_step="no action needed: what differs is copied again",
                )
        self._looked_at = self._now()


def lost_by(before: Mapping[str, str], now: Mapping[Side, str]) -> list[Side]:
    """Return the sides that may have lost keys between two openings of an engine."""
    return [
        side for side, life in now.items() if side in before and not covered(before[side], life)
    ]
