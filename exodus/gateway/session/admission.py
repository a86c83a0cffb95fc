"""Admission of a request: whether it is held, and what the gateway notes before it forwards it."""

from __future__ import annotations

from exodus.commands.keys import database
from exodus.commands.semantics import (
    EXACT_ELSEWHERE,
    NOT_COMPARABLE,
    Role,
    block_timeout,
    changes_code,
    replaces_data,
)
from exodus.commands.table import Command
from exodus.control.changes import Barrier
from exodus.control.effects import barrier_of, keys_elsewhere
from exodus.control.gap_reasons import LONG_KEY, REPLACED, SCRIPTS, UNMATCHED
from exodus.gateway.canary_reads import CanaryRead, chosen
from exodus.gateway.cursors import server_cursor
from exodus.gateway.facade import answers
from exodus.gateway.misfits import IN_TRANSACTION, fit_of
from exodus.gateway.session.parts import (
    CLIENT_ID,
    LOGIN,
    REPLY_OFF,
    REPLY_ON,
    REPLY_SKIP,
    SessionParts,
)
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.transaction import QueuedEffect, Transaction
from exodus.gateway.topology_replies import NAMES_NODES
from exodus.plan.bounds import SHADOW_PAYLOAD_BYTES_MAX, TRANSACTION_BYTES_MAX
from exodus.resp.encode import encode, null_array
from exodus.resp.scanner import SKIPPED, Request

_ASK_CLIENT_ID = encode("CLIENT", "ID")
_REPLY_ON_REQUEST = encode("CLIENT", "REPLY", "ON")
_REPLY_MODES = {b"ON": REPLY_ON, b"OFF": REPLY_OFF, b"SKIP": REPLY_SKIP}
_PING = encode("PING")
_FLUSHSLOT = b"CLUSTER|FLUSHSLOT"  # of Valkey 9: it removes all keys of a slot
_MULTI, _TRANSACTION = encode("MULTI"), b"MULTI"
TOO_LARGE = "larger than is compared"
_SHADOW_BYTES_MAX = SHADOW_PAYLOAD_BYTES_MAX
_TRANSACTION_BYTES = TRANSACTION_BYTES_MAX
_ON = REPLY_ON
_ALL_NAMES = -1  # UNSUBSCRIBE without names: the number of confirmations is known when they come
_CLIENT_REPLY_WORDS = 3  # of CLIENT REPLY mode
_HELLO_WORDS = 2  # of a HELLO with neither login nor name
# An open MULTI does not queue these.
_UNQUEUED = frozenset({Role.EXEC, Role.DISCARD, Role.RESET, Role.QUIT, Role.MULTI, Role.WATCH})


def _has_skipped(words: list[bytes]) -> bool:
    """Tell whether a word was too long to be kept."""
    return any(word is SKIPPED for word in words)


