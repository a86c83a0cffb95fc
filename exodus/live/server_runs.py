"""Restarts of the two servers: one may come back with less than it had, and no journal tells what
is missing.

The control store holds each side's run id. A syncer that finds another one opens a gap, compares
both sides in full, marks what differs, and closes the gap once that is copied. So a server that
comes back empty, from an older snapshot, or as its replica after a failover becomes equal again,
and nobody can switch before.

Two cases wait for a person:

* a follower with keys and without this migration's mark: it may be the wrong server (`regain`);
* keys that only the follower has: the authority may have lost them (`exodus repair
  --remove-extra`).
"""

from __future__ import annotations

import asyncio

from exodus.control import freshness, journal
from exodus.control.changes import Ranges
from exodus.control.gaps import close_gap, open_gap, open_gaps
from exodus.control.route import Route, read_route
from exodus.control.run_ids import covered, known_run_ids, note_run_ids
from exodus.control.store import ControlStore
from exodus.copy.guard import read_write_grants, regain_write_grants
from exodus.engine import Engine
from exodus.plan.bounds import SERVER_RUNS_POLL_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import foreign_keys
from exodus.verify.only import Only
from exodus.verify.reconcile import forget_deleted, mark_differing

_GAP = "life:"
_EMPTIED = "emptied"  # in place of a run id: what the server had is gone, though it did not restart


async def begin(store: ControlStore, run_ids: dict[Side, str]) -> None:
    """Note the servers that a copy begins with. It covers all that they have, so gaps of earlier
    lives end.
    """
    await note_run_ids(store, run_ids)
    for side in run_ids:
        await close_gap(store, _GAP + side)


async def changed(engine: Engine) -> list[Side]:
    """Return the sides whose server restarted since the journal speaks for it; each has an open gap
    from here on.
    """
    if engine.route.native:
        # The servers fill a replica, and journal positions wait for what it has applied
        await note_run_ids(engine.store, engine.run_ids)
        return []
    store = engine.store
    await note_run_ids(store, engine.run_ids, first=True)
    known, open_now = await known_run_ids(store), await open_gaps(store)
    found: list[Side] = []
    for side, run_id in engine.run_ids.items():
        was = known[side]
        if not covered(was, run_id):
            found.append(side)
            if open_now.get(_GAP + side, {}).get("run_id") != run_id:
                verified = await freshness.last_pass(store) is not None or open_now.get(
                    _GAP + side, {}
                ).get("verified")
                await open_gap(
                    store,
                    _GAP + side,
                    _why(side, was),
                    run_id=run_id,
                    comparing=True,
                    verified=bool(verified),
                )
    if found:
        await freshness.forget_pass(store)
    return found


def _why(side: Side, was: str) -> str:
    what = (
        "was emptied or replaced"
        if was == _EMPTIED
        else "restarted, or another server answers in its place"
    )
    return (
        f"the {side} {what}: it may have lost keys; live sync compares both sides and copies "
        "what differs"
    )


async def left(store: ControlStore, *, only_comparing: bool = False) -> str:
    """Return why both sides are compared in full, or what that left to a person; nothing where all
    is well.
    """
    found = [gap for name, gap in (await open_gaps(store)).items() if name.startswith(_GAP)]
    return next(
        (str(gap["why"]) for gap in found if gap.get("comparing") or not only_comparing), ""
    )


async def may_remove(engine: Engine) -> bool:
    """Return whether a key that only the follower has was deleted at the authority for all that is
    known.

    Not where the authority restarted, as it may have lost the key; nor while a gap is open, as a
    write may be unknown.
    """
    if await open_gaps(engine.store):
        return False
    known = (await known_run_ids(engine.store)).get(engine.route.authority)
    return known is None or covered(known, (await engine.authority.facts()).life)


