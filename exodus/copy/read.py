"""Reading many keys of one side: names from SCAN, and type, expiry, and payload or value of each
key at one instant.

Where the server allows scripts, one script call reads a batch (`read_script.py`). Elsewhere it
takes transactions of pipelined commands. Keys too large for one command are named and not read
(`chunked.py` copies them).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import NamedTuple, Self

from exodus.copy.read_script import LETTERS, READ, READ_SHA
from exodus.copy.value import COUNTS, PLAIN_TYPES, Command, reads_of
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import (
    LARGE_ELEMENTS,
    LARGE_KEY_BYTES,
    READ_BATCH_BYTES,
    READ_CALL_NAMES,
    READ_SCAN_KEYS_MIN,
    READ_SCRIPT_BYTES_MIN,
    READ_SCRIPT_MS_PLENTY,
    READ_SCRIPT_SHARE,
    READ_TRANSACTION_KEYS,
)
from exodus.topology.node import NodeFacts


class ReadMode(StrEnum):
    """What is read of a key."""

    PAYLOAD = "payload"
    # The payload, but of strings, where scripts are allowed, the value: DUMP would try to compress
    # it, and sum it up. Of a string below some KB only in a scan that has found nothing else
    EITHER = "either"
    VALUE = "value"
    # The value of a string, the payload of all else: `decode.py` has the values in those
    COMPARABLE = "comparable"
    SIZE = "size"  # bytes of memory; of SCAN only, and where scripts are allowed
    OUTLINE = "outline"  # type, expiry and length; the value is the length and one
    NAME = "name"  # whether it is there, and nothing else


BY_VALUE = b"value"  # the kind of a string that is told by its value, where payloads are asked for
_STRING_PAYLOAD = b"\x00"  # how a string's payload begins


class ScannedKey(NamedTuple):
    """One key at one instant.

    `kind` is `none` where it does not exist. Where payloads were asked for it is empty, or
    `BY_VALUE`. `value` is None where it has to be read in another way.
    """

    key: bytes
    kind: bytes
    expiry_ms: int  # absolute; -1 for none, -2 where there is no key
    value: Reply
    large: bool = False


class Batch(NamedTuple):
    """What one reading call found, in columns: what most keys need is done with a whole column at
    once, without an object a key.
    """

    keys: list[bytes]
    kinds: list[bytes]  # none with payloads and sizes, unless strings were expected
    expiries_ms: list[int]
    values: list[Reply]  # as in a script's answer: None for "read in another way", 0 for "large"

    @property
    def payloads(self) -> bool:
        """Return whether every key is there, with its payload."""
        return self._whole and not any(self.kinds)

    @property
    def strings(self) -> bool:
        """Return whether every key is there and a string with its value, where payloads were asked
        for.
        """
        return self._whole and bool(self.kinds) and self.kinds.count(BY_VALUE) == len(self.kinds)

    @property
    def _whole(self) -> bool:
        return set(map(type, self.values)) <= {bytes} and min(self.expiries_ms, default=-1) > -2

    def rows(self) -> list[ScannedKey]:
        """Key by key."""
        kinds = self.kinds or [b"none" if at_ms == -2 else b"" for at_ms in self.expiries_ms]
        large = [value == 0 for value in self.values]
        values = [
            None if is_large else value for is_large, value in zip(large, self.values, strict=True)
        ]
        return list(
            map(_make_seen, zip(self.keys, kinds, self.expiries_ms, values, large, strict=True))
        )

    def at(self, positions: Sequence[int]) -> Batch:
        """Return the keys at these places."""
        keys, kinds, expiries_ms, values = self
        return Batch(
            [keys[position] for position in positions],
            [kinds[position] for position in positions],
            [expiries_ms[position] for position in positions],
            [values[position] for position in positions],
        )

    @classmethod
    def told(
        cls, keys: list[bytes], kinds: list[bytes], expiries_ms: list[int], values: list[Reply]
    ) -> Batch:
        """Columns of a script's answer, which names a type that all keys have once."""
        return cls(keys, kinds * len(keys) if len(kinds) == 1 else kinds, expiries_ms, values)

    @classmethod
    def of(cls, rows: Sequence[ScannedKey]) -> Batch:
        """Columns of rows."""
        return cls(
            [row.key for row in rows],
            [row.kind for row in rows],
            [row.expiry_ms for row in rows],
            [0 if row.large else row.value for row in rows],
        )


