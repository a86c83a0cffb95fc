"""Heartbeats: this process's report to the control store, and its registration there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import orjson

from exodus.cancellation import end_all
from exodus.control import registry, windows
from exodus.control.heartbeats import GatewayHeartbeat, Heartbeat
from exodus.control.registry import Claim
from exodus.control.store import ControlStore
from exodus.gateway.groups import SessionGroups
from exodus.gateway.identity import Identity
from exodus.gateway.journaler import Journaler
from exodus.gateway.scripts import digest
from exodus.gateway.store_state import STORE_ERRORS, StoreState
from exodus.net.client import answered
from exodus.plan.bounds import HEARTBEAT_S, HEARTBEATS_TELEMETRY_KEPT_S, HELD_HEARTBEAT_S
from exodus.telemetry.windows import Windows

log = logging.getLogger(__name__)


class HeartbeatWriter:
    """Writes the heartbeats and the telemetry of one process."""

    def __init__(
        self,
        store: ControlStore,
        process: str,
        *,
        identity: Identity,
        groups: SessionGroups,
        journaler: Journaler,
        store_state: StoreState,
        beat_now: asyncio.Event,
        stopping: asyncio.Event,
        describe: Callable[[int], GatewayHeartbeat],
        snapshot: Callable[[], dict[str, object]],
        windows: Windows,
        log_pending: Callable[[], None],
    ) -> None:
        self._store = store
        self._process = process
        self._identity = identity
        self._groups = groups
        self._journaler = journaler
        self._store_state = store_state
        self._stopping = stopping
        self._snapshot = snapshot
        self._windows = windows
        self._keeping: asyncio.Task[None] | None = None
        self._log_pending = log_pending
        self._known_ms = 0  # the store's time, as last read
        self._asked_ms: int | None = None  # the store's time when a switch asked for a heartbeat
        self.now = beat_now  # set to write a heartbeat at once
        self.describe = describe
        self.registered = process  # the id under which the heartbeats stand

    def ask(self, at_ms: int) -> None:
        """Write a heartbeat at once: a switch asked for it at this time of the store."""
        self._asked_ms = at_ms
        self.now.set()

    async def run(self) -> None:
        """Write heartbeats until cancelled; at once after an epoch was acted on."""
        try:
            await self._beat()
        finally:
            await end_all([self._keeping])

    async def _beat(self) -> None:
        while True:
            every_s = HELD_HEARTBEAT_S if self._groups.holding else HEARTBEAT_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):  # wait_for may swallow a cancellation here
                    await self.now.wait()
            soon, asked_ms = self.now.is_set(), self._asked_ms
            self.now.clear()
            self._asked_ms = None
            holding = self._groups.holding  # a hold may have begun meanwhile
            self._journaler.rotate(self._log_pending)
            try:
                # The time must not be later than the facts, since a switch relies on it. Where a
                # switch waits, the last known time will do.
                if asked_ms is None and not (holding and soon):
                    self._known_ms = await self._store.now_ms()
                await self._keep_scripts()
                at_ms = self._known_ms if asked_ms is None else asked_ms
                await self._write(at_ms, announce=holding)
                if holding or (soon and not self._stopping.is_set()):
                    # A switch waits for this heartbeat, or has just released writes. Nobody
                    # waits for the telemetry.
                    continue
                key = self._store.keys.telemetry(self._process)
                value = orjson.dumps(self._snapshot())
                await answered(self._store.client.set(key, value, ex=HEARTBEATS_TELEMETRY_KEPT_S))
                if self._keeping is None or self._keeping.done():
                    window = self._windows.due(self._known_ms)
                    if window is not None:  # no switch may wait for it
                        keep = self._keep_window(window, self._known_ms)
                        self._keeping = asyncio.get_running_loop().create_task(keep)
            except STORE_ERRORS as exc:
                self._store_state.failed(exc)

    async def _keep_window(self, window: dict[str, Any], at_ms: int) -> None:
        try:
            await windows.keep(self._store, self._process, window, at_ms)
        except STORE_ERRORS as exc:
            self._store_state.failed(exc)
        except Exception:  # the same counts are part of the next one
            log.exception("a window of the telemetry could not be kept")
        else:
            self._windows.kept()

    async def _keep_scripts(self) -> None:
        """Store texts of scripts. A switch loads them on the other side."""
        scripts = self._groups.main.orders.scripts
        texts = scripts.take()
        if not texts:
            return
        store = self._store
        try:
            await answered(
                store.client.hset(
                    store.keys.scripts, mapping={digest(text): text for text in texts}
                )
            )
        except STORE_ERRORS:
            scripts.give_back(texts)
            raise

    async def _write(self, at_ms: int, *, announce: bool) -> None:
        while True:
            told, found = await registry.beat_as(
                self._store,
                self.describe(at_ms),
                self._identity.token,
                self._journaler.proof,
                announce=announce,
            )
            if told == "ok":
                return
            if told == "tail":
                self._journaler.look_for_tail(found or None)
            else:
                await self.claim()

    async def claim(self) -> Heartbeat | None:
        """Claim the registration of this id.

        Returns:
            The heartbeat of another instance that has it. This process is then registered beside
            it, under another id.
        """
        claim, other = await registry.claim(
            self._store, "gateway", self.registered, self._identity.token
        )
        if claim is Claim.LEFT:
            self._journaler.gap(
                "another instance of this id went away, and its state folder is not this one"
            )
        if claim is Claim.TAKEN:
            self.registered = f"{self._process}~{self._identity.token[:8]}"
            self._journaler.rename(self.registered)
            log.error(
                "another gateway runs under the id %s: this one is registered as %s",
                self._process,
                self.registered,
            )
        return other
