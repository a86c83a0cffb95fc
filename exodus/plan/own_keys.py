"""Exodus's own keys on source and target, by their exact names. No I/O.

They are never copied, compared or counted. Everything else is the applications', also where it
begins like one of these: a key `exodus:{cart}:42` is copied as any other. A migration's name is
lower-case letters, digits and dashes.

| name                          | what                                                          |
| ----------------------------- | ------------------------------------------------------------- |
| exodus:{NAME}:epoch           | the guard of the follower's writers (`control/store.py`)      |
| exodus:{NAME}:lane:N          | the guard of one partition's lane                             |
| exodus:{NAME}:fence           | which switch may put the fence up or down                     |
| exodus:{NAME}:native          | the guard of native replication                               |
| exodus:{NAME.N}:guard         | the guards of writers and fence on a cluster, a slot of many  |
| exodus:{stage}:TOKEN          | a large key while it is put together; expires                 |
| exodus:{stage.N}:TOKEN        | the same on a cluster, in the slot of the key                 |
| exodus:{scratch.N}:TOKEN      | a copy on which Compare tries a write; removed at once        |
| exodus:{proof}:TOKEN          | whether a payload loads; removed at once                      |
| exodus:{fence}:probe          | whether a fence holds; expires                                |
| exodus:{migrate}:probe        | whether MIGRATE reaches the target; expires                   |
| exodus:{probe}, {exercise}    | what a server can do; removed at once                         |
| exodus:{probe.N}              | the same, and a fence's probe, in a slot of a cluster's node  |
| exodus:{watched}              | whether a copy of the traffic shows a read; never written     |
| exodus:{watched.N}            | the same, in a slot of a cluster's node                       |
"""

from __future__ import annotations

import re
from collections.abc import Sequence

RESERVED_PREFIX = b"exodus:{"  # how all of them begin; not all that begins like this is one
_NAMES = re.compile(
    rb"exodus:\{(?:"
    rb"[a-z0-9][a-z0-9-]{0,39}\}:(?:epoch|fence|native|lane:[0-9]+)"
    rb"|[a-z0-9][a-z0-9-]{0,39}\.[0-9]{1,7}\}:guard"
    rb"|(?:stage(?:\.[0-9]{1,7})?|scratch\.[0-9]{1,7}|proof)\}:[0-9a-f]{16}"
    rb"|(?:fence|migrate)\}:probe"
    rb"|(?:(?:probe|watched)(?:\.[0-9]{1,7})?|exercise)\}"
    rb")"
)


def is_own(key: bytes) -> bool:
    """Return whether a key is one of Exodus's own."""
    return key.startswith(RESERVED_PREFIX) and _NAMES.fullmatch(key) is not None


def without_own(keys: Sequence[bytes]) -> Sequence[bytes]:
    """Return the applications' keys. One check for all of them, since an own key is rare."""
    if RESERVED_PREFIX not in b"\n".join(keys):
        return keys
    return [key for key in keys if not is_own(key)]
