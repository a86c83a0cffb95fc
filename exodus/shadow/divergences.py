"""The ledger of divergences: kept for the whole migration, a row for each key and command.

A row names the key, the command, the cause and the remedy, never a value. Both values stand in a
hash of their own: bounded, masked where the plan asks for it, expiring, and deleted at the end of
the migration.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import orjson

from exodus.control.accepted_names import names_in
from exodus.control.changes import Key, pack
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.bounds import (
    DIVERGENCE_REQUESTS_MAX,
    DIVERGENCE_VALUE_CHARS,
    DIVERGENCE_VALUES_KEPT_MS,
    DIVERGENCES_MAX,
)
from exodus.shadow.causes import REMEDIES, Cause

Json = dict[str, Any]
STATE = "state"  # in place of a command: the key's state was compared
COPYING = "(copy)"  # likewise: the key failed to copy
REQUESTS = "requests"  # a row's field: digests of its different requests
MORE = "more"  # in place of those beyond DIVERGENCE_REQUESTS_MAX
REFUSED = "the target refuses it"  # the kind of a row whose request only the target refused


class DivergenceState(StrEnum):
    """What became of a row."""

    PENDING = "pending"  # not judged to the end
    CONFIRMED = "confirmed"
    HEALED = "healed"  # repaired, and seen to be equal
    ACCEPTED = "accepted"  # by a person, by name


OPEN = (DivergenceState.PENDING, DivergenceState.CONFIRMED)


def row_id(key: Key, command: str) -> bytes:
    """Return the field of a row."""
    return pack([key]) + command.encode()


def shown(value: object, *, masked: bool) -> str:
    """Return a value as the ledger keeps it."""
    text = repr(value)
    if masked:
        return f"masked: {len(text)} characters, checksum {zlib.crc32(text.encode()):08x}"
    return text if len(text) <= DIVERGENCE_VALUE_CHARS else text[:DIVERGENCE_VALUE_CHARS] + "…"


def shown_error(said: str, *, masked: bool) -> str:
    """Return a server's error as the ledger keeps it: without the request's arguments, which a
    server repeats where it does not know the command.
    """
    if masked:
        return f"{said.split(' ', 1)[0]} (masked)"
    return said.partition(", with args beginning with")[0][:DIVERGENCE_VALUE_CHARS]


async def note(
    store: ControlStore,
    key: Key,
    command: str,
    *,
    kind: str,
    cause: str,
    state: DivergenceState = DivergenceState.CONFIRMED,
    values: Mapping[str, str] | None = None,
    request: str = "",
    **more: object,
) -> bool:
    """Write a row, or bring it up to date; False where the ledger is full.

    An accepted row stays accepted while its cause stays. A healed one that is seen again is open
    again. `request` is the digest of the request that differs.
    """
    field, client, names = row_id(key, command), store.client, store.keys
    raw = await answered(client.hget(names.divergence, field))
    if raw is None and int(await answered(client.hlen(names.divergence))) >= DIVERGENCES_MAX:
        return False
    if raw is not None and state is DivergenceState.PENDING:
        return True  # what it was judged before stands until it is judged again
    before: Json = {} if raw is None else orjson.loads(raw)
    now_ms = await store.now_ms()
    accepted = before.get("state") == DivergenceState.ACCEPTED and before.get("cause") == cause
    row = {
        **before,
        "db": key[0],
        "key": key[1].decode("utf-8", "backslashreplace"),
        "key_hex": key[1].hex(),
        "command": command,
        "kind": kind,
        "cause": cause,
        "remedy": REMEDIES.get(Cause(cause), "") if cause in set(Cause) else "",
        "state": DivergenceState.ACCEPTED if accepted else state,
        "first_seen_ms": before.get("first_seen_ms", now_ms),
        "at_ms": now_ms,
        "times": before.get("times", 0) + (state is DivergenceState.CONFIRMED),
        **({REQUESTS: _requests(before, request)} if request else {}),
        **more,
    }
    pipe = client.pipeline(transaction=True)
    pipe.hset(names.divergence, field, orjson.dumps(row))
    if values:
        pipe.hset(names.divergence_values, field, orjson.dumps(dict(values)))
        pipe.pexpire(names.divergence_values, DIVERGENCE_VALUES_KEPT_MS)
    await pipe.execute()
    return True


def _requests(before: Json, request: str) -> list[str]:
    """Return the digests of a row's requests that differ."""
    differed = before.get("state") in (DivergenceState.CONFIRMED, DivergenceState.ACCEPTED)
    known: list[str] = before.get(REQUESTS, []) if differed else []
    noted = request if len(known) < DIVERGENCE_REQUESTS_MAX else MORE
    return known if {request, noted} & {*known} else [*known, noted]


