"""The session: one client connection as a state machine without I/O.

    client ──from_client──▶ Session ──out.to_server──▶ authority
    client ◀──out.to_client── Session ◀──from_server── authority

The gateway relays bytes unchanged. It frames requests before it forwards them, for two reasons: a
write must be in the intent log before the authority can execute it (race rule 1), and held writes
stop at a frame's edge. A request longer than STREAM_FRAME_BYTES is forwarded while it arrives.
Replies are matched to requests in order. A write's keys are journalled when its reply has come. A
refused request changes nothing.

State follows replies, not requests (state.py). A reply that does not match its request makes the
session opaque.

The session keeps CLIENT REPLY OFF and SKIP from the authority. The authority then answers every
write, and the session drops the replies that the client does not want.

States, by what happens to the next request:

    relaying   forwarded                                → held at a write, by `Orders.hold`
                                                        → frozen, by `freeze`
    held       kept in the backlog, with all behind it  → relaying, by `thaw`
    frozen     kept, reads too; the leg is replaced     → relaying, by `thaw`
    opaque     relayed unread, for good; each write is a gap (unreadable bytes, MONITOR, PSYNC)

`now` is a monotonic clock in seconds, given by the caller. Read `from_client`, `from_server`, then
the part about handovers.
"""

from __future__ import annotations

from collections.abc import Sequence

from exodus.commands.semantics import Role
from exodus.control.changes import Key
from exodus.control.gap_reasons import UNREADABLE
from exodus.gateway.logins import Logins
from exodus.gateway.orders import Orders
from exodus.gateway.session.admission import TOO_LARGE, Admission
from exodus.gateway.session.effects import Effects, Unanswered
from exodus.gateway.session.leg import Dialect
from exodus.gateway.session.matching import CONFIRMATIONS, OUT_OF_BAND, Matching
from exodus.gateway.session.outlet import Outlet
from exodus.gateway.session.parts import LOGIN, REPLY_ON, SessionParts
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.replay import Stage, leave_channels, replay_stages
from exodus.gateway.session.waiting import WaitingReplies
from exodus.plan.bounds import (
    HELD_BYTES_MAX,
    SHADOW_PAYLOAD_BYTES_MAX,
    STREAM_FRAME_BYTES,
    SUBSCRIPTION_REPLY_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
    WHOLE_REPLY_BYTES_MAX,
)
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode
from exodus.resp.scanner import Reply, ReplyScanner, RequestScanner

_OFF = JournalMode.OFF
_SHADOW_BYTES_MAX = SHADOW_PAYLOAD_BYTES_MAX
_STREAM_BYTES = STREAM_FRAME_BYTES
_TRANSACTION_BYTES = TRANSACTION_BYTES_MAX
_NOTHING = b""
_ON = REPLY_ON
_DISCARD = encode("DISCARD")
_LOGINS = (Role.AUTH, Role.HELLO)
_UNREAD = b"-ERR Protocol error: the request cannot be read\r\n"
_INVALIDATE_ALL = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
_ERROR = 0x2D
_SUBSCRIPTION_BYTES = SUBSCRIPTION_REPLY_BYTES_MAX
_REDIRECTS = (b"MOVED ", b"ASK ")
_CURSOR_HEAD_BYTES = 40  # of a reply to SCAN; they contain its cursor


def _may_redirect(data: bytes) -> bool:
    """Tell whether a MOVED or ASK may be in these bytes. A payload may hold the same words."""
    return data.find(b"-MOVED ") >= 0 or data.find(b"-ASK ") >= 0


