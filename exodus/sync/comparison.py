"""Comparing keys of both sides: type, absolute expiry, and the value by its type and never by its DUMP bytes.

A batch is read with one call a side; streams, hashes whose fields may expire, types of modules and large keys are looked at one by one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from exodus.config import RESERVED_PREFIX
from exodus.endpoint import NodeFacts
from exodus.leg import Leg, Reply
from exodus.sync.engine import Engine
from exodus.sync.large import differs_in_pieces, expiry_of
from exodus.sync.read import Reader, Seen, What
from exodus.sync.value import PLAIN_TYPES, canonical, reads_of

_CLOCK_SLACK_MS = 2  # a server without PEXPIRETIME: its clock and PTTL are read one after the other


@dataclass(frozen=True)
class Divergence:
    """One key that differs."""

    db: int
    key: bytes
    kind: str  # missing, extra, type, value, expiry, group
    detail: str = ""

    def as_json(self) -> dict[str, str | int]:
        """For reports: the key as text, bytes that are none escaped; and exactly, in hexadecimal."""
        return {**asdict(self), "key": self.key.decode("utf-8", "backslashreplace"), "key_hex": self.key.hex()}


@dataclass
class Tally:
    """What was found of the keys that are equal."""

    by_type: Counter[str] = field(default_factory=Counter)
    keys_with_ttl: int = 0
    ttl_drift_ms_max: int = 0


class Comparison:
    """Readers of both sides in the same database, and what is equal between them."""

    def __init__(self, authority: Leg, follower: Leg, authority_facts: NodeFacts, follower_facts: NodeFacts) -> None:
        self._legs = (authority, follower)
        self._facts = (authority_facts, follower_facts)
        self._readers = (Reader(authority, authority_facts, What.VALUE), Reader(follower, follower_facts, What.VALUE))
        self._slack_ms = 0 if all(facts.capabilities.get("pexpiretime") for facts in self._facts) else _CLOCK_SLACK_MS
        self._field_expiry = all(facts.capabilities.get("hash field ttl") for facts in self._facts)

    async def select(self, db: int) -> None:
        """Change the database on both sides."""
        for leg in self._legs:
            await leg.select(db)

    async def close(self) -> None:
        """End both connections."""
        for leg in self._legs:
            await leg.close()

    async def scan(self, cursor: int, count: int) -> tuple[int, list[Seen]]:
        """Keys of the authority with all that is compared; the next cursor. Exodus's own and what SCAN gave twice are left out."""
        following, seen = await self._readers[0].scan(cursor, count)
        unique = {each.key: each for each in seen if not each.key.startswith(RESERVED_PREFIX)}
        return following, list(unique.values())

    async def follow(self, ours: Sequence[Seen]) -> list[Seen]:
        """The same keys as the follower has them."""
        return await self._readers[1].like(ours)

    async def differences(self, db: int, keys: Sequence[bytes], tally: Tally) -> list[Divergence]:
        """Compare keys; those that neither side has are equal."""
        ours, theirs = await asyncio.gather(*[reader.keys(keys) for reader in self._readers])
        return await self.compare(db, ours, theirs, tally)

    async def compare(self, db: int, ours: Sequence[Seen], theirs: Sequence[Seen], tally: Tally) -> list[Divergence]:
        """Compare what was read of both sides, key by key."""
        found: list[Divergence] = []
        slack_ms = self._slack_ms
        equal: Counter[bytes] = Counter()
        for here, there in zip(ours, theirs, strict=True):
            key, kind, expiry, value, large = here
            # Most often both sides say the same, byte for byte.
            if here == there and value is not None and kind in PLAIN_TYPES and not (self._field_expiry and kind == b"hash"):
                equal[kind] += 1
                tally.keys_with_ttl += expiry >= 0
                continue
            if kind != there.kind:
                found.append(_of_another_type(db, key, kind, there.kind))
                continue
            if kind == b"none":
                continue
            unequal: str | None = None
            if large or there.large or value is None or (self._field_expiry and kind == b"hash"):
                expiry, there_expiry, unequal = await self._apart(db, key, kind, large=large or there.large)
            else:
                there_expiry = there.expiry_ms
                if value != there.value and canonical(kind, [value]) != canonical(kind, [there.value]):
                    unequal = "value"
            if (expiry < 0) != (there_expiry < 0):
                found.append(Divergence(db, key, "expiry", "on one side only"))
            elif expiry >= 0 and abs(expiry - there_expiry) > slack_ms:
                found.append(Divergence(db, key, "expiry", f"{there_expiry - expiry:+d} ms"))
            elif unequal is not None:
                found.append(Divergence(db, key, unequal, "consumer groups or ids differ" if unequal == "group" else f"{kind.decode()}s differ"))
            else:
                equal[kind] += 1
                if expiry >= 0:
                    tally.keys_with_ttl += 1
                    tally.ttl_drift_ms_max = max(tally.ttl_drift_ms_max, abs(expiry - there_expiry))
        for kind, count in equal.items():
            tally.by_type[kind.decode()] += count
        return found

    async def _apart(self, db: int, key: bytes, kind: bytes, *, large: bool) -> tuple[int, int, str | None]:
        """Streams, hashes whose fields may expire, types of modules, and large keys: a key of its own reads. Expiries, and what differs."""
        await self.select(db)
        here, there = [await expiry_of(leg, facts, key) for leg, facts in zip(self._legs, self._facts, strict=True)]
        if large:
            return here, there, await differs_in_pieces(*self._legs, kind, key, field_expiry=self._field_expiry)
        ours, theirs = await asyncio.gather(*[self._value(leg, kind, key) for leg in self._legs])
        if ours == theirs:
            return here, there, None
        return here, there, "group" if kind == b"stream" and ours[0] == theirs[0] else "value"

    async def _value(self, leg: Leg, kind: bytes, key: bytes) -> Reply:
        value = canonical(kind, await leg.pipeline(reads_of(kind, key)))
        if kind == b"hash" and self._field_expiry and isinstance(value, dict) and value:
            fields = sorted(value)
            ttls = await leg.call("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)
            value = (value, [ttl for ttl in ttls if isinstance(ttl, int) and ttl >= 0] and ttls)
        return value


def _of_another_type(db: int, key: bytes, kind: bytes, kind_there: bytes) -> Divergence:
    if kind_there == b"none":
        return Divergence(db, key, "missing", kind.decode())
    if kind == b"none":
        return Divergence(db, key, "extra", kind_there.decode())
    return Divergence(db, key, "type", f"{kind.decode()} and {kind_there.decode()}")


async def surplus(authority: Leg, db: int, keys: Sequence[bytes]) -> list[Divergence]:
    """Keys of the follower that the authority does not have; one question for all of them as long as it has them all."""
    if not keys or await authority.call("EXISTS", *keys) == len(keys):
        return []
    there = await authority.pipeline([("EXISTS", key) for key in keys])
    return [Divergence(db, key, "extra", "not on the authority") for key, exists in zip(keys, there, strict=True) if not exists]


async def open_comparison(engine: Engine) -> Comparison:
    """Connections of their own for comparing."""
    authority = await engine.authority_leg(name="exodus-verify")
    try:
        follower = await (await engine.follower.nodes())[0].connect(name="exodus-verify")
        if engine.follower_facts.capabilities.get("no-touch"):
            await follower.call("CLIENT", "NO-TOUCH", "ON")
    except BaseException:
        await authority.close()
        raise
    return Comparison(authority, follower, engine.authority_facts, engine.follower_facts)
