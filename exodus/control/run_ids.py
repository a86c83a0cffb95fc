"""The run id of each side's server that the journal's positions belong to
(`exodus/live/server_runs.py`). A cluster has one for each of its masters, with spaces between.
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


def covered(known: str, now: str) -> bool:
    """Return whether no server of now may have lost keys since `known` was noted.

    A master that left with all its slots took nothing with it. One whose promotion is not told any
    more (`@` and an offset) is the same one: it has forgotten its replication backlog.
    """
    lives = set(known.split())
    run_ids = {life.partition("@")[0] for life in lives}
    return all(life in lives or ("@" not in life and life in run_ids) for life in now.split())
