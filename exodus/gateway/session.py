"""One client connection, without I/O: what is forwarded, what is held, what is journalled.

    client ──from_client──▶ Session ──out.to_server──▶ authority
    client ◀──out.to_client── Session ◀──from_server── authority

Bytes are relayed unchanged. Requests are framed before they are forwarded, because a write must be in the intent log before the
authority can execute it (race rule 1), and because held writes stop at a frame's edge. A request longer than
STREAM_FRAME_BYTES is forwarded while it arrives. Replies are matched to requests in order; the keys of a write are journalled
when its reply has come, whatever the reply is: an error may come after an effect.

States, by what happens to the next request:

    relaying   forwarded                                     → held by `Orders.hold` at a write, → frozen by `freeze`
    held       kept in the backlog, later ones behind it     → relaying by `thaw`
    frozen     kept, reads too, while the leg is replaced    → relaying by `thaw`
    opaque     relayed unread, for good                      (bytes that no server accepts, MONITOR, PSYNC)

`now` is a monotonic clock in seconds, given by the caller. Read `from_client`, `_admit`, `_answered`, then the handover part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from exodus.commands.semantics import EXACT_ELSEWHERE, NOT_COMPARABLE, Role, Timeout, block_timeout
from exodus.commands.table import Command
from exodus.config import (
    HELD_BYTES_MAX,
    SCANS_TRACKED_MAX,
    SHADOW_PAYLOAD_BYTES_MAX,
    STREAM_FRAME_BYTES,
    SUBSCRIPTIONS_TRACKED_MAX,
    TRANSACTION_BYTES_MAX,
    JournalMode,
)
from exodus.control.changes import Barrier, Key
from exodus.control.effects import barrier_of, keys_elsewhere
from exodus.gateway.canary import CanaryRead, chosen
from exodus.gateway.logins import Logins
from exodus.gateway.orders import Orders
from exodus.resp.encode import encode, null_array
from exodus.resp.scanner import SKIPPED, Reply, ReplyScanner, Request, RequestScanner

_OUT_OF_BAND = frozenset({b"message", b"pmessage", b"smessage"})
_CONFIRMATIONS = frozenset({b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe"})
_COSMETIC = frozenset({"setinfo", "no-evict", "no-touch"})  # session settings without which every reply is the same
_CLIENT_ID = encode("CLIENT", "ID")
_REPLY_ON = encode("CLIENT", "REPLY", "ON")
_REPLY_OFF = encode("CLIENT", "REPLY", "OFF")
_DISCARD = encode("DISCARD")
_REFUSALS = (b"ERR Protocol error", b"ERR unbalanced")
_OFF, _SAMPLE = JournalMode.OFF, JournalMode.SAMPLE
_SHADOW_BYTES_MAX = SHADOW_PAYLOAD_BYTES_MAX
_STREAM_BYTES = STREAM_FRAME_BYTES
_QUEUE_SLACK = 64  # answered requests that a queue keeps before it moves the others up
_NOTHING = b""
_NO_KEYS: list[bytes] = []  # shared, never changed
_NOWHERE_ELSE: list[Key] = []
_INVALIDATE_ALL = b">2\r\n$10\r\ninvalidate\r\n_\r\n"


class Outlet(Protocol):
    """What a session calls; the shell does it, a test records it."""

    def to_server(self, data: bytes) -> None:
        """Send to the authority."""

    def to_client(self, data: bytes) -> None:
        """Send to the application."""

    def log_intents(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Note, before the request is forwarded, what it may change."""

    def journal(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Mark as changed: the authority has answered."""

    def gap(self, why: str) -> None:
        """A write happened whose keys are not known."""

    def shadow(self, db: int, request: bytes, reply: bytes, *, write: bool) -> None:
        """Offer a sampled request and its reply to the comparer."""

    def ask_follower(self, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Ask the follower, too, and say so by `Session.from_follower` when `read` is done."""

    def pause_client(self) -> None:
        """Read no more from the application."""

    def resume_client(self) -> None:
        """Read on."""

    def unblock(self, client_id: int) -> None:
        """End this connection's blocking command on the authority as if its time were over."""

    def settled(self) -> None:
        """Something that a waiter waits for may be true now (`writes_in_flight`, `idle`)."""

    def close(self, why: str) -> None:
        """End the session; it cannot go on correctly."""


def _has_skipped(keys: list[bytes]) -> bool:
    return any(key is SKIPPED for key in keys)


class Transaction:
    """An open MULTI: what was queued, and what EXEC will change."""

    __slots__ = ("barriers", "items", "raw", "raw_bytes", "writes")

    def __init__(self) -> None:
        self.items: list[int | list[bytes] | list[Key]] = []  # SELECT n, keys of a command, keys in a named database
        self.barriers: list[Barrier] = []
        self.raw: list[bytes] = []  # MULTI itself is not in it
        self.raw_bytes = 0
        self.writes = False

    def run(self, db: int) -> tuple[list[Key], int]:
        """The keys that EXEC may change if it begins in `db`, and the database after it."""
        found: list[Key] = []
        for item in self.items:
            if isinstance(item, int):
                db = item
            else:
                found.extend((db, key) if isinstance(key, bytes) else key for key in item)
        return found, db


class Pending:
    """A request that the authority has not answered yet."""

    __slots__ = (
        "barrier", "block", "canary", "command", "deadline", "elsewhere", "expected", "key", "keys", "protocol", "queued", "raw", "rewritten",
        "select", "shadowed", "since", "size", "state", "substitute", "swallow", "transaction", "write",
    )  # fmt: skip

    def begin(self, command: Command, since: float, size: int) -> None:
        """What `__init__` would do."""
        self.command = command
        self.since = since
        self.size = size
        self.key: bytes | None = None  # the first one, read or written, for the counters
        self.keys = _NO_KEYS  # of a write
        self.elsewhere = _NOWHERE_ELSE  # keys in another database than the session's
        self.write = False
        self.queued = False  # inside MULTI: the reply is +QUEUED
        self.swallow = False  # ours, not the client's: its reply is dropped
        self.substitute: bytes | None = None  # what the client gets instead of the reply
        self.expected = 1  # replies still to come
        self.select: int | None = None
        self.protocol = 0  # asked for by HELLO
        self.state: tuple[str, bytes] | None = None  # what to replay on a new leg, once the reply says OK
        self.transaction: Transaction | None = None
        self.barrier: Barrier | None = None
        self.block: Timeout | None = None
        self.deadline: float | None = None
        self.raw = b""  # the request, where it may have to be sent again or shown to the comparer
        self.shadowed = False  # picked: for the comparer, or as a canary read
        self.canary: CanaryRead | None = None
        self.rewritten: bytes | None = None  # what is sent instead of the client's bytes


def _pending(command: Command, since: float, size: int) -> Pending:
    """A constructor that the compiled form calls without making a tuple of its arguments."""
    made = Pending.__new__(Pending)
    made.begin(command, since, size)
    return made


class PendingQueue:
    """Requests in the order in which they were forwarded: a `deque` in all but name, which the compiled form uses without a call into Python."""

    __slots__ = ("_first", "_items", "count")

    def __init__(self) -> None:
        self._items: list[Pending] = []
        self._first = 0
        self.count = 0

    def push(self, pending: Pending) -> None:
        """Behind all others."""
        self._items.append(pending)
        self.count += 1

    def pop(self) -> Pending:
        """The first one; there has to be one."""
        first = self._first
        pending = self._items[first]
        self.count -= 1
        self._first = first + 1
        if not self.count or (first > _QUEUE_SLACK and first > self.count):
            del self._items[: first + 1]
            self._first = 0
        return pending

    def put_back(self, pending: Pending) -> None:
        """Before all others."""
        self._items[: self._first] = [pending]
        self._first = 0
        self.count += 1

    def clear(self) -> None:
        """Forget them."""
        self._items.clear()
        self._first = self.count = 0

    @property
    def head(self) -> Pending | None:
        """The first one, if there is one."""
        return self._items[self._first] if self.count else None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._items[self._first :])


