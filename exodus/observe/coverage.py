"""What a watcher saw, and what it did not: every byte and every request has a place here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from exodus.observe.segments import Unread
from exodus.plan.bounds import UNPARSED_REASONS_MAX, WATCHED_LIBRARIES_MAX
from exodus.telemetry.counters import OTHER


@dataclass
class Coverage:
    """Counters of one observation of packets. Sizes in bytes."""

    packets: int = 0
    segments: int = 0  # with payload, of the ports that are watched
    other_ports: int = 0  # segments of other ports
    connections: int = 0
    connections_before: int = 0  # that began before the capture did
    connections_forgotten: int = 0  # more than `WATCHED_CONNECTIONS_MAX` were open
    request_bytes: int = 0  # of whole requests
    reply_bytes: int = 0  # of whole replies
    tls_connections: int = 0
    tls_bytes: int = 0
    stream_bytes: int = 0  # of replication and MONITOR, which have no requests
    gaps: int = 0  # places where bytes are missing
    lost_bytes: int = 0  # that the capture missed
    cut_bytes: int = 0  # that the capture cut off (tcpdump -s)
    repeated_segments: int = 0  # sent or captured again
    reordered_segments: int = 0  # that came behind a later one
    held_at_limit: int = 0  # times that a missing segment was waited for no longer
    unparsed_bytes: dict[str, int] = field(default_factory=dict)  # by reason
    pushes: int = 0  # of pub/sub and tracking
    replies_without_request: int = 0
    requests_without_reply: int = 0  # cut off, lost, or still under way at the end
    requests_not_executed: int = 0  # of transactions that were discarded or refused
    empty_requests: int = 0  # that no server answers
    libraries: dict[str, int] = field(default_factory=dict)  # connections by client library
    unread: Unread = field(default_factory=Unread)

    def unparsed(self, reason: str, size: int) -> None:
        """Count bytes of watched connections that are in no request and no reply."""
        if size <= 0:
            return
        if reason not in self.unparsed_bytes and len(self.unparsed_bytes) >= UNPARSED_REASONS_MAX:
            reason = OTHER
        self.unparsed_bytes[reason] = self.unparsed_bytes.get(reason, 0) + size

    def library(self, name: str) -> None:
        """Count a connection by the client library that it names."""
        if name not in self.libraries and len(self.libraries) >= WATCHED_LIBRARIES_MAX:
            name = OTHER
        self.libraries[name] = self.libraries.get(name, 0) + 1

    @property
    def parsed_share(self) -> float:
        """The share of the watched connections' bytes that was understood."""
        understood = self.request_bytes + self.reply_bytes + self.stream_bytes
        missed = sum(self.unparsed_bytes.values()) + self.tls_bytes
        missed += self.lost_bytes + self.cut_bytes
        return understood / (understood + missed) if understood + missed else 0.0

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "parsed_share": round(self.parsed_share, 6)}

    def remarks(self) -> list[str]:
        """Return what a person must know before trusting the figures, the gravest first."""
        said = []
        if self.tls_connections:
            said.append(
                f"{self.tls_connections} connections use TLS ({self.tls_bytes:,} bytes): packets "
                "do not show their requests. Capture behind the TLS termination on the server, "
                "use MONITOR (exodus start pre-test), or let applications use the gateway"
            )
        if self.cut_bytes:
            said.append(f"the capture cut off {self.cut_bytes:,} bytes: run tcpdump with -s 0")
        if self.lost_bytes:
            said.append(
                f"the capture missed {self.lost_bytes:,} bytes in {self.gaps} places: their "
                "requests are not counted. Give tcpdump a larger buffer (-B 65536) or another disk"
            )
        if self.unread.link_types:
            said.append(f"{self.unread.link_types} packets have a link type that is not known")
        if self.unread.fragments:
            said.append(f"{self.unread.fragments} IP fragments were not put together")
        if self.unparsed_bytes:
            reasons = ", ".join(f"{size:,} {why}" for why, size in self.unparsed_bytes.items())
            said.append(f"bytes in no request and no reply: {reasons}")
        hit = [
            each.name
            for each in fields(self)
            if each.name in ("connections_forgotten", "held_at_limit") and getattr(self, each.name)
        ]
        said += [f"a bound was hit: {name} {getattr(self, name)}" for name in hit]
        return said


@dataclass(frozen=True)
class Reconciled:
    """One command: requests that were seen, and what the server counted over the same time."""

    command: str
    seen: int
    executed: int  # calls and rejected calls of `INFO commandstats`

    @property
    def share(self) -> float:
        """Seen of executed; 1 where the server counted none."""
        return self.seen / self.executed if self.executed else 1.0

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def commandstats(info: Mapping[str, Any], *, rejected: bool = True) -> dict[str, int]:
    """Return the calls by command of an `INFO commandstats` reply.

    With `rejected`, also those that the server refused before it ran them.
    """
    found = {}
    for key, value in info.items():
        if not key.startswith("cmdstat_"):
            continue
        figures = (
            value
            if isinstance(value, Mapping)
            else dict(part.partition("=")[::2] for part in str(value).split(","))
        )
        calls = int(figures.get("calls", 0))
        calls += int(figures.get("rejected_calls", 0)) if rejected else 0
        found[key.removeprefix("cmdstat_").upper()] = calls
    return found


def reconcile(
    before: Mapping[str, int], after: Mapping[str, int], seen: Mapping[str, int]
) -> list[Reconciled]:
    """Hold what was seen against what the server counted between two `commandstats`.

    What it counted and nobody saw came from clients that bypass the copy, from scripts, or from
    the server's own replication. Redis 6.2 counts no subcommands, so there theirs are added up.
    """
    seen = _as_counted(seen, after)
    names = sorted(
        {name for name, calls in after.items() if calls != before.get(name, 0)} | set(seen)
    )
    return [
        Reconciled(name, seen.get(name, 0), after.get(name, 0) - before.get(name, 0))
        for name in names
    ]


def _as_counted(seen: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, calls in seen.items():
        container = name.partition("|")[0]
        counted = container if name not in after and container in after else name
        found[counted] = found.get(counted, 0) + calls
    return found
