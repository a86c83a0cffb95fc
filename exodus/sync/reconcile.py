"""Verification: both sides, both directions, values by type and never by DUMP bytes, expiry in absolute milliseconds.

Keys are compared in batches, so memory does not grow with the keyspace. What differs is looked at again after a pause, since live sync may be
on its way, and only then called a divergence. A divergence names key and kind, never a value.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

from exodus.config import RESERVED_PREFIX
from exodus.control.changes import Key
from exodus.endpoint import Endpoint, Node, NodeFacts
from exodus.leg import Leg, Reply, ReplyError
from exodus.sync.engine import Engine
from exodus.sync.payload import Command
from exodus.sync.scan import scan_once

_BATCH_KEYS = 500
_CLOCK_SLACK_MS = 2  # a server without PEXPIRETIME: its clock and PTTL are read one after the other
_LISTED_MAX = 1_000


@dataclass(frozen=True)
class Divergence:
    """One key that differs."""

    db: int
    key: bytes
    kind: str  # missing, extra, type, value, expiry, group
    detail: str = ""

    def as_json(self) -> dict[str, str | int]:
        """For reports: the key as text, bytes that are none escaped."""
        return {**asdict(self), "key": self.key.decode("utf-8", "backslashreplace")}


@dataclass
class VerificationReport:
    """What a pass found. keys_authority = keys_verified + keys_dirty + those among `divergences` that the authority has."""

    keys_authority: int = 0
    keys_follower: int = 0
    keys_verified: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    divergences_total: int = 0
    dirty: list[Divergence] = field(default_factory=list)  # differ, and were written while they were looked at: live sync has them
    dirty_total: int = 0
    looked_at_again: int = 0
    ttl_drift_ms_max: int = 0
    keys_with_ttl: int = 0
    seconds: float = 0.0
    by_type: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return self.divergences_total == 0

    def as_json(self) -> dict[str, object]:
        """For reports and artifacts."""
        return {
            "keys_authority": self.keys_authority,
            "keys_follower": self.keys_follower,
            "keys_verified": self.keys_verified,
            "divergences": [divergence.as_json() for divergence in self.divergences],
            "divergences_total": self.divergences_total,
            "dirty": [divergence.as_json() for divergence in self.dirty],
            "keys_dirty": self.dirty_total,
            "looked_at_again": self.looked_at_again,
            "ttl_drift_ms_max": self.ttl_drift_ms_max,
            "keys_with_ttl": self.keys_with_ttl,
            "seconds": round(self.seconds, 3),
            "by_type": dict(self.by_type),
        }


class Comparison:
    """Two legs in the same database, and what is equal between them."""

    def __init__(self, authority: Leg, follower: Leg, authority_facts: NodeFacts, follower_facts: NodeFacts) -> None:
        self._legs = (authority, follower)
        self._modern = tuple(facts.capabilities.get("pexpiretime", False) for facts in (authority_facts, follower_facts))
        self._slack_ms = 0 if all(self._modern) else _CLOCK_SLACK_MS
        self._field_expiry = all(facts.capabilities.get("hash field ttl") for facts in (authority_facts, follower_facts))

    async def select(self, db: int) -> None:
        """Change the database on both sides."""
        for leg in self._legs:
            await leg.select(db)

    async def close(self) -> None:
        """End both connections."""
        for leg in self._legs:
            await leg.close()

    async def differences(self, db: int, keys: Sequence[bytes], report: VerificationReport) -> list[Divergence]:
        """Compare keys; those that neither side has are equal."""
        ours, theirs = await asyncio.gather(*[self._outline(index, keys) for index in (0, 1)])
        found: list[Divergence] = []
        same: list[tuple[bytes, bytes]] = []
        for key, (kind, expiry), (kind_there, expiry_there) in zip(keys, ours, theirs, strict=True):
            if kind == kind_there == b"none":
                continue
            if kind_there == b"none":
                found.append(Divergence(db, key, "missing", kind.decode()))
            elif kind == b"none":
                found.append(Divergence(db, key, "extra", kind_there.decode()))
            elif kind != kind_there:
                found.append(Divergence(db, key, "type", f"{kind.decode()} and {kind_there.decode()}"))
            elif (expiry < 0) != (expiry_there < 0):
                found.append(Divergence(db, key, "expiry", "on one side only"))
            elif expiry >= 0 and abs(expiry - expiry_there) > self._slack_ms:
                found.append(Divergence(db, key, "expiry", f"{expiry_there - expiry:+d} ms"))
            else:
                same.append((key, kind))
                if expiry >= 0:
                    report.keys_with_ttl += 1
                    report.ttl_drift_ms_max = max(report.ttl_drift_ms_max, abs(expiry - expiry_there))
        values = await asyncio.gather(*[self._values(index, same) for index in (0, 1)])
        for (key, kind), value, value_there in zip(same, *values, strict=True):
            if value == value_there:
                report.by_type[kind.decode()] += 1
            elif kind == b"stream" and value[0] == value_there[0]:
                found.append(Divergence(db, key, "group", "consumer groups or ids differ"))
            else:
                found.append(Divergence(db, key, "value", f"{kind.decode()}s differ"))
        return found

    async def surplus(self, db: int, keys: Sequence[bytes]) -> list[Divergence]:
        """Keys of the follower that the authority does not have."""
        there = await self._legs[0].pipeline([("EXISTS", key) for key in keys])
        return [Divergence(db, key, "extra", "not on the authority") for key, exists in zip(keys, there, strict=True) if not exists]

    async def _outline(self, index: int, keys: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Type and absolute expiry in ms (-1: none) of each key; type `none` where it does not exist."""
        leg = self._legs[index]
        if self._modern[index]:
            replies = await leg.pipeline([command for key in keys for command in (("TYPE", key), ("PEXPIRETIME", key))])
            return [(b"none" if expiry == -2 else kind, expiry) for kind, expiry in zip(replies[::2], replies[1::2], strict=True)]
        replies = await leg.pipeline([command for key in keys for command in (("TYPE", key), ("PTTL", key))])
        found = [(b"none" if left == -2 else kind, left) for kind, left in zip(replies[::2], replies[1::2], strict=True)]
        timed = [number for number, (_, left) in enumerate(found) if left >= 0]
        for number in timed:
            found[number] = (found[number][0], await self._expiry_by_clock(leg, keys[number]))
        return [(b"none" if expiry == -2 else kind, expiry) for kind, expiry in found]

    @staticmethod
    async def _expiry_by_clock(leg: Leg, key: bytes) -> int:
        while True:
            *_, (before, left, after) = await leg.pipeline([("MULTI",), ("TIME",), ("PTTL", key), ("TIME",), ("EXEC",)])
            if left < 0:
                return int(left)
            first, second = (int(at[0]) * 1000 + int(at[1]) // 1000 for at in (before, after))
            if second - first <= 1:
                return first + int(left)

    async def _values(self, index: int, keys: Sequence[tuple[bytes, bytes]]) -> list[Reply]:
        """Each key's value in a shape in which equal means the same."""
        leg = self._legs[index]
        commands: list[Command] = []
        for key, kind in keys:
            commands.extend(_reads(kind, key))
        replies = iter(await leg.pipeline(commands))
        found: list[Reply] = []
        for key, kind in keys:
            value = _canonical(kind, [next(replies) for _ in _reads(kind, key)])
            if kind == b"hash" and self._field_expiry and isinstance(value, dict) and value:
                fields = sorted(value)
                ttls = await leg.call("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)
                value = (value, [ttl for ttl in ttls if isinstance(ttl, int) and ttl >= 0] and ttls)
            found.append(value)
        return found


def _reads(kind: bytes, key: bytes) -> list[Command]:
    reads: dict[bytes, list[Command]] = {
        b"string": [("GET", key)],
        b"list": [("LRANGE", key, 0, -1)],
        b"set": [("SMEMBERS", key)],
        b"zset": [("ZRANGE", key, 0, -1, "WITHSCORES")],
        b"hash": [("HGETALL", key)],
        b"stream": [("XRANGE", key, "-", "+"), ("XINFO", "STREAM", key, "FULL", "COUNT", 0)],
    }
    return reads.get(kind, [("DUMP", key)])


def _canonical(kind: bytes, replies: list[Reply]) -> Reply:
    value = replies[0]
    if any(isinstance(reply, ReplyError) for reply in replies):
        return str(value)  # it changed its type meanwhile: unequal, and looked at again
    if kind == b"set":
        return frozenset(value)
    if kind == b"hash":
        return dict(zip(value[::2], value[1::2], strict=True))
    if kind == b"zset":
        # Redis up to 7.0 prints 17 digits, later ones the shortest form: the same double.
        return [(member, float(score)) for member, score in zip(value[::2], value[1::2], strict=True)]
    if kind == b"stream":
        full = dict(zip(replies[1][::2], replies[1][1::2], strict=True))
        return ([(entry[0], tuple(entry[1])) for entry in value], full[b"last-generated-id"], _groups(full[b"groups"]))
    return value


def _groups(groups: Iterable[Reply]) -> list[Reply]:
    """Groups without the times at which consumers were seen, which nobody can set."""
    found = []
    for raw in groups:
        group = dict(zip(raw[::2], raw[1::2], strict=True))
        consumers = []
        for raw_consumer in group[b"consumers"]:
            consumer = dict(zip(raw_consumer[::2], raw_consumer[1::2], strict=True))
            consumers.append((consumer[b"name"], sorted(tuple(entry) for entry in consumer[b"pending"])))
        found.append((group[b"name"], group[b"last-delivered-id"], sorted(consumers)))
    return sorted(found)


async def open_comparison(engine: Engine) -> Comparison:
    """Connections of their own for comparing."""
    authority = await (await engine.authority.nodes())[0].connect(name="exodus-verify")
    try:
        follower = await (await engine.follower.nodes())[0].connect(name="exodus-verify")
        for leg, facts in ((authority, engine.authority_facts), (follower, engine.follower_facts)):
            if facts.capabilities.get("no-touch"):
                await leg.call("CLIENT", "NO-TOUCH", "ON")
    except BaseException:
        await authority.close()
        raise
    return Comparison(authority, follower, engine.authority_facts, engine.follower_facts)


async def verify(
    engine: Engine,
    *,
    settle_s: float = 0.5,
    attempts: int = 5,
    on_progress: Callable[[int, int], None] | None = None,
) -> VerificationReport:
    """Compare every key of both sides.

    Args:
        settle_s: pause before keys that differ are looked at again, doubled each time.
        attempts: how often in all a key may differ before it is called a divergence.
        on_progress: called with keys seen so far and an upper bound of all.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    began = time.monotonic()
    report = VerificationReport()
    suspects: dict[Key, Divergence] = {}
    moving: set[Key] = set()
    comparison = await open_comparison(engine)
    try:
        total = sum(engine.authority_facts.databases.values()) + sum(engine.follower_facts.databases.values())
        async for db, keys in _batches(engine.authority):
            report.keys_authority += len(keys)
            await comparison.select(db)
            for found in await comparison.differences(db, keys, report):
                suspects[(db, found.key)] = found
            if on_progress is not None:
                on_progress(report.keys_authority, total)
        async for db, keys in _batches(engine.follower):
            report.keys_follower += len(keys)
            await comparison.select(db)
            # Keys that both have were compared above; only those that should not be here are of interest.
            for found in await comparison.surplus(db, keys):
                suspects[(db, found.key)] = found
            if on_progress is not None:
                on_progress(report.keys_authority + report.keys_follower, total)
        report.looked_at_again = len(suspects)
        for attempt in range(attempts - 1):
            if not suspects:
                break
            await asyncio.sleep(settle_s * 2**attempt)
            synced = await engine.feed.synced()
            suspects = await _again(comparison, list(suspects), report)
            # A key with an entry that was not synced when we looked is dirty, not divergent: its copy is on the way.
            moving = set((await engine.feed.changes_since(synced)).keys) if engine.route.sync else set()
    finally:
        await comparison.close()
    dirty = {key: found for key, found in suspects.items() if key in moving}
    divergences = {key: found for key, found in suspects.items() if key not in moving}
    report.dirty_total, report.dirty = len(dirty), list(dirty.values())[:_LISTED_MAX]
    report.divergences_total, report.divergences = len(divergences), list(divergences.values())[:_LISTED_MAX]
    report.keys_verified = report.keys_authority - sum(found.kind != "extra" for found in suspects.values())
    report.seconds = time.monotonic() - began
    return report


async def _again(comparison: Comparison, keys: Sequence[Key], report: VerificationReport) -> dict[Key, Divergence]:
    by_db: dict[int, list[bytes]] = {}
    for db, key in keys:
        by_db.setdefault(db, []).append(key)
    suspects: dict[Key, Divergence] = {}
    for db, members in by_db.items():
        await comparison.select(db)
        for start in range(0, len(members), _BATCH_KEYS):
            for found in await comparison.differences(db, members[start : start + _BATCH_KEYS], report):
                suspects[(db, found.key)] = found
    return suspects


async def _batches(endpoint: Endpoint) -> AsyncIterator[tuple[int, list[bytes]]]:
    for node in await endpoint.nodes():
        for db in sorted((await node.facts()).databases):
            async for keys in _node_batches(node, db):
                yield db, keys


async def _node_batches(node: Node, db: int) -> AsyncIterator[list[bytes]]:
    async with await node.connect(db, name="exodus-verify") as leg:
        cursor = -1
        while cursor:
            cursor, found = await scan_once(leg, max(cursor, 0), _BATCH_KEYS)
            # SCAN may give a key twice in one call while the table grows.
            keys = [key for key in dict.fromkeys(found) if not key.startswith(RESERVED_PREFIX)]
            if keys:
                yield keys


async def spot_check(engine: Engine, keys: Sequence[Key]) -> list[Divergence]:
    """Compare some keys now, without a second look."""
    comparison = await open_comparison(engine)
    try:
        wanted = [key for key in keys if not key[1].startswith(RESERVED_PREFIX)]
        return list((await _again(comparison, wanted, VerificationReport())).values())
    finally:
        await comparison.close()


async def repair(engine: Engine, keys: Sequence[Key]) -> list[Key]:
    """Sync keys once more under the epoch's guard; returns those that could not be carried.

    For keys that differ while nothing of live sync is on: with live sync on, mark them through the feed instead, so that the lanes do it.
    """
    copier = await engine.copier(engine.guard(), name="exodus-repair")
    failed: list[Key] = []
    try:
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            by_db.setdefault(db, []).append(key)
        for db, members in by_db.items():
            for start in range(0, len(members), _BATCH_KEYS):
                report = await copier.sync_keys(db, members[start : start + _BATCH_KEYS])
                await engine.keep_failures(report.failed)
                failed.extend((failure.db, failure.key) for failure in report.failed)
        broken = set(failed)
        await engine.forget_failures(key for key in keys if key not in broken)
    finally:
        await copier.close()
    return failed
