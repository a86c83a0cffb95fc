"""Dead letters: keys that failed to copy, each with its reason, until they are copied or a person
accepts them by name.

Accepted letters are on a list of their own, with the person's name. A letter stays accepted while
the key fails for the same reason. Both lists hold names, never values.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from exodus.control.accepted_names import names_in, why_not_all
from exodus.control.changes import Key, pack, unpack
from exodus.control.store import ControlStore, Json
from exodus.net.client import answered


def name_of(letter: Json) -> str:
    """Return the name under which a letter is accepted: database and key, in characters that fit on
    one line.
    """
    return f"{letter['db']}:{letter['key'][2:-1]}"


async def keep(store: ControlStore, db: int, key: bytes, reason: str) -> None:
    """List a key that could not be carried, once more."""
    packed = pack([(db, key)])
    accepted = await answered(store.client.hget(store.keys.accepted, packed))
    if accepted is not None and orjson.loads(accepted)["reason"] == reason:
        return
    raw = await answered(store.client.hget(store.keys.dead, packed))
    attempts = (orjson.loads(raw)["attempts"] if raw else 0) + 1
    letter = {
        "db": db,
        "key": repr(key),
        "reason": reason,
        "attempts": attempts,
        "at_ms": await store.now_ms(),
    }
    async with store.client.pipeline(transaction=True) as pipe:
        pipe.hset(store.keys.dead, packed, orjson.dumps(letter))
        pipe.hdel(store.keys.accepted, packed)
        await pipe.execute()


async def forget(store: ControlStore, keys: Iterable[Key]) -> None:
    """Take keys that were carried after all off both lists."""
    names = [pack([key]) for key in keys]
    if names and await answered(store.client.exists(store.keys.dead, store.keys.accepted)):
        await answered(store.client.hdel(store.keys.dead, *names))
        await answered(store.client.hdel(store.keys.accepted, *names))


async def open_letters(store: ControlStore) -> dict[Key, Json]:
    """Return the letters that nobody has accepted."""
    return await _listed(store, store.keys.dead)


async def accepted_letters(store: ControlStore) -> dict[Key, Json]:
    """Return the letters that a person accepted by name; each says who did."""
    return await _listed(store, store.keys.accepted)


async def why_not_accepted(store: ControlStore, text: str) -> str | None:
    """Return why names, one a line, do not accept every open letter and nothing else; None: they
    do.
    """
    there = {name_of(letter) for letter in (await open_letters(store)).values()}
    return why_not_all(
        text,
        there,
        field="accept_dead_letters",
        noun="dead letter",
        resolved="repaired",
        resolve="repair",
    )


async def accept(store: ControlStore, text: str, by: str) -> list[str]:
    """Put the open letters of these names, one a line, on the list of accepted ones; the names."""
    letters = await open_letters(store)
    wanted = set(names_in(text, {name_of(letter) for letter in letters.values()}))
    found: list[str] = []
    for key, letter in letters.items():
        name = name_of(letter)
        if name in wanted:
            packed = pack([key])
            async with store.client.pipeline(transaction=True) as pipe:
                pipe.hset(store.keys.accepted, packed, orjson.dumps({**letter, "accepted_by": by}))
                pipe.hdel(store.keys.dead, packed)
                await pipe.execute()
            found.append(name)
    return found


async def _listed(store: ControlStore, name: str) -> dict[Key, Json]:
    raw = await answered(store.client.hgetall(name))
    return {key: orjson.loads(value) for packed, value in raw.items() for key in unpack(packed)}
