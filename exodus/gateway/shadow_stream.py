"""The shadow stream: sampled requests and their replies, for the comparer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import monotonic

from exodus.control.shadow_pairs import pack_pair
from exodus.control.store import ControlStore
from exodus.gateway.pipe import StorePipe, StoreRefused
from exodus.gateway.store_state import STORE_ERRORS
from exodus.plan.bounds import (
    SHADOW_BYTES_PER_S_MAX,
    SHADOW_ENTRY_PAIRS,
    SHADOW_KEPT_MS,
    SHADOW_QUEUE_BYTES_MAX,
    SHADOW_QUEUE_MAX,
    SHADOW_STREAM_BATCH_PAIRS,
    SHADOW_STREAM_PUBLISH_EVERY_S,
    SHADOW_STREAM_TRIM_EVERY_S,
)
from exodus.resp.encode import Arg

_KEPT_MAX = str(2 * SHADOW_QUEUE_MAX)


class ShadowStream:
    """Queues pairs and publishes them in the control store.

    The pairs hold data of applications. So the control store keeps few of them, and not for long:
    `SHADOW_BYTES_PER_S_MAX` a gateway process, for `SHADOW_KEPT_MS`. The rest is dropped and
    counted.
    """

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        # redis-py's pipeline takes ten times the CPU for a pair (docs/design/gateway-speed.md).
        self._pipe = StorePipe(store)
        self._queue: deque[bytes] = deque()
        self._bytes = 0  # in the queue
        self.dropped = 0

    def offer(self, db: int, request: bytes, reply: bytes, write: bool, client: bytes) -> None:
        """Queue a pair, or drop it; `client` says who sent the request."""
        full = len(self._queue) >= SHADOW_QUEUE_MAX
        if full or self._bytes + len(request) + len(reply) > SHADOW_QUEUE_BYTES_MAX:
            self.dropped += 1
            return
        pair = pack_pair(db, write, request, reply, client)
        self._queue.append(pair)
        self._bytes += len(pair)

    async def publish(self) -> None:
        """Publish until cancelled."""
        try:
            await self._publish()
        finally:
            self._pipe.close()

    async def _publish(self) -> None:
        name, counter = self._store.keys.shadow, self._store.keys.shadow_published
        allowed, then, trimmed = 0.0, monotonic(), 0.0
        last_ms = 0  # the store's time when it took the last pairs
        add = ("XADD", name, "MAXLEN", "~", _KEPT_MAX, "*", "p")
        while True:
            await asyncio.sleep(SHADOW_STREAM_PUBLISH_EVERY_S)
            now = monotonic()
            earned = (now - then) * SHADOW_BYTES_PER_S_MAX
            allowed, then = min(allowed + earned, SHADOW_BYTES_PER_S_MAX), now
            if not self._queue:
                continue
            found: list[bytes] = []
            for _ in range(min(len(self._queue), SHADOW_STREAM_BATCH_PAIRS)):
                pair = self._queue.popleft()
                self._bytes -= len(pair)
                if len(pair) > allowed:
                    self.dropped += 1
                    continue
                allowed -= len(pair)
                found.append(pair)
            if not found:
                continue
            commands: list[Sequence[Arg]] = [
                (*add, b"".join(found[start : start + SHADOW_ENTRY_PAIRS]))
                for start in range(0, len(found), SHADOW_ENTRY_PAIRS)
            ]
            # All of them expire when no new one comes, also if this process ends here.
            more: list[Sequence[Arg]] = [
                ("INCRBY", counter, len(found)),
                ("PEXPIRE", name, SHADOW_KEPT_MS),
            ]
            if last_ms and now - trimmed > SHADOW_STREAM_TRIM_EVERY_S:
                trimmed = now
                more.append(("XTRIM", name, "MINID", last_ms - SHADOW_KEPT_MS))
            try:
                replies = await self._pipe.transaction([*commands, *more])
            except (StoreRefused, *STORE_ERRORS):
                self.dropped += len(found)
            else:
                last_ms = int(replies[len(commands) - 1].partition(b"-")[0])
