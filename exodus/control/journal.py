"""The journal: which keys changed, as streams in the control store, partitioned by key hash.

An entry's field `k` holds packed keys (`pack`). Its field `b` holds a barrier: an operation that
may have changed every key of a database. Entries say *that* a key changed, never how. `sync_key`
reads the state itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

from redis.asyncio.client import Pipeline

from exodus.control.changes import Barrier, Changes, Key, id_order, pack, parse_entries
from exodus.control.schema import Keys
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import JOURNAL_BATCH_KEYS


async def append(
    store: ControlStore,
    keys: Iterable[Key],
    partitions: int,
    barriers: Iterable[Barrier] = (),
    *,
    also: Callable[[Pipeline], object] | None = None,
) -> None:
    """Mark keys as changed, one entry a partition (more where a partition has over
    JOURNAL_BATCH_KEYS).

    One MULTI: a reader never sees a half, and the caller knows that all of it or nothing is in.
    Each barrier is written once, to partition 0: what it asks for, a rescan, marks keys in every
    partition. `also` queues what has to be true at the same time.

    Raises:
        redis.exceptions.RedisError, OSError: the store did not take it; the caller keeps the keys.
    """
    found = commands(store.keys, keys, partitions, barriers)
    pipe = store.client.pipeline(transaction=True)
    for command in found:
        pipe.execute_command(*command)
    if also is not None:
        also(pipe)
    if len(pipe):
        await pipe.execute()


def commands(
    names: Keys, keys: Iterable[Key], partitions: int, barriers: Iterable[Barrier] = ()
) -> list[tuple[str | bytes, ...]]:
    """Return the commands that `append` runs in its MULTI."""
    members: list[list[Key]] = [[] for _ in range(partitions)]
    crc32 = zlib.crc32
    for entry in keys:
        # `partition_of`, in the one place where a call costs
        members[crc32(entry[1], entry[0]) % partitions].append(entry)
    found: list[tuple[str | bytes, ...]] = []
    for partition, mine in enumerate(members):
        found.extend(
            (
                "XADD",
                names.journal(partition),
                "*",
                "k",
                pack(mine[start : start + JOURNAL_BATCH_KEYS]),
            )
            for start in range(0, len(mine), JOURNAL_BATCH_KEYS)
        )
    found.extend(("XADD", names.journal(0), "*", "b", barrier.encode()) for barrier in barriers)
    return found


async def ends(store: ControlStore, partitions: int) -> dict[int, bytes]:
    """Return the last entry id of each partition, the feed's position now; `0-0` for an empty
    partition.
    """
    written, synced = await _ends(store, partitions)
    # An emptied stream forgets its last id, so the synced position counts too.
    return {
        partition: max(at, synced.get(partition, b"0-0"), key=id_order)
        for partition, at in written.items()
    }


async def _ends(store: ControlStore, partitions: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return the last entry and the synced position of each partition, read at one moment."""
    pipe = store.client.pipeline(transaction=True)
    for partition in range(partitions):
        pipe.xrevrange(store.keys.journal(partition), count=1)
    pipe.hgetall(store.keys.position)
    *found, raw = await pipe.execute()
    return {
        partition: entries[0][0] if entries else b"0-0" for partition, entries in enumerate(found)
    }, _positions(raw)


async def since(
    store: ControlStore,
    start: Mapping[int, bytes],
    *,
    until: bytes = b"+",
    at_most: int | None = None,
) -> Changes:
    """Return all changes after the positions `start` (from `ends`). `gap` is set where a partition
    has more than `at_most` entries.
    """
    merged = Changes()
    for changes in (await each_since(store, start, until=until, at_most=at_most)).values():
        merged.gap = merged.gap or changes.gap
        merged.keys.extend(changes.keys)
        merged.barriers.extend(changes.barriers)
        merged.times_ms.extend(changes.times_ms)
    return merged


async def each_since(
    store: ControlStore,
    start: Mapping[int, bytes],
    *,
    until: bytes = b"+",
    at_most: int | None = None,
) -> dict[int, Changes]:
    """The same, partition by partition; each with the id of its last entry, to read on from."""
    pipe = store.client.pipeline(transaction=True)
    pipe.hgetall(store.keys.trimmed)
    for partition, entry_id in start.items():
        pipe.xrange(store.keys.journal(partition), min=b"(" + entry_id, max=until, count=at_most)
    trimmed, *found = await pipe.execute()
    by_partition: dict[int, Changes] = {}
    for (partition, entry_id), entries in zip(start.items(), found, strict=True):
        changes = by_partition[partition] = parse_entries(entries)
        changes.gap = id_order(trimmed.get(b"%d" % partition, b"0-0")) > id_order(entry_id) or (
            at_most is not None and len(entries) >= at_most
        )
    return by_partition


async def covers(store: ControlStore, start: Mapping[int, bytes]) -> bool:
    """Return whether every entry after these positions is still there."""
    trimmed = await answered(store.client.hgetall(store.keys.trimmed))
    return all(
        id_order(trimmed.get(b"%d" % partition, b"0-0")) <= id_order(entry_id)
        for partition, entry_id in start.items()
    )


async def positions(store: ControlStore) -> dict[int, bytes]:
    """Return how far each partition has been synced."""
    return _positions(await answered(store.client.hgetall(store.keys.position)))


def _positions(raw: Mapping[bytes, bytes]) -> dict[int, bytes]:
    return {int(partition): entry_id for partition, entry_id in raw.items()}


async def lag_entries(store: ControlStore, partitions: int, *, at_most: int = 10_000) -> int:
    """Entries that no syncer has finished, over all partitions, counted up to `at_most` in each."""
    synced = await positions(store)
    pipe = store.client.pipeline(transaction=False)
    for partition in range(partitions):
        pipe.xrange(
            store.keys.journal(partition), min=b"(" + synced.get(partition, b"0-0"), count=at_most
        )
    return sum(len(entries) for entries in await pipe.execute())


async def oldest_ms(store: ControlStore, partitions: int, now_ms: int) -> int:
    """Age of the oldest entry that no syncer has finished, in ms; 0 where there is none."""
    synced = await positions(store)
    pipe = store.client.pipeline(transaction=False)
    for partition in range(partitions):
        pipe.xrange(
            store.keys.journal(partition), min=b"(" + synced.get(partition, b"0-0"), count=1
        )
    first = [id_order(entries[0][0])[0] for entries in await pipe.execute() if entries]
    return max(0, now_ms - min(first)) if first else 0


async def reached(store: ControlStore, goal: Mapping[int, bytes]) -> bool:
    """Return whether syncers have finished everything up to the positions `goal` (from `ends`);
    later writes do not matter.
    """
    synced = await positions(store)
    return all(
        id_order(synced.get(partition, b"0-0")) >= id_order(entry_id)
        for partition, entry_id in goal.items()
    )


async def drained(store: ControlStore, partitions: int) -> bool:
    """Return whether syncers have finished every entry of the journal. The gateways' own buffers do
    not count.

    In one round trip, since writes wait for the answer while a switch is made.
    """
    written, synced = await _ends(store, partitions)
    return all(
        id_order(synced.get(partition, b"0-0")) >= id_order(at) for partition, at in written.items()
    )
