"""The run id of each side's server that the journal's positions belong to
(`exodus/live/server_runs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.vocabulary import Side


async def known_run_ids(store: ControlStore) -> dict[str, str]:
    """Return the run id of each side that is known."""
    raw = await answered(store.client.hgetall(store.keys.lives))
    return {side.decode(): run_id.decode() for side, run_id in raw.items()}


async def note_run_ids(
    store: ControlStore, run_ids: Mapping[Side, str], *, first: bool = False
) -> None:
    """Note the servers whose keys were all compared, or are all to be copied; with `first` only
    where none is known.
    """
    for side, run_id in run_ids.items():
        write = store.client.hsetnx if first else store.client.hset
        await answered(write(store.keys.lives, str(side), run_id))
