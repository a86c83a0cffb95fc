"""What a session knows about its leg, the gateway's connection to the authority."""

from __future__ import annotations

from enum import IntEnum

from exodus.gateway.logins import Logins


class Dialect(IntEnum):
    """What a side's servers say that a session must read."""

    PLAIN = 0
    FACADE = 2  # a single server, whose clients see a cluster of one node (facade.py)
    CLUSTER = 1  # replies and errors name nodes; clients are told listeners in place of them


class SessionLeg:
    """The present leg. A move to the other side replaces the leg and keeps the session."""

    __slots__ = (
        "client_id",
        "client_id_asked",
        "cluster",
        "facade",
        "logged_in",
        "logins",
        "tag",
        "unblocking",
    )

    def __init__(self, tag: int) -> None:
        self.logins: Logins | None = None  # translate the client's credentials for this side
        self.tag = tag  # of the authority's generation, see cursors.py
        self.client_id: int | None = None  # asked for before the first blocking command
        self.client_id_asked = False
        self.logged_in = False  # the authority has executed a command of this session
        self.cluster = False  # replies may name nodes; counts as an edit
        self.facade = False  # requests of cluster clients are answered in place of the server
        self.unblocking = False  # CLIENT UNBLOCK was sent for the first pending request


class UnreadTraffic:
    """Bytes that the gateway relays without reading them: unreadable requests, MONITOR, PSYNC."""

    __slots__ = ("closing", "executed", "streaming", "unanswered", "why")

    def __init__(self) -> None:
        self.why: str | None = None  # the session is opaque for this reason, for good
        self.streaming = False  # MONITOR, PSYNC: whatever comes goes to the client
        self.unanswered = False  # unread bytes were forwarded, and no reply has come since
        self.executed = False  # the authority took such bytes: each write is a gap
        self.closing = False  # the authority said that it closes the connection
