"""The words of a migration: sides, modes, roles, and phases."""

from __future__ import annotations

from enum import StrEnum


class Side(StrEnum):
    """A place. Which of the two is the authority is the route's to say."""

    SOURCE = "source"
    TARGET = "target"

    @property
    def other(self) -> Side:
        """Return the opposite place."""
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

    # The most complete of the others that a side allows and that is proved; only in a plan, never
    # in force
    AUTO = "auto"
    GATEWAY = (
        "gateway"  # complete where all writers pass the gateways and scripts declare their keys
    )
    REPLICATION = (
        "replication"  # complete, where the authority lets Exodus be a replica without data
    )
    # What the authority pushes, for where that is refused; a lost connection is a gap
    TRACKING = "tracking"
    NOTIFICATIONS = "notifications"  # likewise


class CopyStrategy(StrEnum):
    """How the data of a whole migration is carried."""

    KEYS = "keys"  # key by key, each by the first way that carries it
    MIGRATE = "migrate"  # the same, but the source sends what it can by MIGRATE
    NATIVE = "native"  # the target is the source's replica until the cutover


class Cutover(StrEnum):
    """Who takes the applications over to the target."""

    GATEWAY = "gateway"  # the gateways, in the phase Commit
    # The operator, by means of their own: the migration ends at Migrate, and Commit is refused
    OWN = "own"


class WorkersKind(StrEnum):
    """Where slices of a backfill are copied."""

    THREADS = "threads"  # of the flow run's process: Python's lock lets them use one core together
    PROCESSES = "processes"  # beside it, on the same machine
    DASK = "dask"  # of a Dask cluster


class FenceKind(StrEnum):
    """By what a side refuses writes after a switch (`exodus/cutover/fence_methods.py`)."""

    AUTO = "auto"  # the strongest that the side allows, of the next three
    ACL = "acl"
    MIN_REPLICAS = "min-replicas"
    REPLICA = "replica"
    PROVIDER = "provider"  # a person closes the way, and says so


class ClusterReplicas(StrEnum):
    """Whether clients of a cluster are told of its replicas."""

    HIDDEN = "hidden"
    LISTED = "listed"


class Facade(StrEnum):
    """What a single server looks like to clients of the gateway."""

    CLUSTER = "cluster"


class Phase(StrEnum):
    """The seven phases, by the names of their flows and deployments."""

    PRE_TEST = "pre-test"
    ANALYZE = "analyze"
    COMPARE = "compare"
    TEST = "test"
    MIGRATE = "migrate"
    ROLLBACK = "rollback"
    COMMIT = "commit"


class UserRole(StrEnum):
    """The users as which Exodus connects. `syncer` is a side's own user; a role without a user
    connects as it.
    """

    SYNCER = "syncer"  # copies keys, and does all that phases do on both sides
    GATEWAY = (
        "gateway"  # what a gateway asks for itself; applications' sessions keep their own logins
    )
    COMPARER = "comparer"
    SWITCH = "switch"  # fences, and ends the right to write
    VERIFIER = "verifier"  # only reads
