"""A key's state, read from the authority and written as commands: as a DUMP payload, or type by type where that does not fit.

The copy by type is exact: list order, score bytes as the server prints them (never through a float of ours), stream ids with groups, consumers,
pending entries and last delivered ids, field expiry of hashes. What a follower cannot hold is an `Uncarried` with its reason.
How streams are rebuilt was checked by XINFO STREAM FULL on Redis 6.2 to 8.2 and Valkey 8.1, 9.1 (facts-redis 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exodus.endpoint import NodeFacts
from exodus.leg import Reply, ReplyError
from exodus.resp.encode import Arg

Command = tuple[Arg, ...]
_CHUNK = 500  # elements in one command


class Uncarried(Exception):
    """The follower cannot hold what the authority has; the text is the reason, without values."""


@dataclass(frozen=True)
class State:
    """One key at one instant. `payload` is a DUMP, or `commands` build it; neither: the key does not exist."""

    key: bytes
    expiry_ms: int = 0  # absolute; 0 for none
    payload: bytes | None = None
    commands: tuple[Command, ...] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is anything to copy."""
        return self.payload is not None or self.commands is not None

    def size(self) -> int:
        """Bytes that travel, roughly."""
        if self.payload is not None:
            return len(self.payload)
        return sum(len(arg) if isinstance(arg, bytes) else 8 for command in self.commands or () for arg in command)

    def as_commands(self) -> list[Command]:
        """What makes the key on the follower equal to this state, in one transaction."""
        if self.payload is not None:
            # ABSTTL: a relative time would begin to count only when the RESTORE runs. A past time removes the key: right as well.
            return [("RESTORE", self.key, self.expiry_ms, self.payload, "REPLACE", "ABSTTL")]
        found: list[Command] = [("UNLINK", self.key)]
        if self.commands is not None:
            found.extend(self.commands)
            if self.expiry_ms:
                found.append(("PEXPIREAT", self.key, self.expiry_ms))
        return found


def reads_for(kind: bytes, key: bytes, facts: NodeFacts) -> list[Command]:
    """What to ask, in one transaction, for a key of that type.

    Raises:
        Uncarried: the type belongs to a module.
    """
    if kind == b"string":
        return [("GET", key)]
    if kind == b"list":
        return [("LRANGE", key, 0, -1)]
    if kind == b"set":
        return [("SMEMBERS", key)]
    if kind == b"zset":
        return [("ZRANGE", key, 0, -1, "WITHSCORES")]
    if kind == b"hash":
        return [("HGETALL", key)]
    if kind == b"stream":
        return [("XRANGE", key, "-", "+"), ("XINFO", "STREAM", key, "FULL", "COUNT", 0)]
    raise Uncarried(f"type {kind.decode('ascii', 'replace')} of a module ({facts.engine} {facts.version_text}) has no copy by type")


def commands_for(kind: bytes, key: bytes, read: Sequence[Reply], follower: NodeFacts) -> tuple[Command, ...] | None:
    """The commands that build what was read, or None where the key was gone."""
    value = read[0]
    if (value is None or value == []) and (kind != b"stream" or isinstance(read[1], ReplyError)):
        return None
    if kind == b"string":
        return (("SET", key, value),)
    if kind == b"list":
        return _chunked("RPUSH", key, value, 1)
    if kind == b"set":
        return _chunked("SADD", key, value, 1)
    if kind == b"hash":
        return _chunked("HSET", key, value, 2)
    if kind == b"zset":
        swapped = [part for index in range(0, len(value), 2) for part in (value[index + 1], value[index])]
        return _chunked("ZADD", key, swapped, 2)
    return tuple(_stream(key, value, _pairs(read[1]), follower))


def field_expiry_commands(key: bytes, fields: Sequence[bytes], expiries: Sequence[int], follower: NodeFacts) -> list[Command]:
    """Commands for the expiry of a hash's fields.

    Raises:
        Uncarried: the follower has no field expiry.
    """
    by_time: dict[int, list[bytes]] = {}
    for name, at_ms in zip(fields, expiries, strict=True):
        if at_ms >= 0:
            by_time.setdefault(at_ms, []).append(name)
    if by_time and not follower.capabilities.get("hash field ttl"):
        raise Uncarried(f"hash field expiry, which {follower.engine} {follower.version_text} does not have")
    return [("HPEXPIREAT", key, at_ms, "FIELDS", len(names), *names) for at_ms, names in by_time.items()]


def _chunked(name: str, key: bytes, parts: Sequence[bytes], width: int) -> tuple[Command, ...]:
    step = _CHUNK * width
    return tuple((name, key, *parts[start : start + step]) for start in range(0, len(parts), step))


def _pairs(reply: Reply) -> dict[bytes, Reply]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _stream(key: bytes, entries: Sequence[Reply], full: dict[bytes, Reply], follower: NodeFacts) -> list[Command]:
    present = {entry[0]: entry[1] for entry in entries}
    groups = [_pairs(group) for group in full[b"groups"]]
    # Entries that were deleted but are still pending somewhere are needed while the pending lists are built.
    pending = {entry[0] for group in groups for consumer in group[b"consumers"] for entry in _pairs(consumer)[b"pending"]}
    ghosts = pending - present.keys()
    found: list[Command] = [
        ("XADD", key, entry_id, *(present.get(entry_id) or (b"-", b"-"))) for entry_id in sorted({*present, *ghosts}, key=_id_order)
    ]
    if not found:
        found += [("XGROUP", "CREATE", key, "exodus-scratch", 0, "MKSTREAM"), ("XGROUP", "DESTROY", key, "exodus-scratch")]
    modern = follower.engine == "valkey" or follower.version >= (7,)
    for group in groups:
        create: list[Arg] = ["XGROUP", "CREATE", key, group[b"name"], group[b"last-delivered-id"]]
        if modern and group.get(b"entries-read") is not None:
            create += ["ENTRIESREAD", group[b"entries-read"]]
        found.append(tuple(create))
        for raw in group[b"consumers"]:
            consumer = _pairs(raw)
            found.append(("XGROUP", "CREATECONSUMER", key, group[b"name"], consumer[b"name"]))
            for entry_id, delivered_ms, count in consumer[b"pending"]:
                found.append(
                    (
                        "XCLAIM", key, group[b"name"], consumer[b"name"], 0, entry_id,
                        "TIME", delivered_ms, "RETRYCOUNT", count, "FORCE", "JUSTID",
                    )
                )  # fmt: skip
    if ghosts:
        found.append(("XDEL", key, *sorted(ghosts, key=_id_order)))
    last: list[Arg] = ["XSETID", key, full[b"last-generated-id"]]
    if modern and b"entries-added" in full:
        last += ["ENTRIESADDED", full[b"entries-added"], "MAXDELETEDID", full[b"max-deleted-entry-id"]]
    found.append(tuple(last))
    return found


def _id_order(entry_id: bytes) -> tuple[int, int]:
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
