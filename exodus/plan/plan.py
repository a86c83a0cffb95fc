"""The plan of one migration: what moves from where to where, and how.

The control store and the Prefect blocks hold a `Plan`. It never carries a password.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exodus.plan.address import Address, Cluster, Credentials, Place, Service
from exodus.plan.bounds import HOLD_SECONDS_MAX
from exodus.plan.compare_rules import CompareRule
from exodus.plan.gate_checks import GateChecks
from exodus.plan.own_keys import is_own
from exodus.plan.scope import Filters, Rename, Scope, check_renames
from exodus.plan.settings import Budget, CanaryPlan, Fencing, Listen, Login, Users, Workers
from exodus.plan.vocabulary import CopyStrategy, Cutover, Feed, FenceKind, Side, UserRole
from exodus.plan.window import Window


class Options(BaseModel):
    """How a migration is done: the fields of a plan that have defaults. A Migration block has each
    of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    gateway: Listen = Field(
        default=Listen(),
        description="the gateway's address, as Exodus and applications connect to it",
    )
    partitions: int = Field(
        default=8, ge=1, le=64, description="journal partitions, and lanes of live sync"
    )
    slices: int = Field(
        default=8, ge=1, le=32, description="slices of the keyspace in a backfill: a power of two"
    )
    strategy: CopyStrategy = Field(
        default=CopyStrategy.KEYS,
        description="keys: Exodus copies keys; migrate: the source sends them by MIGRATE; native: "
        "the target is a replica until the cutover",
    )
    workers: Workers = Field(default=Workers(), description="where slices are copied")
    feed: Feed = Field(
        default=Feed.AUTO,
        description="change feed; auto: the most complete one that each side allows",
    )
    budget: Budget = Field(
        default=Budget(),
        description="load that the copy may cause; without it the copy is as fast as it can be",
    )
    verified_share_min: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="share of keys verified since their last write, before a cutover is asked for",
    )
    sample: float = Field(
        default=0.05, gt=0, le=1, description="share of key hashes that Compare samples"
    )
    sample_include: tuple[str, ...] = Field(
        default=(), description="patterns of names that Compare samples, as in KEYS; []: all"
    )
    sample_exclude: tuple[str, ...] = Field(
        default=(), description="patterns of names that Compare does not sample"
    )
    observe_seconds: float = Field(
        default=10.0, gt=0, le=86_400, description="seconds for which a phase watches the traffic"
    )
    capture_folder: Path | None = Field(
        default=None,
        description="folder on the worker's machine into which tcpdump rotates its files; Pre-test "
        "watches these packets in place of MONITOR",
    )
    capture_hours_max: float | None = Field(
        default=None,
        gt=0,
        description="hours after which Pre-test deletes files of capture_folder; null: never",
    )
    hash_names: bool = Field(
        default=False,
        description="the evidence of Pre-test and Analyze shows words of key names as hashes",
    )
    candidates: tuple[Address, ...] = Field(
        default=(),
        max_length=8,
        description="other servers that Pre-test tries with the same traffic as the target, and "
        "ranks",
    )
    prove_on_source: bool = Field(
        default=False,
        description="Analyze also runs each observed kind of request on scratch keys of the "
        "source, and compares the replies",
    )
    rehearsal_prefix: str = Field(
        default="exodus-rehearsal:", min_length=1, description="prefix of the rehearsal's own keys"
    )
    rehearsal_hours_max: float | None = Field(
        default=168.0,
        gt=0,
        description="hours for which a successful rehearsal counts before a cutover; null: none "
        "is required",
    )
    allow_nonempty: bool = Field(
        default=False, description="the target may hold keys before Migrate; they are replaced"
    )
    cutover: Cutover = Field(
        default=Cutover.GATEWAY,
        description="who moves the applications to the target: the gateways, or you (own); then "
        "Commit is refused",
    )
    filters: Filters = Field(default=Filters(), description="which keys of the source are copied")
    keep_usage: bool = Field(
        default=False,
        description="keys keep their idle time (under an LFU policy: their frequency), for the "
        "target's eviction",
    )
    renames: tuple[Rename, ...] = Field(
        default=(), description="new prefixes and databases on the target; require cutover: own"
    )
    logins: tuple[Login, ...] = Field(
        default=(), description="applications' logins that are different on the target"
    )
    users: Users = Field(default=Users(), description="separate users for roles, on each side")
    compare_user: Credentials | None = Field(
        default=None,
        description="an application's user on the target, as which Compare tries requests; null: "
        "Exodus's user, known commands only",
    )
    compare_scripts: bool = Field(
        default=False,
        description="Compare also tries scripts on the target, as compare_user. It tries scripts "
        "that may write on scratch copies",
    )
    compare_script_user: Credentials | None = Field(
        default=None,
        description="where the target is a cluster: a user with compare_user's commands and rights "
        "to scratch copies alone, as which scripts that may write run; null: they are not tried",
    )
    compare_rules: tuple[CompareRule, ...] = Field(
        default=(),
        description="how replies of some commands are compared, in place of Exodus's own rules",
    )
    compare_masked: bool = Field(
        default=False, description="the ledger of divergences shows no values, only their lengths"
    )
    compare_repair: bool = Field(
        default=False,
        description="Compare copies a key again once a difference of it is confirmed; false: "
        "exodus repair does",
    )
    test_checks: GateChecks = Field(
        default=GateChecks(), description="what Test checks before Migrate, and how strictly"
    )
    fence: Fencing = Field(
        default=Fencing(), description="how the side that stops being the authority refuses writes"
    )
    window: Window | None = Field(
        default=None,
        description="hours in which an approved cutover may begin by itself; null: it begins when "
        "it is approved",
    )
    canary: CanaryPlan = Field(
        default=CanaryPlan(),
        description="share of reads that also go to the target before the cutover",
    )
    hold_seconds_max: float = Field(
        default=HOLD_SECONDS_MAX,
        gt=0,
        le=60,
        description="seconds for which writes are held at most",
    )
    evidence_hours_max: float = Field(
        default=72.0, gt=0, description="hours after which an approval is asked for again"
    )
    decision_days_max: float = Field(
        default=7.0, gt=0, description="days after which an unanswered decision expires"
    )
    observation_hours_min: float = Field(
        default=0.0,
        ge=0,
        le=24 * 365,
        description="hours after a cutover for which the source must be kept",
    )
    verification_hours_max: float = Field(
        default=24.0,
        gt=0,
        description="hours for which a verification of all keys counts before the source is "
        "given up",
    )
    two_people: bool = Field(
        default=False, description="the person who decided to cut over may not decide to finalise"
    )
    approvers: tuple[str, ...] = Field(
        default=(),
        description="operating-system users who may approve, by `exodus approve`; []: everybody "
        "who can log in",
    )
    advance: Literal["manual", "auto"] = Field(
        default="manual", description="auto: an approval starts the next phase"
    )

    @field_validator("slices")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("slices must be a power of two: 1, 2, 4, 8, 16 or 32")
        return value

    @field_validator("window", mode="before")
    @classmethod
    def _quiet(cls, value: object) -> object:
        """Nobody watches a switch at night: where the plan says nothing else, it waits until live
        sync has kept up for long.
        """
        return (
            {"lag_ms_max": 100, "quiet_seconds": 300.0, **value}
            if isinstance(value, dict)
            else value
        )

    @field_validator("candidates", mode="before")
    @classmethod
    def _by_url(cls, value: object) -> object:
        """Read each server as source and target are read."""
        if not isinstance(value, list):
            return value
        servers = [{"url": server} if isinstance(server, str) else server for server in value]
        return [
            Address.parse(
                str(server["url"]),
                field=f"candidates.{place}",
                **{name: more for name, more in server.items() if name != "url"},
            )
            if isinstance(server, dict) and "url" in server
            else server
            for place, server in enumerate(servers)
        ]

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
                    f"{name} with strategy: {self.strategy}: {why}; leave {name} away, or set "
                    "strategy: keys"
                )
        return self

    @model_validator(mode="after")
    def _fits_its_cutover(self) -> Self:
        if self.cutover is Cutover.OWN:
            return self
        if self.renames:
            raise ValueError(
                "renames: after a cutover through the gateway applications would go on asking for "
                "the old names, and the target has the new ones; "
                "set cutover: own to move them by means of your own, or leave renames away"
            )
        if self.filters and self.canary.steps:
            raise ValueError(
                "filters with canary.steps: what the filters leave out is not on the target, and "
                "its reads would all differ; leave one of them away"
            )
        if self.filters and self.allow_nonempty:
            raise ValueError(
                "filters with allow_nonempty: after a cutover through the gateway keys that "
                "others put on the target could not be told from what "
                "applications write there, and would flow back; set cutover: own, or empty the "
                "target and leave allow_nonempty away"
            )
        return self