class Session:
    """One instance a client connection, for all the legs that it has in its life."""

    __slots__ = (
        "admission",
        "effects",
        "matching",
        "out",
        "parts",
        "pending",
        "requests",
        "state",
        "waiting",
    )

    def __init__(self, out: Outlet, orders: Orders) -> None:
        parts = SessionParts(out, orders)
        self.out = out
        self.parts = parts
        self.state = parts.state
        self.pending = parts.pending
        self.requests = parts.requests
        self.effects = Effects(parts)
        self.waiting = WaitingReplies(parts)
        self.admission = Admission(parts)
        self.matching = Matching(parts, self.effects, self.waiting)

    # ------------------------------------------------------------------ from the client

    def from_client(self, data: bytes, now: float) -> None:
        """Take bytes from the application."""
        buffer, parts = self.requests, self.parts
        if buffer.held:
            self._keep(data)
            return
        if parts.unread.why is not None:
            self._relay_unread(data)
            return
        buffered = buffer.unsent + data if buffer.unsent else data
        # A part of the first frame may have been forwarded before.
        already = buffer.scanner.partial_bytes if buffer.streaming else 0
        requests = buffer.scanner.feed(data)
        buffer.turn = len(requests)
        buffer.sent = 0
        start = 0  # of the next frame in `buffered`
        admission, table = self.admission, parts.orders.table
        holding = buffer.frozen or parts.orders.hold
        for request in requests:
            end = start + request.size - already
            if holding and not buffer.streaming and admission.must_hold(request.args):
                self._hold_from(buffered, start)
                return
            if request.args:
                command = table.of(request.args)
                may_wait = not command.plain and not buffer.streaming
                if may_wait and admission.must_wait(command, request.args):
                    buffer.login_waits = True
                    self._hold_from(buffered, start)
                    return
                buffer.streaming = False
                begin = 0 if already else start
                stop = 0 if already else end
                found = admission.admit(command, request, buffered, begin, stop, now)
                if admission.prelude:
                    self._send_prelude(buffered, start)
                if found.write:
                    self.effects.intend(found)
                if found.rewritten is not None or found.substitute is not None:
                    self._send_instead(found, buffered, start, end)
                    if buffer.held:
                        return
                if not command.plain and command.role in _LOGINS and parts.is_stranger():
                    # What follows waits for the answer. So nothing of a stranger is ever under way
                    # that the authority may execute.
                    self._forward(buffered, end)
                    buffer.login_waits = True
                    self._hold(buffered[end:])
                    return
            already = 0
            start = end
        self._take_rest(buffered, start, holding)

    def _take_rest(self, buffered: bytes, start: int, holding: bool) -> None:
        """Forward the whole requests; keep what follows them, or stream it."""
        buffer, parts = self.requests, self.parts
        scanner = buffer.scanner
        if scanner.broken is not None:
            if holding and not buffer.streaming:
                self._hold_from(buffered, start)
                return
            if parts.is_stranger():
                self._refuse_unread(buffered, start)
                return
            self._forward(buffered, start)
            buffer.unsent = _NOTHING
            # Until the authority answers, what follows counts as a write.
            parts.unread.why = scanner.broken
            parts.unread.unanswered = True
            self.out.to_server(buffered[start:])
            return
        limit = _STREAM_BYTES if parts.predicted.transaction is None else _TRANSACTION_BYTES
        # A request that is announced to be long is streamed from its first byte: a server that
        # refuses the size answers at once.
        if buffer.streaming or len(buffered) - start > limit or scanner.announced > limit:
            args = scanner.args
            may_hold = holding and not buffer.streaming
            if may_hold and (not args or self.admission.must_hold(args)):
                self._hold_from(buffered, start)
                return
            buffer.streaming = True
            start = len(buffered)
        self._forward(buffered, start)
        buffer.unsent = buffered[start:] if start < len(buffered) else _NOTHING

    def _refuse_unread(self, buffered: bytes, start: int) -> None:
        """End a session without a login at bytes that cannot be read, once its requests before them
        are answered. One of those may be its login.

        If they went to the authority, and the client left, nobody would know whether they wrote.
        So every stranger could open a gap.
        """
        buffer, unread = self.requests, self.parts.unread
        if self.pending.count and not buffer.streaming:
            buffer.login_waits = True
            self._hold_from(buffered, start)
            return
        buffer.unsent = _NOTHING
        unread.why, unread.closing = buffer.scanner.broken, True
        self.out.to_client(_UNREAD)
        self.out.close("bytes that cannot be read, without a login")

    def _forward(self, buffered: bytes, end: int) -> None:
        """Log the intents and forward the bytes up to `end`."""
        buffer, effects = self.requests, self.effects
        if effects.intents or effects.barriers or effects.gaps:
            effects.log()
        sent = buffer.sent
        if end > sent:
            whole = sent == 0 and end == len(buffered)
            self.out.to_server(buffered if whole else buffered[sent:end])
            buffer.sent = end

    def _send_prelude(self, buffered: bytes, start: int) -> None:
        """Send a request of the gateway's own before the one that begins at `start`."""
        self._forward(buffered, start)
        self.out.to_server(self.admission.prelude)
        self.admission.prelude = _NOTHING

    def _send_instead(self, found: Pending, buffered: bytes, start: int, end: int) -> None:
        """Send another request in place of the client's bytes from `start` to `end`."""
        buffer = self.requests
        self._forward(buffered, start)
        sent = _DISCARD if found.rewritten is None else found.rewritten
        if found.refused_elsewhere:  # what is sent in its place is as odd, to be refused as it is
            sent = sent.replace(b"\r\n", b"\r\0", 1)
        self.out.to_server(sent)
        buffer.sent = end
        if found.rewritten is not None and found.command.role is Role.RESET:
            buffer.login_waits = True
            self._hold(buffered[end:])

    def _relay_unread(self, data: bytes) -> None:
        buffer, parts = self.requests, self.parts
        unread = parts.unread
        if unread.streaming:
            # MONITOR and PSYNC may not touch keys on any known server. RESET ends them.
            table, scanner = parts.orders.table, buffer.scanner
            found = [table.of(each.args).role for each in scanner.feed(data) if each.args]
            if Role.RESET in found or scanner.broken is not None:
                unread.streaming, unread.executed = False, True
        # The request that was not complete when the session became opaque goes first.
        whole, buffer.unsent = buffer.unsent + data, _NOTHING
        if not unread.streaming:
            if parts.orders.hold or buffer.frozen:
                buffer.held = True
                self._keep(whole)
                return
            if unread.executed:
                parts.open_gap(UNREADABLE)
            elif not unread.closing:
                unread.unanswered = True
        self.out.to_server(whole)

    def _hold_from(self, buffered: bytes, start: int) -> None:
        """Forward what comes before `start` and hold the rest."""
        self._forward(buffered, start)
        self._hold(buffered[start:])

    def _hold(self, rest: bytes) -> None:
        self.requests.hold()
        self._keep(rest)

    def _keep(self, data: bytes) -> None:
        self.requests.keep(data)
        if self.requests.backlog_bytes > HELD_BYTES_MAX:
            self.out.pause_client()

    # ------------------------------------------------------------------ from the authority

    def from_server(self, data: bytes, now: float) -> None:
        """Take bytes from the authority."""
        parts = self.parts
        buffer = parts.replies
        if parts.unread.streaming and not self.waiting.items:
            self.out.to_client(data)
            return
        marks: list[Key] = []
        if buffer.edits or buffer.copies:
            self._edit(data, now, marks)
        else:
            # Passed on before it is read. A part of an unfinished reply has gone out already.
            self.out.to_client(buffer.unsent + data if buffer.unsent else data)
            buffer.unsent = _NOTHING
            for reply in buffer.scanner.feed(data):
                self.matching.answered(reply, now, marks, _NOTHING)
            buffer.sent_bytes = buffer.scanner.partial_bytes
        if marks:
            self.out.journal(marks, None)
        if self.requests.login_waits and not parts.pending.count and not self.requests.frozen:
            self.thaw(now)
        broken, unread = buffer.scanner.broken, parts.unread
        if broken is not None and not unread.executed and not unread.streaming:
            parts.lose_count(f"a reply could not be read: {broken}")
        if parts.orders.hold and not self.writes_in_flight:
            self.out.settled()

    def _edit(self, data: bytes, now: float, marks: list[Key]) -> None:
        """Take replies one by one, since one of them may have to be changed or dropped."""
        buffer, cluster = self.parts.replies, self.parts.leg.cluster
        buffered = buffer.unsent + data if buffer.unsent else data
        found = buffer.scanner.feed(data)
        left = self.state.channels and buffered.find(b"sunsubscribe") >= 0
        unchanged = buffer.edits == cluster and not left
        if unchanged and not (cluster and _may_redirect(buffered)):
            if buffer.copies:
                self._copy(buffered, found, now, marks)
            else:
                self._relay(buffered, found, now, marks)
            return
        at = 0
        passed: list[bytes] = []
        for reply in found:
            end = at + reply.size - buffer.sent_bytes
            buffer.sent_bytes = 0
            frame = buffered[at:end]
            silent = buffer.silent or buffer.skip_next
            buffer.spoken = False
            if cluster and reply.kind == _ERROR and reply.head.startswith(_REDIRECTS):
                frame = self._redirect(reply.head)
            frame = self.matching.answered(reply, now, marks, frame)
            if self.matching.unblocked is not None:
                self._send_again(now)
            if silent and not buffer.spoken:
                pass
            elif self.waiting.items:
                self.waiting.items.append(frame)
            else:
                passed.append(frame)
            at = end
        buffer.unsent = self._pass_in_part(buffered[at:], passed)
        whole = b"".join(passed)
        if whole:
            self.out.to_client(whole)

    def _redirect(self, head: bytes) -> bytes:
        """Return the error in place of a MOVED or ASK. Scripts and modules may answer anything."""
        asked = self.pending.head
        by_server = (
            asked is not None and not asked.command.acts_on_error and self.parts.unread.why is None
        )
        return b"-%b\r\n" % self.out.told_error(head, by_server=by_server)

    def _relay(self, buffered: bytes, found: list[Reply], now: float, marks: list[Key]) -> None:
        """Pass on replies of a node of a cluster, none of which is a redirect."""
        buffer = self.parts.replies
        scanner, end = buffer.scanner, len(buffered)
        partial = 0 if scanner.broken is not None else scanner.partial_bytes
        # A part of an unfinished reply may have gone out already.
        if 0 < partial <= end and self._kept_whole(buffered[end - partial], partial):
            end -= partial
            buffer.unsent, buffer.sent_bytes = buffered[end:], 0
        else:
            buffer.unsent, buffer.sent_bytes = _NOTHING, partial
        if end:
            self.out.to_client(buffered if end == len(buffered) else buffered[:end])
        for reply in found:
            self.matching.answered(reply, now, marks, _NOTHING)

    def _copy(self, buffered: bytes, found: list[Reply], now: float, marks: list[Key]) -> None:
        """Pass on replies unchanged, and copy those to sampled requests."""
        buffer, pending = self.parts.replies, self.pending
        at = 0
        for reply in found:
            end = at + reply.size - buffer.sent_bytes
            buffer.sent_bytes = 0
            copied = pending.head_is_shadowed()
            self.matching.answered(reply, now, marks, buffered[at:end] if copied else _NOTHING)
            at = end
        whole = len(buffered)
        if at < whole:
            buffer.unsent = self._pass_in_part(buffered[at:], [])
            if not buffer.unsent:
                at = whole
        else:
            buffer.unsent = _NOTHING
        if at:
            self.out.to_client(buffered if at == whole else buffered[:at])

    def _kept_whole(self, first: int, unfinished_bytes: int) -> bool:
        """Tell whether an unfinished reply of a node may become one that must be read whole: a
        redirect, or the end of a sharded subscription.
        """
        return first == _ERROR or bool(
            self.state.channels and unfinished_bytes <= _SUBSCRIPTION_BYTES
        )

    def _pass_in_part(self, rest: bytes, passed: list[bytes]) -> bytes:
        """Pass on an unfinished reply if it may be; return what has to be kept of it."""
        buffer = self.parts.replies
        if not rest:
            return rest
        whole = self.parts.leg.cluster and not buffer.sent_bytes and buffer.scanner.broken is None
        if whole and self._kept_whole(rest[0], len(rest)):
            return rest
        if self._may_pass_in_part(len(rest)):
            head = self.pending.head
            if head is not None and head.cursor:
                passed.append(self.matching.mark_cursor(rest))
                head.whole = head.cursor = False
                buffer.edits -= 1
            else:
                passed.append(rest)
        elif len(rest) <= _SHADOW_BYTES_MAX or not self._drops_in_part(rest):
            return rest
        buffer.sent_bytes = buffer.scanner.partial_bytes
        return _NOTHING

    def _may_pass_in_part(self, unfinished_bytes: int) -> bool:
        buffer = self.parts.replies
        if self.waiting.items or buffer.silent or buffer.skip_next:
            return False
        head = self.pending.head
        if head is None:
            return True
        if head.own or head.substitute is not None or head.reply_mode > _ON:
            return False
        if self.parts.leg.unblocking:
            return False
        if head.shadowed:
            if unfinished_bytes <= SHADOW_PAYLOAD_BYTES_MAX:
                return False
            if head.canary is None:
                self.parts.orders.leave_out(head.command.name, TOO_LARGE)
                buffer.copies -= 1
            else:
                buffer.edits -= 1
            head.shadowed, head.canary = False, None  # too large to be kept
        if head.cursor:
            return unfinished_bytes >= _CURSOR_HEAD_BYTES
        if head.whole:
            if unfinished_bytes <= WHOLE_REPLY_BYTES_MAX or head.command.role is Role.CLUSTER:
                return False
            head.whole = False
            buffer.edits -= 1
        return True

    def _drops_in_part(self, rest: bytes) -> bool:
        """Tell whether the client does not want an unfinished long reply."""
        buffer = self.parts.replies
        if not (buffer.silent or buffer.skip_next) or self.state.channels or self.waiting.items:
            return False
        return buffer.sent_bytes > 0 or rest[:1] != b">"

    def from_follower(self) -> None:
        """Pass on what waited for a canary read; the follower calls it."""
        self.waiting.pass_on()

    # ------------------------------------------------------------------ beginning and end

    def log_in(self, logins: Logins | None, now: float, dialect: Dialect = Dialect.PLAIN) -> None:
        """Begin on the first leg, whose side has these `logins` and speaks this `dialect`."""
        parts = self.parts
        parts.speak_to(dialect)
        parts.leg.logins = logins
        parts.leg.tag = parts.orders.tag
        if logins is not None and logins.default_login:
            parts.expect_own_reply(now, LOGIN)
            self.out.to_server(logins.default_login)
            # If the login is refused, nothing behind it may run.
            self.requests.held = self.requests.login_waits = True

    def server_closed(self) -> None:
        """End: the leg is lost. Unanswered writes count as changed."""
        self.waiting.give_up()
        left = self.effects.unanswered()
        for barrier in left.barriers:
            self.out.journal([], barrier)
        if left.keys and self.parts.orders.journal is not _OFF:
            self.out.journal(left.keys, None)
        for why in left.gaps:
            self.parts.open_gap(why)
        self.pending.clear()
        self.parts.unread.unanswered = False
        self.out.settled()

    def unanswered(self) -> Unanswered:
        """Return the writes that the authority was asked for and has not answered."""
        return self.effects.unanswered()

    def log_pending(self) -> None:
        """Log the intents of what is under way again.

        Journalling began, or the intent log is about to drop its old segments.
        """
        if self.parts.unread.executed:
            self.parts.open_gap(UNREADABLE)
        left = self.effects.unanswered()
        if left.keys:
            self.out.log_intents(left.keys, None)
        for barrier in left.barriers:
            self.out.log_intents([], barrier)
        self.effects.log_gaps(left.gaps)

    # ------------------------------------------------------------------ hold and handover

    @property
    def orders(self) -> Orders:
        """Return the orders that this session follows."""
        return self.parts.orders

    def follow(self, orders: Orders) -> None:
        """Follow other orders from now on."""
        self.parts.orders = orders

    @property
    def opaque(self) -> str | None:
        """Return why the session is relayed unread, or None."""
        return self.parts.unread.why

    @property
    def writes_in_flight(self) -> int:
        """Return the number of writes that the authority has not answered."""
        return self.pending.writes + self.parts.unread.unanswered

    @property
    def idle(self) -> bool:
        """Tell whether the leg can be replaced: nothing is under way in either direction."""
        replies, unread = self.parts.replies, self.parts.unread
        if self.pending.count or unread.unanswered or self.requests.streaming:
            return False
        return not (replies.sent_bytes or replies.unsent or self.waiting.items)

    @property
    def unread(self) -> bool:
        """Tell whether the authority has not answered bytes that the gateway cannot read."""
        return self.parts.unread.unanswered

    @property
    def unfinished(self) -> bool:
        """Tell whether only a write that the client has not finished keeps a hold incomplete."""
        streams = self.requests.streaming and self._streams_write()
        return not self.writes_in_flight and streams

    @property
    def uncounted(self) -> bool:
        """Tell whether the session's writes are unknown."""
        return self.parts.unread.executed

    @property
    def confirmed(self) -> bool:
        """Tell whether the outcome of every forwarded write is known."""
        # A streamed write runs when its end has come. It counts from its beginning.
        streams = self.requests.streaming and self._streams_write()
        return not self.writes_in_flight and not streams

    def _streams_write(self) -> bool:
        args = self.requests.scanner.args
        command = self.parts.orders.table.of(args) if args else None
        return command is None or command.write or command.role is Role.BARRIER

    @property
    def cannot_switch(self) -> str | None:
        """Return why this session cannot be moved to another server, or None."""
        state, transaction = self.state, self.parts.predicted.transaction
        if self.parts.unread.why is not None:
            return self.parts.unread.why
        if state.unknown_why is not None:
            return state.unknown_why
        if state.tracking and (state.tracking_redirected or state.protocol == 2):
            return "client tracking that is redirected"
        if transaction is not None and transaction.raw_bytes > TRANSACTION_BYTES_MAX:
            return "a queued transaction larger than is kept"
        return None

    @property
    def waits(self) -> bool:
        """Tell whether something is held back."""
        return self.requests.held

    def blocked(self) -> Pending | None:
        """Return the blocking request that everything else waits for, or None."""
        head = self.pending.head
        return head if head is not None and head.block is not None else None

    def unblock(self, *, reads: bool) -> str | None:
        """End a blocking request, which is sent again later. May be called repeatedly.

        Args:
            reads: end XREAD and WAIT too. They change nothing, so they need not end before the
                leg is replaced.

        Returns:
            Why it cannot be done, or None.
        """
        leg, head = self.parts.leg, self.blocked()
        if head is None or not (head.write or reads):
            return None
        if self.pending.count > 1:
            return "requests behind a blocking one"
        if not head.raw:
            return "a blocking request that is longer than is kept"
        if leg.client_id is None:
            return "the server did not tell the connection's id"
        if not leg.unblocking:
            leg.unblocking = True
            self.parts.replies.edits += 1
        self.out.unblock(leg.client_id)
        return None

    def _send_again(self, now: float) -> None:
        """Put the unblocked request before the backlog, with the time that it has left."""
        buffer, matching = self.requests, self.matching
        pending, matching.unblocked = matching.unblocked, None
        if pending is None:
            return
        args = RequestScanner().feed(pending.raw)[0].args
        block = pending.block
        if pending.deadline is not None and block is not None:
            left = (pending.deadline - now) / block.unit_s
            whole = block.unit_s < 1
            args[block.position] = (
                b"%d" % max(1, round(left)) if whole else b"%.3f" % max(left, 0.001)
            )
        if not buffer.held:
            self._hold(buffer.unsent)
        buffer.keep_first(encode(*args))
        if not buffer.frozen and not self.parts.orders.hold:
            self.thaw(now)  # the hold ended before the answer came, and nobody else will thaw

    def freeze(self) -> None:
        """Hold everything from the next request on, reads too."""
        self.requests.frozen = True

    def replay_stages(self, logins: Logins | None = None) -> list[Stage]:
        """Return the stages of a replay on a new leg (replay.py)."""
        return replay_stages(self.state, self.parts.predicted, logins)

    def leave_channels(self, names: Sequence[bytes]) -> bytes:
        """End subscriptions that the new leg's server refuses; return what the client is told."""
        return leave_channels(self.state, names)

    def out_of_band(self, reply: Reply) -> bool:
        """Tell whether a reply during the replay is for the client: a message, an invalidation."""
        if reply.push:
            return reply.first not in CONFIRMATIONS
        return self.state.protocol == 2 and reply.first in OUT_OF_BAND

    def adopt_leg(self, logins: Logins | None = None, dialect: Dialect = Dialect.PLAIN) -> None:
        """Continue on a new leg, on which the state was replayed; `logins` and `dialect` are its
        side's.
        """
        state, leg = self.state, self.parts.leg
        self.parts.speak_to(dialect)
        leg.logins = logins
        leg.tag = self.parts.orders.tag
        if state.tracking:
            # No server tracked writes during the move.
            self.out.to_client(_INVALIDATE_ALL)
        self.parts.replies.scanner = ReplyScanner()
        leg.client_id = None
        leg.client_id_asked = False
        state.watch_lost = state.watch_lost or state.watching

    def thaw(self, now: float) -> None:
        """Continue: take the backlog as if it arrived now. `Orders.hold` still holds writes."""
        buffer = self.requests
        buffer.frozen = False
        if not buffer.held or (buffer.login_waits and self.pending.count):
            return
        data = buffer.release()
        self.out.resume_client()
        if data:
            self.from_client(data, now)
        if not buffer.held:
            self.out.caught_up()
