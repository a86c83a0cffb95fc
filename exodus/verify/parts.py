"""A verification in parts: processes on several machines compare slices, and one merges the
results.

A part keeps its progress, so another process can continue it. Slices overlap by a SCAN call. A key
at the border of two parts was counted by both, and is subtracted once.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from exodus.control.checkpoint import (
    DirectionProgress,
    PassProgress,
    forget_pass,
    load_pass,
    part_name,
    save_pass,
)
from exodus.control.store import ControlStore
from exodus.copy.scan import Slice, plan_slices
from exodus.engine import Engine
from exodus.verify.comparison import Divergence
from exodus.verify.passes import PassState, look
from exodus.verify.reconcile import begin_pass


class VerifyPart(BaseModel):
    """Slices that one process compares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of the pass, with the part's number
    of: PassProgress  # the pass as it began
    forwards: tuple[str, ...]
    backwards: tuple[str, ...]


class Found(BaseModel):
    """What one part found."""

    model_config = ConfigDict(extra="forbid")

    progress: PassProgress
    kinds: dict[str, str]  # digests of keys at its borders → their types


async def plan_parts(engine: Engine, name: str, count: int) -> list[VerifyPart]:
    """Begin a pass of `count` parts at most, each of slices that follow each other."""
    begun = await begin_pass(engine, name)
    slices = [
        [piece.slice_id for piece in await plan_slices(side, engine.plan.slices)]
        for side in (engine.authority, engine.follower)
    ]
    count = max(1, min(count, *map(len, slices)))
    cut = [
        [
            tuple(of[number * len(of) // count : (number + 1) * len(of) // count])
            for number in range(count)
        ]
        for of in slices
    ]
    return [
        VerifyPart(name=part_name(name, number), of=begun, forwards=forwards, backwards=backwards)
        for number, (forwards, backwards) in enumerate(zip(*cut, strict=True))
    ]


async def read_part(engine: Engine, part: VerifyPart) -> Found:
    """Compare a part's slices; goes on where an earlier process of it ended.

    Raises:
        SourceError, TargetError: a side was lost; how far it came is kept.
    """
    kept = await load_pass(engine.store, part.name)
    if kept is None or (kept.of, kept.since_ms) != (part.of.of, part.of.since_ms):
        kept = part.of.model_copy(
            update={"forwards": _walk(part.forwards), "backwards": _walk(part.backwards)},
        )
    way = PassState(engine.store, part.name, kept)

    async def note(found: Sequence[Divergence]) -> None:
        del found  # they are among the suspects
        await way.keep()

    await look(engine, way, note)
    progress = way.taken(await engine.store.now_ms())
    await save_pass(engine.store, part.name, progress)
    return Found(progress=progress, kinds=way.forwards.kinds)


def _walk(slices: Sequence[str]) -> DirectionProgress:
    return DirectionProgress(cursors={slice_id: Slice.parse(slice_id).start for slice_id in slices})


async def merge_parts(store: ControlStore, name: str, found: Sequence[Found]) -> PassProgress:
    """Return the pass as one process would have it at the end of its look."""
    first = found[0].progress
    whole = first.model_copy(
        update={
            "forwards": DirectionProgress(cursors={}),
            "backwards": DirectionProgress(cursors={}),
            "resumed": 0,
        }
    )
    counts: dict[str, int] = {}
    by_type: dict[str, int] = {}
    excluded: dict[str, int] = {}
    suspects: dict[tuple[int, str], tuple[int, str, str, str]] = {}
    kinds: dict[str, str] = {}
    for each in found:
        part = each.progress
        drift = max(counts.get("ttl_drift_ms_max", 0), part.counts.get("ttl_drift_ms_max", 0))
        for totals, more in (
            (counts, part.counts),
            (by_type, part.by_type),
            (excluded, part.excluded),
        ):
            for key, value in more.items():
                totals[key] = totals.get(key, 0) + value
        counts["ttl_drift_ms_max"] = drift
        suspects.update({(row[0], row[1]): row for row in part.suspects})
        kinds.update(each.kinds)
    for mark in _twice([each.progress.forwards for each in found]):
        counts["keys_authority"] -= 1
        if kinds.get(mark) in by_type:
            by_type[kinds[mark]] -= 1
    counts["keys_follower"] = counts.get("keys_follower", 0) - len(
        _twice([each.progress.backwards for each in found])
    )
    whole.counts, whole.by_type, whole.excluded, whole.suspects = (
        counts,
        by_type,
        excluded,
        list(suspects.values()),
    )
    for number in range(len(found)):
        await forget_pass(store, part_name(name, number))
    return whole


def _twice(walks: Sequence[DirectionProgress]) -> list[str]:
    """Return the marks of keys that the parts on both sides of a border counted."""
    open_borders: dict[str, list[set[str]]] = {}
    for walk in walks:
        for border, marks in walk.borders.items():
            open_borders.setdefault(border, []).append(set(marks))
    return [
        mark for sides in open_borders.values() if len(sides) == 2 for mark in sides[0] & sides[1]
    ]
