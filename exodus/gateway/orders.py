"""Orders: what the route asks of the sessions, in the form that the hot path reads."""

from __future__ import annotations

from collections import Counter

from exodus.commands.table import CommandTable
from exodus.gateway.canary_reads import Canary
from exodus.gateway.scripts import Scripts
from exodus.plan.sample import NameTest
from exodus.plan.share import in_share, salt_of
from exodus.plan.vocabulary import JournalMode, Side
from exodus.telemetry.counters import Telemetry


class Orders:
    """Shared by all sessions of one group. Changed in place, and read for every request."""

    __slots__ = (
        "authority",
        "canary",
        "canary_below",
        "epoch",
        "hold",
        "journal",
        "left_out",
        "login_needed",
        "misfits",
        "picks",
        "risks",
        "rule",
        "scripts",
        "scripts_unseen",
        "shadow_below",
        "shadow_names",
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
        self.login_needed = False  # the authority answers NOAUTH without a login
        self.picks = False  # some requests are picked for the comparer or as canary reads
        self.rule = 0  # counts changes of what is picked
        self.shadow_below = 0  # of 2**32; a key whose hash is below is sampled
        self.shadow_salt = 0
        self.shadow_names: NameTest | None = None  # which names are sampled; None: all
        # Command and reason -> requests of sampled keys that the comparer is not offered
        self.left_out: Counter[tuple[bytes, str]] = Counter()
        self.shadow_scripts = False  # offer scripts of sampled keys to the comparer too
        self.canary_below = 0  # likewise, for canary reads (canary_reads.py)
        self.canary: Canary | None = None
        self.risks: Counter[str] = Counter()  # requests that the journal may miss, by kind
        # Command and reason -> executed requests that a cluster would refuse; None: not counted
        self.misfits: Counter[tuple[bytes, str]] | None = None
        self.scripts = Scripts()
        # No change feed but the gateways' journal: undeclared keys of a script are a gap.
        self.scripts_unseen = False
        self.tag = 0  # of the authority's generation, see cursors.py
        self.silence_covers_pushes = False  # CLIENT REPLY OFF keeps back pushes too (Redis 6.2)

    def pick(self, *, shadow_below: int = 0, shadow_salt: int = 0, canary_below: int = 0) -> None:
        """Choose the shares of key hashes that are picked; none is while both are 0."""
        self.rule += 1
        self.shadow_below, self.shadow_salt, self.canary_below = (
            shadow_below,
            shadow_salt,
            canary_below,
        )
        self.picks = bool(shadow_below or canary_below)

    def sampled(self, db: int, key: bytes) -> bool:
        """Tell whether a key of a database is sampled.

        By hash and name: every gateway agrees, and a key's requests are sampled all or none.
        """
        return in_share(key, self.shadow_below, salt_of(self.shadow_salt, db)) and (
            self.shadow_names is None or self.shadow_names(key)
        )

    def leave_out(self, command: bytes, why: str) -> None:
        """Count a request of a sampled key that the comparer is not offered."""
        self.left_out[(command, why)] += 1
