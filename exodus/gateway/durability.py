"""Durability: whether the control store still has what it acknowledged, and has fsynced it.

With every batch, in the same MULTI, the gateway writes the batch's number into `acknowledged`. A
store that loses its tail loses that number with the batch, since its files and its replicas hold a
prefix of what was written. A power cut, a failover to a replica that was behind, and an older
backup are such losses. So a number below the last acknowledged one is a loss, whatever the cause.
The next batch, the next heartbeat and each retirement of intents look for it.

Intents are kept until the store has fsynced. WAITAOF tells that (Redis 7.2, Valkey). Where it does
not exist, or the store has no AOF, intents are kept for `DURABILITY_INTENTS_KEPT_S`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from redis.exceptions import ConnectionError as StoreLost
from redis.exceptions import ResponseError

from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import DURABILITY_FSYNC_MS, DURABILITY_INTENTS_KEPT_S

StoreCommand = Sequence[str | bytes]


class TailLost(Exception):
    """The store no longer has all that it acknowledged."""

    def __init__(self, found: bytes | None) -> None:
        super().__init__("the control store lost entries that it had acknowledged")
        self.found = found


class Durability:
    """The numbers of batches: tried, acknowledged, and fsynced with all before them."""

    def __init__(self, store: ControlStore, process: str) -> None:
        self.process = process
        self._store = store
        self._token = secrets.token_hex(4)  # another process of this id counts from 1
        self._tried = 0
        self._acknowledged = 0
        self._fsynced = 0

    def numbered(self, commands: Sequence[StoreCommand]) -> list[StoreCommand]:
        """Return the commands of a batch with its number, for one MULTI."""
        self._tried += 1
        name = self._store.keys.acknowledged
        return [
            ("HGET", name, self.process),
            *commands,
            ("HSET", name, self.process, f"{self._token}:{self._tried}"),
        ]

    def acknowledge(self) -> None:
        """Note that the store has acknowledged the last batch."""
        self._acknowledged = self._tried

    @property
    def proof(self) -> tuple[str, int]:
        """Return what a heartbeat must find in the store: token and lowest number (0: any)."""
        return self._token, self._acknowledged

    def complete(self, found: bytes | None) -> bool:
        """Tell whether a store with this number has every acknowledged batch."""
        return self._number(found) >= self._acknowledged

    def covered(self, found: bytes | None) -> bool:
        """Tell whether every batch that a store with this number lacks still has its intents."""
        return self._number(found) >= self._fsynced

    def _number(self, found: bytes | None) -> int:
        token, _, number = (found or b"").partition(b":")
        return int(number) if token == self._token.encode() else 0

    def forget(self, found: bytes | None) -> None:
        """Expect no more than the store has: the loss was dealt with."""
        self._acknowledged = min(self._acknowledged, self._number(found))
        self._fsynced = min(self._fsynced, self._acknowledged)

    async def found(self) -> bytes | None:
        """Return the number in the store."""
        number: bytes | None = await answered(
            self._store.client.hget(self._store.keys.acknowledged, self.process)
        )
        return number

    async def fsync(self) -> int:
        """Wait until the store has fsynced every acknowledged batch; return the last one's number.

        Raises:
            TailLost: the store lost some of them.
            redis.exceptions.RedisError, OSError, TimeoutError: the store is away or too slow.
        """
        until = self._acknowledged
        # WAITAOF waits for the writes of its own connection. A server has one AOF, so this write is
        # fsynced after all writes before it. A pipeline gives its connection back however often
        # its task is cancelled; redis-py's client of one connection does not.
        pipeline = self._store.client.pipeline(transaction=False)
        pipeline.set(self._store.keys.fsync(self.process), until, ex=60)
        pipeline.execute_command("WAITAOF", 1, 0, DURABILITY_FSYNC_MS)
        pipeline.hget(self._store.keys.acknowledged, self.process)
        written, done, found = await answered(pipeline.execute(raise_on_error=False))
        for reply in (written, found):
            if isinstance(reply, ResponseError):
                raise reply
        if isinstance(done, ResponseError):  # Redis 7.0 and earlier
            await asyncio.sleep(DURABILITY_INTENTS_KEPT_S)
            done, found = [1], await self.found()
        if self._number(found) < until:
            raise TailLost(found)
        if int(done[0]) < 1:
            raise StoreLost("the control store has not fsynced in time")
        return until

    def safe(self, number: int) -> None:
        """Note that the intents of this batch and of those before it may be dropped."""
        self._fsynced = max(self._fsynced, number)
