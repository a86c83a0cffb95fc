"""A pass over all keys of both sides: slices of the authority are compared with the follower, and
slices of the follower are searched for extra keys.

Several slices run at a time, each over its own connections, so that both servers stay busy and a
slow link is used well. Slices overlap by a SCAN call (`scan.py`). A key of the overlap belongs to
the slice that sees it first. The last call of a slice is compared with the first of the next, so
every key counts once. Positions, open borders, and counts change together between two batches, so
`PassState.keep` can store them at any such moment.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from exodus import gc_tuning
from exodus.cancellation import end_all
from exodus.control.changes import Key
from exodus.control.checkpoint import DirectionProgress, PassProgress, save_pass
from exodus.control.store import ControlStore, Json
from exodus.copy.impact import Paces
from exodus.copy.read import Batch
from exodus.copy.scan import Slice, plan_slices, scan_once
from exodus.engine import Engine
from exodus.plan.bounds import (
    VERIFY_BATCH_KEYS,
    VERIFY_KEEP_EVERY_S,
    VERIFY_LISTED_MAX,
    VERIFY_SLICES_AT_A_TIME,
)
from exodus.plan.own_keys import without_own
from exodus.plan.share import in_share, share_bound
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import (
    Comparison,
    ComparisonCounts,
    Depth,
    Divergence,
    open_comparison,
)
from exodus.verify.extra_keys import ExtraKeys, open_extra_keys
from exodus.verify.only import Only

_COUNTS = (
    "keys_authority",
    "keys_follower",
    "keys_spared",
    "keys_left_behind",
    "keys_with_ttl",
    "ttl_drift_ms_max",
)

Note = Callable[[Sequence[Divergence]], Awaitable[None]]


@dataclass
class VerificationReport(ComparisonCounts):
    """What a pass found.

    keys_authority = keys_verified + keys_dirty + those among `divergences` and dead letters that
    the authority has. What the rules leave out (`excluded`), or a sample, is in none of these.
    """

    depth: Depth = Depth.FULL
    share: float = 1.0  # of all keys, by the hash of their names
    keys_authority: int = 0
    keys_follower: int = 0
    keys_verified: int = 0
    keys_spared: int = 0  # of others, on the follower
    keys_left_behind: int = 0  # on the source after a cutover, by the rules
    keys_not_carried: int = 0  # differ, and are dead letters
    divergences: list[Divergence] = field(default_factory=list)
    divergences_total: int = 0
    # Differ, and were written while they were looked at: live sync has them
    dirty: list[Divergence] = field(default_factory=list)
    dirty_total: int = 0
    looked_at_again: int = 0
    resumed: int = 0  # times a process went on where another had ended
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Return whether nothing differs."""
        return self.divergences_total == 0

    @property
    def speaks_for_all(self) -> bool:
        """Return whether every key was compared with its value."""
        return self.depth is Depth.FULL and self.share >= 1

    def as_json(self) -> Json:
        """Return the report for evidence and artifacts."""
        return {
            "depth": str(self.depth),
            "share": self.share,
            "keys_authority": self.keys_authority,
            "keys_follower": self.keys_follower,
            "keys_verified": self.keys_verified,
            "keys_excluded": self.excluded.total(),
            "excluded": dict(self.excluded),
            "keys_spared": self.keys_spared,
            "keys_left_behind": self.keys_left_behind,
            "keys_not_carried": self.keys_not_carried,
            "divergences": [divergence.as_json() for divergence in self.divergences],
            "divergences_total": self.divergences_total,
            "dirty": [divergence.as_json() for divergence in self.dirty],
            "keys_dirty": self.dirty_total,
            "looked_at_again": self.looked_at_again,
            "resumed": self.resumed,
            "ttl_drift_ms_max": self.ttl_drift_ms_max,
            "keys_with_ttl": self.keys_with_ttl,
            "seconds": round(self.seconds, 3),
            "by_type": dict(self.by_type),
        }


