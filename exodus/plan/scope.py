"""The scope of a migration: filters and renames, as rules with the same answer everywhere. No I/O.

The target is what the rules leave of the source. A filtered key counts as absent for the backfill,
live sync, verification, and repair. So rules use only what a write changes. Memory and the
remaining time to live change by themselves, and a key would become a difference that nobody made.
Size is therefore the bytes of a string or the elements of any other type, and an expiry is compared
with a date.

Renames never let two source keys meet in one name. If two rules could, the plan is refused. A
source key whose name a renamed key gets is *taken*: it is listed as a key that cannot be copied.

Rules are about the source. After a cutover every key flows back under its own name, so a rollback
loses no write. What the rules left on the source stays there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from exodus.plan.bounds import SCOPE_DATABASE_MAX

Key = tuple[int, bytes]  # (database, name)


class KeyState(NamedTuple):
    """What rules may want to know of a key beside its name."""

    kind: str
    length: int  # bytes of a string, elements of any other type; -1 where the type has none
    expiry_ms: int  # absolute; -1 for none


class FilterRule(BaseModel):
    """The keys for which all of the given conditions hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str | None = Field(
        default=None,
        description="pattern of the name, as in KEYS: * ? [a-z] [^a]; \\ quotes a character",
    )
    databases: tuple[int, ...] = Field(default=(), description="databases of the source; []: all")
    types: tuple[Literal["string", "list", "set", "zset", "hash", "stream"], ...] = Field(
        default=(), description="types of keys; []: all"
    )
    string_bytes_over: int | None = Field(
        default=None, ge=0, description="strings with more bytes than this"
    )
    elements_over: int | None = Field(
        default=None, ge=0, description="keys of other types with more elements than this"
    )
    expiry: Literal["some", "none"] | None = Field(
        default=None, description="some: keys that expire; none: keys that do not"
    )
    expires_before: AwareDatetime | None = Field(
        default=None, description="keys that expire before this date"
    )

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(
                "a rule needs a condition: one of " + ", ".join(type(self).model_fields)
            )
        if self.string_bytes_over is not None and self.elements_over is not None:
            raise ValueError(
                "string_bytes_over is about strings and elements_over about all other types: no "
                "key meets both; write two rules"
            )
        if self.expiry == "none" and self.expires_before is not None:
            raise ValueError(
                "expiry: none and expires_before hold for no key together; leave one away"
            )
        return self

    @field_validator("databases")
    @classmethod
    def _databases(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= db <= SCOPE_DATABASE_MAX for db in value):
            raise ValueError("a database is a number from 0 on")
        return value

    @property
    def needs_state(self) -> bool:
        """Return whether the rule needs more than the name."""
        bounds = (self.string_bytes_over, self.elements_over, self.expiry, self.expires_before)
        return bool(self.types) or any(bound is not None for bound in bounds)

    def holds(self, state: KeyState) -> bool:
        """Return whether the conditions beside name and database hold."""
        kind, length, expiry_ms = state
        if self.types and kind not in self.types:
            return False
        if self.string_bytes_over is not None and not (
            kind == "string" and length > self.string_bytes_over
        ):
            return False
        if self.elements_over is not None and not (
            kind != "string" and length > self.elements_over
        ):
            return False
        if self.expiry is not None and (self.expiry == "some") != (expiry_ms >= 0):
            return False
        return self.expires_before is None or 0 <= expiry_ms < _ms(self.expires_before)

    def __str__(self) -> str:
        words = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in self.model_fields_set
        }
        return ", ".join(f"{name} {_shown(value)}" for name, value in words.items())


