"""A key's state, read from the authority and written as commands: as a DUMP payload, or by type.

The copy by type is exact: list order, score bytes as the server prints them, stream ids with
groups, consumers, pending entries, and last delivered ids, and the field expiries of hashes. What a
follower cannot hold is an `Uncarried` with its reason. XINFO STREAM FULL confirmed the rebuilt
streams on Redis 6.2 to 8.2 and Valkey 8.1, 9.1 (docs/decisions/0002-payload-versions.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exodus.copy.value import Command, pairs
from exodus.net.leg import Reply, ReplyError
from exodus.plan.bounds import PAYLOAD_CHUNK
from exodus.resp.encode import Arg, encode_many, encode_strings, string_commands
from exodus.topology.node import NodeFacts


class Uncarried(Exception):
    """The follower cannot hold what the authority has; the text is the reason, without values."""


@dataclass(slots=True)
class State:
    """One key at one instant. `payload` is a DUMP, or `commands` build it, or it is copied in
    pieces; none of these: the key does not exist.
    """

    key: bytes
    expiry_ms: int = 0  # absolute; 0 for none
    payload: bytes | None = None
    commands: tuple[Command, ...] | None = None
    how: str = ""  # the strategy, as it is counted
    large: bool = False  # not read: copied in pieces when it is written
    to: bytes = b""  # its name on the follower, where that is another
    usage: bytes = b""  # encoded arguments of RESTORE: idle time or frequency
    excluded: bool = False  # left out by a rule, so that it is not to be there

    @property
    def exists(self) -> bool:
        """Return whether there is anything to copy."""
        return self.payload is not None or self.commands is not None

    def size(self) -> int:
        """Return about how many bytes travel."""
        if self.payload is not None:
            return len(self.payload)
        return sum(
            len(arg) if isinstance(arg, bytes) else 8
            for command in self.commands or ()
            for arg in command
        )

    def encoded(self) -> tuple[bytes, int]:
        """Return the commands that make the key equal, encoded, and their number."""
        payload = self.payload
        # By far the most frequent: written without the detour through a tuple
        if payload is not None:
            key, at, usage = self.to or self.key, b"%d" % self.expiry_ms, self.usage
            restore = (
                b"*%d\r\n$7\r\nRESTORE\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                b"$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n%b"
            )
            words = 8 if usage else 6
            return restore % (words, len(key), key, len(at), at, len(payload), payload, usage), 1
        commands = self.as_commands()
        return encode_many(commands), len(commands)

    def as_commands(self) -> list[Command]:
        """Return the commands that make the key equal, in one transaction."""
        name = self.to or self.key
        if self.payload is not None:
            usage = self.usage.split(b"\r\n")[1::2]  # its arguments, as they are encoded
            at = self.expiry_ms
            return [("RESTORE", name, at, self.payload, "REPLACE", "ABSTTL", *usage)]
        found: list[Command] = [("UNLINK", name)]
        if self.commands is not None:
            found.extend(self.commands)
            if self.expiry_ms:
                found.append(("PEXPIREAT", name, self.expiry_ms))
        return found


@dataclass(slots=True)
class Packed:
    """Keys that all exist, and all go as payloads under their own names: most of a backfill, in
    columns and not in states.
    """

    keys: list[bytes]
    expiries_ms: list[int]  # negative: none
    payloads: list[bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def size(self) -> int:
        """Return about how many bytes travel."""
        return sum(map(len, self.payloads))

    def body(self) -> bytes:
        """Return the commands that write them, encoded."""
        restore = (
            b"*6\r\n$7\r\nRESTORE\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            b"$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n"
        )
        return b"".join(
            [
                restore
                % (
                    len(key),
                    key,
                    len(at := b"%d" % at_ms if at_ms > 0 else b"0"),
                    at,
                    len(payload),
                    payload,
                )
                for key, at_ms, payload in zip(
                    self.keys, self.expiries_ms, self.payloads, strict=True
                )
            ]
        )

    def words(self, at: Sequence[int]) -> bytes:
        """Return name, expiry and payload of the keys at these places, as encoded arguments of a
        script.
        """
        word = b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
        keys, expiries_ms, payloads = self.keys, self.expiries_ms, self.payloads
        return b"".join(
            [
                word
                % (
                    len(key := keys[place]),
                    key,
                    len(at_ms := b"%d" % expiries_ms[place] if expiries_ms[place] > 0 else b"0"),
                    at_ms,
                    len(payload := payloads[place]),
                    payload,
                )
                for place in at
            ]
        )

    def as_commands(self) -> list[Command]:
        """Return the commands that write them."""
        return [
            ("RESTORE", key, max(at_ms, 0), payload, "REPLACE", "ABSTTL")
            for key, at_ms, payload in zip(self.keys, self.expiries_ms, self.payloads, strict=True)
        ]

    def __iter__(self) -> Iterator[State]:
        """Yield the states one by one."""
        return (
            State(key, max(at_ms, 0), payload)
            for key, at_ms, payload in zip(self.keys, self.expiries_ms, self.payloads, strict=True)
        )


@dataclass(slots=True)
class PackedStrings(Packed):
    """The same for strings, each as its value."""

    how: str = ""  # the strategy, as it is counted

    def body(self) -> bytes:
        """Return the commands that write them, encoded."""
        return encode_strings(self.keys, self.expiries_ms, self.payloads)

    def commands(self, groups: list[list[int]]) -> tuple[bytes, int, list[list[int]]]:
        """Return the commands as arguments of a script; see `string_commands`."""
        return string_commands(self.keys, self.expiries_ms, self.payloads, groups)

    def as_commands(self) -> list[Command]:
        """Return the commands that write them."""
        return [
            ("SET", key, value, "PXAT", at_ms) if at_ms > 0 else ("SET", key, value)
            for key, at_ms, value in zip(self.keys, self.expiries_ms, self.payloads, strict=True)
        ]

    def __iter__(self) -> Iterator[State]:
        """Yield the states one by one."""
        return (
            State(key, max(at_ms, 0), None, (("SET", key, value),), self.how)
            for key, at_ms, value in zip(self.keys, self.expiries_ms, self.payloads, strict=True)
        )


@dataclass(slots=True)
class MigratedKeys:
    """Keys that the source sent itself and that expire, with their times; and states of those that
    it did not send.
    """

    keys: list[bytes]
    expiries_ms: list[int]
    others: list[State]

    def size(self) -> int:
        """Return about how many bytes travel."""
        return sum(map(State.size, self.others))

    def body(self) -> bytes:
        """Return the commands that set the expiries, encoded."""
        expire = b"*3\r\n$9\r\nPEXPIREAT\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
        return b"".join(
            [
                expire % (len(key), key, len(at := b"%d" % at_ms), at)
                for key, at_ms in zip(self.keys, self.expiries_ms, strict=True)
            ]
        )


def commands_for(
    kind: bytes, key: bytes, read: Sequence[Reply], follower: NodeFacts
) -> tuple[Command, ...] | None:
    """Return the commands that build what was read, or None where the key was gone."""
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
        swapped = [
            part for index in range(0, len(value), 2) for part in (value[index + 1], value[index])
        ]
        return _chunked("ZADD", key, swapped, 2)
    return tuple(_stream(key, value, pairs(read[1]), follower))


def field_expiry_commands(
    key: bytes, fields: Sequence[bytes], expiries: Sequence[int], follower: NodeFacts
) -> list[Command]:
    """Return the commands for the expiries of a hash's fields.

    Raises:
        Uncarried: the follower has no field expiry.
    """
    by_time: dict[int, list[bytes]] = {}
    for name, at_ms in zip(fields, expiries, strict=True):
        if at_ms >= 0:
            by_time.setdefault(at_ms, []).append(name)
    if by_time and not follower.capabilities.get("hash field ttl"):
        raise Uncarried(
            f"hash field expiry, which {follower.engine} {follower.version_text} does not have"
        )
    return [
        ("HPEXPIREAT", key, at_ms, "FIELDS", len(names), *names) for at_ms, names in by_time.items()
    ]


def _chunked(name: str, key: bytes, parts: Sequence[bytes], width: int) -> tuple[Command, ...]:
    step = PAYLOAD_CHUNK * width
    return tuple((name, key, *parts[start : start + step]) for start in range(0, len(parts), step))


@dataclass(frozen=True)
class StreamGroups:
    """Consumer groups as XINFO STREAM FULL tells them."""

    groups: tuple[dict[bytes, Reply], ...]

    @property
    def pending_ids(self) -> set[bytes]:
        """Entries that some consumer has not acknowledged; they may be deleted ones."""
        return {
            entry[0]
            for group in self.groups
            for consumer in group[b"consumers"]
            for entry in pairs(consumer)[b"pending"]
        }


def group_commands(key: bytes, told: StreamGroups, follower: NodeFacts) -> list[Command]:
    """Return the commands that rebuild a stream's groups, once its entries exist."""
    found: list[Command] = []
    for group in told.groups:
        create: list[Arg] = ["XGROUP", "CREATE", key, group[b"name"], group[b"last-delivered-id"]]
        if _counts_entries(follower) and group.get(b"entries-read") is not None:
            create += ["ENTRIESREAD", group[b"entries-read"]]
        found.append(tuple(create))
        for raw in group[b"consumers"]:
            consumer = pairs(raw)
            found.append(("XGROUP", "CREATECONSUMER", key, group[b"name"], consumer[b"name"]))
            found.extend(
                (
                    "XCLAIM",
                    key,
                    group[b"name"],
                    consumer[b"name"],
                    0,
                    entry_id,
                    "TIME",
                    delivered_ms,
                    "RETRYCOUNT",
                    count,
                    "FORCE",
                    "JUSTID",
                )
                for entry_id, delivered_ms, count in consumer[b"pending"]
            )
    return found


