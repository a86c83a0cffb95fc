"""Whether the control store still has what it acknowledged to this gateway, and whether it has fsynced it.

With every batch, in the same MULTI, the gateway writes the batch's number into `acknowledged`. A store
that loses its tail (a power cut, a failover to a replica that was behind, an older backup) loses that
number with the batch, since both of its files and its replicas hold a prefix of what was written. So a
number below the last acknowledged one is a loss, whatever caused it. The next batch, the next heartbeat
and each retirement of intents look for it.

Intents are kept until the store has fsynced: WAITAOF says so (Redis 7.2, Valkey). Where it does not exist
or the store has no AOF, they are kept for `KEEP_S`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as StoreLost
from redis.exceptions import ResponseError

from exodus.control.store import ControlStore
from exodus.net.client import answered

KEEP_S = 2.0  # longer than `appendfsync everysec` takes
_FSYNC_MS = 2_000  # that one question may take

Command = Sequence[str | bytes]


class TailLost(Exception):
    """The store no longer has all that it acknowledged."""

    def __init__(self, found: bytes | None) -> None:
        super().__init__("the control store lost entries that it had acknowledged")
        self.found = found


class Durability:
    """Numbers of batches: tried, acknowledged, and fsynced together with everything before."""

    def __init__(self, store: ControlStore, process: str) -> None:
        self.process = process
        self._store = store
        self._token = secrets.token_hex(4)  # another process of this id counts anew
        self._tried = 0
        self._acknowledged = 0
        self._fsynced = 0

    def numbered(self, commands: Sequence[Command]) -> list[Command]:
        """The commands of a batch with its number, to be run in one MULTI."""
        self._tried += 1
        name = self._store.keys.acknowledged
        return [("HGET", name, self.process), *commands, ("HSET", name, self.process, f"{self._token}:{self._tried}")]

    def acknowledge(self) -> None:
        """Note that the batch tried last is in."""
        self._acknowledged = self._tried

    @property
    def proof(self) -> tuple[str, int]:
        """What a heartbeat has to find in the store: token and lowest number; 0 where any will do."""
        return self._token, self._acknowledged

    def complete(self, found: bytes | None) -> bool:
        """Whether a store that has this number has every acknowledged batch."""
        return self._number(found) >= self._acknowledged

    def covered(self, found: bytes | None) -> bool:
        """Whether the batches that are missing in a store with this number still have their intents."""
        return self._number(found) >= self._fsynced

    def _number(self, found: bytes | None) -> int:
        token, _, number = (found or b"").partition(b":")
        return int(number) if token == self._token.encode() else 0

    def forget(self, found: bytes | None) -> None:
        """After a loss was dealt with: expect no more than what is there."""
        self._acknowledged = min(self._acknowledged, self._number(found))
        self._fsynced = min(self._fsynced, self._acknowledged)

    async def found(self) -> bytes | None:
        """The number in the store."""
        number: bytes | None = await answered(self._store.client.hget(self._store.keys.acknowledged, self.process))
        return number

    async def fsync(self) -> int:
        """Wait until the store has fsynced every batch acknowledged so far; return the last one's number.

        Raises:
            TailLost: it lost some of them instead.
            redis.exceptions.RedisError, OSError, TimeoutError: it is away, or does not fsync in time.
        """
        until = self._acknowledged
        async with self._store.client.client() as one:
            # One file: what this connection writes now is fsynced after everything written before.
            await answered(one.set(self._store.keys.fsync(self.process), until, ex=60))
            try:
                done: Any = await answered(one.execute_command("WAITAOF", 1, 0, _FSYNC_MS))
            except ResponseError:
                await asyncio.sleep(KEEP_S)
                done = [1]
            found = await answered(one.hget(self._store.keys.acknowledged, self.process))
        if self._number(found) < until:
            raise TailLost(found)
        if int(done[0]) < 1:
            raise StoreLost("the control store has not fsynced in time")
        return until

    def safe(self, number: int) -> None:
        """The intents of this batch and of those before it may be gone from now on."""
        self._fsynced = max(self._fsynced, number)