class Session:
    """The state machine. One instance a client connection, for all the legs it has in its life."""

    def __init__(self, out: Outlet, orders: Orders) -> None:
        self.out = out
        self.orders = orders
        self.logins: Logins | None = None  # of the leg: what is said there in place of what the client says
        self.db = 0
        self.protocol = 2
        self.client_id: int | None = None  # of the leg, asked for before the first blocking command
        self.name = b""
        self.watching = False
        self.watch_lost = False  # the leg was replaced: the next EXEC must fail
        self.transaction: Transaction | None = None
        self.replies_off = False
        self.scans_untracked = False  # more unfinished SCANs than are remembered
        self.opaque: str | None = None
        self.unknown_state = False  # session commands inside MULTI
        self.streaming_reply = False  # MONITOR, PSYNC: whatever comes goes to the client
        self.tracking = False
        self.tracking_redirected = False  # to another connection, whose id is another on another server
        self.channels: set[bytes] = set()
        self._cursors: set[bytes] = set()  # of unfinished SCANs on this leg
        self._old_cursors: set[bytes] = set()  # of those that were begun on a leg that is gone
        self.replay: dict[str, bytes] = {}  # session commands in the order in which they took effect
        self.frozen = False
        self.pending = PendingQueue()
        self.writes_in_flight = 0
        self._requests = RequestScanner(orders.table.kept)
        self._replies = ReplyScanner()
        self._unsent = b""  # the unfinished request, not forwarded yet
        self._streaming = False  # the unfinished request is being forwarded while it arrives
        self._backlog: list[bytes] = []  # held: everything from the first held frame on
        self._backlog_bytes = 0
        self._held = False
        self._edits = 0  # pending replies that may not simply be passed on
        self._reply_unsent = b""  # the unfinished reply that may have to be dropped
        self._reply_sent = 0  # bytes of the unfinished reply that went out already
        self._skip_next_reply = False
        self._unconfirmed: list[Key] = []  # written with replies off
        self._unblocking = False  # CLIENT UNBLOCK was sent for the first pending request
        self._answered_since_opaque = False
        self._gap_told = False
        self._refused = False  # the server could not read it either, and closes
        self._protocol_admitted = 2
        self._client_id_asked = False
        self._selects_in_flight = 0
        self._db_admitted = 0
        self._waiting: deque[bytes | CanaryRead] = deque()  # from the first canary read that is not decided on, in the client's order
        self._injected = b""  # of ours, to be sent before the request that is being admitted

    # ------------------------------------------------------------------ from the client

    def from_client(self, data: bytes, now: float) -> None:
        """Take bytes from the application."""
        if self._held:
            self._keep(data)
            return
        if self.opaque is not None:
            if self._answered_since_opaque and not self.streaming_reply and not self._gap_told and not self._refused:
                self._gap_told = True
                self.out.gap(f"a connection cannot be read: {self.opaque}")
            self.out.to_server(data)
            return
        buffered = self._unsent + data if self._unsent else data
        already = self._requests.partial_bytes if self._streaming else 0  # of the first frame, forwarded before
        requests = self._requests.feed(data)
        start = 0  # of the next frame in `buffered`
        sent = 0  # forwarded up to here
        intents: list[Key] = []
        barrier: Barrier | None = None
        holding = self.frozen or self.orders.hold
        for request in requests:
            end = start + request.size - already
            already = 0
            if holding and not self._streaming and self._must_hold(request.args):
                self._forward(buffered, sent, start, intents, barrier)
                self._hold(buffered[start:])
                return
            self._streaming = False
            if request.args:
                found = self._admit(request, buffered, start, end, now)
                if self._injected:
                    self._forward(buffered, sent, start, intents, barrier)
                    sent, intents, barrier = start, [], None
                    self.out.to_server(self._injected)
                    self._injected = _NOTHING
                if found is not None:
                    if found.write:
                        self._add_keys(found, intents)
                    if found.barrier is not None:
                        barrier = found.barrier
                    if found.rewritten is not None:
                        self._forward(buffered, sent, start, intents, barrier)
                        sent, intents, barrier = end, [], None
                        self.out.to_server(found.rewritten)
                    if found.substitute is not None:
                        self._forward(buffered, sent, start, intents, barrier)
                        sent, intents, barrier = end, [], None
                        self.out.to_server(_DISCARD)
            start = end
            if self.opaque is not None:
                break
        if self._requests.broken is not None and self.opaque is None:
            self._go_opaque(self._requests.broken)
        if self.opaque is not None:
            start = len(buffered)
        elif self._streaming or len(buffered) - start > _STREAM_BYTES:
            if not self._streaming and self._must_hold(self._requests.args):
                self._forward(buffered, sent, start, intents, barrier)
                self._hold(buffered[start:])
                return
            self._streaming = True
            start = len(buffered)
        self._forward(buffered, sent, start, intents, barrier)
        self._unsent = buffered[start:] if start < len(buffered) else _NOTHING

    def _forward(self, buffered: bytes, sent: int, end: int, intents: list[Key], barrier: Barrier | None) -> None:
        if (intents or barrier is not None) and self.orders.journal is not _OFF:
            self.out.log_intents(intents, barrier)
        if end > sent:
            self.out.to_server(buffered[sent:end] if sent or end < len(buffered) else buffered)

    def _must_hold(self, args: list[bytes]) -> bool:
        if self.frozen:
            return True
        if not self.orders.hold or not args:
            return False
        command = self.orders.table.of(args)
        if self.transaction is not None and command.role is Role.EXEC:
            return self.transaction.writes
        # Inside MULTI too, though it is only queued: behind the fence the old side would not even queue it, and say so to the client.
        if command.role is Role.BLOCKING and not command.write:
            return False
        return command.write or command.role is Role.BARRIER

    def _hold(self, rest: bytes) -> None:
        self._held = True
        self._unsent = b""
        self._requests = RequestScanner(self.orders.table.kept)
        self._keep(rest)

    def _keep(self, data: bytes) -> None:
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._backlog_bytes > HELD_BYTES_MAX:
            self.out.pause_client()

    def _go_opaque(self, why: str) -> None:
        self.opaque = why

    def _admit(self, request: Request, buffered: bytes, start: int, end: int, now: float) -> Pending | None:
        """Note a request that is about to be forwarded; what has to be sent before it is left in `_injected`."""
        args = request.args
        orders = self.orders
        command = orders.table.of(args)
        pending = _pending(command, now, request.size)
        if 0 < command.first < len(args) and args[command.first] is not SKIPPED:
            pending.key = args[command.first]
        if command.write:
            pending.write = True
            pending.keys = command.keys(args)
            if request.skipped and _has_skipped(pending.keys):
                self.out.gap("a key is longer than the gateway keeps")
            if not command.known:
                orders.risks["unknown command"] += 1
        transaction = self.transaction
        if transaction is None and command.plain:
            pass  # by far the most
        elif transaction is not None and command.role not in (Role.EXEC, Role.DISCARD, Role.RESET, Role.QUIT, Role.MULTI):
            self._queue(transaction, pending, args, buffered[start:end])
        elif command.role is not Role.PLAIN:
            self._injected = self._admit_special(pending, args, buffered[start:end], now)
        if (
            orders.picks
            and transaction is None
            and pending.expected
            and command.plain
            and command.name not in NOT_COMPARABLE
            and request.size <= _SHADOW_BYTES_MAX
        ):
            self._pick(pending, args, buffered[start:end])
        if self.replies_off or self._skip_next_reply or not pending.expected:
            if not (command.role is Role.CLIENT and not pending.expected):
                self._skip_next_reply = False
            if pending.write:
                self._unconfirmed.extend(self._keys_of(pending))
            return pending if pending.write or pending.rewritten is not None else None
        self.pending.push(pending)
        if pending.write:
            self.writes_in_flight += 1
        if pending.rewritten is not None and command.role is Role.RESET:
            self._expect_own(now)
        if pending.shadowed or pending.substitute is not None:
            self._edits += 1
            if pending.canary is not None:
                self.out.ask_follower(pending.canary, pending.raw, self._protocol_admitted)
        return pending

    def _pick(self, pending: Pending, args: list[bytes], raw: bytes) -> None:
        """Look at a request more closely, where its one key is in a share."""
        orders = self.orders
        keys = pending.keys or pending.command.keys(args)
        if len(keys) != 1:
            return
        # Only what two healthy servers answer with the same bytes; and of database 0, which is the one that our connections are in.
        if (
            orders.canary_below
            and not pending.write
            and pending.command.name in EXACT_ELSEWHERE
            and not self._db_admitted
            and not self._selects_in_flight
            and chosen(keys[0], orders.canary_below)
        ):
            pending.canary = CanaryRead()
        elif not (orders.shadow_below and orders.sampled(keys[0])):
            return
        pending.raw = raw
        pending.shadowed = True

    def _queue(self, transaction: Transaction, pending: Pending, args: list[bytes], raw: bytes) -> None:
        role = pending.command.role
        pending.queued = True
        transaction.raw_bytes += len(raw)
        if transaction.raw_bytes <= TRANSACTION_BYTES_MAX:
            transaction.raw.append(raw)
        if role is Role.SELECT and len(args) == 2 and args[1].isdigit():
            transaction.items.append(int(args[1]))
        elif role in (Role.SUBSCRIBE, Role.UNSUBSCRIBE, Role.CLIENT, Role.AUTH, Role.HELLO, Role.STREAMING):
            # They take effect inside EXEC's reply, which is not taken apart: the session's state is not known any more.
            self.unknown_state = True
        elif role is Role.BARRIER:
            transaction.barriers.append(barrier_of(args, self._db_admitted))
        elif role is Role.MOVES_DB:
            pending.elsewhere = keys_elsewhere(pending.command, args)
            transaction.items.append(pending.elsewhere)
        elif role is Role.SCRIPT and not pending.keys:
            self.orders.risks["script without declared keys"] += 1
        if pending.write:
            transaction.writes = True
            transaction.items.append(pending.keys)

    def _admit_special(self, pending: Pending, args: list[bytes], raw: bytes, now: float) -> bytes:
        role = pending.command.role
        if role is Role.MULTI:
            if self.transaction is None:
                pending.transaction = self.transaction = Transaction()
        elif role is Role.EXEC:
            pending.transaction, self.transaction = self.transaction, None
            if pending.transaction is not None and pending.transaction.writes:
                pending.write = True
            if self.watch_lost and pending.transaction is not None:
                pending.substitute = null_array(self.protocol)
                pending.write = False
            self.watching = self.watch_lost = False
        elif role in (Role.DISCARD, Role.RESET):
            self.transaction = None
            self.watching = self.watch_lost = False
            if role is Role.RESET and self.logins is not None and self.logins.unasked:
                pending.rewritten = raw + self.logins.unasked
        elif role is Role.WATCH:
            self.watching = True
        elif role is Role.UNWATCH:
            self.watching = self.watch_lost = False
        elif role is Role.SELECT:
            if len(args) == 2 and args[1].isdigit():
                pending.select = int(args[1])
                self._selects_in_flight += 1
                self._db_admitted = pending.select
        elif role in (Role.AUTH, Role.HELLO):
            if role is Role.AUTH or len(args) > 1:
                pending.state = (role.name.lower(), raw)
            if role is Role.HELLO and len(args) > 1:
                pending.protocol = self._protocol_admitted = 3 if args[1] == b"3" else 2
            if self.logins is not None:
                pending.rewritten = self.logins.said_to_target(args)
        elif role is Role.CLIENT:
            self._admit_client(pending, args, raw)
        elif role is Role.SUBSCRIBE:
            names = args[1:]
            self.channels.update(pending.command.name + b" " + name for name in names)
            if len(self.channels) > SUBSCRIPTIONS_TRACKED_MAX:
                self._go_opaque("more subscriptions than are tracked")
            pending.expected = 0 if self._protocol_admitted == 3 else len(names) or 1
        elif role is Role.UNSUBSCRIBE:
            self._admit_unsubscribe(pending, args)
        elif role is Role.STREAMING:
            self.streaming_reply = True
            self._go_opaque(pending.command.name.decode())
        elif role is Role.BLOCKING:
            pending.block = block_timeout(args)
            if pending.block is not None:
                pending.raw = raw
                try:
                    seconds = float(args[pending.block.position]) * pending.block.unit_s
                except (ValueError, IndexError):
                    seconds = 0.0  # the server will refuse it
                pending.deadline = now + seconds if seconds > 0 else None
                if self.client_id is None and not self._client_id_asked and not self.replies_off and not self.channels:
                    self._client_id_asked = True
                    self._expect_own(now, size=0)
                    return _CLIENT_ID
        elif role is Role.BARRIER:
            pending.barrier = barrier_of(args, self._db_admitted)
        elif role is Role.MOVES_DB:
            pending.elsewhere = keys_elsewhere(pending.command, args)
        elif role is Role.SCAN:
            self._admit_scan(pending, args)
        elif role is Role.SCRIPT and not pending.keys:
            self.orders.risks["script without declared keys"] += 1
        return b""

    def _admit_scan(self, pending: Pending, args: list[bytes]) -> None:
        """A cursor of a server that is not the authority any more means nothing to this one: the iteration begins anew.

        It keeps SCAN's promise, that what is there all the time is returned at least once; some elements are returned again.
        """
        at = 1 if pending.command.name == b"SCAN" else 2
        if len(args) > at:
            cursor = args[at]
            if cursor in self._old_cursors:
                self._old_cursors.discard(cursor)
                pending.rewritten = encode(*args[:at], b"0", *args[at + 1 :])
            self._cursors.discard(cursor)

    def _admit_client(self, pending: Pending, args: list[bytes], raw: bytes) -> None:
        word = args[1].upper() if len(args) > 1 else b""
        mode = args[2].upper() if len(args) > 2 else b""
        if word == b"REPLY":
            if mode == b"OFF":
                self.replies_off = True
                pending.expected = 0
            elif mode == b"SKIP" and not self.replies_off:
                self._skip_next_reply = True
                pending.expected = 0
            elif mode == b"ON":
                self.replies_off = False
                self._skip_next_reply = False
        elif word in (b"SETNAME", b"NO-EVICT", b"NO-TOUCH"):
            pending.state = (word.decode().lower(), raw)
            if word == b"SETNAME" and len(args) == 3:
                self.name = args[2]
        elif word == b"SETINFO" and len(args) == 4:
            pending.state = (f"setinfo {args[2].decode('ascii', 'replace').lower()}", raw)
        elif word == b"TRACKING":
            pending.state = ("tracking", raw)
            self.tracking = mode == b"ON"
            self.tracking_redirected = b"REDIRECT" in (arg.upper() for arg in args[3:])

    def _admit_unsubscribe(self, pending: Pending, args: list[bytes]) -> None:
        kind = pending.command.name.replace(b"UNSUBSCRIBE", b"SUBSCRIBE") + b" "
        named = [kind + name for name in args[1:]] or [entry for entry in self.channels if entry.startswith(kind)]
        pending.expected = 0 if self._protocol_admitted == 3 else max(1, len(named))
        self.channels.difference_update(named)

    def _add_keys(self, pending: Pending, intents: list[Key]) -> None:
        """Append `_keys_of`; the case of one command in one database goes without a list of its own."""
        if pending.transaction is None and not self._selects_in_flight and not pending.elsewhere:
            db = self._db_admitted
            for key in pending.keys:
                intents.append((db, key))  # noqa: PERF401 - no closure in the compiled form
        else:
            intents.extend(self._keys_of(pending))

    def _keys_of(self, pending: Pending) -> list[Key]:
        """Keys that a request may change, with their databases as far as they are known now."""
        if pending.transaction is not None:
            keys, _ = pending.transaction.run(self._db_admitted)
        else:
            keys = [(self._db_admitted, key) for key in pending.keys] + pending.elsewhere
        if self._selects_in_flight and self._db_admitted != self.db:
            keys += [(self.db, key) for db, key in keys if db == self._db_admitted]  # if that SELECT should fail
        return keys

    # ------------------------------------------------------------------ from the authority

    def from_server(self, data: bytes, now: float) -> None:
        """Take bytes from the authority."""
        if self.streaming_reply and not self.pending.count and not self._waiting:
            self.out.to_client(data)
            return
        if not self._edits:
            # Passed on before it is read. An unfinished reply that is not ours to drop has gone out in part.
            self.out.to_client(self._reply_unsent + data if self._reply_unsent else data)
            self._reply_unsent = b""
            marks: list[Key] = []
            for reply in self._replies.feed(data):
                self._answered(reply, now, marks, _NOTHING)
            self._reply_sent = self._replies.partial_bytes
            self._after_replies(marks)
            return
        buffered = self._reply_unsent + data
        at = 0
        marks = []
        passed: list[bytes] = []
        for reply in self._replies.feed(data):
            end = at + reply.size - self._reply_sent
            self._reply_sent = 0
            frame = buffered[at:end]
            frame = self._answered(reply, now, marks, frame)
            if self._waiting:
                self._waiting.append(frame)
            else:
                passed.append(frame)
            at = end
        rest = buffered[at:]
        if rest and self._may_pass_in_part(len(rest)):
            passed.append(rest)
            self._reply_sent = self._replies.partial_bytes
            rest = b""
        self._reply_unsent = rest
        whole = b"".join(passed)
        if whole:
            self.out.to_client(whole)
        self._after_replies(marks)

    def _may_pass_in_part(self, unfinished_bytes: int) -> bool:
        if self._waiting:
            return False
        head = self.pending.head
        if head is None:
            return True
        if head.swallow or head.substitute is not None or self._unblocking:
            return False
        if head.shadowed:
            if unfinished_bytes <= SHADOW_PAYLOAD_BYTES_MAX:
                return False
            head.shadowed, head.canary = False, None  # too large to be kept
            self._edits -= 1
        return True

    def _after_replies(self, marks: list[Key]) -> None:
        if marks:
            self.out.journal(marks, None)
        if self._replies.broken is not None and self.opaque is None:
            self.out.gap(f"a reply could not be read: {self._replies.broken}")
            self._go_opaque(self._replies.broken)
        if self.orders.hold and not self.writes_in_flight:
            self.out.settled()

    def _answered(self, reply: Reply, now: float, marks: list[Key], frame: bytes) -> bytes:
        """Match one reply to its request; returns what the client gets of it (only used where replies are edited)."""
        if reply.kind == 0x3E:  # a push of RESP3: no request waits for it
            return frame
        failed = reply.kind in (0x2D, 0x21)
        if self.channels and self.protocol == 2 and reply.first in _OUT_OF_BAND:
            return frame
        if not self.pending.count:  # unasked: the server's last word before it closes
            if self.opaque is not None:
                if failed and reply.head.startswith(_REFUSALS):
                    self._refused = True
                else:
                    self._answered_since_opaque = True
            return frame
        pending = self.pending.pop()
        if pending.expected > 1 and reply.first in _CONFIRMATIONS:
            pending.expected -= 1
            self.pending.put_back(pending)
            return frame
        command = pending.command
        if self._unconfirmed:
            marks.extend(self._unconfirmed)  # any later reply proves that they were executed
            self._unconfirmed = []
        if pending.write:
            self.writes_in_flight -= 1
        if pending.swallow:
            self._edits -= 1
            self._own_answer(pending, reply)
            return b""
        if self._unblocking:
            self._unblocking = False
            self._edits -= 1
            if reply.nil and (pending.deadline is None or pending.deadline > now):
                self._send_again(pending, now)
                return b""
        error = reply.head.split(b" ", 1)[0] if failed else _NOTHING
        self.orders.telemetry.observe(command, pending.key, now - pending.since, pending.size, reply.size, error)
        if pending.substitute is not None:
            self._edits -= 1
            return pending.substitute
        if pending.write and self.orders.journal is not _OFF:
            self._mark(pending, reply, marks)
        if not command.plain and not pending.queued:
            self._apply(pending, reply)
        if pending.shadowed:
            if pending.canary is not None:
                return self._compare(pending.canary, frame, failed)
            self._edits -= 1
            self.out.shadow(self.db, pending.raw, frame, write=pending.write)
        return frame

    # ------------------------------------------------------------------ canary reads

    def _compare(self, read: CanaryRead, frame: bytes, failed: bool) -> bytes:
        """The authority has answered a canary read: what the client gets now. The read counts as an edit until it is decided."""
        read.frame, read.refused = frame, failed
        if not read.done or self._waiting:
            self._waiting.append(read)
            return _NOTHING
        return self._decide(read)

    def _decide(self, read: CanaryRead) -> bytes:
        self._edits -= 1
        canary = self.orders.canary
        if canary is not None:
            canary.note(read.outcome())
        return read.reply()

    def from_follower(self) -> None:
        """A canary read of this session is done: pass on what waited for it, up to the next that is not."""
        found: list[bytes] = []
        while self._waiting:
            head = self._waiting[0]
            if isinstance(head, CanaryRead):
                if not head.done:
                    break
                head_bytes = self._decide(head)
            else:
                head_bytes = head
            found.append(head_bytes)
            self._waiting.popleft()
        whole = b"".join(found)
        if whole:
            self.out.to_client(whole)
        if not self._waiting:
            self.out.settled()

    def _stop_waiting(self) -> None:
        for item in self._waiting:
            if isinstance(item, CanaryRead) and not item.done:
                item.gave_up()
        if self._waiting:
            self.from_follower()

    def _mark(self, pending: Pending, reply: Reply, marks: list[Key]) -> None:
        if pending.queued and reply.head == b"QUEUED":
            return
        transaction = pending.transaction
        if transaction is None and pending.barrier is None and self.orders.journal is not _SAMPLE:
            db = self.db
            for key in pending.keys:
                marks.append((db, key))  # noqa: PERF401 - no closure in the compiled form
            if pending.elsewhere:
                marks.extend(pending.elsewhere)
            return
        if transaction is not None:
            if reply.nil or reply.head.startswith(b"EXECABORT"):
                return
            keys, _ = transaction.run(self.db)
            barriers = transaction.barriers
        else:
            keys = [(self.db, key) for key in pending.keys] + pending.elsewhere
            barriers = [pending.barrier] if pending.barrier is not None and not reply.error else []
        if self.orders.journal is JournalMode.SAMPLE:
            keys = [key for key in keys if self.orders.sampled(key[1])]
        marks.extend(keys)
        for barrier in barriers:
            self.out.journal([], barrier)

    def _apply(self, pending: Pending, reply: Reply) -> None:
        """Take over what an answered command did to the session."""
        role = pending.command.role
        if role is Role.SELECT and pending.select is not None:
            self._selects_in_flight -= 1
            if not reply.error:
                self.db = pending.select
            if not self._selects_in_flight:
                self._db_admitted = self.db
        elif role is Role.EXEC and pending.transaction is not None and not reply.nil and not reply.error:
            _, self.db = pending.transaction.run(self.db)
            if not self._selects_in_flight:
                self._db_admitted = self.db
        elif role is Role.MULTI and reply.error and self.transaction is pending.transaction:
            self.transaction = None
        elif role is Role.SCAN:
            if reply.first not in (b"0", b""):
                self._cursors.add(reply.first)
                self._old_cursors.discard(reply.first)
                self.scans_untracked = self.scans_untracked or len(self._cursors) > SCANS_TRACKED_MAX
        elif role is Role.RESET and not reply.error:
            self._reset()
        elif role is Role.HELLO and pending.protocol:
            if not reply.error:
                self.protocol = pending.protocol
            self._protocol_admitted = self.protocol
        if pending.state is not None and not reply.error:
            slot, raw = pending.state
            self.replay.pop(slot, None)
            self.replay[slot] = raw

    def _reset(self) -> None:
        self.replay.clear()
        self.db = self._db_admitted = 0
        self.protocol = self._protocol_admitted = 2
        self.tracking = False
        self.channels.clear()
        self.name = b""

    def _expect_own(self, now: float, *, size: int = 1) -> None:
        """Drop the next reply: it is to a request of ours, and one of size 0 is CLIENT ID (see `_own_answer`)."""
        own = _pending(self.orders.table.find(b"CLIENT"), now, size)
        own.swallow = True
        self.pending.push(own)
        self._edits += 1

    def log_in(self, logins: Logins | None, now: float) -> None:
        """The session's first leg is there: `logins` are its side's."""
        self.logins = logins
        if logins is not None and logins.unasked:
            self._expect_own(now)
            self.out.to_server(logins.unasked)

    def _own_answer(self, pending: Pending, reply: Reply) -> None:
        if pending.size == 0 and reply.kind == 0x3A:  # CLIENT ID
            self.client_id = int(reply.head)

    # ------------------------------------------------------------------ ends

    def server_closed(self) -> None:
        """The leg is gone. What had no answer may have been executed: it counts as changed."""
        self._stop_waiting()
        keys, barriers = self.unanswered()
        for barrier in barriers:
            self.out.journal([], barrier)
        if keys and self.orders.journal is not JournalMode.OFF:
            self.out.journal(keys, None)
        self.pending.clear()
        self._unconfirmed = []
        self.writes_in_flight = 0
        self.out.settled()

    def unanswered(self) -> tuple[list[Key], list[Barrier]]:
        """What the authority was asked to change and has not answered for."""
        keys = list(self._unconfirmed)
        barriers: list[Barrier] = []
        for pending in self.pending:
            if pending.write:
                keys.extend(self._keys_of(pending))
                if pending.barrier is not None:
                    barriers.append(pending.barrier)
        return keys, barriers

    def log_pending(self) -> None:
        """Log the intents of what is under way once more: journalling began, or the log's old segments are to go."""
        keys = list(self._unconfirmed)
        for pending in self.pending:
            if pending.write:
                keys.extend(self._keys_of(pending))
        if keys:
            self.out.log_intents(keys, None)

    # ------------------------------------------------------------------ hold and handover

    @property
    def idle(self) -> bool:
        """Whether the leg can be replaced: nothing is under way in either direction."""
        return not self.pending.count and not self._streaming and not self._reply_sent and not self._reply_unsent and not self._waiting

    @property
    def cannot_switch(self) -> str | None:
        """Why this session cannot be carried to another server, or None."""
        if self.opaque is not None:
            return self.opaque
        if self.unknown_state:
            return "session commands inside MULTI"
        if self.tracking and (self.tracking_redirected or self.protocol == 2):
            return "client tracking that is redirected"
        if self.scans_untracked:
            return "more SCANs than are tracked"
        if self.transaction is not None and self.transaction.raw_bytes > TRANSACTION_BYTES_MAX:
            return "a queued transaction larger than is kept"
        return None

    @property
    def waits(self) -> bool:
        """Whether something was held back."""
        return self._held

    def blocked(self) -> Pending | None:
        """The blocking request that everything else waits for, if there is one."""
        head = self.pending.head
        return head if head is not None and head.block is not None else None

    def unblock(self, *, reads: bool) -> str | None:
        """Ask for the end of a blocking request, which is sent again when the session goes on; may be called repeatedly.

        Args:
            reads: also XREAD and WAIT, which change nothing and so need not end before the leg is replaced.

        Returns:
            Why it cannot be done, or None.
        """
        head = self.blocked()
        if head is None or not (head.write or reads):
            return None
        if self.pending.count > 1:
            return "requests behind a blocking one"
        if self.client_id is None:
            return "the server did not tell the connection's id"
        if not self._unblocking:
            self._unblocking = True
            self._edits += 1
        self.out.unblock(self.client_id)
        return None

    def _send_again(self, pending: Pending, now: float) -> None:
        """Put an unblocked request at the head of what is held, with the time that it has left."""
        args = RequestScanner().feed(pending.raw)[0].args
        block = pending.block
        if pending.deadline is not None and block is not None:
            left = (pending.deadline - now) / block.unit_s
            args[block.position] = b"%d" % max(1, round(left)) if block.unit_s < 1 else b"%.3f" % max(left, 0.001)
        if not self._held:
            rest, self._unsent = self._unsent, b""
            self._hold(rest)
        raw = encode(*args)
        self._backlog.insert(0, raw)
        self._backlog_bytes += len(raw)
        if not self.frozen and not self.orders.hold:
            self.thaw(now)  # the hold ended before the answer came, and nobody else would let it go on

    def confirm(self) -> None:
        """With replies off: ask for one, which proves that everything before it was executed."""
        if self.replies_off and self._unconfirmed and not any(pending.swallow for pending in self.pending):
            self._expect_own(0.0)
            self.out.to_server(_REPLY_ON + _REPLY_OFF)

    @property
    def confirmed(self) -> bool:
        """Whether every write that was forwarded is known to be executed or not."""
        # A long write that is forwarded while it arrives is executed when its end has come: it counts from its beginning.
        return not self.writes_in_flight and not self._unconfirmed and not (self._streaming and self._streams_write())

    def _streams_write(self) -> bool:
        command = self.orders.table.of(self._requests.args) if self._requests.args else None
        return command is None or command.write or command.role is Role.BARRIER

    def freeze(self) -> None:
        """Hold everything from the next request on, reads too."""
        self.frozen = True

    def replay_script(self, logins: Logins | None = None) -> tuple[bytes, int, frozenset[int]]:
        """What to send on a new leg before anything else, how many replies to expect and drop, and which of them may be errors.

        `logins` are those of the leg's side. An older server does not know all that a newer one was told; what changes no reply of it may be
        missing there.
        """
        first = [logins.unasked] if logins is not None and logins.unasked else []
        parts = first + [logins.again(raw) if logins is not None and slot in ("auth", "hello") else raw for slot, raw in self.replay.items()]
        optional = frozenset(number for number, slot in enumerate(self.replay, len(first)) if slot.partition(" ")[0] in _COSMETIC)
        if self.db:
            parts.append(encode("SELECT", self.db))
        expected = len(parts)
        for kind in (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"):
            names = sorted(entry.partition(b" ")[2] for entry in self.channels if entry.startswith(kind + b" "))
            if names:
                parts.append(encode(kind, *names))
                expected += 0 if self.protocol == 3 else len(names)
        began = len(parts)
        if self.transaction is not None:
            parts.append(encode("MULTI"))
            parts.extend(self.transaction.raw)
        expected += len(parts) - began
        if self.replies_off:
            parts.append(_REPLY_OFF)
        return b"".join(parts), expected, optional

    def unasked(self, reply: Reply) -> bool:
        """Whether a reply that comes while the script is replayed is none to it, but a message or an invalidation for the client."""
        if reply.push:
            return reply.first not in _CONFIRMATIONS
        return self.protocol == 2 and reply.first in _OUT_OF_BAND

    def adopt_leg(self, logins: Logins | None = None) -> None:
        """The leg was replaced and the script replayed on it; `logins` are its side's."""
        self.logins = logins
        self._old_cursors |= self._cursors
        self._cursors = set()
        if self.tracking:
            self.out.to_client(_INVALIDATE_ALL)  # what was written while nobody watched, the client must not take from its cache
        self._replies = ReplyScanner()
        self.client_id = None
        self._client_id_asked = False
        self.watch_lost = self.watch_lost or self.watching

    def thaw(self, now: float) -> None:
        """Go on: take what was held as if it arrived now. Writes stay held while `Orders.hold` is on."""
        self.frozen = False
        if not self._held:
            return
        self._held = False
        data = b"".join(self._backlog)
        self._backlog = []
        self._backlog_bytes = 0
        self.out.resume_client()
        if data:
            self.from_client(data, now)