def stream_end_commands(
    key: bytes, ghosts: Sequence[bytes], info: dict[bytes, Reply], follower: NodeFacts
) -> list[Command]:
    """Return the commands that remove the dummies and set the stream's ids; `info` is the answer of
    XINFO STREAM.
    """
    found: list[Command] = []
    if ghosts:
        found.append(("XDEL", key, *sorted(ghosts, key=entry_order)))
    last: list[Arg] = ["XSETID", key, info[b"last-generated-id"]]
    if _counts_entries(follower) and b"entries-added" in info:
        last += [
            "ENTRIESADDED",
            info[b"entries-added"],
            "MAXDELETEDID",
            info[b"max-deleted-entry-id"],
        ]
    found.append(tuple(last))
    return found


def _counts_entries(facts: NodeFacts) -> bool:
    return facts.engine == "valkey" or facts.version >= (7,)


def _stream(
    key: bytes, entries: Sequence[Reply], full: dict[bytes, Reply], follower: NodeFacts
) -> list[Command]:
    present = {entry[0]: entry[1] for entry in entries}
    told = StreamGroups(tuple(pairs(group) for group in full[b"groups"]))
    # Entries that were deleted but are still pending somewhere are needed while the pending lists
    # are built.
    ghosts = told.pending_ids - present.keys()
    found: list[Command] = [
        ("XADD", key, entry_id, *(present.get(entry_id) or (b"-", b"-")))
        for entry_id in sorted({*present, *ghosts}, key=entry_order)
    ]
    if not found:
        found += [
            ("XGROUP", "CREATE", key, "exodus-scratch", 0, "MKSTREAM"),
            ("XGROUP", "DESTROY", key, "exodus-scratch"),
        ]
    return (
        found
        + group_commands(key, told, follower)
        + stream_end_commands(key, list(ghosts), full, follower)
    )


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Return a stream entry's id as a value that sorts."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
