"""Comparing every key while writes are held: the only way to close a gap of scripts.

If the gateways' journal is the only feed, a script may write keys that it does not declare, and
nobody reports them. Behind the fence nothing changes, so a difference is such a write. Exodus
copies the key from the authority, or removes it, compares once more, and closes the gap. The hold's
time bounds all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from exodus.control.changes import Key
from exodus.control.gap_reasons import SCRIPTS
from exodus.control.gaps import close_gap, open_gaps
from exodus.control.store import ControlStore
from exodus.engine import Engine
from exodus.errors import CutoverAborted
from exodus.plan.bounds import HELD_COMPARISON_NAMED
from exodus.plan.plan import Plan
from exodus.verify.comparison import Comparison, Divergence
from exodus.verify.passes import PassState, look
from exodus.verify.reconcile import compare_now

_RETRY = (
    "feed: replication, tracking or notifications hears of them; or raise hold_seconds_max "
    "and retry"
)


async def script_gaps(store: ControlStore) -> list[str]:
    """Return the names of the open gaps that scripts opened."""
    return [name for name, gap in (await open_gaps(store)).items() if gap.get("why") == SCRIPTS]


async def verify_held(
    engine: Engine,
    comparison: Comparison,
    *,
    drained: Callable[[], Awaitable[None]],
    left_s: Callable[[], float],
) -> dict[str, int]:
    """Compare every key, mend what differs, and close the gaps of scripts; how many keys were
    compared and mended.

    Args:
        drained: waits until live sync has copied all that was marked.
        left_s: seconds that writes may still be held.

    Raises:
        CutoverAborted: the time is over, or keys differ although they were copied again.
        SourceError, TargetError: a side was lost.
    """
    gaps = await script_gaps(engine.store)
    if not gaps:
        return {}
    way = PassState()
    differing: dict[Key, Divergence] = {}

    async def note(found: Sequence[Divergence]) -> None:
        differing.update({(each.db, each.key): each for each in found})
        way.suspects.clear()
        if not left_s():
            raise CutoverAborted(
                f"{way.report.keys_authority:,} keys were compared while writes were held, and "
                "not all of them",
                why="scripts may have written keys that no feed reports, and hold_seconds_max is "
                "over",
                next_step=_RETRY,
            )

    await look(engine, way, note)
    keys = list(differing)
    if keys:
        await engine.feed.mark(keys)
        await drained()
        left = await compare_now(comparison, keys)
        if left:
            named = ", ".join(
                f"db{found.db} {found.key!r} ({found.kind})"
                for found in left[:HELD_COMPARISON_NAMED]
            )
            raise CutoverAborted(
                f"{len(left)} keys differ after they were copied again under the hold",
                why=named,
                next_step="exodus verify --repair, then retry; writes go on at the old side",
            )
    for gap in gaps:
        await close_gap(engine.store, gap)
    return {
        "keys_compared_under_hold": way.report.keys_authority,
        "keys_mended_under_hold": len(keys),
    }


async def told(store: ControlStore, plan: Plan) -> list[str]:
    """Say in a form what a gap of scripts means for the cutover; nothing where there is none."""
    if not await script_gaps(store):
        return []
    line = (
        "Scripts ran that may write keys which no feed reports: every key is compared while "
        "writes are held"
    )
    report = await store.report("verification.migrate")
    if report is None or not report.get("seconds"):
        return [f"{line} (at most {plan.hold_seconds_max:.0f} s)"]
    needed_s = float(report["seconds"])
    fits = (
        ""
        if needed_s < plan.hold_seconds_max
        else ": THIS DOES NOT FIT, the cutover would be given up"
    )
    return [
        f"{line}: about {needed_s:.1f} s for {report['keys_authority']:,} keys, of "
        f"{plan.hold_seconds_max:.0f} s allowed{fits}"
    ]
