"""`sync(key)`: make keys on the follower equal to the authority. Everything that moves data uses
it.

It reads and writes whole states, so it is idempotent and independent of the order across keys. Two
runs for one key at once are the caller's error: a lane owns the keys of its partition (race rule
2), and a backfill chunk marks what changed meanwhile (rule 3). Reading and writing are separate, so
a backfill reads the next batch while the follower takes this one.

A key is copied by the first method that works: as its DUMP payload, if the follower takes the
version; as a re-footed payload, if only the version is refused (`refoot.py`) and its type byte is
proved on the follower; by type; in chunks if it is large (`chunked.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from exodus.commands.slots import is_redirect
from exodus.copy.chunked import ChunkedCopy
from exodus.copy.filtered import filtered_keys
from exodus.copy.guard import FULL, DatabaseMissing, Guard, no_room
from exodus.copy.guarded_cluster import guarded_leg
from exodus.copy.impact import Turn, unpaced
from exodus.copy.payload import (
    MigratedKeys,
    Packed,
    PackedStrings,
    State,
    Uncarried,
    commands_for,
    field_expiry_commands,
)
from exodus.copy.read import BY_VALUE, ReadMode, ScannedKey, clock_ms
from exodus.copy.read_cluster import reader_of
from exodus.copy.refoot import NEVER, refoot
from exodus.copy.scan import scan_once
from exodus.copy.value import PLAIN_TYPES, Command, canonical, reads_of
from exodus.net.leg import Leg, NoDatabase, Reply, ReplyError, close_all, error_of
from exodus.plan.bounds import COPY_APART_MAX, COPY_READ_ATTEMPTS, HEAVY_BYTES
from exodus.plan.own_keys import RESERVED_PREFIX, is_own, without_own
from exodus.plan.scope import Scope
from exodus.resp.encode import encode_arguments
from exodus.topology.node import Node, NodeFacts, payload_fits

# What a server says of a payload that it cannot load; the key is then copied by type.
_REFUSED_PAYLOAD = ("DUMP payload version", "Bad data format")
# Whether the policy is an LFU one → OBJECT's word and RESTORE's
_USAGES = {
    False: "IDLETIME",
    True: "FREQ",
}
_PROOF = RESERVED_PREFIX + b"proof}:"


class CopyMethod(StrEnum):
    """How a key is carried. A reason may follow in counts, after a colon."""

    PAYLOAD = "dump-restore"
    REFOOTED = "re-footed payload"
    BY_TYPE = "by type"
    STRING = "by type: a string is cheaper as it is"
    PIECES = "in pieces"
    MIGRATE = "MIGRATE"
    NATIVE = "native replication"
    LATER = "by live sync: no node served its slot"


@dataclass(frozen=True)
class Failure:
    """A key that could not be carried, and why; never its value."""

    db: int
    key: bytes
    reason: str


@dataclass
class BatchReport:
    """What became of a batch. copied + removed + skipped + excluded + failed = keys given."""

    copied: int = 0
    removed: int = 0
    skipped: int = 0  # Exodus's own keys
    excluded: Counter[str] = field(default_factory=Counter)  # the rule that leaves them out → keys
    filtered_keys: list[bytes] = field(default_factory=list)  # those keys
    payload_bytes: int = 0
    usage_kept: int = 0  # of the payloads read: those whose idle time or frequency goes with them
    failed: list[Failure] = field(default_factory=list)
    # Strategy, with its reason where it was not the first choice → keys
    strategies: Counter[str] = field(default_factory=Counter)
    not_sent: Counter[str] = field(default_factory=Counter)  # why MIGRATE did not carry them → keys
    # Changed while they were copied in pieces, or their slot was served by no node: to be marked
    unsettled: list[bytes] = field(default_factory=list)
    # as changed again
    # Keys over HEAVY_BYTES that were written, and their bytes
    heavy: list[tuple[bytes, int]] = field(default_factory=list)


@dataclass
class Proofs:
    """Type bytes whose re-footed payloads the follower was seen to understand, or not; shared by
    the copiers of an engine.
    """

    understood: dict[int, bool] = field(default_factory=dict)


class Copier:
    """One authority leg, one follower leg, one guard. Used by one task at a time (reads and writes
    may overlap).
    """

    def __init__(
        self,
        authority: Leg,
        follower: Leg,
        authority_facts: NodeFacts,
        follower_facts: NodeFacts,
        guard: Guard,
        *,
        another_leg: Callable[[], Awaitable[Leg]],
        proofs: Proofs,
        scope: Scope,
        spare_others: bool,
        keep_usage: bool = False,
    ) -> None:
        """Take the legs over.

        Args:
            spare_others: keys of the follower whose names the rules leave out are not this
                migration's, and are never touched.
            keep_usage: carry idle time, or under an LFU policy frequency, where a key goes as a
                payload.
        """
        self._from = authority
        self._to = guarded_leg(
            follower, guard, scripts=follower_facts.capabilities.get("scripts", False)
        )
        self._authority_facts = authority_facts
        self._follower_facts = follower_facts
        self._modern = authority_facts.capabilities.get("pexpiretime", False)
        self._field_expiry = authority_facts.capabilities.get("hash field ttl", False)
        # Keys for which the follower closed the connection: tried alone from then on
        self._apart: set[tuple[int, bytes]] = set()
        # A backfill reads the next batch while this one, being written, may have to read again
        self._reading = asyncio.Lock()
        self._another_leg = another_leg
        self._pieces: ChunkedCopy | None = None
        self.turn: Turn = unpaced  # waited for before each piece of a large key
        self._proofs = proofs
        self._scope = scope
        self._spare_others = spare_others
        self._usage = _USAGES["lfu" in authority_facts.maxmemory_policy] if keep_usage else None
        if payload_fits(authority_facts, follower_facts):
            self._strategy = CopyMethod.PAYLOAD
        elif (
            authority_facts.payload_version is not None
            and follower_facts.payload_version is not None
        ):
            self._strategy = CopyMethod.REFOOTED
        else:
            self._strategy = CopyMethod.BY_TYPE
        # Idle time and frequency go with a payload only.
        what = (
            ReadMode.VALUE
            if self._strategy is CopyMethod.BY_TYPE
            else ReadMode.PAYLOAD
            if keep_usage
            else ReadMode.EITHER
        )
        self._reader = reader_of(authority, authority_facts, what)

    @property
    def strategy(self) -> CopyMethod:
        """Return the first choice between these two sides."""
        return self._strategy

    @property
    def reason(self) -> str:
        """Return why it is that."""
        theirs, ours = self._authority_facts.payload_version, self._follower_facts.payload_version
        if self._strategy is CopyMethod.BY_TYPE:
            return "DUMP is not allowed on one of the sides"
        fits = "fits" if self._strategy is CopyMethod.PAYLOAD else "does not fit"
        return f"payload version {theirs} {fits} the follower's {ours}"

    async def scanned_life(self, node: Node) -> str:
        """Return `NodeFacts.life` of the node that SCAN goes to, over the connection that scans.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses INFO.
        """
        return await node.life_on(await self._from.pinned())

    async def close(self) -> None:
        """End the connections."""
        await close_all(
            (self._from, self._to.leg, self._pieces.leg if self._pieces is not None else None)
        )

    async def guard_by(self, guard: Guard) -> None:
        """Write under another guard from the next batch on."""
        await self._to.change(guard)

    async def sync_keys(self, db: int, keys: Sequence[bytes]) -> BatchReport:
        """Make every key equal on the follower.

        Raises:
            EpochEnded: the right to write ended; nothing of the batch was written.
            SourceError, TargetError: a connection was lost or the follower takes no writes now;
                safe to repeat.
        """
        report = BatchReport()
        states = await self.read(db, keys, report)
        await self.write(db, states, report)
        return report

    # ------------------------------------------------------------------ reading

    async def read(self, db: int, keys: Sequence[bytes], report: BatchReport) -> list[State]:
        """Return the states of the keys on the authority; those that cannot be read go into the
        report.
        """
        async with self._reading:
            wanted = _wanted(keys, report)
            try:
                await self._from.select(db)
            except NoDatabase:
                return [State(key) for key in wanted]  # no key is there
            absent: list[State] = []
            if self._scope:
                wanted = await self._in_scope(db, wanted, report)
                # What is left out is not to be on the follower; it may have come there before it
                # was written last.
                spared = {
                    key
                    for key in report.filtered_keys
                    if self._spare_others and self._scope.filtered_by(db, key) is not None
                }
                absent = [
                    State(key, excluded=True) for key in report.filtered_keys if key not in spared
                ]
            return [*absent, *await self._read(db, wanted, report)]

    async def scan(
        self, db: int, cursor: int, count: int, report: BatchReport
    ) -> tuple[int, list[bytes], Packed | list[State]]:
        """Do one SCAN call of the authority; return the next cursor, the keys, and their states.
        The states are in columns where each is a plain payload.
        """
        async with self._reading:
            await self._from.select(db)
            if self._scope or self._usage is not None:
                # The names first: what is left out need not be read, and reading can make a key
                # look used.
                following, keys = await scan_once(self._from, cursor, count)
                wanted = _wanted(keys, report)
                if self._scope:
                    wanted = await self._in_scope(db, wanted, report)
                return following, keys, await self._read(db, wanted, report)
            following, batch = await self._reader.scan(cursor, count)
            keys = batch.keys
            wanted = _wanted(keys, report)
            if len(wanted) == len(keys):
                if batch.strings:
                    packed = PackedStrings(keys, batch.expiries_ms, batch.values, CopyMethod.STRING)
                    return following, keys, packed
                if self._strategy is CopyMethod.PAYLOAD and batch.payloads:
                    return following, keys, Packed(keys, batch.expiries_ms, batch.values)
            seen = [each for each in batch.rows() if not is_own(each.key)]
            return following, keys, await self._states(db, seen, report)

    async def _read(self, db: int, keys: Sequence[bytes], report: BatchReport) -> list[State]:
        if self._usage is None:
            return await self._states(db, await self._reader.keys(keys), report)
        # Before the values, since DUMP makes a key look used on servers without CLIENT NO-TOUCH.
        told = dict(
            zip(
                keys,
                await self._from.pipeline([("OBJECT", self._usage, key) for key in keys]),
                strict=True,
            )
        )
        states = await self._states(db, await self._reader.keys(keys), report)
        for state in states:
            usage = told[state.key]
            if state.payload is not None and isinstance(usage, int):
                state.usage = encode_arguments(self._usage, usage)
                report.usage_kept += 1
        return states

    async def _in_scope(self, db: int, keys: Sequence[bytes], report: BatchReport) -> list[bytes]:
        """Return the keys that the rules carry. Count the others by rule; fail keys whose name is
        taken on the follower.
        """
        filtered = (
            await filtered_keys(self._from, self._authority_facts, self._scope, db, keys)
            if self._scope.filters
            else {}
        )
        report.excluded.update(filtered.values())
        report.filtered_keys += filtered
        inside = [key for key in keys if key not in filtered]
        taken = {
            key: why for key in inside if (why := self._scope.name_conflict(db, key)) is not None
        }
        if not taken:
            return inside
        # One that is gone by now has nothing to carry, and whoever has its name on the follower is
        # another key.
        there = await self._from.pipeline([("EXISTS", key) for key in taken])
        for (key, why), exists in zip(taken.items(), there, strict=True):
            if exists:
                report.failed.append(Failure(db, key, why))
            else:
                report.removed += 1
        return [key for key in inside if key not in taken]

    def _place(self, db: int, key: bytes) -> bytes:
        return self._scope.target_key(db, key)[1] if self._scope.renames else key

    async def _states(
        self, db: int, seen: Sequence[ScannedKey], report: BatchReport
    ) -> list[State]:
        states: list[State] = []
        by_type: list[tuple[bytes, bytes, str]] = []
        payloads, refooted = (
            self._strategy is CopyMethod.PAYLOAD,
            self._strategy is CopyMethod.REFOOTED,
        )
        for key, kind, expiry_ms, value, large in seen:
            if large:
                states.append(State(key, how=CopyMethod.PIECES, large=True))
            elif kind == b"none":
                states.append(State(key))
            elif kind == BY_VALUE or (not kind and isinstance(value, list)):
                string = value[0] if isinstance(value, list) else value
                states.append(
                    State(
                        key,
                        max(0, expiry_ms),
                        None,
                        (("SET", self._place(db, key), string),),
                        CopyMethod.STRING,
                    )
                )
            elif payloads:
                states.append(State(key, max(0, expiry_ms), value))
            elif refooted:
                if await self._understood(key, value):
                    states.append(
                        State(
                            key,
                            max(expiry_ms, 0),
                            refoot(value, self._follower_facts.payload_version or 0),
                        )
                    )
                else:
                    by_type.append(
                        (
                            key,
                            b"",
                            f"{CopyMethod.BY_TYPE}: the follower has another format of type "
                            f"{value[0]}",
                        )
                    )
            elif value is None or (kind == b"hash" and self._field_expiry):
                by_type.append((key, kind, CopyMethod.BY_TYPE))
            else:
                commands = commands_for(kind, self._place(db, key), [value], self._follower_facts)
                states.append(State(key, max(expiry_ms, 0), None, commands, CopyMethod.BY_TYPE))
        for key, kind, how in by_type:
            states.extend(
                await self._read_by_type(
                    db, key, kind or await self._from.call("TYPE", key), how, report
                )
            )
        return states

    async def _understood(self, key: bytes, payload: bytes) -> bool:
        """Return whether the follower reads this type byte as the authority meant it: proved with
        the first key that has it.
        """
        number = payload[0]
        known = self._proofs.understood
        if number in NEVER:
            return False
        if number not in known:
            found = await self._prove(key)
            if found is None:
                return (
                    False  # it went while it was looked at: the next one of its kind is the proof
                )
            known[number] = found
        return known[number]

    async def _prove(self, key: bytes) -> bool | None:
        kind = await self._from.call("TYPE", key)
        reads = reads_of(kind, key)
        payload, *values = await self._reader.transaction([("DUMP", key), *reads])
        if payload is None or any(isinstance(value, ReplyError) for value in values):
            return None
        scratch = _PROOF + secrets.token_hex(8).encode()
        restore: Command = (
            "RESTORE",
            scratch,
            60_000,
            refoot(payload, self._follower_facts.payload_version or 0),
            "REPLACE",
        )
        commands = [restore, *reads_of(kind, scratch), ("UNLINK", scratch)]
        done, *there, _ = await self._to.run_commands(0, commands)
        return not isinstance(done, ReplyError) and canonical(kind, values) == canonical(
            kind, there
        )

    async def _read_by_type(
        self, db: int, key: bytes, kind: bytes, how: str, report: BatchReport
    ) -> list[State]:
        try:
            state = await self._read_one(key, kind, self._place(db, key))
        except Uncarried as exc:
            report.failed.append(Failure(db, key, str(exc)))
            return []
        state.how = how
        return [state]

    async def _read_one(self, key: bytes, kind: bytes, to: bytes) -> State:
        facts = self._authority_facts
        for _ in range(COPY_READ_ATTEMPTS):
            if kind == b"none":
                return State(key)
            if kind not in PLAIN_TYPES and kind != b"stream":
                raise Uncarried(
                    f"type {kind.decode('ascii', 'replace')} of a module ({facts.engine} "
                    f"{facts.version_text}) has no copy by type"
                )
            clock: list[Command] = (
                [("PEXPIRETIME", key)] if self._modern else [("TIME",), ("PTTL", key), ("TIME",)]
            )
            replies = await self._reader.transaction([*clock, *reads_of(kind, key)])
            values = replies[len(clock) :]
            if any(
                isinstance(value, ReplyError) and str(value).startswith("WRONGTYPE")
                for value in values
            ):
                kind = await self._from.call("TYPE", key)
                continue
            if self._modern:
                expiry = replies[0]
            elif replies[1] < 0:
                expiry = replies[1]
            elif clock_ms(replies[0]) == clock_ms(replies[2]):
                expiry = clock_ms(replies[0]) + replies[1]
            else:
                continue  # the clock went on meanwhile: it would be too early
            commands = commands_for(kind, to, values, self._follower_facts)
            if commands is None or expiry == -2:
                return State(key)
            if kind == b"hash" and self._field_expiry:
                fields = values[0][::2]
                expiries = await self._from.call(
                    "HPEXPIRETIME", key, "FIELDS", len(fields), *fields
                )
                commands += tuple(field_expiry_commands(to, fields, expiries, self._follower_facts))
            return State(key, max(expiry, 0), None, commands)
        raise Uncarried("it changed at every reading")

    # ------------------------------------------------------------------ writing

    async def write(
        self, db: int, states: Packed | MigratedKeys | Sequence[State], report: BatchReport
    ) -> None:
        """Write states of the authority's database `db` under the guard; refused payloads are
        copied by type, large keys in pieces.
        """
        if isinstance(states, Packed):
            await self._write_packed(db, states, report)
            return
        if isinstance(states, MigratedKeys):
            await self._write_expiries(db, states)
            states = states.others
        if not self._scope.renames:
            await self._write_to(db, db, states, report)
            return
        by_db: dict[int, list[State]] = {}
        for state in states:
            to_db, state.to = self._scope.target_key(db, state.key)
            by_db.setdefault(to_db, []).append(state)
        for to_db, part in by_db.items():
            await self._write_to(db, to_db, part, report)

    async def _write_to(
        self, db: int, to_db: int, states: Sequence[State], report: BatchReport
    ) -> None:
        refused = await self._write_once(
            to_db, [state for state in states if not state.large], report
        )
        for state in states:
            if state.large:
                await self._write_large(db, state.key, to_db, state.to or state.key, report)
        await self._by_type_instead(db, to_db, refused, report)

    async def _by_type_instead(
        self, db: int, to_db: int, refused: Sequence[tuple[bytes, str]], report: BatchReport
    ) -> None:
        if not refused:
            return
        again: list[State] = []
        async with self._reading:
            await self._from.select(db)
            for key, why in refused:
                kind = await self._from.call("TYPE", key)
                again.extend(
                    await self._read_by_type(db, key, kind, f"{CopyMethod.BY_TYPE}: {why}", report)
                )
        for state in again:
            state.to = self._place(db, state.key)
        for key, why in await self._write_once(to_db, again, report):
            report.failed.append(Failure(db, key, why))

    async def _write_packed(self, db: int, packed: Packed, report: BatchReport) -> None:
        count = len(packed)
        if not count:
            return
        by_value = isinstance(packed, PackedStrings)
        how = packed.how if isinstance(packed, PackedStrings) else self._strategy
        try:
            replies = await self._to.run_packed(db, packed)
        except (Uncarried, error_of(self._to.leg.side)) as exc:
            await self._by_type_instead(
                db, db, await self._write_apart(db, list(packed), report, exc), report
            )
            return
        refused: list[tuple[bytes, str]] = []
        waiting = 0
        if replies.count(b"OK") != count:
            told = [
                self._refusal(key, reply, report, payload=not by_value)
                for key, reply in zip(packed.keys, replies, strict=True)
                if isinstance(reply, ReplyError)
            ]
            refused = [each for each in told if each is not None]
            waiting = len(told) - len(refused)
        report.copied += count - len(refused) - waiting
        report.strategies[how] += count - len(refused) - waiting
        report.payload_bytes += packed.size()
        if packed.size() >= HEAVY_BYTES:
            sizes = zip(packed.keys, map(len, packed.payloads), strict=True)
            report.heavy += [(key, size) for key, size in sizes if size >= HEAVY_BYTES]
        if refused:
            failed = {key for key, _ in refused}
            report.payload_bytes -= sum(
                len(payload)
                for key, payload in zip(packed.keys, packed.payloads, strict=True)
                if key in failed
            )
        await self._by_type_instead(db, db, refused, report)

    async def _write_expiries(self, db: int, sent: MigratedKeys) -> None:
        if not sent.keys:
            return
        # The lane needs single servers.
        replies = await self._to.run(db, sent.body(), len(sent.keys))
        refused = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if refused is not None:
            raise no_room(self._to.leg.side, str(refused)[:200])

    async def _write_once(
        self, db: int, states: Sequence[State], report: BatchReport
    ) -> list[tuple[bytes, str]]:
        """Write states in one batch; those that the follower does not take, each with the reason.

        Raises:
            EpochEnded, NoRoom: as `GuardedLeg.run` does.
            SourceError, TargetError: the follower answers nobody.
        """
        if not states:
            return []
        if len(states) > 1 and self._apart:
            alone = [state for state in states if (db, state.key) in self._apart]
            if alone:
                refused = await self._write_once(
                    db, [state for state in states if (db, state.key) not in self._apart], report
                )
                for state in alone:
                    refused += await self._write_once(db, [state], report)
                return refused
        try:
            refused = await self._write_batch(db, states, report)
            self._apart.difference_update([(db, states[0].key)] if len(states) == 1 else ())
            return refused
        except (Uncarried, error_of(self._to.leg.side)) as exc:
            return await self._write_apart(db, states, report, exc)

    async def _write_apart(
        self, db: int, states: Sequence[State], report: BatchReport, exc: Exception
    ) -> list[tuple[bytes, str]]:
        """Write states of which the follower refused the batch, by a word about its database, or by
        closing the connection.

        A follower that answers others does not go on with this batch for the fault of some of its
        keys: halves of it are tried, down to the key. A connection is lost for other reasons too,
        so a single key is tried twice.
        """
        if isinstance(exc, Uncarried):
            there = isinstance(exc, DatabaseMissing)
            report.removed += (
                sum(not state.exists and not state.excluded for state in states) if there else 0
            )
            return [(state.key, str(exc)) for state in states if state.exists or not there]
        await self._to.reopen()
        if len(states) > 1:
            half = len(states) // 2
            refused = await self._write_once(db, states[:half], report)
            return refused + await self._write_once(db, states[half:], report)
        try:
            return await self._write_batch(db, states, report)
        except error_of(self._to.leg.side):
            await self._to.reopen()
            if len(self._apart) < COPY_APART_MAX:
                self._apart.add((db, states[0].key))
            return [(states[0].key, self._closes())]

    def _closes(self) -> str:
        """Return the reason of a key for which the follower closes the connection; always the same,
        as who accepts a letter accepts its reason.
        """
        limits = ", ".join(
            f"{name} {value:,}" for name, value in self._follower_facts.limits.items()
        )
        return f"the {self._to.leg.side} closes the connection when it is given this key" + (
            f" (its limits: {limits})" if limits else ""
        )

    async def _write_batch(
        self, db: int, states: Sequence[State], report: BatchReport
    ) -> list[tuple[bytes, str]]:
        replies, counts = await self._to.run_states(db, states)
        refused: list[tuple[bytes, str]] = []
        at_reply = carried = payload_bytes = 0
        for state, count in zip(states, counts, strict=True):
            said = (
                replies[at_reply]
                if count == 1
                else _first_error(replies[at_reply : at_reply + count])
            )
            at_reply += count
            if not isinstance(said, ReplyError):
                if state.payload is not None:
                    carried += 1
                    payload_bytes += len(state.payload)
                    if len(state.payload) >= HEAVY_BYTES:
                        report.heavy.append((state.key, len(state.payload)))
                else:
                    report.copied += state.exists
                    report.removed += not state.exists and not state.excluded
                    payload_bytes += state.size()
                    if state.how:
                        report.strategies[state.how] += 1
                continue
            told = self._refusal(state.key, said, report, payload=state.payload is not None)
            if told is not None:
                refused.append(told)
        report.copied += carried
        report.payload_bytes += payload_bytes
        if carried:
            report.strategies[self._strategy] += carried
        return refused

    def _refusal(
        self, key: bytes, said: ReplyError, report: BatchReport, *, payload: bool
    ) -> tuple[bytes, str] | None:
        """Return the key and why the follower did not take it. None where no node served its slot
        within the bound: it then counts as unsettled, and is marked as changed again.

        Raises:
            NoRoom: it takes nothing now.
        """
        why = str(said)[:200]
        if why.startswith(FULL):
            raise no_room(self._to.leg.side, why)
        if is_redirect(why):
            report.unsettled.append(key)
            report.copied += 1
            report.strategies[CopyMethod.LATER] += 1
            return None
        return key, "payload refused" if payload and any(
            text in why for text in _REFUSED_PAYLOAD
        ) else why

    async def _write_large(
        self, db: int, key: bytes, to_db: int, to: bytes, report: BatchReport
    ) -> None:
        if self._pieces is None:
            self._pieces = ChunkedCopy(
                await self._another_leg(),
                self._to,
                self._authority_facts,
                self._follower_facts,
                self.turn,
            )
        try:
            try:
                outcome = await self._pieces.copy(db, key, to_db, to)
            except error_of(self._to.leg.side):
                # It answers others: a connection that is lost once more is the key's fault
                await self._to.reopen()
                outcome = await self._pieces.copy(db, key, to_db, to)
        except Uncarried as exc:
            report.failed.append(Failure(db, key, str(exc)))
            return
        except error_of(self._to.leg.side):
            await self._to.reopen()
            report.failed.append(Failure(db, key, self._closes()))
            return
        report.copied += outcome.exists
        report.removed += not outcome.exists
        report.payload_bytes += outcome.payload_bytes
        if outcome.payload_bytes >= HEAVY_BYTES:
            report.heavy.append((key, outcome.payload_bytes))
        report.strategies[CopyMethod.PIECES] += 1
        if not outcome.settled:
            report.unsettled.append(key)


def _wanted(keys: Sequence[bytes], report: BatchReport) -> Sequence[bytes]:
    wanted = without_own(keys)
    report.skipped += len(keys) - len(wanted)
    return wanted


def _first_error(replies: Sequence[Reply]) -> Reply:
    return next((reply for reply in replies if isinstance(reply, ReplyError)), None)
