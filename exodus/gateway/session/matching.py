"""Matching of replies: which request a reply answers, what it changed, and what the client gets."""

from __future__ import annotations

from exodus.commands.semantics import REFUSALS, Role
from exodus.control.changes import Key
from exodus.control.gap_reasons import UNMATCHED, UNREADABLE
from exodus.gateway.cursors import mark_reply
from exodus.gateway.facade import as_node
from exodus.gateway.session.effects import Effects
from exodus.gateway.session.parts import CLIENT_ID, LOGIN, REPLY_ON, SessionParts
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.replay import take_over_command
from exodus.gateway.session.transaction import QueuedEffect, Transaction
from exodus.gateway.session.waiting import WaitingReplies
from exodus.plan.vocabulary import JournalMode
from exodus.resp.elements import elements
from exodus.resp.scanner import SKIPPED, Reply

OUT_OF_BAND = frozenset({b"message", b"pmessage", b"smessage"})
CONFIRMATIONS = frozenset(
    {
        b"subscribe",
        b"psubscribe",
        b"ssubscribe",
        b"unsubscribe",
        b"punsubscribe",
        b"sunsubscribe",
    }
)
_CLOSING_ERRORS = (b"ERR Protocol error", b"ERR unbalanced")
_OFF = JournalMode.OFF
_NOTHING = b""
_QUEUED = b"QUEUED"
_ON = REPLY_ON
_OWN_LOGIN, _OWN_CLIENT_ID = LOGIN, CLIENT_ID
_ALL_NAMES = -1  # as in admission.py
_PUSH, _SIMPLE, _ERROR, _INTEGER, _BULK_ERROR = 0x3E, 0x2B, 0x2D, 0x3A, 0x21  # a reply's first byte
_SHA1_DIGITS = 40


