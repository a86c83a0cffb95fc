"""The dry run: how keys of each type and size would be copied, estimated from a sample.

It reads the sampled keys with the backfill's own code and writes none of them, so the forecast
matches the backfill. On the target it writes only the scratch keys that prove re-footed payloads
(`refoot.py`), and removes them. It cannot foresee what only a write shows, such as a payload of a
module that the target lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from exodus.control.store import Json
from exodus.copy.guard import Guard
from exodus.copy.key import BatchReport, Copier
from exodus.copy.scan import Slice, plan_slices, scan_once
from exodus.engine import Engine
from exodus.net.leg import Leg
from exodus.plan.bounds import (
    FORECAST_BATCH_KEYS,
    FORECAST_SAMPLE_KEYS,
    FORECAST_SLICES,
    LARGE_KEY_BYTES,
)
from exodus.topology.node import Node

_SIZES = ((1_000, "up to 1 kB"), (64_000, "up to 64 kB"), (LARGE_KEY_BYTES, "up to 1 MB"))
_LARGE = "over 1 MB of memory"
_Row = tuple[str, str, str, str]  # what becomes of it, why, type, size
LEFT_OUT, NOT_CARRIED, OWN, GONE = "left out", "not carried", "Exodus's own", "gone"


async def forecast(engine: Engine, sample_keys: int = FORECAST_SAMPLE_KEYS) -> list[Json]:
    """Return rows of `strategy`, `reason`, `type`, `size`, `keys_sampled`, and `keys_estimated`.
    The sampled ones sum up to the keys looked at.

    `size` is of what travels: a payload is often smaller than the value.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    slices = await plan_slices(engine.authority, FORECAST_SLICES)
    counted: Counter[_Row] = Counter()
    copier = await engine.copier(Guard(), name="exodus-dry-run")
    try:
        for node in await engine.authority.each_node():
            for piece in slices:
                if piece.node == node.name:
                    await _look_at(copier, node, piece, -(-sample_keys // len(slices)), counted)
    finally:
        await copier.close()
    total, seen = sum(engine.authority_facts.databases.values()), counted.total()
    return [
        {
            "strategy": how,
            "reason": why,
            "type": kind,
            "size": size,
            "keys_sampled": count,
            "keys_estimated": count if seen >= total else round(count * total / seen),
        }
        for (how, why, kind, size), count in counted.most_common()
    ]


async def _look_at(
    copier: Copier, node: Node, piece: Slice, wanted: int, counted: Counter[_Row]
) -> None:
    seen: set[bytes] = set()
    cursor, ended = piece.start, False
    async with await node.connect(piece.db, name="exodus-dry-run") as leg:
        while not ended and len(seen) < wanted:
            cursor, found = await scan_once(leg, cursor, min(FORECAST_BATCH_KEYS, wanted))
            ended = piece.ended(cursor)
            keys = [key for key in dict.fromkeys(found) if key not in seen][: wanted - len(seen)]
            seen.update(keys)
            counted.update(await _rows(copier, leg, piece.db, keys))


async def _rows(copier: Copier, leg: Leg, db: int, keys: Sequence[bytes]) -> list[_Row]:
    if not keys:
        return []
    kinds = dict(zip(keys, await leg.pipeline([("TYPE", key) for key in keys]), strict=True))
    report = BatchReport()
    states = await copier.read(db, keys, report)
    rows: list[_Row] = [(OWN, "", "", "")] * report.skipped
    rows += [(LEFT_OUT, rule, "", "") for rule in report.excluded.elements()]
    rows += [
        (NOT_CARRIED, failure.reason, kinds[failure.key].decode(), "") for failure in report.failed
    ]
    for state in states:
        if state.excluded:
            continue  # counted with its rule
        how, _, why = (state.how or copier.strategy).partition(": ")
        if state.large:
            rows.append((how, "large", kinds[state.key].decode(), _LARGE))
        elif not state.exists:
            rows.append((GONE, "it expired or was deleted", "", ""))
        else:
            rows.append((how, why or copier.reason, kinds[state.key].decode(), _size(state.size())))
    return rows


def _size(size_bytes: int) -> str:
    return next((text for most, text in _SIZES if size_bytes <= most), _LARGE)
