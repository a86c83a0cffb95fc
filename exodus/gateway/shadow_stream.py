"""The shadow stream: sampled requests and their replies, for the comparer."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import cast

from exodus.control.store import ControlStore
from exodus.gateway.store_state import STORE_ERRORS
from exodus.plan.bounds import (
    SHADOW_BYTES_PER_S_MAX,
    SHADOW_CLIENT_BYTES_MAX,
    SHADOW_KEPT_MS,
    SHADOW_QUEUE_MAX,
    SHADOW_STREAM_BATCH_PAIRS,
    SHADOW_STREAM_PUBLISH_EVERY_S,
)


class ShadowStream:
    """Queues pairs and publishes them in the control store.

    The pairs hold data of applications. So the control store keeps few of them, and not for long:
    `SHADOW_BYTES_PER_S_MAX` a gateway process, for `SHADOW_KEPT_MS`. The rest is dropped and
    counted.
    """

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        self._queue: deque[dict[str, bytes | int]] = deque()
        self.dropped = 0

    def offer(
        self, db: int, request: bytes, reply: bytes, *, write: bool, client: bytes = b""
    ) -> None:
        """Queue a pair, or drop it; `client` says who sent the request."""
        if len(self._queue) >= SHADOW_QUEUE_MAX:
            self.dropped += 1
            return
        client = client[:SHADOW_CLIENT_BYTES_MAX]
        self._queue.append({"db": db, "q": request, "r": reply, "w": int(write), "c": client})

    async def publish(self) -> None:
        """Publish until cancelled."""
        name, allowed, then = self._store.keys.shadow, 0.0, monotonic()
        while True:
            await asyncio.sleep(SHADOW_STREAM_PUBLISH_EVERY_S)
            now = monotonic()
            earned = (now - then) * SHADOW_BYTES_PER_S_MAX
            allowed, then = min(allowed + earned, SHADOW_BYTES_PER_S_MAX), now
            if not self._queue:
                continue
            pipe = self._store.client.pipeline(transaction=False)
            count = 0
            for _ in range(min(len(self._queue), SHADOW_STREAM_BATCH_PAIRS)):
                pair = self._queue.popleft()
                size = len(cast("bytes", pair["q"])) + len(cast("bytes", pair["r"]))
                if size > allowed:
                    self.dropped += 1
                    continue
                allowed -= size
                count += 1
                pipe.xadd(name, pair, maxlen=2 * SHADOW_QUEUE_MAX, approximate=True)  # type: ignore[arg-type]
            try:
                if count:
                    # All of them expire when no new one comes, also if this process ends here.
                    pipe.pexpire(name, SHADOW_KEPT_MS)
                    *_, last_id, _ = await pipe.execute()
                    await self._trim(name, int(last_id.partition(b"-")[0]))
            except STORE_ERRORS:
                self.dropped += count

    async def _trim(self, name: str, now_ms: int) -> None:
        """Drop old pairs."""
        await self._store.client.xtrim(name, minid=now_ms - SHADOW_KEPT_MS, approximate=False)
