"""What a migration is, and every bound the engine works within. Imports nothing of ours but the errors and the rules of what is carried.

`Plan` is what the control store and the Prefect blocks hold; it never carries a password. `Address` is one server;
its password is a `SecretStr` that is left out of every dump and read again from the environment or a file by whoever
connects (see `SecretRef`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from exodus.errors import OperatorError
from exodus.own import is_own
from exodus.scope import Filters, Rename, Scope, check_renames
from exodus.shown import remember
from exodus.window import Window

# Bounds. Each queue, buffer, wait and retry of the data plane names one of these.
STREAM_FRAME_BYTES = 64 * 1024  # a request longer than this is forwarded while it still arrives
RETAINED_ARG_BYTES = 1024 * 1024  # an argument longer than this is skipped, never copied; as a key it is a gap
SCRIPTS_BYTES_MAX = 8 * 1024 * 1024  # texts of scripts that a gateway keeps, to load them on the other side at a switch
UNKNOWN_REQUESTS_MAX = 1_000  # answered requests that wait until the server tells what their command is; more are a gap
UNKNOWN_BYTES_MAX = 4 * 1024 * 1024  # all their arguments together
CURSOR_BITS = 45  # of a SCAN cursor that are the server's own; the bits above say from which authority it is
RETAINED_FRAME_BYTES = 16 * 1024 * 1024  # all retained arguments of one request together
INLINE_BYTES_MAX = 64 * 1024  # the servers' own limit for an inline request or a header line
HELD_BYTES_MAX = 1024 * 1024  # what a session keeps of a client while its writes are held, before it stops reading
TRANSACTION_BYTES_MAX = 1024 * 1024  # a queued MULTI larger than this cannot be carried over a switch
WHOLE_REPLY_BYTES_MAX = 16 * 1024 * 1024  # of a reply that is taken apart, or changed, before it is passed on
SUBSCRIPTIONS_TRACKED_MAX = 10_000
JOURNAL_WINDOW_S = 0.01  # keys written within it are one journal entry
JOURNAL_BATCH_KEYS = 4_000
JOURNAL_RETAIN_MS = 15 * 60 * 1000  # a backfill chunk may look back this far
SPOOL_BYTES_MAX = 256 * 1024 * 1024
INTENT_SEGMENT_BYTES = 1024 * 1024
INTENT_SEGMENTS_MAX = 64
HEARTBEAT_S = 0.5
HELD_HEARTBEAT_S = 0.05  # while writes are held; a switch that waits for a word asks for it on the route's channel
HEARTBEAT_STALE_S = 5.0
LEASE_MS = 5_000
TURN_MS = 15_000  # for which a process has the turn of a phase after it renewed it last
TURN_RENEW_S = 3.0
HEAVY_BYTES = 64 * 1024  # of a key's payload, from which on its copies are counted one by one
HEAVY_KEYS_MAX = 1_000
BUNDLES_KEPT = 8  # evidence bundles in the control store
BUNDLE_BYTES_MAX = 32 * 1024 * 1024  # of one, compressed
HOLD_SECONDS_MAX = 10.0
HOLD_ACK_S = 1.5  # in which every gateway must say that it holds; one that does not costs no more than this
DRAIN_PATIENCE_S = 0.5  # under a hold, for a request that does not end or that cannot be read; then its session is closed
TURN_BYTES = 64 * 1024  # of one client, read before others have their turn
TURN_BYTES_BUSY = 4 * 1024  # likewise, where these bytes are many requests
TURN_REQUESTS = 100  # so many in one turn are many
TURNS_S = 0.001  # that all clients which need several turns get in one pass of the event loop
PIPELINE_MAX = 2_000  # unanswered requests of one session, before it is read no further until half of them are answered
MOVE_SECONDS_MAX = 1.0  # in which a session's requests under way must be answered, or it is closed at the switch
SHADOW_QUEUE_MAX = 10_000
CANARY_IN_FLIGHT_MAX = 10_000  # reads that the follower was asked and has not answered; beyond, it counts as failing
SHADOW_PAYLOAD_BYTES_MAX = 64 * 1024
SHADOW_BYTES_PER_S_MAX = 2 * 1024 * 1024  # of sampled requests and replies that one gateway process puts into the control store
SHADOW_KEPT_MS = 15_000  # for how long they stay there
COMPARE_SECONDS_MAX = 1.0  # that Compare waits for one request that it tries; a command that takes longer is tried no more
REDIRECT_PER_S_MAX = 1_000
REDIRECT_RETURNS_MIN = 3  # connections that come while clients are sent away, before it may stop for them
REDIRECT_RETURNS_SHARE_MAX = 0.5  # of those that were ended
STATUS_CLIENTS_MAX = 16  # of /metrics and /health at a time, each a thread
STATUS_SECONDS_MAX = 5.0  # that one of them gets
CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 60.0  # without a byte: a dead peer; one DUMP of the largest key takes seconds
DEAD_LETTER_ATTEMPTS = 5
READ_BATCH_BYTES = 1024 * 1024  # what one reading call collects; a call costs a server some 5 µs a key and 10 ms a MB
LARGE_KEY_BYTES = 1024 * 1024  # of memory; a larger key is copied in pieces: its DUMP would block a server for over 10 ms, and its RESTORE too
LARGE_ELEMENTS = 10_000  # likewise, where a server does not tell the memory of a key
PIECE_BYTES = 512 * 1024  # of a large key, in one command
PIECE_ELEMENTS = 1_000
MIGRATE_TIMEOUT_MS = 1_000  # the source does nothing else for as long as the target does not answer it
CHUNKS_KEPT = 100_000
REPAIR_SECONDS_MAX = 120.0  # for live sync to come to keys that were marked to be copied again
MARKED_AHEAD_ENTRIES_MAX = 1_000  # journal entries not synced, beyond which a full comparison waits before it marks more keys
DIRTY_KEYS_MAX = 200_000  # of one partition, written since the last verification pass and not compared since; beyond, a new pass is needed


_OTHER_SCHEMES = ("http", "https", "tcp", "tls", "unix", "redis+sentinel", "rediss+sentinel", "valkey", "valkeys")
_SPLITS = re.compile(r"[/?#@\s]")
_DATABASE = re.compile(r"/[0-9]{1,3}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_NAME = re.compile(r"[a-z_]+(?:\.(?:[a-z_]+|\d+))*")


class Side(StrEnum):
    """A place. Which of the two is the authority is the route's to say."""

    SOURCE = "source"
    TARGET = "target"

    @property
    def other(self) -> Side:
        """The opposite place."""
        return Side.TARGET if self is Side.SOURCE else Side.SOURCE


