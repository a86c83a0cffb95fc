"""The parts of a plan: users, logins, budget, workers, listener, fences, and canary."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exodus.plan.address import Credentials, Tls, advertised, read_secret
from exodus.plan.bounds import LISTENERS_MAX, PORT_MAX
from exodus.plan.vocabulary import ClusterReplicas, Facade, FenceKind, Side, UserRole, WorkersKind


class RoleUser(BaseModel):
    """The user of a role on each side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Credentials | None = Field(
        default=None, description="the user on the source; null: the side's own user"
    )
    target: Credentials | None = Field(
        default=None, description="the user on the target; null: the side's own user"
    )

    def of(self, side: Side) -> Credentials | None:
        """Return the user on one side."""
        return self.source if side is Side.SOURCE else self.target


class Users(BaseModel):
    """Separate users for roles (docs/operating/users.md). Other roles use the side's own user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway: RoleUser = Field(default=RoleUser(), description="what a gateway asks for itself")
    comparer: RoleUser = Field(
        default=RoleUser(), description="copies sampled keys and tries requests on the target"
    )
    switch: RoleUser = Field(
        default=RoleUser(), description="raises and lifts fences, ends write grants"
    )
    verifier: RoleUser = Field(default=RoleUser(), description="compares both sides; only reads")

    def of(self, role: UserRole, side: Side) -> Credentials | None:
        """Return the user of a role on a side."""
        found = {
            UserRole.GATEWAY: self.gateway,
            UserRole.COMPARER: self.comparer,
            UserRole.SWITCH: self.switch,
            UserRole.VERIFIER: self.verifier,
        }.get(role)
        return found.of(side) if found is not None else None


class Login(BaseModel):
    """An application's login that is different on the target. Without a source password: clients
    that need none there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    user: str = Field(
        default="default",
        min_length=1,
        description="user on the source; default: clients that give only a password, or nothing",
    )
    password_env: str | None = Field(
        default=None, description="environment variable that holds the source's password"
    )
    password_file: Path | None = Field(
        default=None, description="file whose first line is the source's password"
    )
    target_user: str | None = Field(
        default=None, min_length=1, description="user on the target; null: the same name"
    )
    target_password_env: str | None = Field(
        default=None, description="environment variable that holds the target's password"
    )
    target_password_file: Path | None = Field(
        default=None, description="file whose first line is the target's password"
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.target_password_env is None) is (self.target_password_file is None):
            raise ValueError(
                f"logins: {self.user} needs target_password_env or target_password_file, and not "
                "both"
            )
        if self.user != "default" and self.password_env is None and self.password_file is None:
            raise ValueError(
                f"logins: {self.user} needs the source's password_env or password_file: nobody "
                "else may get the target's"
            )
        return self

    def secret(self) -> str | None:
        """Return the password that an application shows to the source; None: nothing.

        Raises:
            OperatorError: as `Address.secret`.
        """
        return read_secret(f"logins: {self.user}", self.password_env, self.password_file)

    def target_secret(self) -> str:
        """Return the password that it is to show to the target.

        Raises:
            OperatorError: as `Address.secret`.
        """
        return (
            read_secret(
                f"logins: {self.user}: target", self.target_password_env, self.target_password_file
            )
            or ""
        )


