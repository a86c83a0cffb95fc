"""Re-footed payloads: a DUMP with another version and checksum, for a follower that refuses the
version but knows the type.

A payload is a type byte, a body, the RDB version (2 bytes), and a CRC64 of all before it (8 bytes),
both little-endian. Redis 7.4 and 8 write version 12; Valkey stays below or far above. Each refuses
the other's payloads by that number, although the bodies of most types are the same
(docs/decisions/0002-payload-versions.md, seven servers). No table decides which types are: the
first key of each type byte is restored on the real follower and read back (`key.py`). Only then do
the others follow.
"""

from __future__ import annotations

import anycrc

FOOTER_BYTES = 10
# A module's own format, and hash field expiry, which Redis and Valkey write under the same numbers
# and do not mean the same by.
NEVER = frozenset({6, 7, 22, 23, 24, 25})
_CRC64 = anycrc.Model("CRC64-REDIS")


def crc64(data: bytes, before: int = 0) -> int:
    """Return the checksum that servers put behind payloads; `before` is that of what came
    before.
    """
    return int(_CRC64.calc(data, before))


def refoot(payload: bytes, version: int) -> bytes:
    """Return the same value under another version."""
    body = payload[:-FOOTER_BYTES] + version.to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")