class Filters(BaseModel):
    """Which keys are copied: those that match a rule of `include` and no rule of `exclude`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: tuple[FilterRule, ...] = Field(
        default=(), description="a key must match one of these; []: all keys match"
    )
    exclude: tuple[FilterRule, ...] = Field(
        default=(), description="a key must match none of these"
    )

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)


class Rename(BaseModel):
    """A new prefix or database for the keys of one prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(
        default="", description="prefix of the names on the source; empty: all names"
    )
    database: int | None = Field(
        default=None, ge=0, le=SCOPE_DATABASE_MAX, description="database of the source; null: each"
    )
    to_prefix: str | None = Field(
        default=None, description="prefix in its place on the target; null: the same"
    )
    to_database: int | None = Field(
        default=None,
        ge=0,
        le=SCOPE_DATABASE_MAX,
        description="database on the target; null: the same",
    )

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if self.to_prefix is None and self.to_database is None:
            raise ValueError("a rename needs to_prefix or to_database")
        if self.to_database is not None and self.database is None:
            raise ValueError(
                f"to_database {self.to_database} for every database would let keys of one name "
                "meet; name the database"
            )
        return self

    @property
    def new_prefix(self) -> str:
        """Return the beginning of the new name."""
        return self.prefix if self.to_prefix is None else self.to_prefix

    @property
    def new_database(self) -> int | None:
        """Return the new database; None where it stays."""
        return self.database if self.to_database is None else self.to_database

    def __str__(self) -> str:
        where = "every database" if self.database is None else f"database {self.database}"
        to = "" if self.to_database is None else f" of database {self.to_database}"
        return f"{self.prefix!r} of {where} to {self.new_prefix!r}{to}"


def check_renames(renames: Sequence[Rename]) -> None:
    """Refuse renames under which two keys of the source could come to one name.

    Raises:
        ValueError: two could; the message names both rules.
    """
    for number, one in enumerate(renames):
        for other in renames[number + 1 :]:
            if (one.prefix, one.database) == (other.prefix, other.database):
                raise ValueError(f"{one} and {other} are about the same keys; leave one away")
            same_database = (
                one.new_database is None
                or other.new_database is None
                or one.new_database == other.new_database
            )
            ours, theirs = one.new_prefix, other.new_prefix
            if same_database and (ours.startswith(theirs) or theirs.startswith(ours)):
                raise ValueError(
                    f"keys renamed by {one} could meet keys renamed by {other}: give them "
                    "prefixes of which none begins the other"
                )