class Hold(StrEnum):
    """What the gateways keep back."""

    NONE = "none"
    WRITES = "writes"


class JournalMode(StrEnum):
    """Which written keys the gateways journal."""

    OFF = "off"
    SAMPLE = "sample"
    ALL = "all"


class Feed(StrEnum):
    """Where it is known from which keys changed."""

    AUTO = "auto"  # the most complete of the others that a side allows and that is proved; only in a plan, never in force
    GATEWAY = "gateway"  # complete where all writers pass the gateways and scripts declare their keys
    REPLICATION = "replication"  # complete, where the authority lets Exodus be a replica without data
    TRACKING = "tracking"  # what the authority pushes, for where that is refused; a lost connection is a gap
    NOTIFICATIONS = "notifications"  # likewise


class CopyStrategy(StrEnum):
    """How the data of a whole migration is carried."""

    KEYS = "keys"  # key by key, each by the first way that carries it
    MIGRATE = "migrate"  # the same, but the source sends what it can by MIGRATE
    NATIVE = "native"  # the target is the source's replica until the cutover


class Cutover(StrEnum):
    """Who takes the applications over to the target."""

    GATEWAY = "gateway"  # the gateways, in the phase Commit
    OWN = "own"  # the operator, by means of their own: the migration ends at Migrate, and Commit is refused


class WorkersKind(StrEnum):
    """Where slices of a backfill are copied."""

    THREADS = "threads"  # of the flow run's process: Python's lock lets them use one core together
    PROCESSES = "processes"  # beside it, on the same machine
    DASK = "dask"  # of a Dask cluster


class FenceKind(StrEnum):
    """By what a side refuses writes after a switch (`exodus/cutover/means.py`)."""

    AUTO = "auto"  # the strongest that the side allows, of the next three
    ACL = "acl"
    MIN_REPLICAS = "min-replicas"
    REPLICA = "replica"
    PROVIDER = "provider"  # a person closes the way, and says so


