"""Expiries that a replica has later than its source, and their correction."""

from __future__ import annotations

from collections.abc import Sequence

from exodus.control.changes import Key
from exodus.copy.read import clock_ms
from exodus.native.link import connect_side
from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import EXPIRIES_RESTATEMENTS
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


async def restate_expiries(plan: Plan, keys: Sequence[Key]) -> list[Key]:
    """Let the source say the expiry that these keys have once more, as an absolute time; those that
    changed at every try.

    For a source that propagates the time left (before Redis 7). No reader of the source sees a
    change: the reading is exact, as the server's clock was the same on both sides of it. Under
    WATCH, so that a write in between wins.

    Raises:
        SourceError: the source was lost; what was said stands.
        hiredis.ReplyError: the source refuses PEXPIREAT.
    """
    changing: list[Key] = []
    async with await connect_side(plan, Side.SOURCE) as leg:
        for db, key in keys:
            await leg.select(db)
            for _ in range(EXPIRIES_RESTATEMENTS):
                if await _restated(leg, key):
                    break
            else:
                changing.append((db, key))
    return changing


async def _restated(leg: Leg, key: bytes) -> bool:
    # Stricter than `large.expiry_of`, which only compares: this value is written back, and must be
    # exact to the millisecond.
    watching, before, left_ms, after = await leg.pipeline(
        [("WATCH", key), ("TIME",), ("PTTL", key), ("TIME",)]
    )
    now_ms = clock_ms(before)
    if left_ms <= 0 or now_ms != clock_ms(after):
        await leg.call("UNWATCH")
        return bool(left_ms <= 0)  # it has no expiry, or is gone
    if isinstance(watching, ReplyError):
        raise watching
    return await leg.transaction([("PEXPIREAT", key, now_ms + left_ms)]) is not None