class _Direction:
    """One direction: the slices still to be looked at, and the keys that were seen at their
    borders.
    """

    def __init__(self, walk: DirectionProgress) -> None:
        self.walk = walk
        # What is kept of them is of slices that were counted; those here may be of one that is
        # under way.
        self._seen = {border: set(marks) for border, marks in walk.borders.items()}
        # Marks of equal keys at borders → their types, where the walk compares
        self.kinds: dict[str, str] = {}

    async def pieces(
        self, endpoint: Endpoint, slices: int, only: Only | None = None
    ) -> deque[Slice]:
        """Return the slices that are not done; all of them where the walk has not begun."""
        if self.walk.cursors is None:
            found = await plan_slices(endpoint, slices)
            if only is not None:
                nodes = await only.nodes(endpoint)
                found = [piece for piece in found if piece.node in nodes]
            self.walk.cursors = {piece.slice_id: piece.start for piece in found}
        return deque(map(Slice.parse, self.walk.cursors))

    def cursor(self, piece: Slice) -> int:
        """Return the cursor from which a slice continues."""
        return (self.walk.cursors or {})[piece.slice_id]

    def borders(self, piece: Slice, before: int, after: int) -> list[str]:
        """Return the borders that the call from cursor `before` to cursor `after` is at, if any."""
        found = (
            [f"{piece.node}/{piece.db}/{piece.index}"]
            if piece.index and before == piece.start
            else []
        )
        if piece.index + 1 < piece.count and piece.ended(after):
            found.append(f"{piece.node}/{piece.db}/{piece.index + 1}")
        return found

    def seen(self, borders: Iterable[str], keys: Iterable[bytes]) -> set[bytes]:
        """Return the keys that the slice across a border has seen. The others belong to this
        slice.
        """
        marks = {_mark(key): key for key in keys}
        found: set[bytes] = set()
        for border in borders:
            if border in self._seen:
                found |= {marks[mark] for mark in marks.keys() & self._seen[border]}
            else:
                self._seen[border] = set(marks)
        return found

    def count(
        self,
        piece: Slice,
        cursor: int,
        borders: Sequence[str],
        keys: Sequence[bytes],
        kinds: Sequence[bytes] = (),
        found: Sequence[Divergence] = (),
    ) -> None:
        """Count a call of the slice with these keys, up to `cursor`; `found` differ, and are in no
        count by type.
        """
        if borders and kinds:
            differ = {divergence.key for divergence in found}
            self.kinds.update(
                {
                    _mark(key): kind.decode()
                    for key, kind in zip(keys, kinds, strict=True)
                    if key not in differ
                }
            )
        cursors = self.walk.cursors or {}
        if piece.ended(cursor):
            del cursors[piece.slice_id]
        else:
            cursors[piece.slice_id] = cursor
        for border in borders:
            if self.walk.borders.pop(border, None) is None:
                self.walk.borders[border] = sorted(map(_mark, keys))


def _mark(key: bytes) -> str:
    return blake2b(key, digest_size=8).hexdigest()


