"""A backfill as a process of its own, to be killed: `python -m tests.support.backfiller
MIGRATION_FILE RUN`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

from exodus.backfill.slices import copy_slice
from exodus.control.store import ControlStore
from exodus.copy.scan import plan_slices
from exodus.engine import open_engine
from exodus.plan.migration_file import load_migration


async def main(file: Path, run: str) -> None:
    migration = load_migration(file)
    async with await ControlStore.connect(migration.control_store, migration.plan.name) as store:
        engine = await open_engine(store, await store.plan())
        for piece in await plan_slices(engine.authority, engine.plan.slices):
            await copy_slice(engine, run, piece, budget_s=600)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
