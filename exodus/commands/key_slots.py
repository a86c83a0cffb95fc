"""Slots of keys. No I/O.

A slot is CRC16 (XMODEM) of the key modulo 16384. Where the key has a hash tag, the first `{…}` that
is not empty, only the tag counts. A copy between clusters asks for the slot of every key, so this
is compiled.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence

SLOTS = 16_384


def slot_of(key: bytes) -> int:
    """Return the slot of a key."""
    if b"{" in key:
        start = key.find(b"{")
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    slot = crc_hqx(key, 0)
    return slot & 0x3FFF


def places_by_owner(keys: Sequence[bytes], owners: Sequence[int]) -> dict[int, list[int]]:
    """Return owner → places of its keys in `keys`.

    Args:
        keys: as they were scanned.
        owners: the owner of each slot.
    """
    found: dict[int, list[int]] = {}
    for at, key in enumerate(keys):
        owner = owners[slot_of(key)]
        places = found.get(owner)
        if places is None:
            found[owner] = places = []
        places.append(at)
    return found
