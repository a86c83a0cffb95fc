"""The plan of one migration: what moves from where to where, and how.

The control store and the Prefect blocks hold a `Plan`. It never carries a password.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exodus.plan.address import Address, Credentials
from exodus.plan.bounds import HOLD_SECONDS_MAX
from exodus.plan.own_keys import is_own
from exodus.plan.scope import Filters, Rename, Scope, check_renames
from exodus.plan.settings import Budget, CanaryPlan, Fencing, Listen, Login, Users, Workers
from exodus.plan.vocabulary import CopyStrategy, Cutover, Feed, Side, UserRole
from exodus.plan.window import Window


class Options(BaseModel):
    """How a migration is done: the fields of a plan that have defaults. A Migration block has each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    gateway: Listen = Listen()
    partitions: int = Field(
        default=8, ge=1, le=64, description="journal partitions, and so lanes of live sync"
    )
    slices: int = Field(
        default=8, ge=1, le=32, description="slices of the keyspace in a backfill; a power of two"
    )
    strategy: CopyStrategy = Field(
        default=CopyStrategy.KEYS,
        description="key by key; by MIGRATE; or native: the target is the source's replica until the cutover",
    )
    workers: Workers = Field(default=Workers(), description="who copies the slices")
    feed: Feed = Field(
        default=Feed.AUTO,
        description="which change feed is relied on: the most complete one that a side allows, or the one named",
    )
    budget: Budget = Field(
        default=Budget(),
        description="what the source may bear; without it the copy is as fast as it can be",
    )
    verified_share_min: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="of the keys, verified since their last write, before a cutover",
    )
    sample: float = Field(
        default=0.05, gt=0, le=1, description="share of key hashes that Compare looks at"
    )
    observe_seconds: float = Field(
        default=10.0, gt=0, le=86_400, description="how long a phase watches the traffic"
    )
    rehearsal_prefix: str = Field(default="exodus-rehearsal:", min_length=1)
    rehearsal_hours_max: float | None = Field(
        default=168.0,
        gt=0,
        description="a cutover needs a rehearsal that went well and is no older; null: it needs none",
    )
    allow_nonempty: bool = Field(
        default=False, description="the target may hold keys before Migrate; they are replaced"
    )
    cutover: Cutover = Field(
        default=Cutover.GATEWAY,
        description="who takes the applications over: the gateways, or you by means of your own",
    )
    filters: Filters = Field(default=Filters(), description="which keys of the source are carried")
    keep_usage: bool = Field(
        default=False,
        description="idle time (or, under an LFU policy, frequency) of keys is carried, for the target's eviction",
    )
    renames: tuple[Rename, ...] = Field(
        default=(), description="new prefixes and databases on the target"
    )
    logins: tuple[Login, ...] = Field(
        default=(), description="applications' logins that are others on the target"
    )
    users: Users = Field(default=Users(), description="users of their own for roles, on each side")
    compare_user: Credentials | None = Field(
        default=None,
        description="an application's user on the target, as whom Compare tries requests; none: only commands that Exodus knows",
    )
    compare_scripts: bool = Field(
        default=False,
        description="Compare tries read-only scripts (EVAL_RO, EVALSHA_RO, FCALL_RO) too, as compare_user; never on the source",
    )
    fence: Fencing = Field(
        default=Fencing(),
        description="how the side that stops being the authority is made to refuse writes",
    )
    window: Window | None = Field(
        default=None,
        description="hours in which a cutover may begin by itself, once it is approved for them; none: it begins when it is approved",
    )
    canary: CanaryPlan = Field(
        default=CanaryPlan(), description="reads asked of the target, too, before the cutover"
    )
    hold_seconds_max: float = Field(
        default=HOLD_SECONDS_MAX, gt=0, le=60, description="longest time writes are held"
    )
    evidence_hours_max: float = Field(
        default=72.0, gt=0, description="an approval older than this is asked for again"
    )
    decision_days_max: float = Field(
        default=7.0, gt=0, description="a decision nobody answers expires after this"
    )
    observation_hours_min: float = Field(
        default=0.0,
        ge=0,
        le=24 * 365,
        description="how long after a cutover the source may not be given up",
    )
    verification_hours_max: float = Field(
        default=24.0,
        gt=0,
        description="the source is not given up on an older verification of all keys",
    )
    two_people: bool = Field(
        default=False, description="who decided to cut over may not decide to finalise"
    )
    approvers: tuple[str, ...] = Field(
        default=(),
        description="users of the operating system who may approve, by `exodus approve`; none: everybody who can log in",
    )
    advance: Literal["manual", "auto"] = "manual"

    @field_validator("slices")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("slices must be a power of two: 1, 2, 4, 8, 16 or 32")
        return value

    @field_validator("window", mode="before")
    @classmethod
    def _quiet(cls, value: object) -> object:
        """Nobody watches a switch at night: where the plan says nothing else, it waits until live sync has kept up for long."""
        return (
            {"lag_ms_max": 100, "quiet_seconds": 300.0, **value}
            if isinstance(value, dict)
            else value
        )

    @field_validator("renames")
    @classmethod
    def _apart(cls, value: tuple[Rename, ...]) -> tuple[Rename, ...]:
        check_renames(value)
        return value

    @model_validator(mode="after")
    def _fits_its_strategy(self) -> Self:
        excluded = {
            CopyStrategy.KEYS: ((), ""),
            CopyStrategy.MIGRATE: (
                ("filters", "renames", "keep_usage"),
                "MIGRATE sends keys as they are, under their own names",
            ),
            CopyStrategy.NATIVE: (
                ("filters", "renames", "allow_nonempty", "keep_usage"),
                "a replica has what its source has, under the same names, and nothing else",
            ),
        }
        names, why = excluded[self.strategy]
        for name in names:
            if getattr(self, name):
                raise ValueError(
                    f"{name} with strategy: {self.strategy}: {why}; leave {name} away, or set strategy: keys"
                )
        return self

    @model_validator(mode="after")
    def _fits_its_cutover(self) -> Self:
        if self.cutover is Cutover.OWN:
            return self
        if self.renames:
            raise ValueError(
                "renames: after a cutover through the gateway applications would go on asking for the old names, and the target has the new ones; "
                "set cutover: own to move them by means of your own, or leave renames away"
            )
        if self.filters and self.canary.steps:
            raise ValueError(
                "filters with canary.steps: what the filters leave out is not on the target, and its reads would all differ; leave one of them away"
            )
        if self.filters and self.allow_nonempty:
            raise ValueError(
                "filters with allow_nonempty: after a cutover through the gateway keys that others put on the target could not be told from what "
                "applications write there, and would flow back; set cutover: own, or empty the target and leave allow_nonempty away"
            )
        return self


