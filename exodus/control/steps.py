"""Results of a phase's steps, kept in the control store.

A flow that was suspended for a decision runs again from the top, on any worker. A finished step is
not done again: its result is read here. Every worker reaches the control store, so no worker needs
files of another.
"""

from __future__ import annotations

from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import STEPS_ENDED_KEPT_MS


async def kept(store: ControlStore, run: str, step: str) -> bytes | None:
    """Return what a step of a run returned, or None where it has not returned yet."""
    found: bytes | None = await answered(store.client.hget(store.keys.steps(run), step))
    return found


async def keep(store: ControlStore, run: str, step: str, value: bytes) -> bytes:
    """Keep a step's answer, once; return what is kept, which is the first answer."""
    if await answered(store.client.hsetnx(store.keys.steps(run), step, value)):
        return value
    found = await kept(store, run, step)
    return value if found is None else found


async def begin(store: ControlStore, run: str) -> None:
    """Keep the steps of a run until it ends."""
    await answered(store.client.persist(store.keys.steps(run)))


async def end(store: ControlStore, run: str) -> None:
    """Let the steps of a run expire."""
    await answered(store.client.pexpire(store.keys.steps(run), STEPS_ENDED_KEPT_MS))