class Scope:
    """Filters and renames, ready to be asked. Without either it is falsy, and nothing needs to be
    asked.
    """

    def __init__(
        self,
        filters: Filters | None = None,
        renames: Sequence[Rename] = (),
        *,
        always: str | None = None,
        never: Callable[[bytes], bool] | None = None,
    ) -> None:
        """Compile the rules.

        Args:
            always: a prefix whose keys are carried under their own name whatever the rules say
                (those of Exodus's own rehearsal).
            never: which names no key may have on the target (those of Exodus's own keys).
        """
        filters = filters or Filters()
        self.filters = filters
        self.renames = tuple(renames)
        self._always = always.encode() if always else None
        self._never = never
        self._exclude = [_Matcher(rule) for rule in filters.exclude]
        self._include = [_Matcher(rule) for rule in filters.include]
        # The longest prefix counts, and a rule for one database before one for all.
        order = sorted(
            renames, key=lambda rule: (-len(rule.prefix.encode()), rule.database is None)
        )
        self._renames = [
            (rule.database, rule.prefix.encode(), rule.new_database, rule.new_prefix.encode(), rule)
            for rule in order
        ]

    def __bool__(self) -> bool:
        return bool(self.filters or self.renames)

    # ------------------------------------------------------------------ filters

    def filtered_by(self, db: int, key: bytes, state: KeyState | None = None) -> str | None:
        """Return the rule that filters a key of the source; None: the key is carried. Without its
        state, rules that need one do not count; see `undecided`.
        """
        if self._kept(key):
            return None
        for rule in self._exclude:
            if rule.meets(db, key, state):
                return rule.excluded
        if not self._include or any(rule.meets(db, key, state) for rule in self._include):
            return None
        if state is None and any(rule.might_meet(db, key) for rule in self._include):
            return None
        return "no include rule meets it"

    def undecided(self, db: int, key: bytes) -> bool:
        """Return whether only its state decides whether a key is filtered."""
        if self._kept(key):
            return False
        if any(rule.might_meet(db, key) for rule in self._exclude):
            return True
        by_name = any(rule.meets(db, key, None) for rule in self._include)
        return not by_name and any(rule.might_meet(db, key) for rule in self._include)

    # ------------------------------------------------------------------ renames

    def target_key(self, db: int, key: bytes) -> Key:
        """Return a source key's database and name on the target."""
        rule = self._rename_of(db, key)
        if rule is None:
            return db, key
        _, prefix, to_db, to_prefix, _ = rule
        return (db if to_db is None else to_db), to_prefix + key[len(prefix) :]

    def name_conflict(self, db: int, key: bytes) -> str | None:
        """Return why the name of a source key is taken on the target; None: it is free."""
        if not self._renames or self._kept(key):
            return None
        if self._rename_of(db, key) is not None:
            own = self._never is not None and self._never(self.target_key(db, key)[1])
            return "its new name would be one of Exodus's own" if own else None
        for _, _, to_db, to_prefix, rule in self._renames:
            if to_db in (None, db) and key.startswith(to_prefix):
                return (
                    f"its name is one that renamed keys get ({rule}): exclude it, or rename it too"
                )
        return None

    def source_key(self, db: int, key: bytes) -> Key | None:
        """Return the source key that is stored under this name on the target; None where there is
        none.
        """
        if not self._renames:
            return db, key
        found: list[Key] = [(db, key)] if self.name_conflict(db, key) is None else []
        for from_db, prefix, to_db, to_prefix, _ in self._renames:
            if to_db in (None, db) and key.startswith(to_prefix):
                found.append((db if from_db is None else from_db, prefix + key[len(to_prefix) :]))
        return next(
            (
                each
                for each in found
                if self.target_key(*each) == (db, key) and self.name_conflict(*each) is None
            ),
            None,
        )

    def _rename_of(
        self, db: int, key: bytes
    ) -> tuple[int | None, bytes, int | None, bytes, Rename] | None:
        if self._kept(key):
            return None
        return next(
            (rule for rule in self._renames if rule[0] in (None, db) and key.startswith(rule[1])),
            None,
        )

    def _kept(self, key: bytes) -> bool:
        return self._always is not None and key.startswith(self._always)


class _Matcher:
    """A rule with its pattern compiled."""

    def __init__(self, rule: FilterRule) -> None:
        self._rule = rule
        self._databases = frozenset(rule.databases)
        self._pattern = None if rule.pattern is None else glob(rule.pattern.encode())
        self._needs_state = rule.needs_state
        self.excluded = f"excluded: {rule}"

    def _named(self, db: int, key: bytes) -> bool:
        return (not self._databases or db in self._databases) and (
            self._pattern is None or self._pattern.fullmatch(key) is not None
        )

    def meets(self, db: int, key: bytes, state: KeyState | None) -> bool:
        """Return whether the key certainly meets the rule."""
        if not self._named(db, key):
            return False
        return not self._needs_state or (state is not None and self._rule.holds(state))

    def might_meet(self, db: int, key: bytes) -> bool:
        """Return whether only the state of the key can tell."""
        return self._needs_state and self._named(db, key)


def glob(pattern: bytes) -> re.Pattern[bytes]:
    """Compile a KEYS pattern to a regular expression over bytes. An unclosed bracket counts as on
    the servers.
    """
    out: list[bytes] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            out.append(b".*")
        elif char == b"?":
            out.append(b".")
        elif char == b"[":
            body, at = _class(pattern, at)
            out.append(body)
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            out.append(re.escape(char))
    return re.compile(b"".join(out), re.DOTALL)


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Translate what follows `[`, and return its end. The ends of a range may stand in either
    order.
    """
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            members.add(pattern[at + 1])
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(pattern[at])
            at += 1
    chars = b"".join(
        b"\\x%02x" % each for each in sorted(set(range(256)) - members if negated else members)
    )
    return (b"[" + chars + b"]" if chars else b"(?!)"), at + 1


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return (
        value.isoformat()
        if isinstance(value, datetime)
        else repr(value)
        if isinstance(value, str)
        else str(value)
    )