class Phase(StrEnum):
    """The seven phases, by the names of their flows and deployments."""

    PRE_TEST = "pre-test"
    ANALYZE = "analyze"
    COMPARE = "compare"
    TEST = "test"
    MIGRATE = "migrate"
    ROLLBACK = "rollback"
    COMMIT = "commit"


class Verdict(StrEnum):
    """What a person can answer to a decision."""

    APPROVE = "approve"
    REJECT = "reject"


class Tls(BaseModel):
    """Whether a connection of ours uses TLS, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None


class Address(Tls):
    """Where one server is and how to speak to it. `password` is never dumped."""

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    username: str | None = None
    password: SecretStr | None = Field(default=None, exclude=True)
    password_env: str | None = Field(default=None, description="environment variable that holds the password")
    password_file: Path | None = Field(default=None, description="file whose first line is the password")

    @classmethod
    def parse(cls, url: str, *, field: str, **more: object) -> Self:
        """Read `redis://user:password@host:port` or `rediss://…` (TLS).

        Raises:
            OperatorError: the scheme is unknown, the host or port is missing, or a path names a database.
        """
        # No message shows a part of the URL: where it is malformed, any part may be one of the password.
        scheme, _, rest = url.partition("://")
        if scheme.lower() not in ("redis", "rediss"):
            raise OperatorError(
                f"{field}: the scheme of the URL is {scheme if scheme in _OTHER_SCHEMES else 'not known'}",
                why="Exodus speaks the Redis protocol: redis:// (plain) or rediss:// (TLS)",
                next_step=f"write {field} as redis://user@host:port",
            )
        if _SPLITS.search(rest.rpartition("@")[0]):
            raise OperatorError(
                f"{field}: what stands before the @ of the URL holds one of / ? # @ or white space",
                why="a URL ends there, and the rest would be taken for a host, a port or a path",
                next_step=f"name {field}.password_file or password_env in place of it; or percent-encode it: / is %2F, # is %23, @ is %40",
            )
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
        except ValueError:
            raise OperatorError(
                f"{field}: the host or the port of the URL cannot be",
                why="a port is a number up to 65535, and only an IPv6 address stands in brackets",
                next_step=f"write {field} as redis://user@host:port with a port from 1 to 65535",
            ) from None  # its text has a part of the URL
        if not parts.hostname:
            raise OperatorError(f"{field}: the URL names no host", why="a URL needs a host", next_step=f"write {field} as redis://user@host:port")
        if parts.path not in ("", "/", "/0") or parts.query or parts.fragment:
            named = repr(parts.path) if _DATABASE.fullmatch(parts.path) else "what follows the host"
            raise OperatorError(
                f"{field}: {named} names more than a server",
                why="a migration moves every database of a server",
                next_step=f"leave away what follows the port of {field}",
            )
        return cls.model_validate(
            {
                "host": parts.hostname,
                "port": port,
                "username": unquote(parts.username) if parts.username else None,
                "password": SecretStr(remember(unquote(parts.password))) if parts.password else None,
                "tls": parts.scheme == "rediss",
                **more,
            }
        )

    @property
    def url(self) -> str:
        """The address without its password, fit to be shown."""
        user = f"{self.username}@" if self.username else ""
        return f"{'rediss' if self.tls else 'redis'}://{user}{self.host}:{self.port}"

    def secret(self, field: str) -> str | None:
        """The password, from where the address says it is.

        Raises:
            OperatorError: the named variable is not set, or the file cannot be read.
        """
        if self.password is not None:
            return remember(self.password.get_secret_value())
        return _read_secret(field, self.password_env, self.password_file)


def _read_secret(field: str, env: str | None, file: Path | None) -> str | None:
    if env is not None:
        value = os.environ.get(env)
        if value is None:
            # What does not look like a variable may be the password itself, written into the wrong field.
            named = f"${env}" if _VARIABLE.fullmatch(env) else "the variable that password_env names"
            raise OperatorError(
                f"{field}: no password in {named}",
                why="the plan names this environment variable and it is not set here",
                next_step="export it for this process, or name a password_file",
            )
        return remember(value)
    if file is not None:
        try:
            return remember(file.read_text().splitlines()[0])
        except (OSError, IndexError, UnicodeDecodeError) as exc:
            named = str(file) if file.is_absolute() and file.parent.is_dir() else "the file that password_file names"
            raise OperatorError(
                f"{field}: no password in {named}",
                why=(exc.strerror if isinstance(exc, OSError) else None) or "the file is empty, or not text",
                next_step="write the password on the first line of the file and let this user read it",
            ) from None  # its text has the name again
    return None


class UserRole(StrEnum):
    """As which of its users Exodus connects. `syncer` is a side's own user: whatever has no user of its own uses that."""

    SYNCER = "syncer"  # copies keys, and does all that phases do on both sides
    GATEWAY = "gateway"  # what a gateway asks for itself; applications' sessions keep their own logins
    COMPARER = "comparer"
    SWITCH = "switch"  # fences, and ends the right to write
    VERIFIER = "verifier"  # only reads