class Admission:
    """Describes each request before it is forwarded."""

    __slots__ = ("parts", "prelude")

    def __init__(self, parts: SessionParts) -> None:
        self.parts = parts
        self.prelude = b""  # a request of the gateway's own, sent before the admitted one

    def must_hold(self, args: list[bytes]) -> bool:
        """Tell whether a request waits for the end of the hold."""
        parts = self.parts
        if parts.requests.frozen:
            return True
        if not parts.orders.hold or not args:
            return False
        command = parts.orders.table.of(args)
        if command.role is Role.EXEC and parts.predicted.transaction is not None:
            return parts.predicted.transaction.writes
        # Writes inside MULTI are held too. A fenced authority would refuse to queue them, and the
        # client would see that error.
        if command.role is Role.BLOCKING and not command.write:
            return False
        if command.role is Role.REPLACES:
            return replaces_data(command.name, args)
        if command.role is Role.SCRIPTS:
            return changes_code(args)
        return command.write or command.role is Role.BARRIER

    def must_wait(self, command: Command, args: list[bytes]) -> bool:
        """Tell whether a request is forwarded only when all before it are answered.

        Redis 7.2 and later do not answer a login that they refuse while other replies are still
        to be sent, so replies would no longer match requests. CLIENT REPLY is not forwarded,
        unless MULTI queues it: the gateway must know which of the two applies.
        """
        parts = self.parts
        in_multi = parts.state.in_multi
        certain = in_multi == (parts.predicted.transaction is not None)
        if not parts.pending.count or (in_multi and certain):
            return False
        if command.role is Role.CLIENT:
            named = len(args) == _CLIENT_REPLY_WORDS and args[1].upper() == b"REPLY"
            return not certain and named
        if command.role is Role.HELLO:
            return len(args) > _HELLO_WORDS
        return command.role is Role.AUTH

    def admit(
        self, command: Command, request: Request, buffered: bytes, start: int, end: int, now: float
    ) -> Pending:
        """Queue a request that is about to be forwarded, and return it.

        Its bytes are `buffered[start:end]`: none if a part of it was forwarded before.
        """
        parts = self.parts
        args = request.args
        transaction = parts.predicted.transaction
        pending = parts.pending.make(command, now, request.size)
        if 0 < command.first < len(args) and args[command.first] is not SKIPPED:
            pending.key = args[command.first]
        if command.write:
            pending.write = True
            pending.keys = command.keys(args)
            if request.skipped and _has_skipped(pending.keys):
                pending.unseen = LONG_KEY
            if command.hides_keys:
                self._describe_hidden(pending, args)
        pending.refused_elsewhere = request.odd
        if command.role is not Role.PLAIN:
            self._describe(pending, args, request.skipped)
        if transaction is None and command.plain:
            pass  # by far the most
        elif transaction is not None and command.role not in _UNQUEUED:
            self._queue(transaction, pending, buffered[start:end], request.size)
        elif command.role is not Role.PLAIN:
            self._predict(pending, args, buffered[start:end], now)
        if parts.orders.misfits is not None:
            self._note_misfit(pending, args, transaction)
        if parts.orders.picks:
            if transaction is None:
                self._pick(pending, args, buffered, start, end)
            elif pending.transaction is transaction:
                self._pick_transaction(pending, transaction)
        parts.expect(pending)
        if pending.rewritten is not None and command.role is Role.RESET:
            parts.expect_own_reply(now, LOGIN)
        return pending

    def _note_misfit(
        self, pending: Pending, args: list[bytes], transaction: Transaction | None
    ) -> None:
        """Note whether a cluster would refuse a request; counted once it has run."""
        command = pending.command
        why, slot = fit_of(command, args, pending.select)
        if transaction is None or not pending.queued:
            pending.misfit = why
            return
        if why is not None:
            transaction.misfits.append((command.name, why))
        elif slot is not None and transaction.slot not in (None, slot):
            transaction.misfits.append((_TRANSACTION, IN_TRANSACTION))
        if transaction.slot is None:
            transaction.slot = slot

    def _pick(
        self, pending: Pending, args: list[bytes], buffered: bytes, start: int, end: int
    ) -> None:
        """Pick a request for the comparer or as a canary read, if its first key is in a share."""
        parts, command = self.parts, pending.command
        orders, predicted = parts.orders, parts.predicted
        first = pending.key
        if first is None:
            keys = command.keys(args)
            if not keys or keys[0] is SKIPPED:
                return
            first = keys[0]
        sampled = orders.shadow_below > 0 and orders.sampled(predicted.db, first)
        # After a SELECT without a reply the database is not known: the write's effect asks again.
        settled = not predicted.selects_in_flight
        if settled and pending.write and len(pending.keys) == 1 and pending.keys[0] is first:
            pending.sampled_as = orders.rule if sampled else -orders.rule
        if not sampled and not orders.canary_below:
            return  # by far the most
        why_not = self._why_not_picked(pending, start != end)
        if why_not is not None:
            if sampled:
                orders.leave_out(command.name, why_not)
            return
        # A canary read has the same reply on two healthy servers, byte for byte. It is in
        # database 0, where the gateway's own connections are.
        if (
            orders.canary_below
            and not pending.write
            and command.name in EXACT_ELSEWHERE
            and not predicted.db
            and not predicted.selects_in_flight
            and predicted.protocol
            and chosen(first, orders.canary_below)
            and len(command.keys(args)) == 1
        ):
            pending.canary = CanaryRead(first)
        elif not sampled:
            return
        pending.raw = buffered[start:end]
        pending.shadowed = True

    def _why_not_picked(self, pending: Pending, whole: bool) -> str | None:
        """Return why a request cannot be compared; None: it can."""
        parts, command = self.parts, pending.command
        if not command.plain:
            if not command.script:
                return "it may block, or does more than its reply says"
            if not parts.orders.shadow_scripts:
                return "a script, and compare_scripts is off"
        if parts.replies.silence_asked:
            return "the client asked for no reply"
        if command.name in NOT_COMPARABLE:
            return "its reply differs between healthy servers"
        if not whole or pending.size > _SHADOW_BYTES_MAX:
            return TOO_LARGE
        return None

    def _pick_transaction(self, pending: Pending, transaction: Transaction) -> None:
        """Pick a transaction for the comparer, if the first key that it names is in the share."""
        parts = self.parts
        orders, first = parts.orders, transaction.first_key
        if first is None or not orders.shadow_below:
            return
        if not orders.sampled(parts.predicted.db, first):  # one with a SELECT is left out below
            return
        if pending.substitute is not None or transaction.whole or transaction.unreadable:
            orders.leave_out(_TRANSACTION, "it does more than its replies say")
        elif parts.replies.silence_asked:
            orders.leave_out(_TRANSACTION, "the client asked for no reply")
        elif transaction.raw_bytes > _SHADOW_BYTES_MAX or len(transaction.raw) != transaction.count:
            orders.leave_out(_TRANSACTION, TOO_LARGE)
        else:
            pending.raw = _MULTI + b"".join(transaction.raw)
            pending.shadowed = True

    def _describe(self, pending: Pending, args: list[bytes], skipped: bool) -> None:
        """Note the effects of a request besides its keys. Changes nothing of the session.

        They take place when the request runs: now, or at EXEC.
        """
        role = pending.command.role
        if role is Role.SELECT:
            pending.select = database(args[1]) if len(args) == 2 else None
        elif role is Role.SUBSCRIBE or role is Role.UNSUBSCRIBE:
            pending.confirms = True
            pending.names = args[1:]
            pending.expected = len(args) - 1 or (1 if role is Role.SUBSCRIBE else _ALL_NAMES)
        elif role is Role.AUTH or role is Role.HELLO:
            pending.names = [] if skipped else args
            pending.whole = role is Role.HELLO and self.parts.leg.facade
        elif role is Role.CLIENT:
            pending.names = [] if skipped else args
            if len(args) == _CLIENT_REPLY_WORDS and args[1].upper() == b"REPLY":
                pending.reply_mode = _REPLY_MODES.get(args[2].upper(), 0)
        elif role is Role.BARRIER:
            pending.write = True
            pending.barrier = barrier_of(pending.command, args, self.parts.predicted.db)
        elif role is Role.MOVES_DB:
            pending.elsewhere = keys_elsewhere(pending.command, args)
        elif role is Role.SCRIPT:
            self._describe_script(pending, args)
        elif role is Role.CLUSTER:
            pending.names = [] if skipped else args
            if pending.command.name == _FLUSHSLOT:
                pending.write, pending.barrier = (
                    True,
                    Barrier("flushdb", (self.parts.predicted.db,)),
                )
            is_info = pending.command.name == b"INFO"
            pending.whole = self.parts.leg.facade if is_info else self._names_nodes(args)
        elif role is Role.SCRIPTS:
            pending.write = changes_code(args)
            is_script = pending.command.name.startswith(b"SCRIPT") and len(args) == 3
            if is_script and args[1].upper() == b"LOAD" and args[2] is not SKIPPED:
                pending.text = args[2]
        elif role is Role.REPLACES and replaces_data(pending.command.name, args):
            pending.write, pending.unseen = True, REPLACED

    def _describe_hidden(self, pending: Pending, args: list[bytes]) -> None:
        """Note a write whose keys are unknown."""
        if pending.command.known:
            pending.unseen = REPLACED
        else:
            pending.undescribed = args

    def _names_nodes(self, args: list[bytes]) -> bool:
        """Tell whether the reply names nodes of a cluster."""
        return self.parts.leg.cluster and len(args) > 1 and args[1].upper() in NAMES_NODES

    def _describe_script(self, pending: Pending, args: list[bytes]) -> None:
        if pending.write:
            pending.unseen = SCRIPTS  # a gap unless a change feed reports it
            if not pending.keys:
                self.parts.orders.risks["script without declared keys"] += 1
        named = len(args) > 1 and args[1] is not SKIPPED
        if named and not pending.command.name.startswith(b"FCALL"):
            pending.text = args[1]

    def _queue(self, transaction: Transaction, pending: Pending, raw: bytes, size: int) -> None:
        """Add a request to the open MULTI."""
        pending.queued = True
        transaction.raw_bytes += size if raw else _TRANSACTION_BYTES + 1
        if transaction.raw_bytes <= _TRANSACTION_BYTES:
            transaction.raw.append(raw)
        self._queue_effect(transaction, pending)
        transaction.count += 1
        if transaction.first_key is None:
            transaction.first_key = pending.key
        pending.confirms = False
        if pending.unseen is not None and pending.unseen not in transaction.unseen:
            transaction.unseen.append(pending.unseen)
        if pending.undescribed is not None:
            transaction.undescribed = True
            place = transaction.count - 1
            transaction.effects.append(
                QueuedEffect(place, Role.PLAIN, args=tuple(pending.undescribed))
            )
        if pending.text is not None and pending.command.name.startswith(b"EVAL"):
            transaction.texts.append(pending.text)
        if pending.write:
            transaction.writes = True
            if pending.keys:
                transaction.effects.append(pending.keys)

    def _queue_effect(self, transaction: Transaction, pending: Pending) -> None:
        place, role = transaction.count, pending.command.role
        if role is Role.SELECT:
            if pending.select is not None:
                transaction.effects.append(QueuedEffect(place, role, db=pending.select))
                transaction.whole = True
        elif role is Role.SCAN:
            if self.parts.leg.tag:
                transaction.effects.append(QueuedEffect(place, role))
                transaction.whole = True
        elif role in (Role.SUBSCRIBE, Role.UNSUBSCRIBE, Role.STREAMING) or pending.reply_mode:
            # The number of replies depends on how the server runs it inside EXEC.
            transaction.unreadable = UNMATCHED
            pending.reply_mode = 0
        elif role in (Role.CLIENT, Role.AUTH, Role.HELLO):
            pending.whole = False
            transaction.commands.append((place, pending))
            transaction.whole = True
        elif role is Role.CLUSTER and pending.barrier is None:
            if pending.whole and not self.parts.leg.facade:
                transaction.effects.append(QueuedEffect(place, role, word=pending.names[1]))
                transaction.whole = True
            pending.whole = False  # the reply comes in that to EXEC
            if pending.command.name in (b"READONLY", b"READWRITE"):
                transaction.commands.append((place, pending))
                transaction.whole = True
        elif pending.barrier is not None:
            transaction.effects.append(QueuedEffect(place, role, barrier=pending.barrier))
        elif role is Role.MOVES_DB:
            transaction.effects.append(pending.elsewhere)

    def _predict(self, pending: Pending, args: list[bytes], raw: bytes, now: float) -> None:
        """Predict what a request does to the session, and rewrite it where that is necessary."""
        parts, role = self.parts, pending.command.role
        state, predicted = parts.state, parts.predicted
        if role is Role.MULTI:
            if predicted.transaction is None and len(args) == 1:
                pending.transaction = predicted.transaction = Transaction()
        elif role is Role.EXEC:
            self._predict_exec(pending)
        elif role is Role.UNWATCH:
            state.watch_lost = state.watch_lost and len(args) != 1
        elif role is Role.DISCARD or role is Role.RESET:
            self._predict_end(pending, args, raw)
        elif role is Role.SELECT:
            if pending.select is not None:
                predicted.selects_in_flight += 1
                predicted.db = pending.select
        elif role is Role.AUTH or role is Role.HELLO:
            self._predict_login(pending, args)
        elif role is Role.CLIENT:
            if pending.reply_mode > _ON:
                # As long as the request itself, and refused where that would be refused.
                pending.rewritten = _REPLY_ON_REQUEST
                parts.replies.silence_asked = True
        elif role is Role.BLOCKING:
            self._predict_block(pending, args, raw, now)
        elif role is Role.SCAN:
            self._translate_cursor(pending, args)
        elif role is Role.CLUSTER:
            self._answer_as_cluster(pending)

    def _predict_login(self, pending: Pending, args: list[bytes]) -> None:
        """Predict AUTH and HELLO, and translate their credentials for the leg's side."""
        logins = self.parts.leg.logins
        if pending.command.role is Role.HELLO and len(args) > 1:
            self.parts.predicted.protocol = 0
        if logins is not None and pending.names:
            pending.rewritten = logins.translated(args)

    def _answer_as_cluster(self, pending: Pending) -> None:
        """Send a PING in place of what the gateway answers for a single server.

        The reply to it says when the answer is due. It may be a refusal, for want of a login.
        """
        state = self.parts.state
        subscribed = state.channels and state.protocol == 2  # then PING has another reply
        if self.parts.leg.facade and pending.names and answers(pending.names) and not subscribed:
            pending.rewritten, pending.substitute = _PING, b""

    def _predict_end(self, pending: Pending, args: list[bytes], raw: bytes) -> None:
        """Predict DISCARD and RESET, which end the open MULTI."""
        parts, role = self.parts, pending.command.role
        state, predicted, logins = parts.state, parts.predicted, parts.leg.logins
        if len(args) == 1:
            outside = role is Role.DISCARD and predicted.transaction is None
            state.watch_lost = state.watch_lost and outside
            predicted.transaction = None
        if role is Role.RESET and logins is not None and logins.default_login:
            pending.rewritten = raw + logins.default_login

    def _predict_exec(self, pending: Pending) -> None:
        state, predicted = self.parts.state, self.parts.predicted
        transaction, predicted.transaction = predicted.transaction, None
        pending.transaction = transaction
        if transaction is None:
            return
        pending.write = transaction.writes
        pending.whole = transaction.whole
        if state.watch_lost:
            pending.substitute = null_array(state.protocol)
            pending.write = pending.whole = False
            state.watch_lost = False

    def _predict_block(self, pending: Pending, args: list[bytes], raw: bytes, now: float) -> None:
        """Note how long a request blocks, and ask for the id that CLIENT UNBLOCK needs."""
        parts = self.parts
        pending.block = block_timeout(pending.command.name, args)
        if pending.block is None:
            return
        pending.raw = raw or (b"" if _has_skipped(args) else encode(*args))
        try:
            seconds = float(args[pending.block.position]) * pending.block.unit_s
        except (ValueError, IndexError):
            seconds = 0.0  # the server will refuse it
        pending.deadline = now + seconds if seconds > 0 else None
        leg, state = parts.leg, parts.state
        known = leg.client_id is not None or leg.client_id_asked
        # Not in the middle of a request of which a part has been forwarded
        if not known and raw and not state.channels and not state.in_multi:
            leg.client_id_asked = True
            parts.expect_own_reply(now, CLIENT_ID)
            self.prelude = _ASK_CLIENT_ID

    def _translate_cursor(self, pending: Pending, args: list[bytes]) -> None:
        """Give the server its own cursor, or 0 if another authority gave the cursor."""
        at, tag = 1 if pending.command.name == b"SCAN" else 2, self.parts.leg.tag
        if not tag or len(args) <= at or _has_skipped(args):
            return
        pending.whole = pending.cursor = True
        cursor = server_cursor(args[at], tag)
        if cursor != args[at]:
            pending.rewritten = encode(*args[:at], cursor, *args[at + 1 :])
