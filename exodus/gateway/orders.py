"""What the route asks of the sessions of this process, in the form that the hot path reads."""

from __future__ import annotations

import zlib
from collections import Counter

from exodus.commands.table import CommandTable
from exodus.gateway.canary import Canary
from exodus.gateway.scripts import Scripts
from exodus.plan.vocabulary import JournalMode, Side
from exodus.telemetry.counters import Telemetry


class Orders:
    """Shared by all sessions of a gateway that follow the same authority; changed in place, read for every request."""

    __slots__ = (
        "authority",
        "canary",
        "canary_below",
        "epoch",
        "hold",
        "journal",
        "login_needed",
        "picks",
        "risks",
        "scripts",
        "scripts_unseen",
        "shadow_below",
        "shadow_salt",
        "shadow_scripts",
        "silence_covers_pushes",
        "table",
        "tag",
        "telemetry",
    )

    def __init__(self, table: CommandTable, telemetry: Telemetry) -> None:
        self.table = table
        self.telemetry = telemetry  # of the process
        self.epoch = -1
        self.authority = Side.SOURCE
        self.hold = False
        self.journal = JournalMode.OFF
        self.login_needed = False  # the authority answers NOAUTH to a connection without a login
        self.picks = False  # some requests are looked at more closely: for the comparer, or as canary reads
        self.shadow_below = 0  # of 2**32; a key whose hash is below is sampled
        self.shadow_salt = 0
        self.shadow_scripts = False  # read-only scripts of a sampled key are offered to the comparer, too
        self.canary_below = 0  # of 2**32; likewise, see canary.py
        self.canary: Canary | None = None
        self.risks: Counter[str] = Counter()  # what the journal may miss, by kind
        self.scripts = Scripts()
        self.scripts_unseen = False  # no feed but the gateways' journal: what a script writes besides its keys is a gap
        self.tag = 0  # of the authority's generation, see cursors.py
        self.silence_covers_pushes = False  # CLIENT REPLY OFF keeps back messages too: so Redis 6.2

    def pick(self, *, shadow_below: int = 0, shadow_salt: int = 0, canary_below: int = 0) -> None:
        """Choose the shares of key hashes that are looked at; nothing is looked for while both are 0."""
        self.shadow_below, self.shadow_salt, self.canary_below = shadow_below, shadow_salt, canary_below
        self.picks = bool(shadow_below or canary_below)

    def sampled(self, key: bytes) -> bool:
        """Whether a key is in the sample: by hash, so that every gateway agrees and a key has a whole history."""
        return zlib.crc32(key, self.shadow_salt) < self.shadow_below
