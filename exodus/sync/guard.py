"""The guard of every write to a follower: it holds only as long as its keys there have the values that the writer knows.

A batch is `WATCH keys · MGET keys · MULTI · … · EXEC`; the switch changes the keys. So a syncer that was frozen before the switch and wakes after it
gets a nil from EXEC and writes nothing (race rule 6); a lane's fencing token does the same for a lease that was lost (race rule 2).
WATCH and MGET for the next batch travel behind the EXEC of this one and cost no round trip.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exodus.config import Side
from exodus.control.store import guard_key
from exodus.endpoint import Endpoint
from exodus.errors import EpochEnded, NoRoom
from exodus.leg import Leg, ReplyError
from exodus.resp.encode import encode

_MULTI, _EXEC = encode("MULTI"), encode("EXEC")
_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


def no_room(side: Side, why: str) -> NoRoom:
    """The error for a follower that takes no writes."""
    return NoRoom(f"the {side} takes no writes now", why=why, next_step=f"make room on the {side}, or wait; the copy goes on by itself")


@dataclass(frozen=True)
class Guard:
    """Keys in database 0 of the follower, and the values under which writing is allowed. No keys: no guard."""

    values: tuple[tuple[bytes, bytes], ...] = ()

    def ask(self) -> tuple[bytes, int]:
        """What to send ahead of a batch, and how many replies it has (the last is the values)."""
        if not self.values:
            return b"", 0
        keys = [key for key, _ in self.values]
        return encode("WATCH", *keys) + encode("MGET", *keys), 2

    def check(self, found: list[bytes | None]) -> None:
        """Raise where a value is another.

        Raises:
            EpochEnded: the right to write ended.
        """
        for (key, wanted), value in zip(self.values, found, strict=True):
            if value != wanted:
                raise EpochEnded(
                    "the right to write to the follower ended",
                    why=f"{key.decode()} is {value!r} there, not {wanted!r}",
                    next_step="nothing; the process that holds the right now goes on",
                )


class GuardedLeg:
    """Batches of writes on one leg, each under the guard; callers take turns."""

    def __init__(self, leg: Leg, guard: Guard) -> None:
        self.leg = leg
        self.guard = guard
        self._turn = asyncio.Lock()
        self._armed = False  # WATCH and MGET were sent, their replies are still to be read

    async def change(self, guard: Guard) -> None:
        """Write under another guard from the next batch on."""
        async with self._turn:
            if self._armed:
                await self.leg.replies(self.guard.ask()[1])
                self._armed = False
            self.guard = guard

    async def run(self, db: int, body: bytes, count: int) -> list[object]:
        """Execute `count` commands (encoded in `body`) in one transaction in `db`; their replies, errors as values.

        Raises:
            EpochEnded: the guard does not hold; nothing was written.
            NoRoom: the follower did not take the batch (no memory, read-only, no permission); nothing was written.
            SourceError, TargetError: it was lost; safe to repeat.
        """
        async with self._turn:
            return await self._run(db, body, count)

    async def _run(self, db: int, body: bytes, count: int) -> list[object]:
        leg = self.leg
        ask, asked = self.guard.ask()
        selects = 2 if db else 0
        for attempt in (1, 2, 3):
            if asked and not self._armed:
                leg.write(ask)
                self._armed = True
            if asked:
                values = (await leg.replies(asked))[-1]
                self._armed = False
                self.guard.check(values)
            leg.write((encode("SELECT", db) if db else b"") + _MULTI)
            leg.write(body)  # by itself: it may be megabytes, and to put it between the others would copy it
            leg.write(_EXEC + (encode("SELECT", 0) if db else b"") + ask)
            self._armed = bool(asked)
            await leg.drain()
            if await leg.answered(_OK * (selects // 2 + 1) + _QUEUED * count + b"*%d\r\n" % count + _OK * (count + selects // 2)):
                return [b"OK"] * count
            replies = await leg.replies(selects + 1 + count + 1)
            outcome = replies[-2] if db else replies[-1]
            if isinstance(outcome, list):
                return outcome
            if outcome is not None:
                refused = next((reply for reply in replies if isinstance(reply, ReplyError)), outcome)  # EXECABORT: why it did not queue them
                raise no_room(leg.side, str(refused)[:200])
            # A watched key was touched: the guard's next answer says whether it has another value.
            if attempt == 3:
                break
        raise EpochEnded(
            "the right to write to the follower is being changed", why="its guard keys were touched three times in a row", next_step="try again"
        )


async def has_right(follower: Endpoint, migration: str, epoch: int) -> bool:
    """Whether the writers of `epoch` may write to `follower`.

    Raises:
        SourceError, TargetError: it does not answer.
    """
    for node in await follower.nodes():
        async with await node.connect(name="exodus-right") as leg:
            if await leg.call("GET", guard_key(migration)) != b"%d" % epoch:
                return False
    return True


async def set_writer_epoch(follower: Endpoint, migration: str, epoch: int) -> None:
    """Give the right to write to `follower` to the writers of `epoch`, and end that of all others at once."""
    for node in await follower.nodes():
        async with await node.connect() as leg:
            await leg.call("SET", guard_key(migration), epoch)
