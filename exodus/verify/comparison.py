"""Comparing keys of both sides: type, absolute expiry, and value, across encodings and versions.

A batch takes one call a side. Where both sides allow DUMP, all types but strings come as payloads.
Payloads with visibly equal values (`decode.py`) are done. All others are read by type before
anything is reported. Large keys are compared in chunks. Without DUMP everything is read by type.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from exodus.copy.chunked import At, differs_in_chunks, expiry_of
from exodus.copy.filtered import filtered_keys
from exodus.copy.impact import Turn, unpaced
from exodus.copy.read import Batch, ReadMode, ScannedKey
from exodus.copy.read_cluster import reader_of
from exodus.copy.scan import Slice, scan_once
from exodus.copy.value import PLAIN_TYPES, canonical, reads_of
from exodus.engine import Engine
from exodus.net.leg import Leg, NoDatabase, Reply, close_all
from exodus.plan.bounds import COMPARE_APART_KEYS, COMPARE_RELATIVE_SLACK_MS
from exodus.plan.own_keys import is_own, without_own
from exodus.plan.scope import Scope
from exodus.plan.share import in_share, share_bound
from exodus.plan.vocabulary import CopyStrategy
from exodus.topology.node import NodeFacts
from exodus.verify.decode import apart, kind_of, same_value
from exodus.verify.only import Only


class Depth(StrEnum):
    """What is compared of each key."""

    COUNT = "count"  # whether it is there
    OUTLINE = "outline"  # type, length, expiry
    FULL = "full"  # and the value, with what belongs to it


_READS = {
    Depth.COUNT: ReadMode.NAME,
    Depth.OUTLINE: ReadMode.OUTLINE,
    Depth.FULL: ReadMode.COMPARABLE,
}


@dataclass(frozen=True)
class Divergence:
    """One key that differs."""

    db: int
    key: bytes
    kind: str  # missing, extra, type, value, expiry, group
    detail: str = ""

    def as_json(self) -> dict[str, str | int]:
        """Return the row for reports: the key as text with escapes, and in hexadecimal."""
        return {
            **asdict(self),
            "key": self.key.decode("utf-8", "backslashreplace"),
            "key_hex": self.key.hex(),
        }


@dataclass
class ComparisonCounts:
    """What was found of the keys that are equal, and of those that were not compared."""

    by_type: Counter[str] = field(default_factory=Counter)
    # The rule that leaves them out → keys of the authority
    excluded: Counter[str] = field(default_factory=Counter)
    keys_with_ttl: int = 0
    ttl_drift_ms_max: int = 0


class Comparison:
    """Readers of both sides in the same database, and what is equal between them. Keys have the
    names that they have on the authority.
    """

    def __init__(
        self,
        authority: Leg,
        follower: Leg,
        authority_facts: NodeFacts,
        follower_facts: NodeFacts,
        scope: Scope,
        *,
        spare_others: bool,
        slack_ms: int,
        depth: Depth = Depth.FULL,
        share: float = 1.0,
        turn: Turn = unpaced,
        only: Only | None = None,
    ) -> None:
        """Take the legs over.

        Args:
            spare_others: keys of the follower whose names the rules leave out are not this
                migration's.
            slack_ms: by how much expiries may differ.
            depth: what is compared.
            share: of the keys that `scan` gives.
            turn: waited for before each piece of a large key.
            only: the keys that `scan` gives; None: all.
        """
        self._only = only
        self._legs = (authority, follower)
        self._facts = (authority_facts, follower_facts)
        self._scope = scope
        self._spare_others = spare_others
        self._whole = depth is Depth.FULL
        self._dumps = self._whole and all(
            facts.payload_version is not None for facts in self._facts
        )
        what = ReadMode.VALUE if self._whole and not self._dumps else _READS[depth]
        self._readers = (
            reader_of(authority, authority_facts, what),
            reader_of(follower, follower_facts, what),
        )
        self._share = share
        self._turn = turn
        self._slack_ms = slack_ms
        self._field_expiry = all(facts.capabilities.get("hash field ttl") for facts in self._facts)

    async def begin(self, piece: Slice) -> None:
        """Scan a slice of the authority from here on: its node, in its database."""
        self._legs[0].pin(piece.node)
        await self.select(piece.db)

    async def select(self, db: int) -> None:
        """Change the database on both sides. Where one does not have it, no key is there."""
        for leg in self._legs:
            await entered(leg, db)

    async def close(self) -> None:
        """End both connections."""
        await close_all(self._legs)

    async def scan(
        self, db: int, cursor: int, count: int, tally: ComparisonCounts, *, at_least: bool = False
    ) -> tuple[int, Batch]:
        """Do one SCAN call of the authority and read all that is compared; return the next cursor.
        Arguments as in `Reader.scan`.

        Exodus's own are left out, and what SCAN gave twice, and what the rules leave out by its
        name. What they leave out for its state counts as absent: it is not to be on the follower
        either.
        """
        if self._scope.filters or self._share < 1 or self._only is not None:
            following, found = await scan_once(self._legs[0], cursor, count)
            whole, below = self._share >= 1, share_bound(self._share)
            keys = [
                key
                for key in dict.fromkeys(found)
                if not is_own(key)
                and (whole or in_share(key, below, 0))
                and (self._only is None or self._only.has(db, key))
            ]
            filtered = (
                await filtered_keys(self._legs[0], self._facts[0], self._scope, db, keys)
                if self._scope.filters
                else {}
            )
            tally.excluded.update(filtered.values())
            by_name = {key for key in filtered if self._scope.filtered_by(db, key) is not None}
            read = await self._readers[0].keys([key for key in keys if key not in filtered])
            return following, Batch.of(
                [*read, *[_absent(key) for key in filtered if key not in by_name]]
            )
        following, batch = await self._readers[0].scan(cursor, count, at_least=at_least)
        if len(set(batch.keys)) == len(batch.keys) == len(without_own(batch.keys)):
            return following, batch
        unique = {each.key: each for each in batch.rows() if not is_own(each.key)}
        return following, Batch.of(list(unique.values()))

    async def follow(self, db: int, ours: Batch) -> Batch:
        """Return the same keys as the follower has them, wherever it has them."""
        if not self._scope.renames:
            if not await entered(self._legs[1], db):
                return Batch.of([_absent(key) for key in ours.keys])
            return await self._readers[1].like(ours)
        found: dict[bytes, ScannedKey] = {}
        by_key = {each.key: each for each in ours.rows()}
        for to_db, part in self._by_place(db, ours.keys).items():
            if not await entered(self._legs[1], to_db):
                continue
            there = await self._readers[1].like(
                Batch.of([by_key[key]._replace(key=to) for key, to in part])
            )
            found.update(
                (key, seen._replace(key=key))
                for (key, _), seen in zip(part, there.rows(), strict=True)
            )
        return Batch.of([found.get(key) or _absent(key) for key in ours.keys])

    def _by_place(self, db: int, keys: Sequence[bytes]) -> dict[int, list[tuple[bytes, bytes]]]:
        """Database of the follower → keys and their names there; without those whose name is not
        free.
        """
        by_db: dict[int, list[tuple[bytes, bytes]]] = {}
        for key in keys:
            if self._scope.name_conflict(db, key) is None:
                to_db, to = self._scope.target_key(db, key)
                by_db.setdefault(to_db, []).append((key, to))
        return by_db

    async def differences(
        self, db: int, keys: Sequence[bytes], tally: ComparisonCounts
    ) -> list[Divergence]:
        """Compare keys; those that neither side has, or that the rules leave out and the follower
        does not have, are equal.
        """
        filtered: dict[bytes, str] = {}
        ours_there = await entered(self._legs[0], db)
        if self._scope.filters and ours_there:
            filtered = await filtered_keys(self._legs[0], self._facts[0], self._scope, db, keys)
            tally.excluded.update(filtered.values())
            if self._spare_others:
                keys = [key for key in keys if self._scope.filtered_by(db, key) is None]
        inside = [key for key in keys if key not in filtered and ours_there]
        read, theirs = await asyncio.gather(
            self._readers[0].keys(inside), self._as_they_are(db, keys)
        )
        by_key = {each.key: each for each in read}
        ours = [by_key.get(key) or _absent(key) for key in keys]
        return await self.compare(db, ours, theirs, tally)

    async def _as_they_are(self, db: int, keys: Sequence[bytes]) -> list[ScannedKey]:
        """Read keys of the follower without knowing what the authority has."""
        if not self._scope.renames:
            if not await entered(self._legs[1], db):
                return [_absent(key) for key in keys]
            return await self._readers[1].keys(keys)
        found: dict[bytes, ScannedKey] = {}
        for to_db, part in self._by_place(db, keys).items():
            if not await entered(self._legs[1], to_db):
                continue
            there = await self._readers[1].keys([to for _, to in part])
            found.update(
                (key, seen._replace(key=key)) for (key, _), seen in zip(part, there, strict=True)
            )
        return [found.get(key) or _absent(key) for key in keys]

    async def compare_batch(
        self, db: int, ours: Batch, theirs: Batch, tally: ComparisonCounts
    ) -> list[Divergence]:
        """Compare what `scan` and `follow` gave. Most often all of it is the same on both sides,
        which is seen by the column.
        """
        doubtful = self._doubtful(ours, theirs)
        found: list[Divergence] = []
        if doubtful:
            found = await self.compare(
                db, ours.at(doubtful).rows(), theirs.at(doubtful).rows(), tally
            )
            left = set(doubtful)
            equal = [position for position in range(len(ours.keys)) if position not in left]
            ours, theirs = ours.at(equal), theirs.at(equal)
        if ours.expiries_ms != theirs.expiries_ms:
            drift_ms = max(
                abs(here - there)
                for here, there in zip(ours.expiries_ms, theirs.expiries_ms, strict=True)
            )
            tally.ttl_drift_ms_max = max(tally.ttl_drift_ms_max, drift_ms)
        tally.keys_with_ttl += len(ours.expiries_ms) - ours.expiries_ms.count(-1)  # all are there
        for kind in set(ours.kinds):
            tally.by_type[kind.decode()] += ours.kinds.count(kind)
        return found

    def _doubtful(self, ours: Batch, theirs: Batch) -> Sequence[int]:
        """Return where a key is to be looked at by itself, since it is not there or not seen to be
        the same.
        """
        every = range(len(ours.keys))
        kinds = set(ours.kinds)
        if b"none" in kinds or ours.kinds != theirs.kinds:
            return every
        if self._dumps:
            found = set(apart(ours.kinds, ours.values, theirs.values))
        else:
            plain = not self._whole or (
                kinds <= PLAIN_TYPES
                and not (self._field_expiry and b"hash" in kinds)
                and set(map(type, ours.values)) <= {bytes, list}
            )
            if not plain or ours.values != theirs.values:
                return every
            found = set()
        if ours.expiries_ms != theirs.expiries_ms:
            for position, (here, there) in enumerate(
                zip(ours.expiries_ms, theirs.expiries_ms, strict=True)
            ):
                if here != there and (
                    abs(here - there) > self._slack_ms or (here < 0) != (there < 0)
                ):
                    found.add(position)
        return sorted(found)

    async def compare(
        self,
        db: int,
        ours: Sequence[ScannedKey],
        theirs: Sequence[ScannedKey],
        tally: ComparisonCounts,
    ) -> list[Divergence]:
        """Compare what was read of both sides, key by key."""
        found: list[Divergence] = []
        slack_ms = self._slack_ms
        equal: Counter[bytes] = Counter()
        read_apart = await self._apart(
            db,
            [
                here
                for here, there in zip(ours, theirs, strict=True)
                if self._needs_more(here, there)
            ],
        )
        for here, there in zip(ours, theirs, strict=True):
            key, kind, expiry, value, large = here
            # Most often both sides say the same, byte for byte.
            apart_here = key in read_apart
            if here == there and value is not None and not apart_here and kind != b"none":
                equal[kind] += 1
                tally.keys_with_ttl += expiry >= 0
                continue
            kind_there = self._kind(there)
            if kind != kind_there:
                found.append(_of_another_type(db, key, kind, kind_there))
                continue
            if kind == b"none":
                continue
            unequal: str | None = None
            there_expiry = there.expiry_ms
            if large or there.large:
                expiry, there_expiry, unequal = await self._in_pieces(db, key, kind)
            elif apart_here:
                unequal = read_apart[key]
            elif value != there.value and not self._same(kind, value, there.value):
                unequal = "value"
            if (expiry < 0) != (there_expiry < 0):
                found.append(Divergence(db, key, "expiry", "on one side only"))
            elif expiry >= 0 and abs(expiry - there_expiry) > slack_ms:
                found.append(Divergence(db, key, "expiry", f"{there_expiry - expiry:+d} ms"))
            elif unequal is not None:
                what = (
                    f"{kind.decode()}s differ"
                    if self._whole
                    else f"lengths of {kind.decode()}s differ"
                )
                found.append(
                    Divergence(
                        db,
                        key,
                        unequal,
                        "consumer groups or ids differ" if unequal == "group" else what,
                    )
                )
            else:
                equal[kind] += 1
                if expiry >= 0:
                    tally.keys_with_ttl += 1
                    tally.ttl_drift_ms_max = max(tally.ttl_drift_ms_max, abs(expiry - there_expiry))
        for kind, count in equal.items():
            tally.by_type[kind.decode()] += count
        return found

    def _kind(self, there: ScannedKey) -> bytes:
        """Return the type of a key that was read as one of the same type as the other side's: what
        its payload says.
        """
        if (
            self._dumps
            and there.kind not in (b"string", b"none")
            and isinstance(there.value, bytes)
        ):
            return kind_of(there.value) or there.kind
        return there.kind

    def _same(self, kind: bytes, here: Reply, there: Reply) -> bool:
        """Return whether two values are equal that differ byte for byte."""
        if self._dumps:
            # A payload that is not of an equal value is always looked into
            return kind != b"string"
        return self._whole and bool(canonical(kind, [here]) == canonical(kind, [there]))

    def _needs_more(self, here: ScannedKey, there: ScannedKey) -> bool:
        """Return whether reads of its own are needed, and not in pieces: of what is not seen to be
        equal, and by its type may nevertheless be.
        """
        kind = here.kind
        if (
            not self._whole
            or here.large
            or there.large
            or kind == b"none"
            or kind != self._kind(there)
        ):
            return False
        if None in (here.value, there.value):
            return True
        if self._dumps:
            return (
                kind != b"string"
                and here.value != there.value
                and not same_value(here.value, there.value)
            )
        return kind not in PLAIN_TYPES or (self._field_expiry and kind == b"hash")

    async def _apart(self, db: int, rows: Sequence[ScannedKey]) -> dict[bytes, str | None]:
        """Compare keys that need reads of their own."""
        found: dict[bytes, str | None] = {}
        for start in range(0, len(rows), COMPARE_APART_KEYS):
            part = rows[start : start + COMPARE_APART_KEYS]
            here = [(db, row.key, row.kind) for row in part]
            there = [(*self._scope.target_key(db, row.key), row.kind) for row in part]
            ours, theirs = await asyncio.gather(
                self._values(self._legs[0], here), self._values(self._legs[1], there)
            )
            for (key, kind, *_), one, other in zip(part, ours, theirs, strict=True):
                found[key] = (
                    None
                    if one == other
                    else "group"
                    if kind == b"stream" and one[0] == other[0]
                    else "value"
                )
        return found

    async def _values(self, leg: Leg, keys: Sequence[tuple[int, bytes, bytes]]) -> list[Reply]:
        """Read the values of keys, each given with database and type."""
        found: dict[tuple[int, bytes], Reply] = {}
        for db in dict.fromkeys(db for db, _, _ in keys):
            await leg.select(db)
            mine = [(name, kind) for at, name, kind in keys if at == db]
            reads = [reads_of(kind, name) for name, kind in mine]
            replies = iter(
                await leg.pipeline([command for commands in reads for command in commands])
            )
            values = {
                name: canonical(kind, [next(replies) for _ in commands])
                for (name, kind), commands in zip(mine, reads, strict=True)
            }
            hashes = [
                (name, sorted(values[name]))
                for name, kind in mine
                if kind == b"hash" and self._field_expiry and isinstance(values[name], dict)
            ]
            times = await leg.pipeline(
                [
                    ("HPEXPIRETIME", name, "FIELDS", len(fields), *fields)
                    for name, fields in hashes
                    if fields
                ]
            )
            for (name, _), ttls in zip([each for each in hashes if each[1]], times, strict=True):
                known = isinstance(ttls, list)
                values[name] = (
                    values[name],
                    ttls if known and any(ttl >= 0 for ttl in ttls) else [] if known else str(ttls),
                )
            found.update({(db, name): value for name, value in values.items()})
        return [found[db, name] for db, name, _ in keys]

    async def _in_pieces(self, db: int, key: bytes, kind: bytes) -> tuple[int, int, str | None]:
        """Compare one large key in chunks."""
        to_db, to = self._scope.target_key(db, key)
        await self._legs[0].select(db)
        await self._legs[1].select(to_db)
        sides = At(self._legs[0], key), At(self._legs[1], to)
        here, there = [
            await expiry_of(side.leg, facts, side.key)
            for side, facts in zip(sides, self._facts, strict=True)
        ]
        return (
            here,
            there,
            await differs_in_chunks(*sides, kind, field_expiry=self._field_expiry, turn=self._turn),
        )


def _of_another_type(db: int, key: bytes, kind: bytes, kind_there: bytes) -> Divergence:
    if kind_there == b"none":
        return Divergence(db, key, "missing", kind.decode())
    if kind == b"none":
        return Divergence(db, key, "extra", kind_there.decode())
    return Divergence(db, key, "type", f"{kind.decode()} and {kind_there.decode()}")


async def entered(leg: Leg, db: int) -> bool:
    """Change the database; False where the server has no database of that number."""
    try:
        await leg.select(db)
    except NoDatabase:
        return False
    return True


def _absent(key: bytes) -> ScannedKey:
    return ScannedKey(key, b"none", -2, b"")


async def open_comparison(
    engine: Engine,
    *,
    depth: Depth = Depth.FULL,
    share: float = 1.0,
    turn: Turn = unpaced,
    only: Only | None = None,
    slack_ms: int = 0,
) -> Comparison:
    """Connections of their own for comparing. Arguments as in `Comparison`."""
    authority, follower = await engine.authority_leg(name="exodus-verify"), None
    try:
        follower = await engine.follower.connect(name="exodus-verify")
        if engine.follower_facts.capabilities.get("no-touch"):
            await follower.call("CLIENT", "NO-TOUCH", "ON")
    except BaseException:
        await close_all((authority, follower))
        raise
    facts = engine.authority_facts, engine.follower_facts
    relative = engine.plan.strategy is CopyStrategy.NATIVE and not all(
        side.capabilities.get("pexpiretime") for side in facts
    )
    slack_ms = max(slack_ms, COMPARE_RELATIVE_SLACK_MS if relative else 0)
    return Comparison(
        authority,
        follower,
        *facts,
        engine.scope,
        spare_others=engine.spare_others,
        slack_ms=slack_ms,
        depth=depth,
        share=share,
        turn=turn,
        only=only,
    )
