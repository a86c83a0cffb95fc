"""One script call that scans and reads many keys: type, absolute expiry, and payload or value of
each at one instant.

It saves a round trip and most of the client's CPU a batch (docs/decisions/0006-own-connection.md).
It only reads, so it is never replicated. The caller bounds its cost: it stops collecting after a
number of bytes, and large keys are named, not read.

Without PEXPIRETIME the script reads the server's clock before and after a run of PTTLs. A PTTL read
later than the first clock makes the expiry too early, never too late. If the two clocks differ by a
ms, it reads a shorter run again, down to one key. Otherwise errors of up to 32 ms occurred
(docs/decisions/0003-absolute-expiries.md).
"""

from __future__ import annotations

import hashlib

from exodus.lua import lua

READ = lua("exodus.copy", "read_keys").encode()
LETTERS = {
    b"string": b"s",
    b"list": b"l",
    b"set": b"e",
    b"zset": b"z",
    b"hash": b"h",
    b"stream": b"x",
}
READ_SHA = hashlib.sha1(READ, usedforsecurity=False).hexdigest()