async def recover(engine: Engine, sides: list[Side]) -> str:
    """Compare both sides in full, let live sync copy what differs, and close the gaps; return what
    is left for a person.

    Raises:
        SourceError, TargetError, RedisError: a server is away; the caller begins again.
    """
    store = engine.store
    gaps = await open_gaps(store)
    since_ms, synced = await store.now_ms(), await engine.feed.synced()
    # A key that only the follower has is one that it was to remove and forgot, unless the authority
    # forgot it, or an open gap says that not all of the authority's writes are known.
    forgot = engine.route.authority not in sides and all(name.startswith(_GAP) for name in gaps)
    only = Only.of(engine, {side: await _changed_slots(engine, side) for side in sides})
    found = await mark_differing(engine, remove_extra=forgot, gently=True, only=only)
    await _synced(engine)
    if found.extra:
        await forget_deleted(engine, found)
    verified = any(gaps.get(_GAP + side, {}).get("verified") for side in sides)
    await note_run_ids(store, engine.run_ids)
    if found.extra:
        why = (
            f"{found.extra} keys are only on the {engine.route.follower}, such as {found.names}: "
            f"the {engine.route.authority} may have lost them when it restarted; they are kept. "
            "exodus verify lists them; exodus repair --remove-extra removes them"
        )
        for side in sides:
            await open_gap(store, _GAP + side, why, verified=verified)
        return why
    # As a verification, it speaks for everything up to where it began; what it marked is dirty
    if verified and only is None:
        await freshness.record_pass(store, since_ms, synced, found.keys)
    for side in sides:
        await close_gap(store, _GAP + side)
    return ""


async def _changed_slots(engine: Engine, side: Side) -> Ranges | None:
    """Return the slots of a cluster whose master may have lost keys; None: all of the side."""
    endpoint = engine.authority if side is engine.route.authority else engine.follower
    known = (await known_run_ids(engine.store)).get(side, "")
    found: list[tuple[int, int]] = []
    for node in await endpoint.each_node():
        if node.shard is None:
            return None
        if not covered(known, (await node.facts()).life):
            found += node.shard.ranges
    return tuple(found)


async def _synced(engine: Engine) -> None:
    goal = await engine.feed.positions()
    while not await journal.reached(engine.store, goal):
        await asyncio.sleep(SERVER_RUNS_POLL_S)


async def regain(store: ControlStore, plan: Plan, route: Route) -> str:
    """Give the writers of this epoch their right back on a follower that lost this migration's
    mark; return why not.

    Only where the route is still this one, and the follower is empty or is seen to be the same one
    at an earlier time.

    Raises:
        SourceError, TargetError: it does not answer.
    """
    side, right = route.follower, b"%d" % route.writer_epoch
    follower = Endpoint(side, plan.address(side))
    grants = await read_write_grants(follower, plan.name)
    lacking = {name: value for name, value in grants.items() if value != right}
    if not lacking:
        return ""
    facts = await follower.facts()
    known = (await known_run_ids(store)).get(side)
    restarted = known is not None and not covered(known, facts.life)
    for name, value in lacking.items():
        older = value is not None and value.isdigit() and int(value) < route.writer_epoch
        if value is not None and not (older and restarted):
            return (
                f"the right to write to the {side} is not this epoch's: {name.decode()} is "
                f"{value!r} there, not {right!r}"
            )
    # Where other nodes of a cluster still know this migration, it is no stranger.
    known_there = len(lacking) < len(grants) or any(value is not None for value in lacking.values())
    foreign = 0 if known_there or plan.allow_nonempty else await foreign_keys(follower, facts)
    if foreign:
        name = next(iter(lacking))
        grant = f"SET {name.decode()} {right.decode()}" if follower.cluster is None else ""
        return (
            f"the {side} was replaced or restored from a copy: it holds {foreign} keys, and not "
            f"{name.decode()}. "
            "Empty it, and live sync fills it again by itself."
            + (
                " Where its keys are this migration's, say so: "
                f"redis-cli -u {plan.address(side).url} {grant}"
                if grant
                else ""
            )
        )
    now = await read_route(store)
    if (now.sync, now.authority, now.writer_epoch) != (True, route.authority, route.writer_epoch):
        return "the route has changed"
    if not restarted:
        await note_run_ids(store, {side: _EMPTIED})
    if not await regain_write_grants(follower, plan.name, lacking, right):
        return f"the right to write to the {side} is being changed"
    return ""
