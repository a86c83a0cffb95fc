"""A sample of the keys that are there: types, encodings, sizes, expiries, large keys.

SCAN walks the hash table, whose order has nothing to do with the keys' names, so its first part is
a sample. Each batch is followed by a pause, so that the server spends at most `busy_share_max` of
its time on it. TYPE, OBJECT ENCODING, PTTL and MEMORY USAGE do not touch a key's age (LRU).
Names of keys are made patterns at once and not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from exodus.net.info import databases_of, info_of
from exodus.net.leg import Leg, ReplyError
from exodus.observe.shapes import hashed_words, pattern_of
from exodus.plan.bounds import (
    KEYSPACE_SAMPLED_ELEMENTS,
    LARGE_KEY_BYTES,
    SAMPLE_BATCH_KEYS,
    SAMPLE_GROUPS_MAX,
)
from exodus.plan.own_keys import is_own

if TYPE_CHECKING:
    import pandas as pd

_Z95 = 1.96  # of a normal distribution: 95 % lie within


class SampledKey(NamedTuple):
    """One key of the sample. `ttl_ms` is -1 without expiry; `memory_bytes` -1 where not told."""

    pattern: str
    kind: str
    encoding: str
    memory_bytes: int
    ttl_ms: int


class KeyGroup(BaseModel):
    """The sampled keys of one pattern and type. Intervals are of 95 % confidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str
    kind: str = Field(description="type, as TYPE says it")
    sampled: int = Field(ge=1, description="keys of the sample")
    keys: int = Field(ge=0, description="about how many there are")
    keys_low: int = Field(ge=0, description="lower end of the interval")
    keys_high: int = Field(ge=0, description="upper end of the interval")
    encodings: dict[str, int] = Field(description="keys of the sample by encoding")
    memory_bytes_mean: float = Field(ge=0, description="of a key, as MEMORY USAGE says it")
    memory_bytes_mean_low: float = Field(ge=0)
    memory_bytes_mean_high: float = Field(ge=0)
    memory_bytes_p99: int = Field(ge=0)
    memory_bytes_max: int = Field(ge=0)
    large: int = Field(ge=0, description="keys of the sample that are copied in chunks")
    expiring_share: float = Field(ge=0, le=1, description="of keys with an expiry")
    ttl_ms_p50: int = Field(ge=0, description="that is left to these")
    ttl_ms_p99: int = Field(ge=0)


