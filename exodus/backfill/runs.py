"""The backfill that a migration is at, so that a retry after a rollback copies nothing twice.

A run keeps its checkpoints while it copies the same keys between the same servers. If live sync
stayed on, the copied keys are still equal. If it was off, nobody knows which keys changed. The run
then goes on, and at its end Exodus compares every key and marks those that differ
(`reconcile.mark_differing`). That costs reads, not copies.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import orjson

from exodus.control.checkpoint import forget_run, load_progress
from exodus.control.store import ControlStore
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import OWNED


@dataclass(frozen=True)
class CopyRun:
    """A backfill, as the report `owned` keeps it from before its first copy until the migration is
    abandoned.
    """

    run: str
    of: str  # digest of what is copied from where to where
    at_ms: int
    epoch: int  # of the route when it began
    kept: bool = False  # an earlier attempt began it
    to_compare: bool = False  # live sync was off since: what it copied has to be compared


def _of(plan: Plan) -> str:
    what = plan.model_dump(
        mode="json",
        include={
            "source",
            "target",
            "filters",
            "renames",
            "slices",
            "keep_usage",
            "allow_nonempty",
        },
    )
    return hashlib.sha256(orjson.dumps(what, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def current(store: ControlStore) -> CopyRun | None:
    """Return the run that this migration is at, or None."""
    found = await store.report(OWNED)
    return None if found is None else CopyRun(**found)


async def begin(store: ControlStore, plan: Plan, *, epoch: int, writer_epoch: int) -> CopyRun:
    """Take up the run before, or begin one, where live sync is off and is about to be turned on.

    Args:
        epoch: of the route now.
        writer_epoch: in which it will write; a new run is named by it.

    Raises:
        TargetError: the target does not answer.
    """
    before, of, now_ms = await current(store), _of(plan), await store.now_ms()
    if before is not None and before.of == of and await _still_there(store, plan, before):
        run = CopyRun(before.run, of, before.at_ms, before.epoch, kept=True, to_compare=True)
    else:
        run = CopyRun(f"backfill-{writer_epoch}", of, now_ms, epoch)
        await forget_run(store, run.run)
    await _save(store, run)
    return run


async def compared(store: ControlStore, run: CopyRun) -> None:
    """Say that what differed is marked as changed: from here on the journal knows."""
    await _save(store, CopyRun(**{**asdict(run), "to_compare": False}))


async def _save(store: ControlStore, run: CopyRun) -> None:
    await store.save_report(OWNED, asdict(run))


async def _still_there(store: ControlStore, plan: Plan, run: CopyRun) -> bool:
    """Return whether the target still holds at least half of what was copied: one that was emptied
    is filled faster by a backfill than by live sync.
    """
    copied = sum(
        progress.keys_copied for progress in (await load_progress(store, run.run)).values()
    )
    nodes = await Endpoint(Side.TARGET, plan.target).each_node()
    return sum([sum((await node.facts()).databases.values()) for node in nodes]) * 2 >= copied
