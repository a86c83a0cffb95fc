"""Values in a shape in which equal means the same, whatever the encoding or the version.

What a server may return in any order becomes a set or a mapping. Scores become doubles: Redis up to
7.0 prints 17 digits, later versions the shortest form of the same double. Everything of a consumer
group counts but the times at which consumers were seen, which nobody can set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exodus.net.leg import Reply, ReplyError
from exodus.resp.encode import Arg

Command = tuple[Arg, ...]
COUNTS = {
    b"string": "STRLEN",
    b"list": "LLEN",
    b"hash": "HLEN",
    b"set": "SCARD",
    b"zset": "ZCARD",
    b"stream": "XLEN",
}
# One read each; streams need several, modules have none
PLAIN_TYPES = frozenset({b"string", b"list", b"set", b"zset", b"hash"})


def reads_of(kind: bytes, key: bytes) -> list[Command]:
    """Return the requests for the value of a key of a type. A module type has a payload only."""
    reads: dict[bytes, list[Command]] = {
        b"string": [("GET", key)],
        b"list": [("LRANGE", key, 0, -1)],
        b"set": [("SMEMBERS", key)],
        b"zset": [("ZRANGE", key, 0, -1, "WITHSCORES")],
        b"hash": [("HGETALL", key)],
        b"stream": [("XRANGE", key, "-", "+"), ("XINFO", "STREAM", key, "FULL", "COUNT", 0)],
    }
    return reads.get(kind, [("DUMP", key)])


def canonical(kind: bytes, replies: Sequence[Reply]) -> Reply:
    """Return the answers to `reads_of` as one comparable value."""
    value = replies[0]
    if any(isinstance(reply, ReplyError) for reply in replies):
        return str(replies)  # it changed its type meanwhile: unequal, and looked at again
    if kind == b"set":
        return frozenset(value)
    if kind == b"hash":
        return pairs(value)
    if kind == b"zset":
        return [
            (member, float(score)) for member, score in zip(value[::2], value[1::2], strict=True)
        ]
    if kind == b"stream":
        full = pairs(replies[1])
        return (
            [(entry[0], tuple(entry[1])) for entry in value],
            full[b"last-generated-id"],
            groups(map(pairs, full[b"groups"])),
        )
    return value


def pairs(reply: Reply) -> dict[bytes, Reply]:
    """Return a flat array of names and values as a mapping."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def groups(told: Iterable[dict[bytes, Reply]]) -> list[Reply]:
    """Consumer groups of XINFO STREAM FULL, comparable."""
    found = []
    for group in told:
        consumers = []
        for raw_consumer in group[b"consumers"]:
            consumer = pairs(raw_consumer)
            consumers.append(
                (consumer[b"name"], sorted(tuple(entry) for entry in consumer[b"pending"]))
            )
        found.append((group[b"name"], group[b"last-delivered-id"], sorted(consumers)))
    return sorted(found)