class PassState:
    """What a pass has found so far and how far it has come, at any moment between two batches.
    `kept` is where it stands in the control store.
    """

    def __init__(
        self,
        store: ControlStore | None = None,
        name: str = "",
        kept: PassProgress | None = None,
        *,
        depth: Depth = Depth.FULL,
        share: float = 1.0,
    ) -> None:
        self.report = VerificationReport(depth=depth, share=share)
        self.suspects: dict[Key, Divergence] = {}
        self.only: Only | None = None  # the keys that are looked at, where not all are
        self._store, self._name, self._kept = store, name, kept
        self._saved = time.monotonic()
        if kept is not None:
            self.suspects = {
                (db, bytes.fromhex(key)): Divergence(db, bytes.fromhex(key), kind, text)
                for db, key, kind, text in kept.suspects
            }
            for field_name, count in kept.counts.items():
                setattr(self.report, field_name, count)
            self.report.by_type.update(kept.by_type)
            self.report.excluded.update(kept.excluded)
            self.report.resumed = kept.resumed
        self.forwards = _Direction(kept.forwards if kept is not None else DirectionProgress())
        self.backwards = _Direction(kept.backwards if kept is not None else DirectionProgress())

    def add(self, tally: ComparisonCounts, found: Sequence[Divergence], **counts: int) -> None:
        """Add a batch and its place in the walk at one moment, so that nothing is counted twice or
        lost.
        """
        report = self.report
        for name, count in counts.items():
            setattr(report, name, getattr(report, name) + count)
        report.by_type.update(tally.by_type)
        report.excluded.update(tally.excluded)
        report.keys_with_ttl += tally.keys_with_ttl
        report.ttl_drift_ms_max = max(report.ttl_drift_ms_max, tally.ttl_drift_ms_max)
        self.suspects.update({(divergence.db, divergence.key): divergence for divergence in found})

    async def keep(self) -> None:
        """Write it down now and then, where that is wanted."""
        store, kept = self._store, self._kept
        if (
            store is None
            or kept is None
            or time.monotonic() - self._saved < VERIFY_KEEP_EVERY_S
            or len(self.suspects) > VERIFY_LISTED_MAX
        ):
            return  # with so many differences it is not worth going on with
        self._saved = time.monotonic()
        await save_pass(store, self._name, self.taken(await store.now_ms()))

    def taken(self, at_ms: int) -> PassProgress:
        """Return what was found so far and how far the walks have come, as it is kept."""
        kept = self._kept
        if kept is None:
            raise ValueError("a pass that keeps nothing has nothing to be taken")
        kept.at_ms = at_ms
        kept.counts = {name: getattr(self.report, name) for name in _COUNTS}
        kept.by_type, kept.excluded = dict(self.report.by_type), dict(self.report.excluded)
        kept.suspects = [
            (found.db, found.key.hex(), found.kind, found.detail)
            for found in self.suspects.values()
        ]
        kept.forwards, kept.backwards = self.forwards.walk, self.backwards.walk
        return kept


