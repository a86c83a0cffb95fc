"""Holding a server against the model: lost, duplicated, resurrected."""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio as redis

from examples.shop.model import Model, State, cold_expiry_ms, cold_key, cold_kind, cold_state
from examples.shop.place import connect

_BATCH = 500
_READS = {
    b"string": "get",
    b"list": "lrange",
    b"set": "smembers",
    b"zset": "zrange",
    b"hash": "hgetall",
    b"stream": "xrange",
}
_TIME_AND_TTL = """
local now = redis.call('TIME')
return {now[1], now[2], redis.call('PTTL', KEYS[1])}
"""
_SLACK_MS = 50  # between our clock and the moment at which a server removes an expired key


def _queue(pipe: Any, kind: bytes, key: bytes) -> None:
    if kind == b"list":
        pipe.lrange(key, 0, -1)
    elif kind == b"zset":
        pipe.zrange(key, 0, -1, withscores=True)
    elif kind == b"stream":
        pipe.xrange(key)
    elif kind in _READS:
        getattr(pipe, _READS[kind])(key)
    else:
        pipe.exists(key)


def _state(kind: bytes, value: Any) -> State:
    if kind == b"list":
        return tuple(value)
    if kind == b"set":
        return frozenset(value)
    if kind == b"zset":
        return {row[0]: b"%d" % int(row[1]) for row in value}
    if kind == b"stream":
        return tuple(entry_id for entry_id, _ in value)
    if kind == b"none":
        return None
    found: State = value
    return found


async def read_states(client: redis.Redis, keys: list[bytes]) -> list[State]:
    """States of keys in the model's shape."""
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
    kinds = await pipe.execute()
    pipe = client.pipeline(transaction=False)
    for key, kind in zip(keys, kinds, strict=True):
        _queue(pipe, kind, key)
    return [_state(kind, value) for kind, value in zip(kinds, await pipe.execute(), strict=True)]


async def read_as(client: redis.Redis, kinds: list[bytes], keys: list[bytes]) -> list[State]:
    """States of keys whose types are known; where one is of another type, as `read_states`."""
    pipe = client.pipeline(transaction=False)
    for kind, key in zip(kinds, keys, strict=True):
        _queue(pipe, kind, key)
    found = await pipe.execute(raise_on_error=False)
    if any(isinstance(value, redis.RedisError) for value in found):
        return await read_states(client, keys)
    # No collection is empty: one that seems to be is a key that is not there.
    return [_state(kind, value) or None for kind, value in zip(kinds, found, strict=True)]


async def read_state(client: redis.Redis, key: bytes) -> State:
    """State of one key."""
    return (await read_states(client, [key]))[0]


