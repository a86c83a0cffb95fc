"""Reading the progress of a backfill or a verification from the control store."""

from __future__ import annotations

from exodus.backfill.progress import ProgressSample
from exodus.control.checkpoint import load_parts, load_pass, load_progress
from exodus.control.store import ControlStore
from exodus.copy.impact import read_paces
from exodus.net.info import databases_of, info_of
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint


async def count_keys(plan: Plan, *sides: Side) -> int:
    """Return how many keys sides have, as they count them themselves."""
    total = 0
    for side in sides:
        for node in await Endpoint(side, plan.address(side)).each_node():
            async with await node.connect(name="exodus-count") as leg:
                total += sum(databases_of(info_of(await leg.call("INFO", "keyspace"))).values())
    return total


async def look_at_backfill(store: ControlStore, run: str, keys_total: int) -> ProgressSample:
    """Return what all slices of a run have come to."""
    slices = list((await load_progress(store, run)).values())
    waits = dict.fromkeys(piece.why for piece in slices if piece.why and not piece.done)
    paces = dict.fromkeys(
        pace.why
        for pace in await read_paces(store)
        if pace.why and pace.what.startswith("backfill")
    )
    return ProgressSample(
        keys=sum(piece.keys_seen for piece in slices),
        keys_total=keys_total,
        payload_bytes=sum(piece.payload_bytes for piece in slices),
        why="; ".join([*waits, *list(paces)[:1]]),
    )


async def look_at_verification(
    store: ControlStore, name: str, keys_total: int
) -> ProgressSample | None:
    """Return how far a pass over both sides has come; None where none is under way."""
    found = await load_pass(store, name)
    parts = [found] if found is not None else await load_parts(store, name)
    if not parts:
        return None
    paces = [
        pace.why
        for pace in await read_paces(store)
        if pace.why and pace.what.startswith("verification")
    ]
    return ProgressSample(
        keys=sum(
            part.counts.get("keys_authority", 0) + part.counts.get("keys_follower", 0)
            for part in parts
        ),
        keys_total=keys_total,
        why="; ".join(paces[:1]),
    )