class Plan(Options):
    """One migration: what from, what to, and how. The control store holds it as JSON, without a password."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and dashes"
    )
    source: Address
    target: Address

    @model_validator(mode="after")
    def _compares_as_an_application(self) -> Self:
        if self.compare_scripts and self.compare_user is None:
            raise ValueError(
                "compare_scripts: scripts run as an application's user only: name it in compare_user, or leave compare_scripts away"
            )
        if self.compare_user is not None and self.compare_user.username in self.own_users(
            Side.TARGET
        ):
            raise ValueError(
                f"compare_user is {self.compare_user.username!r}, a user of Exodus's own: name one with an application's rights"
            )
        return self

    @property
    def scope(self) -> Scope:
        """Filters and renames, as rules of the source; keys of the rehearsal are always carried."""
        if not self.filters and not self.renames:
            return Scope()
        return Scope(self.filters, self.renames, always=self.rehearsal_prefix, never=is_own)

    def address(self, side: Side) -> Address:
        """The address of one side."""
        return self.source if side is Side.SOURCE else self.target

    def acting(self, role: UserRole) -> Self:
        """The same plan, whose addresses have the users of a role."""
        found = {side: self.users.of(role, side) for side in Side}
        return self.model_copy(
            update={
                str(side): user.at(self.address(side))
                for side, user in found.items()
                if user is not None
            }
        )

    def own_users(self, side: Side) -> set[str]:
        """Names of all users of Exodus's own on a side, which no fence may touch."""
        names = {
            user.username for role in UserRole if (user := self.users.of(role, side)) is not None
        }
        return names | ({name} if (name := self.address(side).username) else set())

    def through_gateway(self, login: Side | None) -> Address:
        """The gateway, as an application reaches it: with Exodus's own login of a side, which that side checks, or with none."""
        names = ("username", "password", "password_env", "password_file")
        more = (
            {name: getattr(self.address(login), name) for name in names}
            if login is not None
            else {}
        )
        return Address(**self.gateway.model_dump(), **more)
