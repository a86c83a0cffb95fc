"""Carrying out the remedies of the ledger of divergences: keys are copied again, and compared."""

from __future__ import annotations

from typing import Any

from exodus.control.changes import Key, pack, unpack
from exodus.engine import Engine
from exodus.net.client import answered
from exodus.shadow import divergences
from exodus.shadow.causes import NOT_BY_COPYING
from exodus.shadow.divergences import DivergenceState
from exodus.verify.reconcile import repair, spot_check

Json = dict[str, Any]
NO_COPY = "a copy does not heal it: {remedy}"
DIFFERS = "it differs after the copy too: {kind}"


async def repair_divergences(engine: Engine, *, remove_extra: bool = False) -> Json:
    """Copy the keys of confirmed divergences again; what is equal then is healed.

    While neither Compare nor live sync runs, the target holds no copy. The key is copied there,
    compared, and removed again: that shows whether copying makes it equal.

    Args:
        remove_extra: remove keys that only the follower has, also where Compare did not put them
            there.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    rows = [row for row in await divergences.rows(engine.store) if divergences.is_open(row)]
    by_copying = [row for row in rows if row["cause"] not in NOT_BY_COPYING]
    keys = list(dict.fromkeys(divergences.key_of(row) for row in by_copying))
    names = engine.store.keys
    packed = await answered(engine.store.client.smembers(names.seeded))
    ours = {key for one in packed for key in unpack(one)}
    kept = engine.route.sync or engine.route.shadow_rate > 0
    failed: dict[Key, str] = {}
    if keys:
        if not kept:
            await answered(engine.store.client.sadd(names.seeded, *[pack([key]) for key in keys]))
        seeded = [key for key in keys if key in ours or not kept]
        others = [key for key in keys if key not in seeded]
        failed |= await repair(engine, seeded, remove_extra=True)
        failed |= await repair(engine, others, remove_extra=remove_extra)
        for found in await spot_check(engine, keys):
            failed.setdefault((found.db, found.key), DIFFERS.format(kind=found.kind))
        if not kept:
            await _remove(engine, [key for key in keys if key not in ours])
    healed = [row for row in by_copying if divergences.key_of(row) not in failed]
    await divergences.set_state(
        engine.store, healed, DivergenceState.HEALED, healed_ms=await engine.store.now_ms()
    )
    left = [
        {"name": divergences.name_of(row), "why": NO_COPY.format(remedy=row["remedy"])}
        for row in rows
        if row["cause"] in NOT_BY_COPYING
    ] + [
        {"name": divergences.name_of(row), "why": failed[divergences.key_of(row)]}
        for row in by_copying
        if divergences.key_of(row) in failed
    ]
    return {"tried": len(rows), "healed": len(healed), "left": left}


async def _remove(engine: Engine, keys: list[Key]) -> None:
    """Remove copies from the follower."""
    for key in keys:
        db, name = engine.scope.target_key(*key)
        async with await engine.follower.connect(name="exodus-repair") as leg:
            await leg.select(db)
            await leg.call("UNLINK", name)
    if keys:
        await answered(
            engine.store.client.srem(engine.store.keys.seeded, *[pack([key]) for key in keys])
        )
