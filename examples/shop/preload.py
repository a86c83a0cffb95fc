"""Putting the first keys there, in pipelines."""

from __future__ import annotations

from typing import Any

import redis.asyncio as redis

from examples.shop.model import Model, cold_expiry_ms, cold_key, cold_kind, cold_state

_BATCH = 500


def queue_cold(pipe: Any, model: Model, index: int) -> None:
    """Queue the commands that make one preloaded key."""
    key = cold_key(index)
    state: Any = cold_state(model.seed, index)
    kind = cold_kind(index)
    if kind == "string":
        pipe.set(key, state)
    elif kind == "list":
        pipe.rpush(key, *state)
    elif kind == "set":
        pipe.sadd(key, *state)
    elif kind == "zset":
        pipe.zadd(key, state)
    else:
        pipe.hset(key, mapping=state)
    expiry_ms = cold_expiry_ms(model, index)
    if expiry_ms is not None:
        pipe.pexpireat(key, expiry_ms)


async def preload(client: redis.Redis, model: Model) -> None:
    """Make all preloaded keys."""
    for start in range(0, model.keys, _BATCH):
        pipe = client.pipeline(transaction=False)
        for index in range(start, min(start + _BATCH, model.keys)):
            queue_cold(pipe, model, index)
        await pipe.execute()
