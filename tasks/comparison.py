"""Compare: shadowing on and off, and what the comparer found."""

from __future__ import annotations

import asyncio

import orjson

from exodus.config import JournalMode, Side
from exodus.control import registry
from exodus.control.changes import unpack
from exodus.control.route import change_route, read_route
from exodus.control.store import answered
from exodus.endpoint import Endpoint
from exodus.sync.engine import open_engine
from exodus.sync.guard import set_writer_epoch
from exodus.sync.reconcile import spot_check
from tasks.context import Json, Opened, opened, run
from tasks.kept import kept_task

_FOLLOW_S = 15.0
_SETTLE_S = 1.0
_OUTCOMES = (
    "compared", "equal", "inconclusive", "not_comparable", "not_tried", "too_slow", "infrastructure", "excluded", "divergences",
)  # fmt: skip


async def _wait(it: Opened, epoch: int) -> None:
    for kind in ("gateway", "comparer"):
        await registry.wait_for(it.store, kind, lambda beat: beat.epoch >= epoch, within_s=_FOLLOW_S, otherwise=f"a {kind} did not follow the route")


@kept_task("shadow sampled traffic")
def shadow(migration: str, seconds: float | None) -> Json:
    """Have sampled keys copied to the target and their requests compared there for some seconds; the comparer's rows."""

    async def work() -> Json:
        async with opened(migration) as it:
            await answered(it.store.client.delete(it.store.keys.divergence))
            route = await read_route(it.store)
            await set_writer_epoch(Endpoint(Side.TARGET, it.plan.target), it.plan.name, route.writer_epoch)
            salt = route.epoch + 1
            route = await change_route(
                it.store, route, route.next(why="compare", journal=JournalMode.SAMPLE, shadow_rate=it.plan.sample, shadow_salt=salt)
            )
            try:
                await _wait(it, route.epoch)
                await asyncio.sleep(seconds or it.plan.observe_seconds)
                beats = await registry.heartbeats(it.store, "comparer")
                rows: list[Json] = []
                for beat in beats:
                    for name, row in beat.facts["rows"].items():
                        rows.append({"command": name, **{field: row.get(field, 0) for field in _OUTCOMES}})
                return {"rows": sorted(rows, key=lambda row: -row["compared"]), "convergence": await _convergence(it)}
            finally:
                now = await read_route(it.store)
                after = await change_route(it.store, now, now.next(why="compare is over", journal=JournalMode.OFF, shadow_rate=0.0))
                await _wait(it, after.epoch)

    return run(work())


async def _convergence(it: Opened) -> Json:
    """Read the states of the sampled keys on both sides: are writes converging?"""
    packed = await answered(it.store.client.smembers(it.store.keys.seeded))
    keys = [key for one in packed for key in unpack(one)]
    engine = await open_engine(it.store, it.plan)
    differ = await spot_check(engine, keys)
    for pause in (1, 2, 4):
        if not differ:
            break
        # Keys that are written all the time differ at any one look; what counts is that they catch up.
        await asyncio.sleep(_SETTLE_S * pause)
        differ = await spot_check(engine, [(found.db, found.key) for found in differ])
    return {"sampled_keys": len(keys), "differ": [found.as_json() for found in differ]}


@kept_task("list divergences")
def list_divergences(migration: str) -> list[Json]:
    """The comparer's ledger."""

    async def work() -> list[Json]:
        async with opened(migration) as it:
            raw = await answered(it.store.client.hgetall(it.store.keys.divergence))
            return [orjson.loads(value) for value in raw.values()]

    return run(work())


@kept_task("remove the sample from the target")
def remove_sample(migration: str) -> int:
    """Take the keys that Compare put on the target away again; how many."""

    async def work() -> int:
        async with opened(migration) as it:
            packed = await answered(it.store.client.smembers(it.store.keys.seeded))
            by_db: dict[int, list[bytes]] = {}
            for one in packed:
                for db, key in (it.plan.scope.place(*each) for each in unpack(one)):
                    by_db.setdefault(db, []).append(key)
            node = (await it.endpoint(Side.TARGET).nodes())[0]
            for db, keys in by_db.items():
                async with await node.connect(db, name="exodus-compare") as leg:
                    for start in range(0, len(keys), 500):
                        await leg.call("UNLINK", *keys[start : start + 500])
            await answered(it.store.client.delete(it.store.keys.seeded))
            return len(packed)

    return run(work())
