"""A verification that counts, as a process of its own, slow enough to be killed: `python -m
tests.support.verifier MIGRATION_FILE NAME`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from exodus.control.store import ControlStore
from exodus.copy.impact import Pace
from exodus.engine import open_engine
from exodus.plan.migration_file import load_migration
from exodus.verify.reconcile import reconcile

_TURN_S = 0.1


async def _slowly(_: Pace) -> None:
    await asyncio.sleep(_TURN_S)


async def main(file: Path, name: str) -> None:
    Pace.turn = _slowly  # type: ignore[method-assign]
    migration = load_migration(file)
    async with await ControlStore.connect(migration.control_store, migration.plan.name) as store:
        await reconcile(await open_engine(store, await store.plan()), name)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
