"""One call that scans, and reads many keys whole: type, absolute expiry and payload or value of
each are of the same instant.

Where scripts are allowed this saves a round trip and most of our own CPU a batch
(docs/decisions/0006-own-connection.md). It only reads, so it is never replicated. What it may cost
a server is bounded by the caller: it stops collecting after so many bytes, and keys that are large
are named, not read.

On servers without PEXPIRETIME the server's clock stands on both sides of a run of PTTLs. A PTTL
that is read later than the clock before it makes the expiry too early, never too late; so where the
two clocks are not of the same millisecond, a shorter run is read again, down to a single key, until
they are (errors of up to 32 ms were seen otherwise, docs/decisions/0003-absolute-expiries.md).
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
