"""What each process of the data plane reports of itself. A cutover decides on these fields.

A newer or an older process may run beside this one, so unknown fields are ignored, and fields that
no decision needs have defaults. Fields that a switch relies on have none: a heartbeat without them
is refused.
"""

from __future__ import annotations

import os
import socket
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from exodus.plan.bounds import HEARTBEAT_STALE_S


class ProcessKind(StrEnum):
    """The kinds of long-lived processes."""

    GATEWAY = "gateway"
    SYNCER = "syncer"
    COMPARER = "comparer"


class ProcessState(StrEnum):
    """What a process does."""

    IDLE = "idle"
    SERVING = "serving"
    DRAINING = "draining"
    HOLDING = "holding"  # writes are to be held, and a session still has one under way
    HELD = "held"
    RELEASED_ALONE = "released alone"  # the hold ended by the gateway's own clock
    SYNCING = "syncing"
    COMPARING = "comparing"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore")


class CanaryFacts(_Facts):
    """Canary reads of one gateway since the share was chosen."""

    share: float = 0.0
    reads: dict[str, int] = Field(default_factory=dict)  # by outcome
    answer_ms_p99: float = 0.0
    gave_up: str = ""  # why the gateway ended them


class RedirectFacts(_Facts):
    """How far one gateway has sent its clients away."""

    closed: dict[str, int] = Field(default_factory=dict)  # sessions, by kind
    came_back: int = 0
    stopped: str = ""  # why it stopped by itself


class LatencyFacts(_Facts):
    """How long both sides took to answer one gateway, when Test asked for it."""

    asked_ms: int = 0  # by the store's clock; 0: never
    ping_ms_p50: dict[str, float] = Field(default_factory=dict)  # by side; of its slowest master
    ping_ms_p99: dict[str, float] = Field(default_factory=dict)
    slowest: dict[str, str] = Field(default_factory=dict)  # side → that master, HOST:PORT
    masters: dict[str, int] = Field(default_factory=dict)  # side → how many were measured
    failed: str = ""  # a side that did not answer, and why


class GatewayFacts(_Facts):
    """The facts of a gateway process."""

    authority: str
    unflushed: int  # written keys that are not in the journal
    writes_in_flight: int
    connections: int
    connections_ever: int = 0
    spooled: int = 0
    intent_segments: int = 0
    rehearsal_held: bool = False
    legs_ready: bool = False  # the sessions' connections to the other side are made
    requests: int = 0
    errors: int = 0
    sessions_closed: dict[str, int] = Field(default_factory=dict)  # by reason
    risks: dict[str, int] = Field(default_factory=dict)
    renamed_commands: dict[str, str] = Field(default_factory=dict)
    scripts_unseen: int = 0
    gaps: dict[str, int] = Field(default_factory=dict)  # writes, by reason
    room: str = ""
    canary: CanaryFacts = CanaryFacts()
    redirect: RedirectFacts = RedirectFacts()
    latency: LatencyFacts = LatencyFacts()
    shadow_dropped: int = 0
    # command → reason → requests of sampled keys that are not compared
    shadow_left_out: dict[str, dict[str, int]] = Field(default_factory=dict)
    task_failures: int = 0
    # side → version of the map of listeners in use; 0: not the published one. Empty: no cluster
    listeners: dict[str, int] = Field(default_factory=dict)
    nodes_without_listener: int = 0


class SyncerFacts(_Facts):
    """The facts of a syncer process. Counters of keys are since its start."""

    direction: str
    partitions: list[int]
    lag_entries: int
    oldest_dirty_ms: int
    converges: bool = True
    stream_gaps: int = 0
    replica: str | None = None  # native replication: the state of the replication link
    lag_ms_p50: int = 0
    lag_ms_p99: int = 0
    probe_lag_ms_p50: float | None = None  # None: another syncer measures it
    probe_lag_ms_p99: float | None = None
    probe_slowest: str | None = None  # between which nodes of clusters this is
    probes_missed: int | None = None
    probe_why: str | None = None
    keys_in_per_s: float = 0.0
    synced_per_s: float = 0.0
    heavy: list[dict[str, Any]] = Field(default_factory=list)  # rows of `costly_keys.py`
    excluded_by_rule: dict[str, int] = Field(default_factory=dict)
    task_failures: int = 0  # errors of Exodus, after which the work began again
    strategies: dict[str, int] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)


