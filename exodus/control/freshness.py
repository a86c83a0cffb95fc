"""Freshness: which share of the keyspace is *verified since its last write*, which is *dirty*, and
whether anything was *never verified*.

It is exact without a mark on every key. A complete verification pass records the journal position
of each partition. The lanes keep the keys that were written after it and not compared since
(`live/recheck.py`). That set is as large as the recent writes. All other keys are verified. Both
sides count alike, so freshness stays true over a switch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from exodus.control import journal
from exodus.control.gaps import open_gaps
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import FRESHNESS_COMING_MAX


class Pass(BaseModel):
    """A verification of all keys in both directions that found no divergence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_ms: int  # when it began, by the store's clock; also its name
    positions: dict[int, str]  # partition → last journal entry that it speaks for
    keys: int  # of the authority, as it found them


class PartitionState(BaseModel):
    """One partition, as the lane that holds it sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_ms: int
    pass_ms: int  # the pass that it counts from; 0 where there was none
    dirty: int = 0
    oldest_ms: int = 0  # when the oldest of them was written
    # More were written than are kept: the partition counts as never verified until the next pass
    overflow: bool = False


class Freshness(BaseModel):
    """All partitions together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: int  # of the authority, as the last pass found them
    dirty: int
    oldest_dirty_s: float
    never: int  # keys of which nothing is known: no pass, or more writes since than are kept
    pass_age_s: float | None
    # Open gaps, each with its reason: keys that may differ without being known
    gaps: tuple[str, ...] = ()
    overflowed: int = 0  # partitions that only the next pass can speak for

    @property
    def share(self) -> float:
        """Return the share of keys verified since their last write, 0 to 1. It is below 1 while a
        gap is open.
        """
        if not self.keys:
            return 1.0 if self.pass_age_s is not None and not self.never and not self.gaps else 0.0
        return max(0.0, 1.0 - (self.dirty + self.never + len(self.gaps)) / self.keys)

    def __str__(self) -> str:
        text = self._text()
        if not self.gaps:
            return text
        return (
            f"{text}, {len(self.gaps)} OPEN GAP{'S' if len(self.gaps) > 1 else ''}: "
            f"{'; '.join(self.gaps[:3])}"
        )

    def _text(self) -> str:
        if self.pass_age_s is None:
            return "never verified"
        # Rounded down: 100 % is said where it is so.
        words = [
            f"{math.floor(self.share * 10_000 + 1e-9) / 100:.2f} % verified",
            f"{self.dirty:,} dirty",
        ]
        if self.dirty:
            words.append(f"oldest {self.oldest_dirty_s:.0f} s")
        if self.never:
            words.append(f"{self.never:,} never verified")
        return ", ".join(words)


async def record_pass(
    store: ControlStore, at_ms: int, positions: Mapping[int, bytes], keys: int
) -> None:
    """Say that a clean pass over everything began at `at_ms`, at these journal positions."""
    found = Pass(
        at_ms=at_ms,
        keys=keys,
        positions={partition: entry_id.decode() for partition, entry_id in positions.items()},
    )
    await answered(store.client.set(store.keys.verified_pass, found.model_dump_json()))


async def last_pass(store: ControlStore) -> Pass | None:
    """Return the newest clean pass, or None."""
    raw = await answered(store.client.get(store.keys.verified_pass))
    return None if raw is None else Pass.model_validate_json(raw)


async def forget_pass(store: ControlStore) -> None:
    """Forget the last pass: the sides swapped their roles, or the copy begins anew."""
    await answered(store.client.delete(store.keys.verified_pass, store.keys.fresh))


async def save_partitions(store: ControlStore, states: Mapping[int, PartitionState]) -> None:
    """Write what a process's lanes see."""
    if states:
        await answered(
            store.client.hset(
                store.keys.fresh,
                mapping={
                    str(partition): state.model_dump_json() for partition, state in states.items()
                },
            )
        )


async def read_freshness(store: ControlStore, partitions: int) -> Freshness:
    """Everything together, as a share of the keys that the last pass found.

    Keys whose entries no lane has read yet are dirty too. A partition that nobody has reported on
    since the pass was never verified.
    """
    newest = await last_pass(store)
    now_ms = await store.now_ms()
    gaps = tuple(str(gap.get("why") or name) for name, gap in (await open_gaps(store)).items())
    if newest is None:
        return Freshness(keys=0, dirty=0, oldest_dirty_s=0.0, never=0, pass_age_s=None, gaps=gaps)
    raw = await answered(store.client.hgetall(store.keys.fresh))
    states = [PartitionState.model_validate_json(value) for value in raw.values()]
    known = [state for state in states if state.pass_ms == newest.at_ms and not state.overflow]
    synced = await journal.positions(store)
    coming = await journal.since(
        store,
        {partition: synced.get(partition, b"0-0") for partition in range(partitions)},
        at_most=FRESHNESS_COMING_MAX,
    )
    ages_ms = [now_ms - state.oldest_ms for state in known if state.dirty] + [
        now_ms - at_ms for at_ms in coming.times_ms[:1]
    ]
    return Freshness(
        keys=newest.keys,
        dirty=sum(state.dirty for state in known) + len(set(coming.keys)),
        oldest_dirty_s=max(ages_ms, default=0) / 1000,
        never=round(newest.keys * (partitions - len(known)) / partitions),
        pass_age_s=(now_ms - newest.at_ms) / 1000,
        gaps=gaps,
        overflowed=sum(state.overflow for state in states if state.pass_ms == newest.at_ms),
    )
