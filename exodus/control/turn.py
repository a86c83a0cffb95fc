"""The turn of a phase: the right of one process to run it, held in the control store.

Prefect can start one run twice: after a lost answer, while the process before still ends, or when
two people start a phase at once. A phase must not run twice. So its process takes the turn first
and renews it while it runs. A turn that is not renewed ends.

The sample that a schedule compares has a turn too: no phase begins while somebody has it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from exodus.control.leases import give_back_lease
from exodus.control.store import ControlStore
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.bounds import TURN_MS

SAMPLING = "sample"  # the turn of a sample that is compared between two phases
_TAKE = lua("exodus.control", "take_turn")
_RENEW = lua("exodus.control", "renew_turn")


class Holder(BaseModel):
    """Who has a turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str  # of Prefect
    worker: str  # host:pid
    instance: str  # drawn anew by each process


class Held(BaseModel):
    """A turn that another process has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: Holder
    left_ms: int  # until it ends, where nobody renews it


async def take(store: ControlStore, phase: str, holder: Holder) -> Held | None:
    """Take the turn; None where it is ours now, else who has it."""
    key, said = store.keys.turn(phase), holder.model_dump_json()
    found, left_ms = await answered(store.client.eval(_TAKE, 1, key, said, str(TURN_MS)))
    if not found:
        return None
    return Held(holder=Holder.model_validate_json(found), left_ms=int(left_ms))


async def held_by(store: ControlStore, phase: str) -> Holder | None:
    """Return who has the turn."""
    found = await answered(store.client.get(store.keys.turn(phase)))
    return None if found is None else Holder.model_validate_json(found)


async def renew(store: ControlStore, phase: str, holder: Holder) -> bool:
    """Prolong the turn; False where another process has it."""
    key, said = store.keys.turn(phase), holder.model_dump_json()
    return bool(await answered(store.client.eval(_RENEW, 1, key, said, str(TURN_MS))))


async def give_back(store: ControlStore, phase: str, holder: Holder) -> None:
    """Let others have the turn at once."""
    await give_back_lease(store, store.keys.turn(phase), holder.model_dump_json())