async def withdraw(store: ControlStore, key: Key, command: str) -> None:
    """Remove a row that is pending: the difference went away."""
    field = row_id(key, command)
    raw = await answered(store.client.hget(store.keys.divergence, field))
    if raw is not None and orjson.loads(raw).get("state") == DivergenceState.PENDING:
        await answered(store.client.hdel(store.keys.divergence, field))
        await answered(store.client.hdel(store.keys.divergence_values, field))


async def rows(store: ControlStore) -> list[Json]:
    """Return all rows with their values, where they are still kept; the oldest first."""
    raw = await answered(store.client.hgetall(store.keys.divergence))
    values = await answered(store.client.hgetall(store.keys.divergence_values))
    found = [
        {**orjson.loads(row), **(orjson.loads(values[field]) if field in values else {})}
        for field, row in raw.items()
    ]
    for row in found:
        row.pop(REQUESTS, None)  # digests, which tell a person nothing
    return sorted(found, key=lambda row: (row.get("first_seen_ms", row["at_ms"]), row["key"]))


def is_open(row: Json) -> bool:
    """Return whether a row is neither healed nor accepted. Rows of before had no state."""
    return row.get("state", DivergenceState.CONFIRMED) in OPEN


def differed(rows_of: Iterable[Json], since_ms: float) -> tuple[set[Key], set[Key]]:
    """Return the keys that differ or did since then, and which of them are healed.

    An accepted key differs. A repair heals no key that was not sampled, so what was repaired says
    as much of those as before.
    """
    found = [row for row in rows_of if is_open(row) or row["at_ms"] >= since_ms]
    keys = {key_of(row) for row in found}
    left = {key_of(row) for row in found if row.get("state") != DivergenceState.HEALED}
    return keys, keys - left


def key_of(row: Json) -> Key:
    """Return the key of a row."""
    name = row.get("key_hex")
    return row["db"], row["key"].encode() if name is None else bytes.fromhex(name)


def name_of(row: Mapping[str, Any]) -> str:
    """Return the name by which a row is accepted; it fits on one line."""
    key = str(row["key"])
    shown_key = key if key.isprintable() else key.encode("unicode_escape").decode()
    return f"{row['db']}:{shown_key} {row['command']}"


async def set_state(
    store: ControlStore, wanted: Iterable[Json], state: DivergenceState, **more: object
) -> int:
    """Give rows another state; return their number."""
    count = 0
    for row in wanted:
        field = row_id(key_of(row), row["command"])
        raw = await answered(store.client.hget(store.keys.divergence, field))
        if raw is not None:
            changed = {**orjson.loads(raw), "state": state, **more}
            await answered(store.client.hset(store.keys.divergence, field, orjson.dumps(changed)))
            count += 1
    return count


async def begin(store: ControlStore) -> None:
    """Remove what an earlier sampling did not judge to the end."""
    for row in await rows(store):
        if row.get("state") == DivergenceState.PENDING:
            await withdraw(store, key_of(row), row["command"])


async def open_rows(store: ControlStore) -> dict[bytes, Json]:
    """Return the fields of the open rows, each with its row."""
    raw = await answered(store.client.hgetall(store.keys.divergence))
    found = {field: orjson.loads(row) for field, row in raw.items()}
    return {field: row for field, row in found.items() if is_open(row)}


async def equal_now(store: ControlStore, key: Key, command: str, request: str) -> list[str]:
    """Note that a request of an open row is equal now; return the digests of its other requests."""
    raw = await answered(store.client.hget(store.keys.divergence, row_id(key, command)))
    known: list[str] = [] if raw is None else orjson.loads(raw).get(REQUESTS, [])
    left = [each for each in known if each != request]
    if raw is not None and left not in (known, []):
        changed = {**orjson.loads(raw), REQUESTS: left}
        await answered(
            store.client.hset(store.keys.divergence, row_id(key, command), orjson.dumps(changed))
        )
    return left


async def heal(store: ControlStore, key: Key, command: str) -> None:
    """Note that a key was seen to be equal that was not before."""
    row = {"db": key[0], "key": "", "key_hex": key[1].hex(), "command": command}
    await set_state(store, [row], DivergenceState.HEALED, healed_ms=await store.now_ms())


async def accept(store: ControlStore, text: str, by: str) -> list[str]:
    """Accept the open rows of these names, one a line; return the names."""
    there = {name_of(row): row for row in await rows(store) if is_open(row)}
    names = [name for name in names_in(text, there.keys()) if name in there]
    await set_state(
        store,
        [there[name] for name in names],
        DivergenceState.ACCEPTED,
        accepted_by=by,
        accepted_ms=await store.now_ms(),
    )
    return names


async def forget_values(store: ControlStore) -> None:
    """Delete every value and sampled request that Compare keeps: the migration ends."""
    await answered(store.client.delete(store.keys.divergence_values, store.keys.shadow))