class Credentials(BaseModel):
    """A user of a server, and where its password is. The host is the side's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    username: str = Field(min_length=1)
    password_env: str | None = Field(default=None, description="environment variable that holds the password")
    password_file: Path | None = Field(default=None, description="file whose first line is the password")

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.username == "default":
            raise ValueError("the user 'default' is the applications': name a user that only Exodus has")
        if (self.password_env is None) is (self.password_file is None):
            raise ValueError(f"user {self.username} needs password_env or password_file, and not both")
        return self

    def at(self, address: Address) -> Address:
        """The same server as this user."""
        changed = {"username": self.username, "password": None, "password_env": self.password_env, "password_file": self.password_file}
        return address.model_copy(update=changed)


class RoleUser(BaseModel):
    """The user of a role on each side; the side's own where it is left away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Credentials | None = None
    target: Credentials | None = None

    def of(self, side: Side) -> Credentials | None:
        """The user on one side."""
        return self.source if side is Side.SOURCE else self.target


class Users(BaseModel):
    """Users of their own for roles (docs/operating/users.md). A role that is left away uses the side's own user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway: RoleUser = RoleUser()
    comparer: RoleUser = RoleUser()
    switch: RoleUser = RoleUser()
    verifier: RoleUser = RoleUser()

    def of(self, role: UserRole, side: Side) -> Credentials | None:
        """The user of a role on a side."""
        found = {
            UserRole.GATEWAY: self.gateway,
            UserRole.COMPARER: self.comparer,
            UserRole.SWITCH: self.switch,
            UserRole.VERIFIER: self.verifier,
        }.get(role)
        return found.of(side) if found is not None else None


class Login(BaseModel):
    """An application's login that is another on the target. Without a password of the source's: who needs to show none there."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    user: str = Field(default="default", min_length=1, description="on the source; default: who says only a password, or nothing")
    password_env: str | None = Field(default=None, description="environment variable that holds the source's password")
    password_file: Path | None = Field(default=None, description="file whose first line is the source's password")
    target_user: str | None = Field(default=None, min_length=1, description="on the target; the same name where it is left away")
    target_password_env: str | None = Field(default=None, description="environment variable that holds the target's password")
    target_password_file: Path | None = Field(default=None, description="file whose first line is the target's password")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.target_password_env is None) is (self.target_password_file is None):
            raise ValueError(f"logins: {self.user} needs target_password_env or target_password_file, and not both")
        if self.user != "default" and self.password_env is None and self.password_file is None:
            raise ValueError(f"logins: {self.user} needs the source's password_env or password_file: nobody else may get the target's")
        return self

    def secret(self) -> str | None:
        """What it shows to the source; None: nothing.

        Raises:
            OperatorError: as `Address.secret`.
        """
        return _read_secret(f"logins: {self.user}", self.password_env, self.password_file)

    def target_secret(self) -> str:
        """What it is to show to the target.

        Raises:
            OperatorError: as `Address.secret`.
        """
        return _read_secret(f"logins: {self.user}: target", self.target_password_env, self.target_password_file) or ""