class Matching:
    """Takes each reply to its request."""

    __slots__ = ("effects", "parts", "unblocked", "waiting")

    def __init__(self, parts: SessionParts, effects: Effects, waiting: WaitingReplies) -> None:
        self.parts = parts
        self.effects = effects
        self.waiting = waiting
        self.unblocked: Pending | None = None  # a blocked request to be sent again

    def answered(self, reply: Reply, now: float, marks: list[Key], frame: bytes) -> bytes:
        """Match one reply to its request.

        Returns:
            What the client gets in place of `frame`. Used only while replies are edited.
        """
        parts = self.parts
        if reply.kind == _PUSH:
            return self._pushed(reply, now, frame)
        failed = reply.kind in (_ERROR, _BULK_ERROR)
        state = parts.state
        if (
            state.channels
            and state.protocol == 2
            and (reply.first in OUT_OF_BAND or self._left_by_server(reply, frame))
        ):
            parts.replies.spoken = not parts.orders.silence_covers_pushes
            return frame
        if not parts.pending.count:
            return self._unsolicited(reply, frame, failed)
        pending = parts.pending.pop()
        if pending.confirms and not failed and self._confirmed_one(pending, reply):
            parts.pending.put_back(pending)
            return frame
        leg, command = parts.leg, pending.command
        if (pending.own or leg.unblocking) and self._was_own(pending, reply, now):
            return _NOTHING
        if not leg.logged_in and not failed:
            leg.logged_in = command.role is not Role.RESET and command.role is not Role.QUIT
        if parts.replies.skip_next:
            self._end_skip()
        error = _NOTHING
        if failed:
            error = reply.head.split(b" ", 1)[0]
            # A script may answer the same words, but runs for nobody without a login.
            if reply.head.startswith(_CLOSING_ERRORS) and (
                pending.refused_elsewhere or not command.script or parts.is_stranger()
            ):
                parts.refuse_all()
        parts.orders.telemetry.observe(
            command, pending.key, now - pending.since, pending.size, reply.size, error
        )
        if pending.substitute is not None:
            parts.replies.edits -= 1
            if command.role is Role.CLUSTER:
                return self._as_cluster(pending, reply, frame, failed)
            state.in_multi = state.watching = False
            return frame if failed else pending.substitute
        done: set[int] | None = None
        if pending.whole:
            parts.replies.edits -= 1
            if not failed and not reply.nil:
                frame, done = self._parsed(pending, frame)
        return self._take_over(pending, reply, marks, frame, done, failed)

    def _take_over(
        self,
        pending: Pending,
        reply: Reply,
        marks: list[Key],
        frame: bytes,
        done: set[int] | None,
        failed: bool,
    ) -> bytes:
        """Take over what an answered request did; return what the client gets."""
        parts, command = self.parts, pending.command
        if pending.queued and parts.state.in_multi:
            if not failed and reply.head != _QUEUED:
                parts.lose_count(UNMATCHED)
        else:
            if parts.state.in_multi and reply.kind == _SIMPLE and reply.head == _QUEUED:
                parts.lose_count(UNMATCHED)  # a command that ends transactions did not end this one
            if pending.write and parts.orders.journal is not _OFF:
                refused = failed and (parts.unread.closing or command.refused(reply.head))
                if not refused:
                    self.effects.mark(pending, reply, marks, done)
            if not command.plain:
                self._apply(pending, reply, failed, done)
            if not failed:
                if pending.text is not None:
                    self._note_script(pending)
                if pending.misfit is not None:
                    self._count_misfits([(command.name, pending.misfit)])
                if pending.reply_mode > _ON:
                    return _NOTHING
        if pending.shadowed:
            if pending.canary is not None:
                return self.waiting.compare(pending.canary, pending.raw, frame, failed)
            parts.replies.copies -= 1
            if not failed:
                parts.out.shadow(parts.state.db, pending.raw, frame, pending.write)
        return frame

    def _was_own(self, pending: Pending, reply: Reply, now: float) -> bool:
        """Tell whether a reply is none of the client's: the gateway asked for it, or caused it."""
        parts = self.parts
        leg = parts.leg
        parts.replies.edits -= 1
        if pending.own:
            if pending.size == _OWN_LOGIN:
                leg.logged_in = leg.logged_in or reply.kind == _SIMPLE
                if reply.kind != _SIMPLE:
                    parts.requests.login_waits = False  # the backlog goes with the connection
                    parts.out.close("the login that the plan gives was refused")
            elif pending.size == _OWN_CLIENT_ID:
                leg.client_id_asked = False
                if reply.kind == _INTEGER:
                    leg.client_id = int(reply.head)
            return True
        leg.unblocking = False
        if reply.nil and (pending.deadline is None or pending.deadline > now):
            self.unblocked = pending
            return True
        return False

    def _end_skip(self) -> None:
        replies = self.parts.replies
        replies.skip_next = False
        replies.edits -= 1
        replies.silence_asked = replies.silent

    def _pushed(self, reply: Reply, now: float, frame: bytes) -> bytes:
        """Take a push of RESP3. Only confirmations of subscriptions answer a request."""
        parts = self.parts
        parts.replies.spoken = not parts.orders.silence_covers_pushes
        if self._left_by_server(reply, frame):
            return frame
        head = parts.pending.head
        if head is None or not head.confirms or reply.first not in CONFIRMATIONS:
            return frame
        if not self._confirmed_one(head, reply):
            parts.pending.pop()
            if parts.replies.skip_next:
                parts.replies.skip_next = False
                parts.replies.edits -= 1
            parts.orders.telemetry.observe(
                head.command, head.key, now - head.since, head.size, reply.size, _NOTHING
            )
        return frame

    def _left_by_server(self, reply: Reply, frame: bytes) -> bool:
        """Tell whether a node ended a sharded subscription because its slot moved away."""
        parts = self.parts
        if not parts.leg.cluster or reply.first != b"sunsubscribe":
            return False
        head = parts.pending.head
        if head is not None and head.confirms and head.command.name == b"SUNSUBSCRIBE":
            return False
        try:
            name = elements(frame)[1]
        except (ValueError, IndexError):
            return True  # longer than is kept: a replay subscribes again
        parts.state.leave(b"SSUBSCRIBE " + frame[name.start : name.end - 2].partition(b"\r\n")[2])
        return True

    def _confirmed_one(self, pending: Pending, reply: Reply) -> bool:
        """Take over one confirmation; tell whether the request has more to come."""
        parts = self.parts
        if reply.first not in CONFIRMATIONS:
            parts.lose_count(UNMATCHED)
            return False
        state, kind = parts.state, pending.command.name
        names = pending.names
        if pending.command.role is Role.SUBSCRIBE:
            name = names[len(names) - pending.expected] if names else b""
            if name is SKIPPED:
                state.unknown_why = "more subscriptions than are tracked"
            else:
                state.join(kind + b" " + name)
        else:
            kind = kind.replace(b"UNSUBSCRIBE", b"SUBSCRIBE") + b" "
            if pending.expected == _ALL_NAMES:
                names = [each[len(kind) :] for each in state.channels if each.startswith(kind)]
                pending.names = names
                pending.expected = len(names) or 1
            if names:
                state.leave(kind + names[len(names) - pending.expected])
        pending.expected -= 1
        parts.replies.spoken = not parts.orders.silence_covers_pushes
        return pending.expected > 0

    def _unsolicited(self, reply: Reply, frame: bytes, failed: bool) -> bytes:
        """Take a reply that answers no request.

        It answers bytes that the gateway could not read, or the authority is about to close.
        """
        parts = self.parts
        unread = parts.unread
        unread.unanswered = False
        if failed and reply.head.startswith(_CLOSING_ERRORS):
            parts.refuse_all()
        elif unread.why is None:
            if not failed:
                parts.lose_count(UNMATCHED)
        elif (
            not unread.executed
            and reply.head != b"RESET"
            and not (failed and reply.head.startswith(REFUSALS))
        ):
            unread.executed = True
            parts.open_gap(UNREADABLE)
        return frame

    def _parsed(self, pending: Pending, frame: bytes) -> tuple[bytes, set[int] | None]:
        """Parse a whole reply.

        Returns:
            What to pass on, and the positions of a transaction's commands that ran without an
            error (None: unknown).
        """
        parts, transaction = self.parts, pending.transaction
        if pending.cursor:
            return self.mark_cursor(frame), None
        if parts.leg.facade and pending.command.role in (Role.CLUSTER, Role.HELLO):
            return as_node(frame), None
        if pending.command.role is Role.CLUSTER:
            return parts.out.told_reply(pending.names[1], frame), None
        if transaction is None:
            return frame, None
        try:
            found = elements(frame)
        except ValueError:
            return frame, None
        if len(found) != transaction.count:
            parts.lose_count(UNMATCHED)
            return frame, None
        edits = {
            effect.place: effect
            for effect in transaction.effects
            if isinstance(effect, QueuedEffect) and effect.role in (Role.SCAN, Role.CLUSTER)
        }
        if edits:
            changed = [frame[: found[0].start]]
            for place, each in enumerate(found):
                inner = frame[each.start : each.end]
                edit = edits.get(place)
                if edit is not None and not each.error:
                    is_scan = edit.role is Role.SCAN
                    inner = (
                        self.mark_cursor(inner)
                        if is_scan
                        else parts.out.told_reply(edit.word, inner)
                    )
                changed.append(inner)
            frame = b"".join(changed)
        return frame, {place for place, each in enumerate(found) if not each.error}

    def _as_cluster(self, pending: Pending, reply: Reply, frame: bytes, failed: bool) -> bytes:
        """Answer a cluster client in place of a single server, which was sent a PING."""
        parts, args = self.parts, pending.names
        if failed and not reply.head.startswith(b"NOPERM"):
            return frame  # no login, say
        take_over_command(parts, pending, _NOTHING, failed=False)
        return parts.out.as_cluster(args, parts.state.protocol)

    def mark_cursor(self, frame: bytes) -> bytes:
        """Return a reply to SCAN whose cursor names the authority (cursors.py)."""
        found = mark_reply(frame, self.parts.leg.tag)
        if found is None:
            self.parts.orders.risks["a SCAN cursor has no room for where it is from"] += 1
            return frame
        return found

    def _note_script(self, pending: Pending) -> None:
        text, scripts = pending.text, self.parts.orders.scripts
        if text is not None:
            if pending.command.name.startswith(b"EVALSHA"):
                scripts.ask(text)
            else:
                scripts.see(text)

    def _apply(self, pending: Pending, reply: Reply, failed: bool, done: set[int] | None) -> None:
        """Take over what an answered command did to the session."""
        parts, role = self.parts, pending.command.role
        state = parts.state
        if role is Role.SELECT:
            self._apply_select(pending, failed)
        elif role is Role.MULTI:
            if not failed:
                state.in_multi = True
            elif parts.predicted.transaction is pending.transaction:
                parts.predicted.transaction = None
        elif role is Role.EXEC:
            self._apply_exec(pending, done, failed or reply.nil)
        elif role is Role.DISCARD:
            if not failed:
                state.in_multi = state.watching = False
        elif role is Role.WATCH:
            state.watching = state.watching or not failed
        elif role is Role.UNWATCH:
            state.watching = state.watching and failed
        elif role is Role.RESET:
            if not failed:
                self._apply_reset()
        elif role in (Role.HELLO, Role.AUTH, Role.CLIENT, Role.CLUSTER):
            take_over_command(parts, pending, reply.head, failed=failed)
        elif role is Role.QUIT and not failed:
            parts.refuse_all()
        elif role is Role.STREAMING and not failed:
            parts.unread.why = pending.command.name.decode()
            parts.unread.streaming = True

    def _apply_select(self, pending: Pending, failed: bool) -> None:
        parts = self.parts
        predicted = parts.predicted
        if pending.select is not None and not pending.queued:
            predicted.selects_in_flight -= 1
        if not failed:
            if pending.select is None:
                parts.lose_count(UNMATCHED)
            else:
                parts.state.db = pending.select
        if not predicted.selects_in_flight:
            predicted.db = parts.state.db

    def _apply_reset(self) -> None:
        parts = self.parts
        parts.state.reset()
        parts.predicted.db = 0
        parts.predicted.protocol = 2
        # It ends CLIENT REPLY OFF, and not a CLIENT REPLY SKIP for itself.
        parts.replies.spoken = parts.replies.silent
        parts.replies.speak()

    def _apply_exec(self, pending: Pending, done: set[int] | None, failed: bool) -> None:
        state = self.parts.state
        if state.in_multi:
            state.in_multi = state.watching = False
            if not failed and pending.transaction is not None:
                self._apply_transaction(pending.transaction, done)

    def _count_misfits(self, found: list[tuple[bytes, str]]) -> None:
        """Count what ran here and would not run in a cluster: once for each command and reason."""
        if self.parts.orders.misfits is not None:
            self.parts.orders.misfits.update(found)

    def _apply_transaction(self, transaction: Transaction, done: set[int] | None) -> None:
        parts = self.parts
        state, scripts = parts.state, parts.orders.scripts
        dbs = transaction.run(state.db, done).dbs
        state.db = dbs[-1]
        if len(dbs) > 1:
            parts.lose_count(UNMATCHED)  # EXEC's reply was too large to be parsed
        if not parts.predicted.selects_in_flight:
            parts.predicted.db = state.db
        for place, pending in transaction.commands:
            if done is None:
                state.unknown_why = "session commands inside MULTI"
            else:
                take_over_command(parts, pending, b"", failed=place not in done)
        for text in transaction.texts:
            if len(text) != _SHA1_DIGITS:
                scripts.see(text)
            else:
                scripts.ask(text)
        if transaction.unreadable is not None:
            parts.lose_count(transaction.unreadable)
        if transaction.misfits:
            self._count_misfits(list(dict.fromkeys(transaction.misfits)))