async def look(engine: Engine, way: PassState, note: Note, only: Only | None = None) -> None:
    """Look at every key once, in both directions; `note` is told what differs, a batch and database
    at a time. With `only`, look at its keys.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    at_once = engine.plan.workers.count or VERIFY_SLICES_AT_A_TIME
    way.only = only
    forwards = await way.forwards.pieces(engine.authority, engine.plan.slices, only)
    backwards = await way.backwards.pieces(engine.follower, engine.plan.slices, only)
    with gc_tuning.seldom():
        await _look(engine, way, note, (forwards, backwards), at_once)


async def _look(
    engine: Engine,
    way: PassState,
    note: Note,
    pieces: tuple[deque[Slice], deque[Slice]],
    at_once: int,
) -> None:
    forwards, backwards = pieces
    async with Paces(
        engine.store, engine.authority, engine.plan.budget, what="verification"
    ) as pace:
        passes = [
            asyncio.create_task(_compare(engine, way, forwards, pace, note))
            for _ in range(min(at_once, len(forwards)))
        ]
        passes += [
            asyncio.create_task(_find_extra_keys(engine, way, backwards, pace, note))
            for _ in range(min(at_once, len(backwards)))
        ]
        try:
            await asyncio.gather(*passes)
        finally:
            await end_all(passes)  # the others, where one failed


async def _compare(
    engine: Engine, way: PassState, pieces: deque[Slice], pace: Paces, note: Note
) -> None:
    """Slices of the authority, one after the other, as long as there are any."""
    report, walk = way.report, way.forwards
    comparison = await open_comparison(
        engine, depth=report.depth, share=report.share, turn=pace.turn, only=way.only
    )
    try:
        while pieces:
            piece = pieces.popleft()
            async for cursor, borders, ours, theirs, tally in _side_by_side(
                comparison, piece, walk
            ):
                await pace.turn()
                found = await comparison.compare_batch(piece.db, ours, theirs, tally)
                there = len(ours.keys) - (ours.kinds.count(b"none") if engine.scope else 0)
                way.add(tally, found, keys_authority=there)
                walk.count(piece, cursor, borders, ours.keys, ours.kinds, found)
                await note(found)
    finally:
        await comparison.close()


async def _side_by_side(
    comparison: Comparison, piece: Slice, walk: _Direction
) -> AsyncIterator[tuple[int, list[str], Batch, Batch, ComparisonCounts]]:
    """Batches of the authority's keys with the follower's, and the cursor after them; the authority
    reads the next while the follower reads this.
    """
    await comparison.begin(piece)

    async def scan(before: int) -> tuple[int, list[str], Batch, ComparisonCounts]:
        tally = ComparisonCounts()
        # No call that ends a slice sees more of the next one than the call that begins it.
        after, batch = await comparison.scan(
            piece.db, before, VERIFY_BATCH_KEYS, tally, at_least=before == piece.start
        )
        borders = walk.borders(piece, before, after)
        if borders and (theirs := walk.seen(borders, batch.keys)):
            batch = Batch.of([row for row in batch.rows() if row.key not in theirs])
        return after, borders, batch, tally

    cursor, borders, ours, tally = await scan(walk.cursor(piece))
    while not piece.ended(cursor):
        theirs, following = await asyncio.gather(comparison.follow(piece.db, ours), scan(cursor))
        yield cursor, borders, ours, theirs, tally
        cursor, borders, ours, tally = following
    yield cursor, borders, ours, await comparison.follow(piece.db, ours), tally


async def _find_extra_keys(
    engine: Engine, way: PassState, pieces: deque[Slice], pace: Paces, note: Note
) -> None:
    """Slices of the follower. Keys that both sides have are compared forwards; only those that
    should not be there are of interest.
    """
    walk = way.backwards
    extra_keys = await open_extra_keys(engine, name="exodus-verify")
    try:
        async with await engine.follower.connect(name="exodus-verify") as leg:
            while pieces:
                piece = pieces.popleft()
                leg.pin(piece.node)
                await leg.select(piece.db)
                cursor = walk.cursor(piece)
                while True:
                    after, scanned = await scan_once(leg, cursor, VERIFY_BATCH_KEYS)
                    await pace.turn()
                    borders = walk.borders(piece, cursor, after)
                    await _look_through(
                        engine, extra_keys, way, piece, after, borders, scanned, note
                    )
                    cursor = after
                    if piece.ended(cursor):
                        break
    finally:
        await extra_keys.close()


async def _look_through(
    engine: Engine,
    extra_keys: ExtraKeys,
    way: PassState,
    piece: Slice,
    cursor: int,
    borders: list[str],
    scanned: list[bytes],
    note: Note,
) -> None:
    # SCAN may give a key twice in one call while the table grows.
    keys = without_own(list(dict.fromkeys(scanned)))
    if borders and (theirs := way.backwards.seen(borders, keys)):
        keys = [key for key in keys if key not in theirs]
    mine, share, only = keys, way.report.share, way.only
    if only is not None:
        keys = [key for key in keys if only.has_there(piece.db, key)]
    if share < 1:
        below = share_bound(share)
        keys = [
            key
            for key in keys
            if in_share((engine.scope.source_key(piece.db, key) or (0, key))[1], below, 0)
        ]
    before = extra_keys.spared, extra_keys.left_behind
    found = [found for _, found in await extra_keys.among(piece.db, keys)]
    spared, left_behind = extra_keys.spared - before[0], extra_keys.left_behind - before[1]
    way.add(
        ComparisonCounts(),
        found,
        keys_follower=len(keys),
        keys_spared=spared,
        keys_left_behind=left_behind,
    )
    way.backwards.count(piece, cursor, borders, mine)
    await note(found)
