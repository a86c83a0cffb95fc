"""How much memory the data needs on the target, measured: a sample of keys is restored there.

Each sampled key's payload is restored under a scratch name on the target, asked for its memory, and
removed. Large keys are counted, and not restored. The source's own memory calibrates the sum: what
MEMORY USAGE tells of the sample, scaled up, is held against what the source really uses.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.crc import key_slot

from exodus.net.leg import Leg, ReplyError
from exodus.plan.bounds import (
    CLUSTER_SLOTS,
    LARGE_KEY_BYTES,
    READ_BATCH_BYTES,
    SAMPLE_BATCH_KEYS,
    SAMPLE_BUSY_SHARE_MAX,
    SIZING_KEYS_MAX,
    SIZING_SECONDS_MAX,
    SIZING_SHARDS,
)
from exodus.plan.own_keys import is_own

Json = dict[str, Any]


@dataclass
class TypeSize:
    """The sampled keys of one type. Bytes are sums, as MEMORY USAGE tells them."""

    keys: int = 0
    large: int = 0  # of them, not restored
    restored: int = 0
    source_bytes: int = 0  # of all sampled keys of the type
    restored_source_bytes: int = 0  # of those that were restored
    restored_target_bytes: int = 0
    encodings: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # encoding and first word of the error

    @property
    def ratio(self) -> float:
        """Bytes on the target for one on the source; 1 where nothing was restored."""
        if not self.restored_source_bytes:
            return 1.0
        return self.restored_target_bytes / self.restored_source_bytes


class _Restored(NamedTuple):
    """A key of the sample on its way."""

    name: bytes
    payload: bytes
    of: TypeSize
    encoding: str
    source_bytes: int  # as if it had the scratch name there


@dataclass
class Sizing:
    """A sample, and what it says of all keys."""

    keys: int  # of all databases
    used_bytes: int  # of the source's data set, as INFO memory tells it
    types: dict[str, TypeSize] = field(default_factory=dict)
    why_not: str = ""  # nothing was restored
    slots: Counter[int] = field(default_factory=Counter)  # sampled bytes by cluster slot
    dumped: int = 0
    dump_s: float = 0.0  # that the source took for all payloads, in batches over one connection
    restore_s: float = 0.0  # likewise, the target

    @property
    def sampled(self) -> int:
        """How many keys the sample has."""
        return sum(each.keys for each in self.types.values())

    @property
    def source_bytes(self) -> int:
        """What the sampled keys take on the source."""
        return sum(each.source_bytes for each in self.types.values())

    @property
    def target_bytes(self) -> int:
        """What they would take on the target."""
        return round(sum(each.source_bytes * each.ratio for each in self.types.values()))

    @property
    def needed_bytes(self) -> int:
        """What all keys would take on the target: the source's memory, times the sample's ratio."""
        if not self.source_bytes:
            return self.used_bytes
        return round(self.used_bytes * self.target_bytes / self.source_bytes)

    @property
    def keys_per_s(self) -> float | None:
        """Keys a second that one connection copies; None: none was."""
        seconds = self.dump_s + self.restore_s
        return self.dumped / seconds if self.dumped and seconds else None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a type, for the evidence."""
        scale = self.keys / self.sampled if self.sampled else 0.0
        return [
            {
                "type": kind,
                "keys_sampled": each.keys,
                "keys_estimated": round(each.keys * scale),
                "restored": each.restored,
                "large": each.large,
                "refused": ", ".join(f"{why} {count}" for why, count in each.refused.items()),
                "source_bytes_a_key": round(each.source_bytes / each.keys, 1),
                "target_bytes_a_key": round(each.source_bytes * each.ratio / each.keys, 1),
                "ratio": round(each.ratio, 4),
                "encodings": dict(each.encodings),
            }
            for kind, each in sorted(self.types.items(), key=lambda item: -item[1].keys)
        ]

    def shards(self, hot: Sequence[Mapping[str, Any]], requests_per_s: float) -> list[Json]:
        """Return for several numbers of shards what the fullest and the busiest one would have.

        Args:
            hot: the hottest keys, with their slot and requests a second.
            requests_per_s: of all keys. What the hot keys do not take spreads evenly.
        """
        rows = []
        total = sum(self.slots.values())
        for count in SIZING_SHARDS:
            memory: Counter[int] = Counter()
            for slot, size in self.slots.items():
                memory[slot * count // CLUSTER_SLOTS] += size
            busy: Counter[int] = Counter()
            hottest = sum(row["requests_per_s"] for row in hot)
            for row in hot:
                busy[row["slot"] * count // CLUSTER_SLOTS] += row["requests_per_s"]
            rest = max(0.0, requests_per_s - hottest) / count
            most = max(busy.values(), default=0.0) + rest
            rows.append(
                {
                    "shards": count,
                    "fullest_share": round(max(memory.values(), default=0) / total, 4)
                    if total
                    else 0.0,
                    "even_share": round(1 / count, 4),
                    "busiest_requests_per_s": round(most, 1),
                    "busiest_share": round(most / requests_per_s, 4) if requests_per_s else 0.0,
                    "hottest_key": hot[0]["key"] if hot else "",
                }
            )
        return rows

    def arithmetic(self, headroom: float) -> str:
        """Return the sum in words that a person can redo."""
        share = self.target_bytes / self.source_bytes if self.source_bytes else 1.0
        return (
            f"{self.sampled:,} of {self.keys:,} keys: {self.source_bytes:,} bytes on the source, "
            f"{self.target_bytes:,} on the target (ratio {share:.4f}); the source's data is "
            f"{self.used_bytes:,} bytes, times {share:.4f} is {self.needed_bytes:,}, times "
            f"{headroom} is {round(self.needed_bytes * headroom):,}"
        )


async def measure(
    source: Sequence[Leg], target: Leg, databases: Sequence[int], *, keys: int, used_bytes: int
) -> Sizing:
    """Sample keys of the source and restore them on the target, within time and number bounds.

    Args:
        source: a connection of its own to each node; its database changes.
        target: likewise, to any database of the target. Scratch keys are on all of its nodes.
        databases: of the source that have keys.
        keys: of all databases.
        used_bytes: of the source's data set.

    Raises:
        SourceError, TargetError: a side went away.
        hiredis.ReplyError: the source refuses SCAN.
    """
    found = Sizing(keys, used_bytes)
    name = f"exodus:load:{secrets.token_hex(4)}:size".encode()
    ends = time.monotonic() + SIZING_SECONDS_MAX
    places = [(node, db) for node in source for db in databases]
    for place, (node, db) in enumerate(places):
        await node.select(db)
        most = (SIZING_KEYS_MAX - found.sampled) // (len(places) - place)
        cursor, taken = b"0", 0
        while taken < most and time.monotonic() < ends:
            began = time.monotonic()
            cursor, seen = await node.call("SCAN", cursor, "COUNT", SAMPLE_BATCH_KEYS)
            wanted = [key for key in seen if not is_own(key)][: most - taken]
            taken += len(wanted)
            await _batch(node, target, name, wanted, found)
            await asyncio.sleep((time.monotonic() - began) * (1 / SAMPLE_BUSY_SHARE_MAX - 1) / 10)
            if cursor == b"0":
                break
    return found


async def _batch(
    source: Leg, target: Leg, name: bytes, keys: Sequence[bytes], found: Sizing
) -> None:
    asked: list[tuple[Any, ...]] = []
    for key in keys:
        asked += [("TYPE", key), ("OBJECT", "ENCODING", key), ("MEMORY", "USAGE", key)]
    told = await source.pipeline(asked)
    small: list[tuple[bytes, TypeSize, str, int]] = []
    for place, key in enumerate(keys):
        kind, encoding, size = told[3 * place : 3 * place + 3]
        if not isinstance(kind, bytes) or kind == b"none" or not isinstance(size, int):
            continue  # it expired meanwhile, or the server does not tell
        each = found.types.setdefault(kind.decode("ascii", "replace"), TypeSize())
        as_text = encoding.decode("ascii", "replace") if isinstance(encoding, bytes) else "unknown"
        each.keys += 1
        each.source_bytes += size
        each.encodings[as_text] += 1
        found.slots[key_slot(key)] += size
        if size > LARGE_KEY_BYTES:
            each.large += 1
        else:
            small.append((key, each, as_text, size))
    began = time.perf_counter()
    payloads = await source.pipeline([("DUMP", key) for key, *_ in small])
    found.dump_s += time.perf_counter() - began
    found.dumped += len(small)
    part: list[_Restored] = []
    size = 0
    for (key, each, encoding, used), payload in zip(small, payloads, strict=True):
        if not isinstance(payload, bytes):
            continue
        # A name as long as the key's, which MEMORY USAGE counts
        scratch = b"%s:%d:" % (name, len(part))
        scratch += b"x" * max(0, len(key) - len(scratch))
        part.append(_Restored(scratch, payload, each, encoding, used + len(scratch) - len(key)))
        size += len(payload)
        if size > READ_BATCH_BYTES:
            await _restore(target, part, found)
            part, size = [], 0
    await _restore(target, part, found)


async def _restore(target: Leg, part: Sequence[_Restored], found: Sizing) -> None:
    """Restore keys, ask for their memory, and remove them."""
    began = time.perf_counter()
    restored = await target.pipeline(
        [("RESTORE", each.name, 0, each.payload, "REPLACE") for each in part]
    )
    found.restore_s += time.perf_counter() - began
    told = await target.pipeline(
        [(*words, each.name) for words in (("MEMORY", "USAGE"), ("UNLINK",)) for each in part]
    )
    for each, reply, used in zip(part, restored, told[: len(part)], strict=True):
        if isinstance(reply, ReplyError) or not isinstance(used, int):
            why = str(reply if isinstance(reply, ReplyError) else used).split(" ", 1)[0]
            each.of.refused[f"{each.encoding}: {why}"] += 1
            continue
        each.of.restored += 1
        each.of.restored_source_bytes += each.source_bytes
        each.of.restored_target_bytes += used


def growth(history: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """Return the growth of the used memory in bytes a day, and the share of it that is explained.

    Args:
        history: looks with `at_ms` and `used_memory`. Fewer than three within an hour say nothing.
    """
    if len(history) < 3 or history[-1]["at_ms"] - history[0]["at_ms"] < 3_600_000:
        return None
    import numpy as np  # with pandas; the rest of this module needs none

    days = np.array([look["at_ms"] for look in history]) / 86_400_000
    used = np.array([look["used_memory"] for look in history], dtype=float)
    slope, offset = np.polyfit(days - days[0], used, 1)
    spread = float(((used - used.mean()) ** 2).sum())
    left = float(((used - (slope * (days - days[0]) + offset)) ** 2).sum())
    return float(slope), 1 - left / spread if spread else 1.0