async def read_expiries(client: redis.Redis, keys: list[bytes]) -> list[int]:
    """Absolute expiry in ms of keys; -1 without one, -2 where there is no key."""
    try:
        pipe: Any = client.pipeline(transaction=False)
        for key in keys:
            pipe.pexpiretime(key)
        return [int(at) for at in await pipe.execute()]
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except redis.RedisError:
        # Redis 6.2 has no PEXPIRETIME. A cluster client does not even send it there.
        found: list[int] = []
        for key in keys:
            seconds, micros, left = map(int, await client.eval(_TIME_AND_TTL, 1, key))
            found.append(left if left < 0 else seconds * 1000 + micros // 1000 + left)
        return found


class Findings:
    """What differs."""

    def __init__(self) -> None:
        self.lost = self.duplicated = self.resurrected = self.checked = 0
        self.drift_ms_max = 0
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Name the first twenty."""
        if len(self.problems) < 20:
            self.problems.append(text)

    def key(self, key: bytes, allowed: tuple[State, ...], found: State) -> None:
        """Judge one key."""
        self.checked += 1
        if found in allowed:
            return
        name = key.decode("utf-8", "backslashreplace")
        wanted = allowed[-1]
        if wanted is None and len(allowed) == 1:
            self.resurrected += 1
            self.problem(f"resurrected: {name} must not exist")
        elif _more_than(found, wanted):
            self.duplicated += 1
            self.problem(f"duplicated: {name} holds more than was written")
        else:
            self.lost += 1
            self.problem(
                f"lost: {name} is {'missing' if found is None else 'not what was acknowledged'}"
            )

    def expiry(self, key: bytes, earliest_ms: int, latest_ms: int, found_ms: int) -> None:
        """Judge one expiry: drift is what the interval does not explain."""
        name = key.decode("utf-8", "backslashreplace")
        if found_ms == -1:
            self.lost += 1
            self.problem(f"lost: {name} has no expiry any more")
            return
        drift = max(earliest_ms - found_ms, found_ms - latest_ms, 0)
        self.drift_ms_max = max(self.drift_ms_max, drift)
        if drift > _SLACK_MS:
            self.lost += 1
            self.problem(f"lost: the expiry of {name} is off by {drift} ms")

    def report(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "lost_writes": self.lost,
            "duplicated": self.duplicated,
            "resurrected_keys": self.resurrected,
            "ttl_drift_ms_max": self.drift_ms_max,
            "keys_checked": self.checked,
            "problems": self.problems,
        }


def _more_than(found: State, wanted: State) -> bool:
    """Return whether an effect seems to have been applied twice."""
    if isinstance(found, tuple) and isinstance(wanted, tuple):
        return len(found) > len(wanted) and set(wanted) <= set(found)
    if (
        isinstance(found, bytes)
        and isinstance(wanted, bytes)
        and found.isdigit()
        and wanted.isdigit()
        and len(found) < 15
    ):
        return int(found) > int(wanted)
    return False


async def check(model: Model, url: str) -> dict[str, Any]:
    """Compare a server with the model."""
    # One for each of a million replies costs more than reading it
    client = connect(url, timeout_s=None)
    findings = Findings()
    try:
        await _check_cold(client, model, findings)
        await _check_live(client, model, findings)
        await _check_jobs(client, model, findings)
        await _check_strangers(client, model, findings)
    finally:
        await client.aclose()
    return findings.report()


async def _check_cold(client: redis.Redis, model: Model, findings: Findings) -> None:
    for start in range(0, model.keys, _BATCH):
        indexes = [
            index
            for index in range(start, min(start + _BATCH, model.keys))
            if index not in model.changed
        ]
        keys = [cold_key(index) for index in indexes]
        if not keys:
            continue
        kinds = [cold_kind(index).encode() for index in indexes]
        for index, key, found in zip(
            indexes, keys, await read_as(client, kinds, keys), strict=True
        ):
            findings.key(key, (cold_state(model.seed, index),), found)
        timed = [
            (key, at)
            for index, key in zip(indexes, keys, strict=True)
            if (at := cold_expiry_ms(model, index)) is not None
        ]
        for (key, at), found_ms in zip(
            timed, await read_expiries(client, [key for key, _ in timed]), strict=True
        ):
            if found_ms != -2:
                findings.expiry(key, at, at, found_ms)


async def _check_live(client: redis.Redis, model: Model, findings: Findings) -> None:
    keys = list({*model.live, *model.unknown})
    now_ms = int(time.time() * 1000)
    for start in range(0, len(keys), _BATCH):
        part = keys[start : start + _BATCH]
        states, expiries = await read_states(client, part), await read_expiries(client, part)
        for key, found, found_ms in zip(part, states, expiries, strict=True):
            allowed: tuple[State, ...] = model.unknown.get(key) or (model.live[key],)
            expiry = model.expiries.get(key)
            if key in model.unknown:
                # Its expiry is that of one of the two, and whether it may be gone stands in
                # `allowed`
                pass
            elif expiry is not None and expiry.latest_ms + _SLACK_MS < now_ms:
                allowed = (None,)
            elif expiry is not None and expiry.earliest_ms - _SLACK_MS < now_ms + 10_000:
                allowed = (*allowed, None)  # it may expire while this is read
            findings.key(key, allowed, found)
            gone = found_ms == -2 and None in allowed  # it expired between the two reads
            if (
                expiry is not None
                and found is not None
                and not gone
                and key not in model.unknown
                and found in allowed
            ):
                findings.expiry(key, expiry.earliest_ms, expiry.latest_ms, found_ms)
            elif expiry is None and found_ms >= 0 and key not in model.unknown:
                findings.lost += 1
                findings.problem(f"lost: {key.decode()} expires, which nobody asked for")
    for key, pending in model.pending.items():
        if key in model.unknown:
            continue
        there = (await client.xpending(key, "workers"))["pending"]
        if there != pending:
            findings.lost += 1
            findings.problem(f"lost: {key.decode()} has {there} entries pending, {pending} are")


async def _check_jobs(client: redis.Redis, model: Model, findings: Findings) -> None:
    jobs: Any = client.lrange("shop:jobs", 0, -1)
    left: list[bytes] = await jobs
    seen = model.jobs_consumed + left
    twice = len(seen) - len(set(seen))
    if twice:
        findings.duplicated += twice
        findings.problem(f"duplicated: {twice} jobs were seen twice")
    missing = model.jobs_pushed - set(seen)
    if len(missing) > model.pops_unknown:
        findings.lost += len(missing) - model.pops_unknown
        findings.problem(f"lost: {len(missing)} acknowledged jobs are nowhere")


async def _check_strangers(client: redis.Redis, model: Model, findings: Findings) -> None:
    """Keys that nobody wrote."""
    async for key in client.scan_iter(count=2000):
        if key.startswith(b"cold:"):
            known = int(key[5:]) < model.keys
        else:
            known = (
                key in model.live
                or key in model.unknown
                or key == b"shop:jobs"
                or key.startswith((b"exodus:", b"exodus-rehearsal:"))
            )
        if not known:
            findings.resurrected += 1
            findings.problem(
                f"resurrected: {key.decode('utf-8', 'backslashreplace')} was never written"
            )