@dataclass(frozen=True)
class Limits:
    """From where on a key is large, and how much one call collects."""

    batch_bytes: int = READ_BATCH_BYTES
    key_bytes: int = LARGE_KEY_BYTES  # of memory, as the server estimates it
    elements: int = LARGE_ELEMENTS  # where it does not tell
    names: int = READ_CALL_NAMES  # keys of one call

    @classmethod
    def within(cls, script_ms: int) -> Self:
        """Return limits under which one script takes a small share of `script_ms`; a MB takes a
        server some 10 ms, a key 5 to 20 µs.
        """
        share = min(1.0, script_ms / READ_SCRIPT_MS_PLENTY)
        return cls(
            max(READ_SCRIPT_BYTES_MIN, int(READ_BATCH_BYTES * share)),
            max(READ_SCRIPT_BYTES_MIN, int(LARGE_KEY_BYTES * share)),
            max(READ_SCAN_KEYS_MIN, int(LARGE_ELEMENTS * share)),
            max(READ_SCAN_KEYS_MIN, int(READ_CALL_NAMES * share)),
        )


class Reader:
    """Reads of one leg, in whatever database that is in. Used by one task at a time."""

    def __init__(
        self, leg: Leg, facts: NodeFacts, what: ReadMode, limits: Limits | None = None
    ) -> None:
        self._leg = leg
        self._what = what
        self._payloads = what in (ReadMode.PAYLOAD, ReadMode.EITHER)
        self._dumps = self._payloads or what is ReadMode.COMPARABLE
        self._limits = limits or Limits.within(facts.script_ms)
        self._most = self._limits  # what `_limits` go back to after a server was slow
        self._share_s = facts.script_ms / 1000 * READ_SCRIPT_SHARE
        self._fastest_s = math.inf
        self._strings = False  # whether all that the last SCAN found were
        self._fitting: int | None = (
            None  # keys of which the last SCAN's values fitted into one call, where not all did
        )
        self._modern = facts.capabilities.get("pexpiretime", False)
        self._scripted = facts.capabilities.get("scripts", False)
        self._weighs = facts.capabilities.get("memory usage", False)
        # A server that is paused for writes lets only those run that say they do not write.
        self._verbs = (
            ("EVALSHA_RO", "EVAL_RO")
            if facts.capabilities.get("read-only scripts")
            else ("EVALSHA", "EVAL")
        )

    async def scan(self, cursor: int, count: int, *, at_least: bool = False) -> tuple[int, Batch]:
        """Do one SCAN call; return what it found and the next cursor. Without `at_least` it asks
        for fewer than `count` keys where one call could not hold them.
        """
        if not self._scripted:
            following, keys = await self._leg.call("SCAN", cursor, "COUNT", count)
            return int(following), Batch.of(await self._plainly(keys))
        asked = count if at_least else min(count, self._fitting or count, self._limits.names)
        following, keys, *columns = await self._script(
            "scan", cursor, asked, *(("strings",) if self._strings else ())
        )
        batch = Batch.told(keys, *columns)
        if keys:
            self._strings = self._expects_strings(*columns)
        if None not in batch.values:
            # With a value for every key there is nothing to ask again.
            self._fitting = asked * 2 if asked < count else None
            return int(following), batch
        rows = batch.rows()
        if left := len(self._unread(rows)):
            self._fitting = max(READ_SCAN_KEYS_MIN, len(rows) - left)
        return int(following), Batch.of(await self._complete(rows))

    def _expects_strings(self, kinds: list[bytes], _: list[int], values: Sequence[Reply]) -> bool:
        """Return whether the next SCAN may expect strings, after this answer."""
        if self._what is ReadMode.EITHER:
            return kinds == [BY_VALUE] if kinds else _strings_only(values)
        return self._what in (ReadMode.VALUE, ReadMode.COMPARABLE) and kinds == [b"string"]

    async def keys(self, keys: Sequence[bytes]) -> list[ScannedKey]:
        """Return the keys named, in their order."""
        if not keys:
            return []
        if not self._scripted:
            return await self._plainly(keys)
        found: list[ScannedKey] = []
        for part in self._parts(keys):
            found += await self._named("keys", part, part)
        return await self._complete(found)

    # ------------------------------------------------------------------ by script

    async def _script(self, *arguments: bytes | str | int) -> list[Reply]:
        limits = self._limits
        common = (
            0,
            self._what,
            int(self._modern),
            int(self._weighs),
            limits.batch_bytes,
            limits.key_bytes,
            limits.elements,
            *arguments,
        )
        by_sha, whole = self._verbs
        began = time.monotonic()
        try:
            found = list(await self._leg.call(by_sha, READ_SHA, *common))
        except ReplyError as exc:
            if not str(exc).startswith("NOSCRIPT"):
                raise
            found = list(await self._leg.call(whole, READ, *common))
        self._adapt(time.monotonic() - began)
        return found

    def _adapt(self, took_s: float) -> None:
        """Ask for less where a call took longer than its share of the server's limit, beyond what
        the shortest one takes; then for more again.
        """
        self._fastest_s = min(self._fastest_s, took_s)
        most, now = self._most, self._limits
        if took_s - self._fastest_s > self._share_s:
            factor = 0.5
        elif now != most and took_s - self._fastest_s < self._share_s / 4:
            factor = 1.25
        else:
            return
        self._limits = Limits(
            min(most.batch_bytes, max(READ_SCRIPT_BYTES_MIN, int(now.batch_bytes * factor))),
            most.key_bytes,
            most.elements,
            min(most.names, max(READ_SCAN_KEYS_MIN, math.ceil(now.names * factor))),
        )

    def _parts(self, keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        start = 0
        while start < len(keys):
            most = self._limits.names
            yield keys[start : start + most]
            start += most

    async def _named(
        self, how: str, keys: Sequence[bytes], words: Sequence[bytes]
    ) -> list[ScannedKey]:
        return Batch.told(list(keys), *(await self._script(how, *words))[2:]).rows()

    async def like(self, others: Batch) -> Batch:
        """Return the same keys as another side has them, values only: what is of the same type is
        read without being weighed first.
        """
        keys = others.keys
        if not keys:
            return Batch([], [], [], [])
        if not self._scripted:
            return Batch.of(await self._plainly(keys))
        kinds = (
            [
                b"" if value == 0 else kind
                for kind, value in zip(others.kinds, others.values, strict=True)
            ]
            if 0 in others.values
            else others.kinds
        )
        alike = kinds.count(kinds[0]) == len(kinds)
        letters = (
            LETTERS.get(kinds[0], b"-") * len(kinds)
            if alike
            else b"".join([LETTERS.get(kind, b"-") for kind in kinds])
        )
        return Batch.told(keys, *(await self._script("like", letters, *keys))[2:])

    async def _complete(self, found: list[ScannedKey]) -> list[ScannedKey]:
        """With further calls for what did not fit into the first."""
        while left := self._unread(found)[: self._limits.names]:
            keys = [found[number].key for number in left]
            for number, seen in zip(left, await self._named("keys", keys, keys), strict=True):
                found[number] = seen
        return found

    def _unread(self, found: Sequence[ScannedKey]) -> list[int]:
        return [
            number
            for number, seen in enumerate(found)
            if seen.value is None and not seen.large and (self._dumps or seen.kind in PLAIN_TYPES)
        ]

    # ------------------------------------------------------------------ by commands

    async def _plainly(self, keys: Sequence[bytes]) -> list[ScannedKey]:
        found: list[ScannedKey] = []
        if self._what is ReadMode.NAME:
            there = await self._leg.pipeline([("EXISTS", key) for key in keys])
            return [
                ScannedKey(key, b"key", -1, 1) if exists else ScannedKey(key, b"none", -2, b"")
                for key, exists in zip(keys, there, strict=True)
            ]
        for start in range(0, len(keys), READ_TRANSACTION_KEYS):
            part = keys[start : start + READ_TRANSACTION_KEYS]
            kinds = await self._leg.pipeline([("TYPE", key) for key in part])
            large = await self._large(part, kinds) if self._what is not ReadMode.OUTLINE else set()
            small = [(key, kind) for key, kind in zip(part, kinds, strict=True) if key not in large]
            states = {seen.key: seen for seen in await self._small(small)}
            found += [
                ScannedKey(key, kind, -1, None, large=True) if key in large else states[key]
                for key, kind in zip(part, kinds, strict=True)
            ]
        return found

    async def _large(self, keys: Sequence[bytes], kinds: Sequence[bytes]) -> set[bytes]:
        limits = self._limits
        if self._weighs:
            used = await self._leg.pipeline([("MEMORY", "USAGE", key) for key in keys])
            return {
                key
                for key, size in zip(keys, used, strict=True)
                if isinstance(size, int) and size > limits.key_bytes
            }
        known = [(key, kind) for key, kind in zip(keys, kinds, strict=True) if kind in COUNTS]
        sizes = await self._leg.pipeline([(COUNTS[kind], key) for key, kind in known])
        return {
            key
            for (key, kind), size in zip(known, sizes, strict=True)
            # An error: it changed its type meanwhile, and the reading will tell.
            if isinstance(size, int)
            and size > (limits.key_bytes if kind == b"string" else limits.elements)
        }

    async def _small(self, keys: Sequence[tuple[bytes, bytes]]) -> list[ScannedKey]:
        if self._modern:
            reads = [self._reads(key, kind) for key, kind in keys]
            flat = [
                command
                for (key, _), commands in zip(keys, reads, strict=True)
                for command in (("PEXPIRETIME", key), *commands)
            ]
            replies = iter(await self.transaction(flat))
            return [
                self._seen(key, kind, next(replies), [next(replies) for _ in commands])
                for (key, kind), commands in zip(keys, reads, strict=True)
            ]
        found: dict[bytes, ScannedKey] = {}
        left = list(keys)
        while left:
            found |= await self._with_clock(left)
            left = [(key, kind) for key, kind in left if key not in found]
        return [found[key] for key, _ in keys]

    def _reads(self, key: bytes, kind: bytes) -> list[Command]:
        if self._payloads or (self._dumps and kind != b"string"):
            return [("DUMP", key)]
        if self._what is ReadMode.OUTLINE:
            return [(COUNTS.get(kind, "EXISTS"), key)]
        return reads_of(kind, key) if kind in PLAIN_TYPES else [("EXISTS", key)]

    def _seen(self, key: bytes, kind: bytes, at_ms: int, values: list[Reply]) -> ScannedKey:
        value = values[0]
        if at_ms == -2 or kind == b"none" or (value is None and self._dumps):
            return ScannedKey(key, b"none", -2, b"")
        if self._what is ReadMode.OUTLINE:
            return ScannedKey(
                key, kind, at_ms, value + 1 if isinstance(value, int) and kind in COUNTS else 1
            )
        if (self._what is ReadMode.VALUE and kind not in PLAIN_TYPES) or (
            not self._payloads and isinstance(value, ReplyError)
        ):
            value = None
        return ScannedKey(key, kind, at_ms, value)

    async def _with_clock(self, keys: Sequence[tuple[bytes, bytes]]) -> dict[bytes, ScannedKey]:
        """Without PEXPIRETIME: the server's clock on both sides of PTTL; keys whose reading must be
        repeated are left out.
        """
        commands: list[Command] = []
        for key, kind in keys:
            commands += [
                ("MULTI",),
                ("TIME",),
                ("PTTL", key),
                ("TIME",),
                *self._reads(key, kind),
                ("EXEC",),
            ]
        replies = await self._leg.pipeline(commands)
        found: dict[bytes, ScannedKey] = {}
        at = 0
        for key, kind in keys:
            at += 4 + len(self._reads(key, kind))  # MULTI, three clocks, the reads: then EXEC
            outcome = replies[at]
            at += 1
            if isinstance(outcome, ReplyError):
                raise outcome
            before, left, after, *values = outcome
            first, second = clock_ms(before), clock_ms(after)
            # Else too early by up to the difference: it is read again
            if left < 0 or second == first:
                found[key] = self._seen(key, kind, left if left < 0 else first + left, values)
        return found

    async def transaction(self, commands: Sequence[Command]) -> list[Reply]:
        """Run commands in one MULTI; return their replies, errors as values.

        Raises:
            hiredis.ReplyError: the server did not take one of them.
        """
        if not commands:
            return []
        replies = await self._leg.pipeline([("MULTI",), *commands, ("EXEC",)])
        outcome = replies[-1]
        if isinstance(outcome, ReplyError):
            raise next((reply for reply in replies if isinstance(reply, ReplyError)), outcome)
        return list(outcome)


_make_seen = partial(
    tuple.__new__,
    ScannedKey,
    # Without the detour through Python that a NamedTuple's own constructor takes, a third of all
    # our time here
)


def _strings_only(values: Sequence[Reply]) -> bool:
    """Return whether all that was read without expecting it are strings, and there are some."""
    read = [value for value in values if value]
    return bool(read) and all(
        isinstance(value, list) or value.startswith(_STRING_PAYLOAD) for value in read
    )


def clock_ms(time: Sequence[bytes]) -> int:
    """Return the time of a TIME reply, in ms."""
    return int(time[0]) * 1000 + int(time[1]) // 1000
