"""`sync(key)`: make keys on the follower equal to the authority. The primitive that everything that moves data feeds.

Whole states are read and written, so it is idempotent, free of order across keys, and safe to repeat. Two runs for one key at a time are the
caller's error: a lane owns the keys of its partition (race rule 2), and a backfill chunk marks what changed meanwhile (rule 3).
Reading and writing are apart, so that a backfill can read the next batch while the follower takes this one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from exodus.config import RESERVED_PREFIX
from exodus.endpoint import NodeFacts, payload_fits
from exodus.errors import TargetError
from exodus.leg import Leg, Reply, ReplyError
from exodus.resp.encode import encode_many
from exodus.sync.guard import Guard, GuardedLeg
from exodus.sync.payload import Command, State, Uncarried, commands_for, field_expiry_commands, reads_for

_ATOMIC_KEYS = 64  # read in one transaction: value and expiry are of the same instant
_READ_ATTEMPTS = 3
_TIME_SLACK_MS = 1  # on 6.2, between the two clocks around a PTTL
# What a server says of a payload that it cannot load; the key is then copied by type.
_REFUSED_PAYLOAD = ("DUMP payload version", "Bad data format")
_FULL = ("OOM", "READONLY", "LOADING", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")


@dataclass(frozen=True)
class Failure:
    """A key that could not be carried, and why; never its value."""

    db: int
    key: bytes
    reason: str


@dataclass
class BatchReport:
    """What became of a batch. copied + removed + skipped + failed = keys given."""

    copied: int = 0
    removed: int = 0
    skipped: int = 0  # Exodus's own keys
    payload_bytes: int = 0
    failed: list[Failure] = field(default_factory=list)
    by_type: Counter[str] = field(default_factory=Counter)  # why a key was copied by type and not as a payload


class Copier:
    """One authority leg, one follower leg, one guard. Used by one task at a time (reads and writes may overlap)."""

    def __init__(self, authority: Leg, follower: Leg, authority_facts: NodeFacts, follower_facts: NodeFacts, guard: Guard) -> None:
        self._from = authority
        self._to = GuardedLeg(follower, guard)
        self._authority_facts = authority_facts
        self._follower_facts = follower_facts
        self._fits = payload_fits(authority_facts, follower_facts)
        self._modern = authority_facts.capabilities.get("pexpiretime", False)
        self._reading = asyncio.Lock()  # a backfill reads the next batch while this one, being written, may have to read again

    async def close(self) -> None:
        """End both connections."""
        await self._from.close()
        await self._to.leg.close()

    async def sync_keys(self, db: int, keys: Sequence[bytes]) -> BatchReport:
        """Make every key equal on the follower.

        Raises:
            EpochEnded: the right to write ended; nothing of the batch was written.
            SourceError, TargetError: a connection was lost or the follower takes no writes now; safe to repeat.
        """
        report = BatchReport()
        states = await self.read(db, keys, report)
        await self.write(db, states, report)
        return report

    # ------------------------------------------------------------------ reading

    async def read(self, db: int, keys: Sequence[bytes], report: BatchReport) -> list[State]:
        """The states of the keys on the authority; those that cannot be read go into the report."""
        wanted = [key for key in keys if not key.startswith(RESERVED_PREFIX)]
        report.skipped += len(keys) - len(wanted)
        states: list[State] = []
        async with self._reading:
            await self._from.select(db)
            for start in range(0, len(wanted), _ATOMIC_KEYS):
                part = wanted[start : start + _ATOMIC_KEYS]
                states.extend(await (self._read_payloads(part) if self._fits else self._read_by_type(db, part, report)))
        return states

    async def _transaction(self, commands: list[Command]) -> list[Reply]:
        replies = await self._from.pipeline([("MULTI",), *commands, ("EXEC",)])
        outcome = replies[-1]
        if isinstance(outcome, ReplyError):
            refused = next((reply for reply in replies if isinstance(reply, ReplyError)), outcome)
            raise refused
        return list(outcome)

    async def _read_payloads(self, keys: list[bytes]) -> list[State]:
        clock = "PEXPIRETIME" if self._modern else "PTTL"
        replies = await self._transaction([command for key in keys for command in (("DUMP", key), (clock, key))])
        states: dict[bytes, State] = {}
        timed: list[bytes] = []
        for key, payload, expiry in zip(keys, replies[::2], replies[1::2], strict=True):
            if payload is None or expiry == -2:
                states[key] = State(key)
            elif expiry == -1 or self._modern:
                states[key] = State(key, max(expiry, 0), payload)
            else:
                timed.append(key)
        while timed:
            states |= await self._read_with_clock(timed)
            timed = [key for key in timed if key not in states]
        return [states[key] for key in keys]

    async def _read_with_clock(self, keys: list[bytes]) -> dict[bytes, State]:
        """Payloads and absolute expiries from a server without PEXPIRETIME; keys whose reading must be repeated are left out.

        Its own clock stands on both sides of each PTTL; where the two are further apart than a millisecond it was interrupted in between
        (errors of up to 32 ms were seen otherwise, facts-redis 3). Each key is a transaction of its own, all in one round trip.
        """
        commands: list[Command] = []
        for key in keys:
            commands += [("MULTI",), ("TIME",), ("PTTL", key), ("TIME",), ("DUMP", key), ("EXEC",)]
        replies = await self._from.pipeline(commands)
        states: dict[bytes, State] = {}
        for key, outcome in zip(keys, replies[5::6], strict=True):
            if isinstance(outcome, ReplyError):
                raise outcome
            before, left, after, payload = outcome
            first, second = _ms(before), _ms(after)
            if payload is None or left == -2:
                states[key] = State(key)
            elif left == -1:
                states[key] = State(key, 0, payload)
            elif second - first <= _TIME_SLACK_MS:
                states[key] = State(key, first + left, payload)
        return states

    async def _read_by_type(self, db: int, keys: list[bytes], report: BatchReport) -> list[State]:
        kinds = await self._from.pipeline([("TYPE", key) for key in keys])
        states: list[State] = []
        for key, kind in zip(keys, kinds, strict=True):
            try:
                states.append(State(key) if kind == b"none" else await self._read_one(key, kind))
            except Uncarried as exc:
                report.failed.append(Failure(db, key, str(exc)))
        return states

    async def _read_one(self, key: bytes, kind: bytes) -> State:
        facts = self._authority_facts
        for _ in range(_READ_ATTEMPTS):
            reads = reads_for(kind, key, facts)
            clock: list[Command] = [("PEXPIRETIME", key)] if self._modern else [("TIME",), ("PTTL", key)]
            replies = await self._transaction([*clock, *reads])
            values = replies[len(clock) :]
            if any(isinstance(value, ReplyError) and str(value).startswith("WRONGTYPE") for value in values):
                kind = await self._from.call("TYPE", key)
                if kind == b"none":
                    return State(key)
                continue
            expiry = replies[0] if self._modern else replies[1] if replies[1] < 0 else _ms(replies[0]) + replies[1]
            commands = commands_for(kind, key, values, self._follower_facts)
            if commands is None or expiry == -2:
                return State(key)
            if kind == b"hash" and facts.capabilities.get("hash field ttl"):
                fields = values[0][::2]
                expiries = await self._from.call("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)
                commands += tuple(field_expiry_commands(key, fields, expiries, self._follower_facts))
            return State(key, max(expiry, 0), None, commands)
        raise Uncarried("its type changed at every reading")

    # ------------------------------------------------------------------ writing

    async def write(self, db: int, states: Sequence[State], report: BatchReport) -> None:
        """Write states to the follower under the guard; payloads that it refuses are copied by type."""
        refused = await self._write_once(db, states, report)
        if not refused:
            return
        again: list[State] = []
        async with self._reading:
            await self._from.select(db)
            for key, why in refused:
                report.by_type[why] += 1
                again.extend(await self._read_by_type(db, [key], report))
        for key, why in await self._write_once(db, again, report):
            report.failed.append(Failure(db, key, why))

    async def _write_once(self, db: int, states: Sequence[State], report: BatchReport) -> list[tuple[bytes, str]]:
        if not states:
            return []
        commands = [state.as_commands() for state in states]
        flat = [command for some in commands for command in some]
        replies = await self._to.run(db, encode_many(flat), len(flat))
        refused: list[tuple[bytes, str]] = []
        at = 0
        for state, some in zip(states, commands, strict=True):
            said = [str(reply) for reply in replies[at : at + len(some)] if isinstance(reply, ReplyError)]
            at += len(some)
            if not said:
                report.copied += state.exists
                report.removed += not state.exists
                report.payload_bytes += state.size()
            elif said[0].startswith(_FULL):
                raise TargetError(
                    "the follower takes no writes now", why=said[0][:200], next_step="make room or wait; what was under way is done again"
                )
            elif state.payload is not None and any(text in said[0] for text in _REFUSED_PAYLOAD):
                refused.append((state.key, "payload refused"))
            else:
                refused.append((state.key, said[0][:200]))
        return refused


def _ms(time: Sequence[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000
