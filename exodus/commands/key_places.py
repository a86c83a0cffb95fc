"""Where a request's keys stand, so that other names can be put there. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from exodus.commands.table import CommandTable


class _Word(bytes):
    """A word of a request that is an object of its own: equal words may be one object in Python,
    and a value that is equal to a key is none.
    """


def key_places(table: CommandTable, args: Sequence[bytes]) -> frozenset[int]:
    """Return the places of a request's keys among its words."""
    words: list[bytes] = [_Word(word) for word in args]
    keys = {id(key) for key in table.of([*args]).keys(words)}
    return frozenset(place for place, word in enumerate(words) if id(word) in keys)