class Plan(Options):
    """One migration: what from, what to, and how. The control store holds it as JSON, without a
    password.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and dashes"
    )
    source: Place = Field(description="the server, service or cluster that applications use today")
    target: Place = Field(description="the server, service or cluster that takes over")

    @model_validator(mode="after")
    def _fits_its_topology(self) -> Self:
        services = [side for side in Side if isinstance(self.address(side), Service)]
        if self.strategy is CopyStrategy.NATIVE and services:
            raise ValueError(
                f"strategy: native with {services[0]}.sentinels: Sentinel would undo what native "
                "replication sets; set strategy: keys"
            )
        if self.strategy is CopyStrategy.MIGRATE and Side.TARGET in services:
            raise ValueError(
                "strategy: migrate with target.sentinels: the users that MIGRATE needs are not "
                "replicated, so a failover would end the copy; set strategy: keys"
            )
        for side in services:
            if self.fence.of(side) is FenceKind.REPLICA:
                raise ValueError(
                    f"fence.{side}: replica with {side}.sentinels: Sentinel would make the fenced "
                    "server a master again; set acl, min-replicas or auto"
                )
        return self

    @model_validator(mode="after")
    def _fits_a_cluster(self) -> Self:
        clusters = [side for side in Side if isinstance(self.address(side), Cluster)]
        if not clusters:
            return self
        if len(clusters) == len(Side) and self.gateway.facade is not None:
            raise ValueError(
                "gateway.facade with source.cluster and target.cluster: both sides are clusters; "
                "leave gateway.facade away"
            )
        named = f"{clusters[0]}.cluster"
        if self.strategy is not CopyStrategy.KEYS:
            raise ValueError(
                f"strategy: {self.strategy} with {named}: a cluster is copied key by key; set "
                "strategy: keys"
            )
        if (
            self.cutover is Cutover.GATEWAY
            and len(clusters) < len(Side)
            and self.gateway.facade is None
        ):
            raise ValueError(
                f"cutover: gateway with {named}, and one server on the other side: one client has "
                "to speak to both; give the applications a cluster client and set gateway.facade: "
                "cluster, or set cutover: own"
            )
        if self.feed is Feed.GATEWAY and self.cutover is Cutover.OWN:
            raise ValueError(
                f"feed: gateway with {named} and cutover: own: applications pass no gateway; set "
                "feed: auto, replication, tracking or notifications"
            )
        return self

    @model_validator(mode="after")
    def _compares_as_an_application(self) -> Self:
        if self.compare_scripts and self.compare_user is None:
            raise ValueError(
                "compare_scripts: scripts run as an application's user only: name it in "
                "compare_user, or leave compare_scripts away"
            )
        if self.compare_user is not None and self.compare_user.username in self.own_users(
            Side.TARGET
        ):
            raise ValueError(
                f"compare_user is {self.compare_user.username!r}, a user of Exodus's own: name "
                "one with an application's rights"
            )
        return self

    @model_validator(mode="after")
    def _confines_scripts(self) -> Self:
        user, application = self.compare_script_user, self.compare_user
        if user is None:
            return self
        if not self.compare_scripts or not isinstance(self.target, Cluster):
            raise ValueError(
                "compare_script_user: it is for scripts on a target that is a cluster: set "
                "compare_scripts: true there, or leave it away"
            )
        others = self.own_users(Side.TARGET) | {application.username if application else ""}
        if user.username in others:
            raise ValueError(
                f"compare_script_user is {user.username!r}, whom the plan names for something "
                "else: make a user with rights to scratch copies alone"
            )
        return self

    @model_validator(mode="after")
    def _tries_others_only(self) -> Self:
        for place, server in enumerate(self.candidates):
            if server.url.partition("@")[2] == self.source.url.partition("@")[2]:
                raise ValueError(
                    f"candidates.{place} is the source: Pre-test would write scratch keys there; "
                    "leave it away"
                )
        return self

    @property
    def scope(self) -> Scope:
        """Filters and renames, as rules of the source; keys of the rehearsal are always carried."""
        if not self.filters and not self.renames:
            return Scope()
        return Scope(self.filters, self.renames, always=self.rehearsal_prefix, never=is_own)

    @property
    def has_cluster(self) -> bool:
        """Return whether a side is a cluster."""
        return any(isinstance(self.address(side), Cluster) for side in Side)

    @property
    def has_gateways(self) -> bool:
        """Return whether applications pass gateways."""
        return self.cutover is Cutover.GATEWAY or not self.has_cluster

    @property
    def listener_count(self) -> int:
        """Return how many listeners a gateway has: one, or one a node of a cluster."""
        return self.gateway.listeners if self.has_cluster else 1

    def address(self, side: Side) -> Place:
        """Return the address of one side."""
        return self.source if side is Side.SOURCE else self.target

    def acting(self, role: UserRole) -> Self:
        """Return the same plan with the users of a role."""
        found = {side: self.users.of(role, side) for side in Side}
        return self.model_copy(
            update={
                str(side): user.at(self.address(side))
                for side, user in found.items()
                if user is not None
            }
        )

    def own_users(self, side: Side) -> set[str]:
        """Return the names of Exodus's own users on a side. No fence may touch them."""
        names = {
            user.username for role in UserRole if (user := self.users.of(role, side)) is not None
        }
        return names | ({name} if (name := self.address(side).username) else set())

    def through_gateway(self, login: Side | None) -> Address:
        """Return the gateway's address as an application reaches it, with Exodus's login of a side
        or with none.
        """
        names = ("username", "password", "password_env", "password_file")
        more = (
            {name: getattr(self.address(login), name) for name in names}
            if login is not None
            else {}
        )
        return Address.model_validate({**self.gateway.reached, **more})
