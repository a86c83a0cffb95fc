"""The right to write to a cluster: guard keys that are spread over its slots.

A guard has to be in a slot of the node that it guards, and slots move. So every sixteenth slot has
a guard key (`CLUSTER_GUARD_EVERY`). Any present guard key of a node guards its batches, and a guard
key moves with its slot. All of them have the same value, and a change of the
right changes all. A node without any is not written to (docs/decisions/0022-cluster.md).

A guard is a hash: field `epoch` has the writers' epoch, field `lane:N` the fencing token of
partition N, field `fence` the switch that may fence this side (`exodus/cutover/fence_cluster.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exodus.commands.key_slots import SLOTS
from exodus.control.schema import cluster_guard_key
from exodus.lua import lua
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import CLUSTER_GUARD_EVERY
from exodus.resp.encode import Arg
from exodus.topology.endpoint import Endpoint

GUARD_SLOTS = range(0, SLOTS, CLUSTER_GUARD_EVERY)
EPOCH = b"epoch"
FENCE = b"fence"
_REPLACE = lua(__package__, "replace_field")


def guard_keys(migration: str) -> list[bytes]:
    """Return all guard keys of a migration."""
    return [cluster_guard_key(migration, slot) for slot in GUARD_SLOTS]


async def _ask_on(leg: Leg, commands: Sequence[Sequence[Arg]]) -> list[Reply]:
    replies = await leg.pipeline(commands)
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


async def _ask(endpoint: Endpoint, commands: Sequence[Sequence[Arg]]) -> list[Reply]:
    async with await endpoint.connect(name="exodus-right") as leg:
        return await _ask_on(leg, commands)


async def read_fields(leg: Leg, migration: str, field: bytes) -> dict[bytes, bytes | None]:
    """Return guard key → value of a field there.

    Raises:
        SourceError, TargetError: a node does not answer.
        hiredis.ReplyError: it refuses to tell.
    """
    keys = guard_keys(migration)
    found = await _ask_on(leg, [("HGET", key, field) for key in keys])
    return dict(zip(keys, found, strict=True))


async def set_epochs(endpoint: Endpoint, migration: str, epoch: int) -> None:
    """Give the right to write to the writers of `epoch`, and end that of all others at once.

    Raises:
        SourceError, TargetError: a node does not answer; what was set stays.
        hiredis.ReplyError: it refuses.
    """
    await _ask(endpoint, [("HSET", key, EPOCH, epoch) for key in guard_keys(migration)])


async def replace_fields(
    leg: Leg, field: bytes, befores: Mapping[bytes, bytes | None], after: bytes
) -> bool:
    """Set a field of each guard key that has its value of `befores`; return whether all had.

    Raises:
        SourceError, TargetError: a node does not answer; what was replaced stays.
        hiredis.ReplyError: it refuses.
    """
    done = await _ask_on(
        leg,
        [
            ("EVAL", _REPLACE, 1, key, field, before or b"", after)
            for key, before in befores.items()
        ],
    )
    return all(done)


async def set_lanes(endpoint: Endpoint, migration: str, tokens: Mapping[int, int]) -> None:
    """Set the fencing tokens of partitions.

    Raises:
        SourceError, TargetError: a node does not answer.
        hiredis.ReplyError: it refuses.
    """
    fields = [word for partition, token in tokens.items() for word in (lane(partition), token)]
    await _ask(endpoint, [("HSET", key, *fields) for key in guard_keys(migration)])


async def lost_lanes(endpoint: Endpoint, migration: str, tokens: Mapping[int, int]) -> list[int]:
    """Return the partitions whose token is another one at some guard key.

    Raises:
        SourceError, TargetError: a node does not answer.
        hiredis.ReplyError: it refuses to tell.
    """
    fields = [lane(partition) for partition in tokens]
    found = await _ask(endpoint, [("HMGET", key, *fields) for key in guard_keys(migration)])
    return [
        partition
        for number, (partition, token) in enumerate(tokens.items())
        if any(row[number] != b"%d" % token for row in found)
    ]


def lane(partition: int) -> bytes:
    """Return the field that has the fencing token of a partition."""
    return b"lane:%d" % partition
