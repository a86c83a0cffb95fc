"""A process of the data plane that follows the route: its heartbeat, its status port, and its end.

The syncer and the comparer are such processes. A gateway has its own shell (`exodus/gateway/`),
since its heartbeat proves more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from typing import Any, ClassVar

from redis.exceptions import RedisError

from exodus.background import BackgroundTasks
from exodus.cancellation import until_stopped, wait_at_most
from exodus.control import registry
from exodus.control.heartbeats import Heartbeat, ProcessKind
from exodus.control.route import SOON, Route, asked_at_ms, read_route
from exodus.control.store import ControlStore
from exodus.plan.bounds import HEARTBEAT_S
from exodus.telemetry.http import StatusServer
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import States

STORE_ERRORS = (RedisError, OSError, TimeoutError)


class RouteProcess(ABC):
    """A process that follows the route and writes heartbeats until it is stopped."""

    kind: ClassVar[ProcessKind]

    def __init__(self, store: ControlStore, process: str, log: logging.Logger) -> None:
        self.process = process
        self._store = store
        self._states = States(log)
        self._tasks = BackgroundTasks(self.kind)
        self._route = Route(epoch=-1)  # the last one acted on in full
        self._why = ""  # why its work waits
        self._store_why = ""
        self._beat_now = asyncio.Event()
        self._stopping = asyncio.Event()

    @abstractmethod
    async def _follow(self, route: Route) -> None:
        """Act on the route, if its epoch is a new one."""

    @abstractmethod
    async def _stop_work(self) -> None:
        """End what the route asked for."""

    @abstractmethod
    def heartbeat(self, at_ms: int) -> Heartbeat:
        """Return what this process reports of itself."""

    @abstractmethod
    def metrics(self) -> Iterable[Sample]:
        """Yield the samples for Prometheus."""

    @abstractmethod
    async def _measure(self, now_ms: int, *, asked: bool) -> None:
        """Measure what the next heartbeat reports; `asked` where somebody waits for it."""

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """Return what else runs as long as the process."""
        return ()

    def stop(self) -> None:
        """Ask the process to end in order."""
        self._stopping.set()

    async def run(self, status_host: str = "127.0.0.1", status_port: int = 0) -> None:
        """Serve until `stop`."""
        status = StatusServer(
            status_host,
            status_port,
            self.metrics,
            lambda: (True, self._store_why or self._why or "following"),
        )
        try:
            await until_stopped(
                self._stopping,
                registry.follow(self._look, self._store, poll_s=HEARTBEAT_S),
                self._beat(),
                *self._works(),
            )
        finally:
            await self._stop_work()
            # The control store may be what failed. The heartbeat then goes stale by itself.
            with contextlib.suppress(*STORE_ERRORS):
                await self._store.unregister(self.kind, self.process)
            status.close()

    async def _look(self, word: bytes | None) -> None:
        if word == SOON or asked_at_ms(word) is not None:
            return  # a message to gateways
        route = await self._read_route()
        if route is not None:
            await self._follow(route)

    async def _read_route(self) -> Route | None:
        """Return the route in force; None while the control store does not tell it."""
        try:
            route = await read_route(self._store)
        except STORE_ERRORS as exc:
            self._store_is(f"{type(exc).__name__}: {exc}")
            return None
        self._store_is("")
        self._states.now("route", route.text)
        return route

    async def _beat(self) -> None:
        while True:
            asked = await wait_at_most(self._beat_now, HEARTBEAT_S)
            self._beat_now.clear()
            try:
                now_ms = await self._store.now_ms()
                await self._measure(now_ms, asked=asked)
                await registry.beat(self._store, self.heartbeat(now_ms))
                self._store_is("")
            except STORE_ERRORS as exc:
                self._store_is(f"{type(exc).__name__}: {exc}")

    def _store_is(self, why: str) -> None:
        """Note whether the control store is away, and why."""
        self._store_why = f"the control store is away: {why}" if why else ""
        self._states.away("the control store", why, kind="away" if why else "")