class Keyspace(BaseModel):
    """A sample of one server's keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: int = Field(ge=0, description="of all databases, as INFO says it")
    sampled: int = Field(ge=0)
    complete: bool = Field(description="whether every key is in the sample")
    groups: list[KeyGroup]
    groups_left_out: int = Field(ge=0, description="keys of the sample in rarer groups")


def interval(found: int, sampled: int, keys: int) -> tuple[int, int]:
    """Return the 95 % interval (Wilson) of how many of `keys` are such as `found` of the sample."""
    if sampled >= keys or not sampled:
        return found, found
    share, square = found / sampled, _Z95**2
    middle = (share + square / (2 * sampled)) / (1 + square / sampled)
    width = (
        _Z95
        * sqrt(share * (1 - share) / sampled + square / (4 * sampled**2))
        / (1 + square / sampled)
    )
    return max(found, int((middle - width) * keys)), min(keys, int((middle + width) * keys) + 1)


def keyspace_of(sample: Sequence[SampledKey], *, keys: int) -> Keyspace:
    """Sum a sample up."""
    sampled = len(sample)
    keys = max(keys, sampled)
    groups: list[KeyGroup] = []
    if sampled:
        import pandas as pd  # here: it costs each gateway and each command 30 MB, and time to start

        frame = pd.DataFrame(sample, columns=list(SampledKey._fields))
        for (pattern, kind), rows in frame.groupby(["pattern", "kind"]):
            groups.append(_group(str(pattern), str(kind), rows, sampled, keys))
    groups.sort(key=lambda group: -group.sampled)
    return Keyspace(
        keys=keys,
        sampled=sampled,
        complete=sampled >= keys,
        groups=groups[:SAMPLE_GROUPS_MAX],
        groups_left_out=sum(group.sampled for group in groups[SAMPLE_GROUPS_MAX:]),
    )


def _group(pattern: str, kind: str, rows: pd.DataFrame, sampled: int, keys: int) -> KeyGroup:
    found = len(rows)
    low, high = interval(found, sampled, keys)
    memory = rows["memory_bytes"][rows["memory_bytes"] >= 0]
    mean = float(memory.mean()) if len(memory) else 0.0
    error = _Z95 * float(memory.std(ddof=1)) / sqrt(len(memory)) if len(memory) > 1 else 0.0
    expiring = rows["ttl_ms"][rows["ttl_ms"] >= 0]
    return KeyGroup(
        pattern=pattern,
        kind=kind,
        sampled=found,
        keys=round(found / sampled * keys),
        keys_low=low,
        keys_high=high,
        encodings={
            str(name): int(count) for name, count in rows["encoding"].value_counts().items()
        },
        memory_bytes_mean=round(mean, 1),
        memory_bytes_mean_low=round(max(0.0, mean - error), 1),
        memory_bytes_mean_high=round(mean + error, 1),
        memory_bytes_p99=int(memory.quantile(0.99)) if len(memory) else 0,
        memory_bytes_max=int(memory.max()) if len(memory) else 0,
        large=int((memory > LARGE_KEY_BYTES).sum()),
        expiring_share=round(len(expiring) / found, 6),
        ttl_ms_p50=int(expiring.quantile(0.5)) if len(expiring) else 0,
        ttl_ms_p99=int(expiring.quantile(0.99)) if len(expiring) else 0,
    )


async def sample_keys(
    legs: Sequence[Leg],
    databases: Sequence[int],
    *,
    keys_max: int,
    seconds_max: float,
    busy_share_max: float,
    hashed: bool = False,
) -> Keyspace:
    """Take a sample from a side, over connections of its own.

    Args:
        legs: one to each master; their databases change.
        databases: whose keys are sampled, each with the same number at most.
        keys_max: of all masters and databases together.
        seconds_max: after which it ends with what it has.
        busy_share_max: of a server's time that may be spent on it.
        hashed: key patterns are shown by hashes of their words.

    Raises:
        hiredis.ReplyError: a server refuses SCAN or INFO.
        SourceError: it went away.
    """
    ends = time.monotonic() + seconds_max
    sample: list[SampledKey] = []
    keys = 0
    places = [(leg, db) for leg in legs for db in databases]
    for place, (leg, db) in enumerate(places):
        await leg.select(db)
        # Not DBSIZE, to which the syncer's user has no right on the source
        keys += databases_of(info_of(await leg.call("INFO", "keyspace"))).get(db, 0)
        most = (keys_max - len(sample)) // (len(places) - place)
        cursor, taken = b"0", 0
        while taken < most and time.monotonic() < ends:
            began = time.monotonic()
            cursor, found = await leg.call("SCAN", cursor, "COUNT", SAMPLE_BATCH_KEYS)
            wanted = [key for key in found if not is_own(key)][: most - taken]
            rows = await _look(leg, wanted, hashed=hashed)
            sample += rows
            taken += len(rows)
            await asyncio.sleep((time.monotonic() - began) * (1 / busy_share_max - 1))
            if cursor == b"0":
                break
    return keyspace_of(sample, keys=keys)


async def _look(leg: Leg, keys: Sequence[bytes], *, hashed: bool) -> list[SampledKey]:
    asked: list[tuple[Any, ...]] = []
    for key in keys:
        asked += [
            ("TYPE", key),
            ("OBJECT", "ENCODING", key),
            ("MEMORY", "USAGE", key, "SAMPLES", KEYSPACE_SAMPLED_ELEMENTS),
            ("PTTL", key),
        ]
    replies = await leg.pipeline(asked)
    found = []
    for place, key in enumerate(keys):
        kind, encoding, memory, ttl = replies[4 * place : 4 * place + 4]
        if kind == b"none" or isinstance(kind, ReplyError):
            continue  # it expired meanwhile
        found.append(
            SampledKey(
                hashed_words(pattern_of(key)) if hashed else pattern_of(key),
                kind.decode("ascii", "replace"),
                encoding.decode("ascii", "replace") if isinstance(encoding, bytes) else "unknown",
                memory if isinstance(memory, int) else -1,
                ttl if isinstance(ttl, int) else -1,
            )
        )
    return found
