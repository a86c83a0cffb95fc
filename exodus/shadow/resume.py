"""Where a sampling stands, for a comparer that takes it up after another one ended.

What was copied stays a copy: a comparer that copied it again would heal what it is to find. So the
store knows up to where journal and sampled requests were read, and what was counted. Which keys
were copied is in the set `seeded`; those whose first copy was under way are in `seeding`, and are
copied again.
"""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from exodus.control import journal
from exodus.control.changes import Key, unpack
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import SAMPLING_KEPT_MS
from exodus.shadow.copies import Copied, CopiesState
from exodus.shadow.tally import Tally

ENDED = "the comparer ended before it was judged"


class Sampling(BaseModel):
    """Where one sampling stands."""

    model_config = ConfigDict(extra="forbid")

    of: list[str]  # what the sampling depends on: `work_of`
    at_ms: int  # when it was written, by the control store's clock
    shadow_at: str  # the last sampled request that was taken
    positions: dict[int, str]  # of the journal, up to which copies are kept up
    baseline: dict[str, int] = Field(default_factory=dict)
    tally: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    waiting: dict[str, int] = Field(default_factory=dict)  # command → replies not judged to the end
    writes_waiting: dict[str, int] = Field(default_factory=dict)  # command → replies to writes
    states_compared: int = 0
    refused: int = 0
    intake: dict[str, int] = Field(default_factory=dict)
    lost: int = 0  # rows that the ledger had no room for
    away_ms: int = 0  # for which no comparer ran, so far
    lives: dict[str, str] = Field(default_factory=dict)  # side → the servers at the last copies
    copied_again: int = 0  # keys, since a server may have lost some


def work_of(route: Route) -> list[str]:
    """Return what the work depends on: a change of it ends one sampling and begins another."""
    return [
        str(part)
        for part in (
            route.shadow_salt,
            route.authority,
            route.sync,
            route.native,
            route.writer_epoch,
        )
    ]


async def save(store: ControlStore, sampling: Sampling) -> None:
    """Write where a sampling stands."""
    await answered(
        store.client.set(store.keys.sampling, sampling.model_dump_json(), px=SAMPLING_KEPT_MS)
    )


async def load(store: ControlStore, route: Route) -> Sampling | None:
    """Return where the sampling that the route asks for stands; None: nobody began it, or the
    journal does not reach back to where it was left.
    """
    raw = await answered(store.client.get(store.keys.sampling))
    if raw is None:
        return None
    found = Sampling.model_validate_json(raw)
    if found.of != work_of(route):
        return None
    return found if await journal.covers(store, positions_of(found)) else None


def positions_of(sampling: Sampling) -> dict[int, bytes]:
    """Return the positions of the journal."""
    return {partition: at.encode() for partition, at in sampling.positions.items()}


async def copies_of(store: ControlStore, sampling: Sampling) -> CopiesState:
    """Return what is known of the copies."""
    seeding = await _listed(store, store.keys.seeding)
    keys = await _listed(store, store.keys.seeded) - seeding
    state = CopiesState(positions_of(sampling), {key: Copied() for key in keys})
    state.refused = sampling.refused
    state.lives, state.copied_again = dict(sampling.lives), sampling.copied_again
    state.judged_before = int(
        await answered(store.client.pfcount(store.keys.judged(int(sampling.of[0]))))
    )
    return state


def tally_of(sampling: Sampling) -> Tally:
    """Return what was counted. What was not judged to the end is inconclusive."""
    told = sampling.tally
    tally = Tally(
        {name: Counter(row) for name, row in told.get("rows", {}).items()},
        Counter(told.get("reasons", {}).get("inconclusive", {})),
        Counter(told.get("reasons", {}).get("not_tried", {})),
        {name: Counter(row) for name, row in told.get("by_error", {}).items()},
        {name: Counter(row) for name, row in told.get("why_not", {}).items()},
    )
    for name, count in sampling.waiting.items():
        for _ in range(count):
            tally.undecided(tally.row(name.encode()), ENDED)
    for name, count in sampling.writes_waiting.items():
        for _ in range(count):
            tally.unproved(name.encode(), ENDED)
    return tally


def told_of(tally: Tally) -> dict[str, dict[str, dict[str, int]]]:
    """Return a tally as it is written."""
    return {
        "rows": {name: dict(row) for name, row in tally.rows.items()},
        "reasons": {
            "inconclusive": dict(tally.inconclusive),
            "not_tried": dict(tally.not_tried),
        },
        "by_error": {name: dict(row) for name, row in tally.by_error.items()},
        "why_not": {name: dict(row) for name, row in tally.why_not.items()},
    }


async def _listed(store: ControlStore, name: str) -> set[Key]:
    packed = await answered(store.client.smembers(name))
    return {key for one in packed for key in unpack(one)}
