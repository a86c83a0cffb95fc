"""The parts of one session, shared by the steps that work on them.

`Admission`, `Effects`, `Matching` and `WaitingReplies` each hold this object and nothing of each
other's state. The operations here are those that touch several parts and that several steps need.
"""

from __future__ import annotations

from exodus.control.gap_reasons import SCRIPTS
from exodus.gateway.orders import Orders
from exodus.gateway.session.buffers import ReplyBuffer, RequestBuffer
from exodus.gateway.session.leg import Dialect, SessionLeg, UnreadTraffic
from exodus.gateway.session.outlet import Outlet
from exodus.gateway.session.pending import Pending, PendingQueue
from exodus.gateway.session.state import Prediction, SessionState
from exodus.plan.vocabulary import JournalMode

_ALL = JournalMode.ALL
CLIENT_ID, LOGIN = 0, 1  # the gateway's own requests, see `expect_own_reply`
# `Pending.reply_mode`: the mode that CLIENT REPLY asks for
REPLY_ON, REPLY_OFF, REPLY_SKIP = (
    1,
    2,
    3,
)
_ON = REPLY_ON


class SessionParts:
    """One client connection, taken apart by what changes together."""

    __slots__ = (
        "leg",
        "orders",
        "out",
        "pending",
        "predicted",
        "replies",
        "requests",
        "state",
        "unread",
    )

    def __init__(self, out: Outlet, orders: Orders) -> None:
        self.out = out
        self.orders = orders
        self.state = SessionState()
        self.predicted = Prediction()
        self.pending = PendingQueue()
        self.requests = RequestBuffer(orders.table.kept)
        self.replies = ReplyBuffer()
        self.leg = SessionLeg(orders.tag)
        self.unread = UnreadTraffic()

    def speak_to(self, dialect: Dialect) -> None:
        """Set how replies of the leg's servers are read."""
        leg, is_cluster = self.leg, dialect == Dialect.CLUSTER
        self.replies.edits += int(is_cluster) - int(leg.cluster)
        leg.cluster, leg.facade = is_cluster, dialect == Dialect.FACADE

    def is_stranger(self) -> bool:
        """Tell whether the client has no login, and the authority asks for one."""
        return self.orders.login_needed and not self.leg.logged_in

    def open_gap(self, why: str) -> None:
        """Open a gap, if this session's writes are journalled."""
        orders = self.orders
        if orders.journal is _ALL and (why != SCRIPTS or orders.scripts_unseen):
            self.out.gap(why)

    def lose_count(self, why: str) -> None:
        """Give up matching replies to requests: from here on each write is a gap."""
        unread = self.unread
        unread.why = unread.why or why
        unread.executed = True
        self.open_gap(why)

    def refuse_all(self) -> None:
        """Note that the authority closes the connection and executes nothing that is under way."""
        unread, replies = self.unread, self.replies
        unread.why = unread.why or "the authority closes the connection"
        unread.closing = True
        unread.unanswered = False
        for pending in self.pending:
            replies.copies -= pending.shadowed and pending.canary is None
            replies.edits -= self.is_edited(pending)
        self.pending.clear()

    def expect(self, pending: Pending) -> None:
        """Queue a request that is about to be forwarded, and count how its reply is passed on."""
        self.pending.push(pending)
        if pending.shadowed and pending.canary is None:
            self.replies.copies += 1
        elif self.is_edited(pending):
            self.replies.edits += 1

    def is_edited(self, pending: Pending) -> bool:
        """Tell whether the reply to a request may not simply be passed on."""
        return (
            pending.canary is not None
            or pending.substitute is not None
            or pending.whole
            or pending.reply_mode > _ON
            or pending.own
        )

    def expect_own_reply(self, now: float, what: int) -> None:
        """Queue a request of the gateway's own: `CLIENT_ID` or `LOGIN`. Its reply is dropped.

        `what` stands in place of the request's size (`Matching` reads it from there).
        """
        pending = self.pending.make(self.orders.table.find(b"CLIENT"), now, what)
        pending.own = True
        self.expect(pending)