class Budget(BaseModel):
    """The load that backfill, verification and Compare may cause. Null: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    probe_ms_added_max: float | None = Field(
        default=None,
        gt=0,
        description="milliseconds added to the 99th percentile of a PING to the authority",
    )
    cpu_share_max: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of one core of the authority, in addition to the applications' use",
    )
    replica_behind_mb_max: float | None = Field(
        default=32,
        gt=0,
        description="megabytes by which a replica of the follower may be behind; a server drops "
        "one that is 64 MB behind for a minute",
    )


class Workers(BaseModel):
    """Where slices of a backfill are copied. All kinds use the same checkpoints, so this may change
    between two runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: WorkersKind = Field(
        default=WorkersKind.THREADS,
        description="threads of the flow run's process, processes on its machine, or Dask workers",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="slices copied at a time; null: by the machine. Verification also compares "
        "this many (null: 3)",
    )
    dask_scheduler: str | None = Field(
        default=None,
        description="tcp://HOST:PORT of a running Dask scheduler; null: a cluster on this machine",
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.dask_scheduler is not None and self.kind is not WorkersKind.DASK:
            raise ValueError(
                f"workers.dask_scheduler is {self.dask_scheduler} and workers.kind is "
                f"{self.kind}: set kind: dask, or leave it away"
            )
        if self.dask_scheduler is not None and self.count is not None:
            raise ValueError(
                "workers.count is for workers that Exodus starts; how many a running Dask "
                "scheduler has is the cluster's to say"
            )
        return self


class Listen(Tls):
    """The gateway's address, and how Exodus's own sessions connect to it.

    What it serves to them and to applications is its process's --cert-file.
    """

    host: str = Field(default="127.0.0.1", description="host name or IP address")
    port: int = Field(
        default=6400, ge=0, le=65535, description="TCP port; of a cluster's first listener"
    )
    listeners: int = Field(
        default=16,
        ge=1,
        le=LISTENERS_MAX,
        description="for a cluster: how many listeners there are, on the ports from port on; one "
        "stands for each node",
    )
    advertise: str | None = Field(
        default=None,
        min_length=1,
        description="for a cluster: HOST that clients are told to connect to, or HOST:PORT of the "
        "first listener; null: the address at which they reached the gateway",
    )
    replicas: ClusterReplicas = Field(
        default=ClusterReplicas.HIDDEN,
        description="for a cluster: hidden: clients are told of masters only; listed: replicas "
        "have listeners, too",
    )

    facade: Facade | None = Field(
        default=None,
        description="cluster: a side that is no cluster looks to clients like one of a single "
        "node; null: it does not",
    )

    @property
    def reached(self) -> dict[str, object]:
        """Return the fields of the `Address` at which sessions reach the first listener."""
        return self.model_dump(include={"host", "port", *Tls.model_fields})

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        _, first = advertised(self.advertise)
        if first is not None and not 0 < first <= PORT_MAX + 1 - self.listeners:
            raise ValueError(
                f"gateway.advertise: {self.advertise!r} leaves no ports for {self.listeners} "
                f"listeners; name a port up to {PORT_MAX + 1 - self.listeners}, or fewer of them"
            )
        return self

    @property
    def told_port(self) -> int | None:
        """Return the port of the first listener that clients are told; None: its own port."""
        return advertised(self.advertise)[1]

    @model_validator(mode="after")
    def _has_ports(self) -> Self:
        if self.port + self.listeners - 1 > PORT_MAX:
            raise ValueError(
                f"gateway.listeners: the last of {self.listeners} listeners from port "
                f"{self.port} on would have port {self.port + self.listeners - 1}; choose a "
                "lower gateway.port, or fewer listeners"
            )
        return self

    @model_validator(mode="after")
    def _needs_tls(self) -> Self:
        given = [
            name for name in Tls.model_fields if name != "tls" and getattr(self, name) is not None
        ]
        if given and not self.tls:
            raise ValueError(
                f"gateway.{given[0]} is given and gateway.tls is false: set tls: true, or leave "
                f"{given[0]} away"
            )
        return self


class Fencing(BaseModel):
    """The fence of each side when it stops being the authority (docs/operating/fences.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    source: FenceKind = Field(
        default=FenceKind.AUTO,
        description="fence of the source; auto: the strongest of acl, min-replicas, replica",
    )
    target: FenceKind = Field(
        default=FenceKind.AUTO,
        description="fence of the target; auto: the strongest of acl, min-replicas, replica",
    )
    source_instruction: str = Field(
        default="",
        max_length=2_000,
        description="with provider: what a person must do on the source and confirm",
    )
    target_instruction: str = Field(
        default="",
        max_length=2_000,
        description="with provider: what a person must do on the target and confirm",
    )

    @model_validator(mode="after")
    def _told(self) -> Self:
        for side in Side:
            if self.of(side) is FenceKind.PROVIDER and not self.instruction(side).strip():
                raise ValueError(
                    f"fence.{side} is provider: write into fence.{side}_instruction what a person "
                    "has to do"
                )
        return self

    def of(self, side: Side) -> FenceKind:
        """Return the kind for one side."""
        return self.source if side is Side.SOURCE else self.target

    def instruction(self, side: Side) -> str:
        """Return what a person does to fence a side."""
        return self.source_instruction if side is Side.SOURCE else self.target_instruction


class CanaryPlan(BaseModel):
    """Canary reads before a cutover (docs/operating/canary.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    steps: tuple[int, ...] = Field(
        default=(),
        description="percent of the key hashes, ascending, such as [1, 5, 25, 100]; []: no canary",
    )
    seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="seconds for which a step is watched before the next",
    )
    advance: Literal["manual", "auto"] = Field(
        default="manual", description="manual: each step is asked for; auto: only the first"
    )
    wait_ms_max: float = Field(
        default=20.0, gt=0, le=1_000, description="milliseconds that a read waits for the target"
    )
    bad_max: int = Field(
        default=5,
        ge=0,
        le=99,
        description="late or failed reads among the last 100 of a gateway; more end the canary",
    )

    @field_validator("steps")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= percent <= 100 for percent in value) or list(value) != sorted(set(value)):
            raise ValueError(
                "canary.steps are percentages from 1 to 100, each larger than the one before: [1, "
                "5, 25, 100]"
            )
        return value
