"""Clients on keys that they share, through several gateways. `linearizable.py` checks what each did
and saw.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import redis.asyncio as redis

from examples.shop.place import connect
from tests.support.libraries import Clients
from tests.support.linearizable import Operation, first_violation

_KEYS = 4


class Historian:
    """Registers and counters under `history:`."""

    def __init__(
        self,
        ports: Sequence[int],
        *,
        clients: int,
        seed: int = 1,
        libraries: Sequence[str] = ("redis-py",),
    ) -> None:
        self.operations: dict[str, list[Operation]] = {}
        self.errors: list[str] = []
        self._ports, self._clients, self._seed = ports, clients, seed
        self._libraries = Clients(libraries)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._act(number)) for number in range(self._clients)]

    async def _act(self, number: int) -> None:
        draw = random.Random(self._seed * 1000 + number)
        client = self._libraries.open(
            number, f"redis://127.0.0.1:{self._ports[number % len(self._ports)]}"
        )
        step = 0
        while not self._stop.is_set():
            step += 1
            kind = draw.choice(("register", "counter"))
            key = f"history:{kind}:{draw.randrange(_KEYS)}"
            reads = draw.random() < 0.5
            value = b"%d-%d" % (number, step)
            called = time.monotonic_ns()
            result: bytes | None = None
            returned: int | None = None
            try:
                if reads:
                    result = await client.get(key)
                elif kind == "register":
                    await client.set(key, value)
                else:
                    result = b"%d" % int(await client.incr(key))
                returned = time.monotonic_ns()
            except (redis.RedisError, OSError) as exc:
                self.errors.append(f"{type(exc).__name__}: {exc}")
            done = Operation(
                "get" if reads else "set" if kind == "register" else "incr",
                called,
                returned,
                value,
                result,
            )
            self.operations.setdefault(key, []).append(done)
            await asyncio.sleep(0.002)
        await client.aclose()

    async def end(self) -> None:
        """Stop, and remove the keys through a gateway: other applications' models do not know
        them.
        """
        self._stop.set()
        await asyncio.gather(*self._tasks)
        client = connect(f"redis://127.0.0.1:{self._ports[0]}")
        await client.delete(*self.operations)
        await client.aclose()

    def check(self) -> int:
        """Raise at the first key whose history no order explains; return the number of checked
        operations.
        """
        for key, history in self.operations.items():
            violation = first_violation(history)
            assert violation is None, (
                f"{key}: no order of {len(history)} operations explains {violation}"
            )
        return sum(map(len, self.operations.values()))
