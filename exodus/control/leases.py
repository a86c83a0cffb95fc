"""Leases on journal partitions, each with a fencing token, so that one owner at a time may write
(race rule 2).

A lease ends LEASE_MS after its last renewal. Its token only grows. The owner writes it to the
follower before its first copy, and every batch is guarded by it. So an owner that slept past its
lease writes nothing. Live syncers share the partitions evenly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from exodus.control import registry
from exodus.control.store import ControlStore
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.bounds import LEASE_MS

_HOLD = lua("exodus.control", "hold_lease")
_RENEW = lua("exodus.control", "renew_lease")
_GIVE_BACK = lua("exodus.control", "give_back_lease")


async def hold_lease(store: ControlStore, key: str, owner: str) -> bool:
    """Take a free lease for `LEASE_MS`, or renew the owner's; return whether the owner has it."""
    return bool(int(await answered(store.client.eval(_HOLD, 1, key, owner, str(LEASE_MS)))))


async def give_back_lease(store: ControlStore, key: str, owner: str) -> None:
    """End a lease at once, if it is still the owner's."""
    await answered(store.client.eval(_GIVE_BACK, 1, key, owner))


class Leases:
    """What one process holds."""

    def __init__(self, store: ControlStore, process: str, partitions: int) -> None:
        self._store = store
        self._process = process
        self._partitions = partitions
        self.tokens: dict[int, int] = {}  # partition → fencing token

    def _value(self, partition: int) -> str:
        return f"{self._process}:{self.tokens[partition]}"

    async def fair_share(self) -> int:
        """Return how many partitions each live syncer should hold. This syncer counts before its
        first heartbeat.
        """
        now_ms = await self._store.now_ms()
        live = {
            beat.process
            for beat in await registry.heartbeats(self._store, "syncer")
            if not beat.stale(now_ms)
        }
        return math.ceil(self._partitions / len(live | {self._process}))

    async def take(self, at_most: int) -> list[int]:
        """Take free partitions until `at_most` are held; those taken now."""
        taken: list[int] = []
        for partition in range(self._partitions):
            if len(self.tokens) >= at_most:
                break
            if partition in self.tokens:
                continue
            token = int(await answered(self._store.client.incr(self._store.keys.token)))
            if await answered(
                self._store.client.set(
                    self._store.keys.lease(partition),
                    f"{self._process}:{token}",
                    nx=True,
                    px=LEASE_MS,
                )
            ):
                self.tokens[partition] = token
                taken.append(partition)
        return taken

    async def renew(self) -> list[int]:
        """Prolong what is held; the partitions that are not ours any more, which are dropped."""
        held = list(self.tokens)
        pipe = self._store.client.pipeline(transaction=False)
        for partition in held:
            pipe.eval(
                _RENEW, 1, self._store.keys.lease(partition), self._value(partition), str(LEASE_MS)
            )
        lost = (
            [
                partition
                for partition, kept in zip(held, await pipe.execute(), strict=True)
                if not int(kept)
            ]
            if held
            else []
        )
        for partition in lost:
            del self.tokens[partition]
        return lost

    async def give_back(self, partitions: Iterable[int]) -> None:
        """Let other syncers have these at once."""
        for partition in list(partitions):
            value = self._value(partition)
            del self.tokens[partition]
            await give_back_lease(self._store, self._store.keys.lease(partition), value)
