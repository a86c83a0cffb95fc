"""Slots of keys. No I/O.

A slot is CRC16 (XMODEM) of the key modulo 16384. Where the key has a hash tag, the first `{…}` that
is not empty, only the tag counts. A copy between clusters asks for the slot of every key, so this
is compiled.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence

SLOTS = 16_384
_BRACE = ord("{")
_COMPILED = not __file__.endswith(".py")


def slot_of(key: bytes) -> int:
    """Return the slot of a key."""
    if not _COMPILED:
        return crc_hqx(_hashed(key), 0) & 0x3FFF
    # As C this loop takes a tenth of the time of a call of `crc_hqx`.
    crc = 0
    for byte in key:
        if byte == _BRACE:
            return crc_hqx(_hashed(key), 0) & 0x3FFF
        part = (crc >> 8) ^ byte
        part ^= part >> 4
        crc = ((crc << 8) ^ (part << 12) ^ (part << 5) ^ part) & 0xFFFF
    return crc & 0x3FFF


def _hashed(key: bytes) -> bytes:
    """Return the part of a key that counts."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


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


def groups_by_owner(keys: Sequence[bytes], owners: Sequence[int]) -> dict[int, list[list[int]]]:
    """Return owner → groups of places in `keys`, one group for each slot.

    Args:
        keys: as they were scanned.
        owners: the owner of each slot.
    """
    found: dict[int, list[list[int]]] = {}
    slots: dict[int, list[int]] = {}
    last = -1
    places: list[int] = []
    for at, key in enumerate(keys):
        slot = slot_of(key)
        if slot != last:
            last = slot
            known = slots.get(slot)
            if known is None:
                slots[slot] = places = []
                owner = owners[slot]
                groups = found.get(owner)
                if groups is None:
                    found[owner] = groups = []
                groups.append(places)
            else:
                places = known
        places.append(at)
    return found


def tags_by_slot(prefix: bytes) -> list[bytes]:
    """Return a hash tag for each slot: the prefix, a dot, and the smallest number that fits."""
    found = [b""] * SLOTS
    left, number = SLOTS, 0
    while left:
        tag = b"%b.%d" % (prefix, number)
        slot = slot_of(tag)
        if not found[slot]:
            found[slot] = tag
            left -= 1
        number += 1
    return found