class Budget(BaseModel):
    """How much the authority may feel of bulk reads, and the follower's own replicas of bulk writes. None: no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    probe_ms_added_max: float | None = Field(default=None, gt=0, description="added to the 99th percentile of a PING, in ms")
    cpu_share_max: float | None = Field(default=None, gt=0, le=1, description="of one core, added to what the applications use")
    replica_behind_mb_max: float | None = Field(
        default=32, gt=0, description="by which a replica of the follower may be behind; a server drops one that is 64 MB behind for a minute"
    )


class Workers(BaseModel):
    """Who copies slices of a backfill. All of them go on from the same checkpoints, so this may be changed between two runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: WorkersKind = Field(default=WorkersKind.THREADS, description="threads, processes, or dask")
    count: int | None = Field(default=None, ge=1, le=64, description="slices copied at a time; null: what the machine is good for")
    dask_scheduler: str | None = Field(default=None, description="dask: tcp://HOST:PORT of a running scheduler; null: a cluster on this machine")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.dask_scheduler is not None and self.kind is not WorkersKind.DASK:
            raise ValueError(f"workers.dask_scheduler is {self.dask_scheduler} and workers.kind is {self.kind}: set kind: dask, or leave it away")
        if self.dask_scheduler is not None and self.count is not None:
            raise ValueError("workers.count is for workers that Exodus starts; how many a running Dask scheduler has is the cluster's to say")
        return self


class Listen(Tls):
    """Where the gateway listens, on loopback unless the operator says otherwise, and how Exodus's own sessions reach it there.

    What it serves to them and to applications is its process's --cert-file.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=6400, ge=0, le=65535)

    @model_validator(mode="after")
    def _needs_tls(self) -> Self:
        given = [name for name in Tls.model_fields if name != "tls" and getattr(self, name) is not None]
        if given and not self.tls:
            raise ValueError(f"gateway.{given[0]} is given and gateway.tls is false: set tls: true, or leave {given[0]} away")
        return self


class Fencing(BaseModel):
    """How each side is fenced when it stops being the authority."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    source: FenceKind = FenceKind.AUTO
    target: FenceKind = FenceKind.AUTO
    source_instruction: str = Field(default="", max_length=2_000, description="provider: what a person does, and confirms")
    target_instruction: str = Field(default="", max_length=2_000)

    @model_validator(mode="after")
    def _told(self) -> Self:
        for side in Side:
            if self.of(side) is FenceKind.PROVIDER and not self.instruction(side).strip():
                raise ValueError(f"fence.{side} is provider: write into fence.{side}_instruction what a person has to do")
        return self

    def of(self, side: Side) -> FenceKind:
        """The kind for one side."""
        return self.source if side is Side.SOURCE else self.target

    def instruction(self, side: Side) -> str:
        """What a person does there."""
        return self.source_instruction if side is Side.SOURCE else self.target_instruction