class ComparerFacts(_Facts):
    """The facts of a comparer process."""

    behind: int = 0
    pending: int = 0  # replies that differ and are asked for again
    rows: dict[str, dict[str, int]] = Field(default_factory=dict)  # command → outcome → replies
    inconclusive: dict[str, int] = Field(default_factory=dict)  # reason → replies
    not_tried: dict[str, int] = Field(default_factory=dict)  # reason → requests
    # command → reason → writes whose replies were compared by their error only
    by_error: dict[str, dict[str, int]] = Field(default_factory=dict)
    # command → reason → requests that were not tried, where the reason is a particular one
    why_not_tried: dict[str, dict[str, int]] = Field(default_factory=dict)
    keys_unsettled: int = 0  # sampled keys that were written a moment ago
    expired: int = 0  # sampled requests that expired before they were taken
    away_ms: int = 0  # for which no comparer ran since the sampling began
    keys: int = 0  # sampled keys
    keys_judged: int = 0  # of them, those of which a reply or the state was compared to the end
    dirty: int = 0  # keys that the journal named last time, and that were copied then
    lags_ms: list[int] = Field(default_factory=list)  # from a write to its copy, the last ones
    divergences_lost: int = 0  # rows that the ledger had no room for
    states_compared: int = 0  # states of sampled keys, each time anew
    task_failures: int = 0  # errors of Exodus, after which the work began again
    keys_refused: int = 0  # keys beyond COMPARE_KEYS_MAX
    copied_again: int = 0  # keys, since a server restarted or another one took over


class Heartbeat(BaseModel):
    """One process's report of itself."""

    model_config = ConfigDict(extra="forbid")

    kind: ProcessKind
    process: str  # its id
    pid: int = Field(default_factory=os.getpid)
    host: str = Field(default_factory=socket.gethostname)
    at_ms: int
    epoch: int  # the last one acted on in full
    state: ProcessState
    why: str = ""  # what it waits for, if it waits

    def age_s(self, now_ms: int) -> float:
        """Return the seconds since it was written."""
        return (now_ms - self.at_ms) / 1000

    def stale(self, now_ms: int) -> bool:
        """Return whether the process must be taken for gone."""
        return self.age_s(now_ms) > HEARTBEAT_STALE_S

    def shown_facts(self) -> dict[str, Any]:
        """Return the facts for people and scripts: counters beside the rest, nothing unset."""
        facts = self.model_dump(mode="json", exclude_none=True).get("facts", {})
        counts = facts.pop("counts", {})
        return {**facts, **counts}


class GatewayHeartbeat(Heartbeat):
    """The heartbeat of a gateway."""

    kind: ProcessKind = ProcessKind.GATEWAY
    facts: GatewayFacts


class SyncerHeartbeat(Heartbeat):
    """The heartbeat of a syncer."""

    kind: ProcessKind = ProcessKind.SYNCER
    facts: SyncerFacts


class ComparerHeartbeat(Heartbeat):
    """The heartbeat of a comparer."""

    kind: ProcessKind = ProcessKind.COMPARER
    facts: ComparerFacts


HEARTBEATS: dict[ProcessKind, type[Heartbeat]] = {
    ProcessKind.GATEWAY: GatewayHeartbeat,
    ProcessKind.SYNCER: SyncerHeartbeat,
    ProcessKind.COMPARER: ComparerHeartbeat,
}
