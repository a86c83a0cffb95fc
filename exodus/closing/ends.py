"""The ends of a migration: stop live sync, `finalise` (close the way back for good), or
`abandon`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from exodus.backfill import migrate
from exodus.closing.collect import remaining_keys
from exodus.closing.finalise_checks import checklist
from exodus.control import registry
from exodus.control.route import change_route, read_route
from exodus.control.schema import fence_guard_key, guard_key, lane_guard_key, native_guard_key
from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import EPOCH, guard_keys
from exodus.copy.guard import set_writer_epoch
from exodus.copy.scan import scan_once
from exodus.cutover.fence import blocks_exodus, read_record
from exodus.cutover.fence_cluster import fence_for
from exodus.errors import SourceError, TargetError
from exodus.native import replica
from exodus.net.client import answered
from exodus.net.leg import Leg
from exodus.plan.bounds import BACKFILL_CHUNK_KEYS, ENDS_FOLLOW_S, ENDS_LISTED
from exodus.plan.own_keys import is_own
from exodus.plan.plan import Plan
from exodus.plan.scope import Key
from exodus.plan.vocabulary import Hold, JournalMode, Side
from exodus.shadow.divergences import forget_values
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import OWNED

_CLOSED = -1
Json = dict[str, Any]


async def stop(store: ControlStore, plan: Plan, why: str) -> Json:
    """Journal, live sync and sampling off; nobody of ours writes to the follower any more. Where
    they are off already, only wait for everybody.

    A follower that does not answer, or whose fence refuses us too, cannot be told. Whoever copies
    there sees the route all the same, and a syncer that is frozen now is refused by the next
    epoch's right, which Migrate gives before it copies. `not_told` says why.

    Raises:
        DecisionRefused: somebody else changed the route meanwhile.
        CutoverAborted: a process did not follow.
    """
    route, not_told = await read_route(store), ""
    if route.sync or route.journal is not JournalMode.OFF or route.hold is not Hold.NONE:
        if await blocks_exodus(store, route.follower):
            not_told = f"the fence on the {route.follower} refuses Exodus too"
        else:
            try:
                if route.native:
                    await replica.detach(plan, route.writer_epoch)
                follower = Endpoint(route.follower, plan.address(route.follower))
                await set_writer_epoch(follower, plan.name, _CLOSED)
                async with await follower.connect(name="exodus-clean") as leg:
                    await migrate.end_users(leg, plan.name)
            except (SourceError, TargetError) as exc:
                not_told = exc.what
        route = await change_route(
            store,
            route,
            route.next(
                why=why,
                journal=JournalMode.OFF,
                sync=False,
                native=False,
                hold=Hold.NONE,
                canary=0.0,
                shadow_rate=0.0,  # of a Compare that was killed
                shadow_scripts=False,
                writer_epoch=route.writer_epoch + 1,
            ),
        )
    for kind in ("gateway", "syncer"):
        await registry.wait_for(
            store,
            kind,
            lambda beat: beat.epoch >= route.epoch,
            within_s=ENDS_FOLLOW_S,
            otherwise=f"a {kind} did not follow the route",
            at_least=int(kind == "syncer" or plan.has_gateways),
        )
    return {"epoch": route.epoch, "not_told": not_told}


async def finalise(store: ControlStore, plan: Plan) -> Json:
    """Close the way back: reverse sync and journal off, Exodus's own keys removed from both sides.
    The old source stays fenced.
    """
    stopped = await stop(store, plan, "finalised: the target is the authority for good")
    await _remove_own_keys(plan, store, keep_fence_of=Side.SOURCE)
    await forget_values(store)
    # The last state of the source: nothing of ours writes there any more, and its fence keeps the
    # others out.
    report = await checklist(store, plan)
    return {
        **report,
        **stopped,
        "left_by_exodus": await remaining_keys(store, plan),
        "journal": "off",
        "reverse_sync": "off",
    }


async def abandon(store: ControlStore, plan: Plan, *, clean_target: bool) -> Json:
    """Live sync off, fences lifted, Exodus's own keys removed, and, where asked, every key that the
    target holds of the source.

    A side that does not answer is left as it is, and listed in `left_by_exodus`.
    """
    for side in Side:  # before live sync is stopped: a fence may keep Exodus out too
        record = await read_record(store, side)
        if record is not None:
            async with fence_for(store, side, plan) as fence:
                with contextlib.suppress(SourceError, TargetError):  # `remaining_keys` lists it
                    await fence.lower(record)
    stopped = await stop(store, plan, "abandoned: the source stays the authority")
    await _remove_own_keys(plan, store)
    removed, left = await _remove_copied(plan) if clean_target else (0, [])
    await answered(
        store.client.delete(
            store.keys.dead, store.keys.accepted, store.keys.divergence, store.keys.report(OWNED)
        )
    )
    await forget_values(store)
    return {
        **stopped,
        "authority": "source",
        "target_keys_removed": removed,
        "clean_target": clean_target,
        "target_keys_left": len(left),
        "left": [repr(key) for key in left[:ENDS_LISTED]],
        "left_by_exodus": await remaining_keys(store, plan),
    }


async def _remove_own_keys(
    plan: Plan, store: ControlStore, *, keep_fence_of: Side | None = None
) -> None:
    names = [
        guard_key(plan.name),
        native_guard_key(plan.name),
        *(lane_guard_key(plan.name, partition) for partition in range(plan.partitions)),
    ]
    for side in Side:
        if await blocks_exodus(store, side):
            continue  # its fence refuses us too; `remaining_keys` lists them
        also = [] if side is keep_fence_of else [fence_guard_key(plan.name)]
        with contextlib.suppress(SourceError, TargetError):  # likewise
            endpoint = Endpoint(side, plan.address(side))
            spread = guard_keys(plan.name) if endpoint.cluster is not None else []
            async with await endpoint.connect(name="exodus-clean") as leg:
                if side is keep_fence_of:  # the guard of the fence is a field of these
                    await leg.pipeline([("HSET", key, EPOCH, "ended") for key in spread])
                    spread = []
                await leg.call("UNLINK", *names, *spread, *also)


async def _existing(leg: Leg, keys: list[Key]) -> set[Key]:
    """Return those keys that exist, in any database."""
    found: set[Key] = set()
    for db in {db for db, _ in keys}:
        await leg.select(db)
        names = [name for at, name in keys if at == db]
        found.update(
            (db, name)
            for name, exists in zip(
                names, await leg.pipeline([("EXISTS", name) for name in names]), strict=True
            )
            if exists == 1
        )
    return found


async def _remove_copied(plan: Plan) -> tuple[int, list[bytes]]:
    """Remove the target's keys; how many, and those that stay.

    A target that had to be empty holds only what was copied. One that held keys before loses those
    that the source has too.
    """
    removed, left = 0, []
    scope = plan.scope
    source, target = [Endpoint(side, plan.address(side)) for side in Side]
    parts = [
        (node.name, db)
        for node in await target.each_node()
        for db in (await node.facts()).databases
    ]
    for node, db in parts:
        async with (
            await target.connect(db=db, name="exodus-clean", node=node) as leg,
            await source.connect(name="exodus-clean") as there,
        ):
            cursor = -1
            while cursor:
                cursor, keys = await scan_once(leg, max(cursor, 0), BACKFILL_CHUNK_KEYS)
                keys = [key for key in keys if not is_own(key)]
                ours = keys
                if plan.allow_nonempty:
                    origins = {
                        key: origin
                        for key in keys
                        if (origin := scope.source_key(db, key)) is not None
                        and scope.filtered_by(*origin) is None
                    }
                    exist = await _existing(there, list(origins.values()))
                    ours = [key for key in keys if origins.get(key) in exist]
                    left += [key for key in keys if origins.get(key) not in exist]
                if ours:
                    removed += int(await leg.call("UNLINK", *ours))
    return removed, left