class CanaryPlan(BaseModel):
    """Canary reads before a cutover (`exodus/gateway/canary.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    steps: tuple[int, ...] = Field(default=(), description="percent of the key hashes, ascending, such as [1, 5, 25, 100]; none: no canary")
    seconds: float = Field(default=60.0, gt=0, le=86_400, description="how long each step is watched before the next is asked for")
    advance: Literal["manual", "auto"] = Field(
        default="manual", description="auto: only the first step is asked for, the others follow within the limits"
    )
    wait_ms_max: float = Field(default=20.0, gt=0, le=1_000, description="a read waits for the follower no longer")
    bad_max: int = Field(default=5, ge=0, le=99, description="of the last 100 reads of a gateway, late or with an error; more end the canary")

    @field_validator("steps")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= percent <= 100 for percent in value) or list(value) != sorted(set(value)):
            raise ValueError("canary.steps are percentages from 1 to 100, each larger than the one before: [1, 5, 25, 100]")
        return value


class Options(BaseModel):
    """How a migration is done: the fields of a plan that have defaults. A Migration block has each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    gateway: Listen = Listen()
    partitions: int = Field(default=8, ge=1, le=64, description="journal partitions, and so lanes of live sync")
    slices: int = Field(default=8, ge=1, le=32, description="slices of the keyspace in a backfill; a power of two")
    strategy: CopyStrategy = Field(
        default=CopyStrategy.KEYS, description="key by key; by MIGRATE; or native: the target is the source's replica until the cutover"
    )
    workers: Workers = Field(default=Workers(), description="who copies the slices")
    feed: Feed = Field(default=Feed.AUTO, description="which change feed is relied on: the most complete one that a side allows, or the one named")
    budget: Budget = Field(default=Budget(), description="what the source may bear; without it the copy is as fast as it can be")
    verified_share_min: float = Field(default=0.9, ge=0, le=1, description="of the keys, verified since their last write, before a cutover")
    sample: float = Field(default=0.05, gt=0, le=1, description="share of key hashes that Compare looks at")
    observe_seconds: float = Field(default=10.0, gt=0, le=86_400, description="how long a phase watches the traffic")
    rehearsal_prefix: str = Field(default="exodus-rehearsal:", min_length=1)
    rehearsal_hours_max: float | None = Field(
        default=168.0, gt=0, description="a cutover needs a rehearsal that went well and is no older; null: it needs none"
    )
    allow_nonempty: bool = Field(default=False, description="the target may hold keys before Migrate; they are replaced")
    cutover: Cutover = Field(default=Cutover.GATEWAY, description="who takes the applications over: the gateways, or you by means of your own")
    filters: Filters = Field(default=Filters(), description="which keys of the source are carried")
    keep_usage: bool = Field(
        default=False, description="idle time (or, under an LFU policy, frequency) of keys is carried, for the target's eviction"
    )
    renames: tuple[Rename, ...] = Field(default=(), description="new prefixes and databases on the target")
    logins: tuple[Login, ...] = Field(default=(), description="applications' logins that are others on the target")
    users: Users = Field(default=Users(), description="users of their own for roles, on each side")
    compare_user: Credentials | None = Field(
        default=None, description="an application's user on the target, as whom Compare tries requests; none: only commands that Exodus knows"
    )
    compare_scripts: bool = Field(
        default=False, description="Compare tries read-only scripts (EVAL_RO, EVALSHA_RO, FCALL_RO) too, as compare_user; never on the source"
    )
    fence: Fencing = Field(default=Fencing(), description="how the side that stops being the authority is made to refuse writes")
    window: Window | None = Field(
        default=None, description="hours in which a cutover may begin by itself, once it is approved for them; none: it begins when it is approved"
    )
    canary: CanaryPlan = Field(default=CanaryPlan(), description="reads asked of the target, too, before the cutover")
    hold_seconds_max: float = Field(default=HOLD_SECONDS_MAX, gt=0, le=60, description="longest time writes are held")
    evidence_hours_max: float = Field(default=72.0, gt=0, description="an approval older than this is asked for again")
    decision_days_max: float = Field(default=7.0, gt=0, description="a decision nobody answers expires after this")
    observation_hours_min: float = Field(default=0.0, ge=0, le=24 * 365, description="how long after a cutover the source may not be given up")
    verification_hours_max: float = Field(default=24.0, gt=0, description="the source is not given up on an older verification of all keys")
    two_people: bool = Field(default=False, description="who decided to cut over may not decide to finalise")
    approvers: tuple[str, ...] = Field(
        default=(), description="users of the operating system who may approve, by `exodus approve`; none: everybody who can log in"
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
        return {"lag_ms_max": 100, "quiet_seconds": 300.0, **value} if isinstance(value, dict) else value

    @field_validator("renames")
    @classmethod
    def _apart(cls, value: tuple[Rename, ...]) -> tuple[Rename, ...]:
        check_renames(value)
        return value

    @model_validator(mode="after")
    def _fits_its_strategy(self) -> Self:
        excluded = {
            CopyStrategy.KEYS: ((), ""),
            CopyStrategy.MIGRATE: (("filters", "renames", "keep_usage"), "MIGRATE sends keys as they are, under their own names"),
            CopyStrategy.NATIVE: (
                ("filters", "renames", "allow_nonempty", "keep_usage"),
                "a replica has what its source has, under the same names, and nothing else",
            ),
        }
        names, why = excluded[self.strategy]
        for name in names:
            if getattr(self, name):
                raise ValueError(f"{name} with strategy: {self.strategy}: {why}; leave {name} away, or set strategy: keys")
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

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and dashes")
    source: Address
    target: Address

    @model_validator(mode="after")
    def _compares_as_an_application(self) -> Self:
        if self.compare_scripts and self.compare_user is None:
            raise ValueError("compare_scripts: scripts run as an application's user only: name it in compare_user, or leave compare_scripts away")
        if self.compare_user is not None and self.compare_user.username in self.own_users(Side.TARGET):
            raise ValueError(f"compare_user is {self.compare_user.username!r}, a user of Exodus's own: name one with an application's rights")
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
        return self.model_copy(update={str(side): user.at(self.address(side)) for side, user in found.items() if user is not None})

    def own_users(self, side: Side) -> set[str]:
        """Names of all users of Exodus's own on a side, which no fence may touch."""
        names = {user.username for role in UserRole if (user := self.users.of(role, side)) is not None}
        return names | ({name} if (name := self.address(side).username) else set())

    def through_gateway(self, login: Side | None) -> Address:
        """The gateway, as an application reaches it: with Exodus's own login of a side, which that side checks, or with none."""
        names = ("username", "password", "password_env", "password_file")
        more = {name: getattr(self.address(login), name) for name in names} if login is not None else {}
        return Address(**self.gateway.model_dump(), **more)


class MigrationFile(BaseModel):
    """`migration.yaml`: the plan's fields, and where the control store is."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    plan: Plan
    control_store: Address


_SERVERS = ("source", "target", "control_store")
_MODELS = (Plan, Address, Login, Workers, Budget, Listen, Fencing, CanaryPlan, Window)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields} | {"url"})


def load_migration(path: Path) -> MigrationFile:
    """Read and check a migration file.

    Raises:
        OperatorError: it is not there, not YAML, or a field of it cannot be; the message names the field and the value.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as exc:
        raise OperatorError(f"{path} cannot be read", why=str(exc), next_step="name a migration file: exodus apply migration.yaml") from exc
    except yaml.YAMLError as exc:
        mark = exc.problem_mark if isinstance(exc, yaml.MarkedYAMLError) else None
        raise OperatorError(
            f"{path} is not YAML",
            why="it cannot be read" if mark is None else f"it cannot be read at line {mark.line + 1}, column {mark.column + 1}",
            next_step="correct the file; docs/operating/migration-file.md has an example",
        ) from None  # its text has lines of the file
    if not isinstance(raw, dict):
        raise OperatorError(f"{path} holds no fields", why="a migration file is a mapping", next_step="see docs/operating/migration-file.md")
    return migration_of(raw, str(path))


def migration_of(raw: Mapping[str, Any], where: str) -> MigrationFile:
    """Check the fields of a migration; `where` names what holds them.

    Raises:
        OperatorError: a field cannot be; the message names the field and the value.
    """
    fields = dict(raw)
    servers: dict[str, Address] = {}
    for name in _SERVERS:
        server = fields.pop(name, None)
        if isinstance(server, str):
            server = {"url": server}
        if not isinstance(server, dict) or not isinstance(server.get("url"), str):
            raise OperatorError(
                f"{name} is not a server" if server else f"{name} is missing",
                why="each of source, target and control_store needs a url",
                next_step=f"add to {where}:\n{name}:\n  url: redis://user@host:port\n  password_env: NAME_OF_A_VARIABLE",
            )
        more = {key: value for key, value in server.items() if key != "url"}
        try:
            servers[name] = Address.parse(server["url"], field=name, **more)
        except ValidationError as exc:
            raise _as_operator_error(exc, where, name + ".") from exc
    try:
        plan = Plan.model_validate({**fields, "source": servers["source"], "target": servers["target"]})
    except ValidationError as exc:
        raise _as_operator_error(exc, where, "") from exc
    return MigrationFile(plan=plan, control_store=servers["control_store"])


def _as_operator_error(exc: ValidationError, where: str, prefix: str) -> OperatorError:
    first = exc.errors(include_url=False)[0]
    field = prefix + ".".join(str(part) for part in first["loc"])
    if not field:  # two fields that do not go together: the message names both, and the value would be the whole file
        what = first["msg"].removeprefix("Value error, ")
        return OperatorError(what, why=f"{where} was checked and nothing was changed", next_step="correct one of the two")
    why = f"{where} was checked and nothing was changed"
    if first["type"] == "extra_forbidden":  # a misspelt field: its value may be a password, and so may its name
        near = get_close_matches(str(first["loc"][-1]), _FIELDS, n=1)
        number = f" (its value is {first['input']})" if isinstance(first["input"], (bool, int, float)) else ""
        return OperatorError(
            f"{_place(field)}: there is no such field{number}",
            why=why,
            next_step=f"is it {near[0]}?" if near else "see docs/operating/migration-file.md",
        )
    hidden = prefix or "password" in field or first["loc"][0] == "logins" or first["type"] == "missing"
    whole = isinstance(first["input"], (dict, list))  # with fields of its own, which may be anything
    value = "" if whole or (hidden and isinstance(first["input"], str)) else f" {first['input']!r}"
    return OperatorError(f"{field}:{value} {first['msg'].lower()}", why=why, next_step=f"correct {field}")


def _place(field: str) -> str:
    """A field's name as it is shown where it is not one of ours."""
    return field if _NAME.fullmatch(field) else "a field"
