"""The sessions of a rehearsal: they write on reserved keys through the gateways, and remember what
was acknowledged.

| session | writes | shows |
| --- | --- | --- |
| counter | INCR of keys that only it has | an answer that is not one more: a lost write |
| remover | SET NX of all its keys, then DEL | a removed key that is there: resurrected |
| pusher and popper | RPUSH, blocking BLPOP | jobs that come never or twice |

Where a side is a cluster, the counters have keys on each of its nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import redis

from exodus.commands.slots import tag_of
from exodus.net.leg import Leg
from exodus.plan.address import Address
from exodus.plan.bounds import (
    REHEARSAL_AGAIN_S,
    REHEARSAL_KEYS,
    REHEARSAL_PAUSE_S,
    REHEARSAL_POP_S,
    REHEARSAL_PUSH_S,
    REHEARSAL_SESSIONS,
)
from exodus.rehearsal.sessions import RehearsalSession


def _counters(prefix: str, session: int, slots: Sequence[int]) -> list[str]:
    """Return the keys that a session counts in: some, and one in each of `slots`."""
    tags = [tag_of(b"probe", slot).decode() for slot in slots]
    return [f"{prefix}counter:{session}:{step}" for step in range(REHEARSAL_KEYS)] + [
        f"{prefix}counter:{{{tag}}}:{session}" for tag in tags
    ]


def _removed(prefix: str, step: int) -> str:
    return f"{prefix}removed:{step % REHEARSAL_KEYS}"


def _jobs(prefix: str) -> str:
    return f"{prefix}jobs"


def names(prefix: str, slots: Sequence[int] = ()) -> list[bytes]:
    """Return the name of every key that sessions with this prefix write; `slots` are those in which
    they may have counters of a cluster's nodes.
    """
    found = [name for each in range(REHEARSAL_SESSIONS) for name in _counters(prefix, each, slots)]
    found += [_removed(prefix, step) for step in range(REHEARSAL_KEYS)]
    return [name.encode() for name in [*found, _jobs(prefix)]]


class ProbeClients:
    """Sessions of the reserved prefix, and what they found."""

    def __init__(
        self,
        gateway: Address,
        prefix: str,
        name: str,
        *,
        timeout_s: float,
        queue: bool = True,
        listeners: Sequence[int] = (0,),
        slots: Sequence[int] = (),
        told_port: int | None = None,
    ) -> None:
        """Make the sessions.

        Args:
            gateway: its first listener.
            prefix: how their keys begin.
            name: for CLIENT SETNAME.
            timeout_s: for one answer.
            queue: also push and pop, which a killed gateway may do once too often or too seldom,
                as any crash of a connection may.
            listeners: those that stand for nodes, by number.
            slots: one of each node of the clusters: a counter is there.
            told_port: of the first listener, as clients are told; None: its own.
        """
        self.gateway = gateway
        self.acknowledged: dict[str, int] = {}
        self.count = 0
        self.errors: list[str] = []
        self.stall_ms = 0.0  # the longest request since `begin_window`
        self.touched: set[bytes] = set()  # every key that was written
        self._lost = 0
        self._resurrected = 0
        self._removed: set[str] = set()
        self._changed: set[bytes] = set()
        self._under_way: dict[int, bytes] = {}
        self._away: set[int | None] = set()  # sessions whose last request failed
        self._prefix = prefix
        self._jobs = _jobs(prefix)
        self._pushed: set[bytes] = set()
        self._popped: list[bytes] = []
        self._queue = queue
        self._slots = slots
        self._stop = asyncio.Event()
        self._sessions = [
            RehearsalSession(
                gateway, listeners, name=name, timeout_s=timeout_s, told_port=told_port
            )
            for _ in range(REHEARSAL_SESSIONS + 1 + 2 * queue)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to write, once all sessions are there: one that comes while the prefix is switched
        is ended, and over TLS that takes a while.
        """
        await asyncio.gather(*map(self._come, self._sessions))
        counting, others = self._sessions[:REHEARSAL_SESSIONS], self._sessions[REHEARSAL_SESSIONS:]
        work = [self._write(session, number) for number, session in enumerate(counting)]
        work.append(self._remove(others[0], len(counting)))
        if self._queue:
            work += [self._push(others[1], len(counting) + 1), self._pop(others[2])]
        self._tasks = [asyncio.create_task(each) for each in work]

    async def _come(self, session: RehearsalSession) -> None:
        try:
            await session.come()
        except redis.RedisError as exc:
            self._failed(exc)

    def _failed(self, exc: redis.RedisError) -> None:
        self.errors.append(f"{type(exc).__name__}: {exc}"[:200])

    def changes(self) -> set[bytes]:
        """Return the keys that changed since the last call. A key whose request is under way may
        have changed: it is among them, each time.
        """
        found, self._changed = self._changed | set(self._under_way.values()), set()
        return found

    def begin_window(self) -> None:
        """Measure the longest request from now on."""
        self.stall_ms = 0.0

    def begin_answers(self) -> None:
        """Note which listeners answer from now on."""
        for session in self._sessions:
            session.answered_by.clear()

    @property
    def answered_by(self) -> set[int]:
        """Return the listeners that answered a request since then."""
        return {listener for session in self._sessions for listener in session.answered_by}

    async def _write(self, session: RehearsalSession, number: int) -> None:
        keys, step = _counters(self._prefix, number, self._slots), 0
        while not self._stop.is_set():
            key = keys[step % len(keys)]
            with self._request(number, key):
                value = int(await session.ask(key, "INCR", key))
                self._lost += max(0, self.acknowledged.get(key, 0) + 1 - value)
                self.acknowledged[key] = value
            step += 1
            await self._pause(number)

    async def _remove(self, session: RehearsalSession, number: int) -> None:
        step = 0
        while not self._stop.is_set():
            key = _removed(self._prefix, step)
            removed = key in self._removed
            if step // REHEARSAL_KEYS % 2 == 0:
                self._removed.discard(key)  # what becomes of it is not known before the answer
                with self._request(number, key):
                    made = await session.ask(key, "SET", key, step, "NX")
                    self._resurrected += removed and not made
            else:
                with self._request(number, key):
                    await session.ask(key, "DEL", key)
                    self._removed.add(key)
            step += 1
            await self._pause(number)

    async def _push(self, session: RehearsalSession, number: int) -> None:
        while not self._stop.is_set():
            job = b"%d" % len(self._pushed)
            with self._request(number, self._jobs):
                await session.ask(self._jobs, "RPUSH", self._jobs, job)
                self._pushed.add(job)
            await asyncio.sleep(REHEARSAL_PUSH_S)

    async def _pop(self, session: RehearsalSession) -> None:
        while not self._stop.is_set():
            with self._request(None, self._jobs):  # it waits because it is asked to
                found = await session.ask(self._jobs, "BLPOP", self._jobs, REHEARSAL_POP_S)
                if found is not None:
                    self._popped.append(found[1])
            await self._pause()

    async def _pause(self, number: int | None = None) -> None:
        """Wait between two requests; longer where the gateway is away, and refuses at once."""
        away = number in self._away
        await asyncio.sleep(REHEARSAL_AGAIN_S if away else REHEARSAL_PAUSE_S)

    @contextlib.contextmanager
    def _request(self, number: int | None, key: str) -> Iterator[None]:
        """Around one request of a session; without a number it is no measure of a stall."""
        name, began = key.encode(), time.monotonic()
        self.touched.add(name)
        if number is not None:
            self._under_way[number] = name
        try:
            yield
            self.count += 1
            self._away.discard(number)
        except redis.RedisError as exc:
            self._failed(exc)
            self._away.add(number)
        self._changed.add(name)
        if number is not None:
            del self._under_way[number]
            self.stall_ms = max(self.stall_ms, (time.monotonic() - began) * 1000)

    async def stop(self) -> None:
        """End, and wait for what is under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        for session in self._sessions:
            await session.close()

    async def lost_on(self, leg: Leg) -> int:
        """Return how many acknowledged writes `leg`'s side has not, and those that were missed on
        the way: increments, and jobs that came never or twice.
        """
        values = await leg.pipeline([("GET", key) for key in self.acknowledged])
        behind = sum(
            max(0, wanted - int(value or 0))
            for wanted, value in zip(self.acknowledged.values(), values, strict=True)
        )
        left = await leg.call("LRANGE", self._jobs, 0, -1)
        found = Counter([*self._popped, *left])
        return self._lost + behind + sum(found[job] == 0 for job in self._pushed)

    async def resurrected_on(self, leg: Leg) -> int:
        """Return how many removed keys `leg`'s side has, those that came back on the way, and jobs
        that came twice.
        """
        there = await leg.pipeline([("EXISTS", key) for key in self._removed])
        twice = sum(count > 1 for count in Counter(self._popped).values())
        return self._resurrected + sum(map(int, there)) + twice


async def again(clients: ProbeClients, before: int, within_s: float) -> bool:
    """Wait until requests succeed again; whether they did."""
    deadline = time.monotonic() + within_s
    while clients.count <= before:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(REHEARSAL_AGAIN_S)
    return True
