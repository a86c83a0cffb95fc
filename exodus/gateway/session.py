"""One client connection, without I/O: what is forwarded, what is held, what is journalled.

    client ──from_client──▶ Session ──out.to_server──▶ authority
    client ◀──out.to_client── Session ◀──from_server── authority

Bytes are relayed unchanged. Requests are framed before they are forwarded, because a write must be in the intent log
before the authority can execute it (race rule 1), and because held writes stop at a frame's edge. A request longer
than STREAM_FRAME_BYTES is forwarded while it arrives. Replies are matched to requests in order. The keys of a write
are journalled when its reply has come; a request that was refused changes nothing.

State follows replies, not requests: protocol, database, login, name, subscriptions, tracking and the open transaction
are what the authority answered. Requests are only *predicted* to succeed where something must be decided before their
answer (what to hold, which intents to log). A reply that does not match its request makes the session unreadable.

CLIENT REPLY OFF and SKIP are kept by the session, not by the authority: it answers everything, so each write has its
reply, and the session drops what the client does not want.

States, by what happens to the next request:

    relaying   forwarded                                     → held by `Orders.hold` at a write, → frozen by `freeze`
    held       kept in the backlog, later ones behind it     → relaying by `thaw`
    frozen     kept, reads too, while the leg is replaced    → relaying by `thaw`
    opaque     relayed unread, for good: each write is a gap (bytes that we cannot read, MONITOR, PSYNC)

`now` is a monotonic clock in seconds, given by the caller.
Read `from_client`, `_admit`, `_answered`, then the handover part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from exodus.commands.keys import database
from exodus.commands.semantics import (
    EXACT_ELSEWHERE,
    NOT_COMPARABLE,
    REFUSALS,
    Role,
    Timeout,
    block_timeout,
    replaces_data,
)
from exodus.commands.table import Command
from exodus.control.changes import Barrier, Key
from exodus.control.effects import barrier_of, keys_elsewhere
from exodus.control.gap_reasons import LONG_KEY, NO_ANSWER, REPLACED, SCRIPTS, UNMATCHED, UNREADABLE
from exodus.gateway.canary import CanaryRead, chosen
from exodus.gateway.cursors import marked, own
from exodus.gateway.logins import Logins
from exodus.gateway.orders import Orders
from exodus.plan.bounds import (
    HELD_BYTES_MAX,
    SHADOW_PAYLOAD_BYTES_MAX,
    STREAM_FRAME_BYTES,
    SUBSCRIPTIONS_TRACKED_MAX,
    TRANSACTION_BYTES_MAX,
    WHOLE_REPLY_BYTES_MAX,
)
from exodus.plan.vocabulary import JournalMode
from exodus.resp.elements import elements
from exodus.resp.encode import encode, null_array
from exodus.resp.scanner import SKIPPED, Reply, ReplyScanner, Request, RequestScanner

_OUT_OF_BAND = frozenset({b"message", b"pmessage", b"smessage"})
_CONFIRMATIONS = frozenset({b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe"})
_COSMETIC = frozenset({"setinfo", "no-evict", "no-touch"})  # session settings without which every reply is the same
_CLIENT_ID = encode("CLIENT", "ID")
_REPLY_ON = encode("CLIENT", "REPLY", "ON")
_DISCARD = encode("DISCARD")
_REFUSALS = (b"ERR Protocol error", b"ERR unbalanced")
_OFF, _SAMPLE, _ALL = JournalMode.OFF, JournalMode.SAMPLE, JournalMode.ALL
_SHADOW_BYTES_MAX = SHADOW_PAYLOAD_BYTES_MAX
_STREAM_BYTES = STREAM_FRAME_BYTES
_TRANSACTION_BYTES = TRANSACTION_BYTES_MAX
_QUEUE_SLACK = 64  # answered requests that a queue keeps before it moves the others up
_NOTHING = b""
_AS_SOURCE = __file__.endswith(".py")  # a compiled class begins with None and 0 in every field by itself
_QUEUED = b"QUEUED"
_NO_KEYS: list[bytes] = []  # shared, never changed
_NOWHERE_ELSE: list[Key] = []
_INVALIDATE_ALL = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
_ON, _QUIET, _SKIP = 1, 2, 3  # what a CLIENT REPLY asks for
_ALL_NAMES = -1  # an UNSUBSCRIBE of everything: how many confirmations it has is known when its turn comes
_OWN_ID, _LOGIN = 0, 1  # what we ask for ourselves: CLIENT ID, and the login of a client that shows none
_CLIENT_REPLY_WORDS = 3
_HELLO_WORDS = 2  # of a HELLO that brings neither login nor name
_CURSOR_HEAD_BYTES = 40  # of a reply to SCAN: its cursor is in them


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

    def unknown(self, args: list[bytes], db: int) -> None:
        """A command that no server has described was executed: find out what it is, and mark what it wrote."""

    def shadow(self, db: int, request: bytes, reply: bytes, *, write: bool) -> None:
        """Offer a sampled request and its reply to the comparer."""

    def ask_follower(self, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Ask the follower, too, and say so by `Session.from_follower` when `read` is done."""

    def pause_client(self) -> None:
        """Read no more from the application."""

    def resume_client(self) -> None:
        """Read on."""

    def caught_up(self) -> None:
        """Everything that was kept has been forwarded."""

    def unblock(self, client_id: int) -> None:
        """End this connection's blocking command on the authority as if its time were over."""

    def settled(self) -> None:
        """Something that a waiter waits for may be true now (`writes_in_flight`, `idle`)."""

    def close(self, why: str) -> None:
        """End the session; it cannot go on correctly."""


_UNQUEUED = frozenset({Role.EXEC, Role.DISCARD, Role.RESET, Role.QUIT, Role.MULTI, Role.WATCH})  # a MULTI does not queue these


def _has_skipped(keys: list[bytes]) -> bool:
    return any(key is SKIPPED for key in keys)


def _flushes(barrier: Barrier | None, dbs: list[int]) -> list[Barrier]:
    """Return the barriers of a request that runs in one of `dbs`: FLUSHDB flushes the database that the session is in by then."""
    if barrier is None:
        return []
    return [Barrier("flushdb", (db,)) for db in dbs] if barrier.what == "flushdb" else [barrier]


class Effect(NamedTuple):
    """What a queued command does besides writing its keys."""

    place: int  # of the command in the transaction
    role: Role  # SELECT, BARRIER or SCAN
    db: int = 0
    barrier: Barrier | None = None


class Transaction:
    """An open MULTI: what was queued, and what EXEC will change."""

    __slots__ = ("count", "items", "raw", "raw_bytes", "session", "texts", "unknown", "unreadable", "unseen", "whole", "writes")

    def __init__(self) -> None:
        self.items: list[Effect | list[bytes] | list[Key]] = []  # in order; keys with or without their database
        self.count = 0  # of commands
        self.raw: list[bytes] = []  # MULTI itself is not in it
        self.raw_bytes = 0
        self.writes = False
        self.whole = False  # EXEC's reply has to be taken apart
        self.unseen: list[str] = []  # gaps that EXEC opens
        self.unknown: list[list[bytes]] = []  # requests whose command nobody has described
        self.unreadable: str | None = None  # why nothing can be matched any more once EXEC has run
        self.texts: list[bytes] = []  # of scripts
        self.session: list[tuple[int, Pending]] = []  # commands that change the session, with their places

    def run(self, db: int, done: set[int] | None) -> tuple[list[Key], list[Barrier], list[int]]:
        """Return what EXEC may change if it begins in `db`: keys, barriers, and the databases that it may end in.

        `done` are the positions of the commands that were answered without an error; None: not known.
        """
        keys: list[Key] = []
        barriers: list[Barrier] = []
        dbs = [db]
        for item in self.items:
            if isinstance(item, Effect):
                if item.role is Role.SELECT:
                    if done is None:
                        dbs = [*dbs, *([item.db] if item.db not in dbs else [])]
                    elif item.place in done:
                        dbs = [item.db]
                elif item.barrier is not None and (done is None or item.place in done):
                    barriers.extend(_flushes(item.barrier, dbs))
            else:
                for entry in item:
                    if isinstance(entry, bytes):
                        keys.extend([(each, entry) for each in dbs])
                    else:
                        keys.append(entry)
        return keys, barriers, dbs


class Pending:
    """A request that the authority has not answered yet."""

    __slots__ = (
        "barrier", "block", "canary", "command", "confirms", "cursor", "deadline", "elsewhere", "expected", "key", "keys", "names", "odd", "queued",
        "quiet", "raw", "rewritten", "select", "shadowed", "since", "size", "substitute", "swallow", "text", "transaction", "unknown", "unseen",
        "whole", "write",
    )  # fmt: skip

    def begin(self, command: Command, since: float, size: int) -> None:
        """What `__init__` would do."""
        self.command = command
        self.since = since
        self.size = size
        self.keys = _NO_KEYS  # of a write
        self.elsewhere = _NOWHERE_ELSE  # keys in another database than the session's
        self.expected = 1  # confirmations still to come
        self.names = _NO_KEYS  # channels; or all arguments, where they change the session
        self.raw = _NOTHING  # the request, where it may have to be sent again or shown to the comparer
        if _AS_SOURCE:
            self.key: bytes | None = None  # the first one, read or written, for the counters
            self.write = False
            self.queued = False  # predicted to be queued in a MULTI
            self.swallow = False  # ours, not the client's: its reply is dropped
            self.substitute: bytes | None = None  # what the client gets instead of the reply
            self.confirms = False  # answered by confirmations, one a channel
            self.select: int | None = None
            self.quiet = 0  # what a CLIENT REPLY asks for
            self.transaction: Transaction | None = None
            self.barrier: Barrier | None = None
            self.block: Timeout | None = None
            self.deadline: float | None = None
            self.shadowed = False  # picked: for the comparer, or as a canary read
            self.canary: CanaryRead | None = None
            self.rewritten: bytes | None = None  # what is sent instead of the client's bytes
            self.unseen: str | None = None  # the gap that this request opens where it is not refused
            self.unknown: list[bytes] | None = None  # the request, where nobody has described its command
            self.text: bytes | None = None  # of a script, or its digest
            self.odd = False  # one server takes the request, and another refuses it as a protocol error
            self.whole = False  # the reply is taken apart, or changed: it is kept until it is complete
            self.cursor = False  # the reply has a cursor that has to say from which authority it is


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


class Unanswered(NamedTuple):
    """What a session had under way: keys and barriers, and the gaps that what cannot be named opens."""

    keys: list[Key]
    barriers: list[Barrier]
    gaps: list[str]

    def __bool__(self) -> bool:
        return bool(self.keys or self.barriers or self.gaps)


class Stage(NamedTuple):
    """Requests that are replayed together on a new leg."""

    requests: list[bytes]
    optional: frozenset[int] = frozenset()  # positions of those that the server may refuse
    user: bytes | None = None  # who the session has to be afterwards
    confirmations: int = 0  # of a subscription, in place of a reply


class Session:
    """The state machine. One instance a client connection, for all the legs it has in its life."""

    def __init__(self, out: Outlet, orders: Orders) -> None:
        self.out = out
        self.orders = orders
        self.logins: Logins | None = None  # of the leg: what is said there in place of what the client says
        self.db = 0
        self.protocol = 2
        self.tag = orders.tag  # of the leg's authority, see cursors.py
        self.client_id: int | None = None  # of the leg, asked for before the first blocking command
        self.name = b""
        self.watching = False
        self.watch_lost = False  # the leg was replaced: the next EXEC must fail
        self.in_multi = False  # as the authority answered
        self.transaction: Transaction | None = None  # as predicted, for what is not answered yet
        self.opaque: str | None = None
        self.unknown_state: str | None = None  # why the session's state is not known well enough to be carried over
        self.streaming_reply = False  # MONITOR, PSYNC: whatever comes goes to the client
        self.tracking = False
        self.tracking_redirected = False  # to another connection, whose id is another on another server
        self.channels: set[bytes] = set()  # as confirmed, each behind its kind
        self.replay: dict[str, bytes] = {}  # session commands in the order in which they took effect
        self.frozen = False
        self.turn = 0  # requests in the bytes that were read last
        self.pending = PendingQueue()
        self.writes_in_flight = 0
        self._requests = RequestScanner(orders.table.kept)
        self._replies = ReplyScanner()
        self._unsent = b""  # the unfinished request, not forwarded yet
        self._streaming = False  # the unfinished request is being forwarded while it arrives
        self._backlog: list[bytes] = []  # held: everything from the first held frame on
        self._backlog_bytes = 0
        self._held = False
        self._edits = 0  # reasons why replies may not simply be passed on
        self._reply_unsent = b""  # the unfinished reply that may have to be dropped
        self._reply_sent = 0  # bytes of the unfinished reply that went out already
        self._silent = False  # CLIENT REPLY OFF
        self._skip_next = False  # CLIENT REPLY SKIP was answered: the next reply is dropped
        self._quiet_asked = False  # one of them may be on its way
        self._spoken = False  # the reply that was just matched is passed on although the client asked for silence
        self._login_waits = False  # a login is kept until what is before it was answered
        self._unblocking = False  # CLIENT UNBLOCK was sent for the first pending request
        self._unread = False  # bytes that we cannot read were forwarded, and the authority has said nothing of them yet
        self._suspend_fence = False  # the authority has done something for this session
        self._closing = False  # it said that it closes the connection
        self._accepted = False  # it took them, or what was matched to what is not known: each write is a gap
        self._client_id_asked = False
        self._protocol_admitted = 2  # the last one that was asked for, where that is known
        self._selects_in_flight = 0
        self._db_admitted = 0
        self._waiting: deque[bytes | CanaryRead] = deque()  # from the first canary read that is not decided on, in the client's order
        self._barriers: list[Barrier] = []  # of what is about to be forwarded
        self._injected = b""  # of ours, to be sent before the request that is being admitted

    # ------------------------------------------------------------------ from the client

    def from_client(self, data: bytes, now: float) -> None:
        """Take bytes from the application."""
        if self._held:
            self._keep(data)
            return
        if self.opaque is not None:
            self._relay_unread(data)
            return
        buffered = self._unsent + data if self._unsent else data
        already = self._requests.partial_bytes if self._streaming else 0  # of the first frame, forwarded before
        requests = self._requests.feed(data)
        self.turn = len(requests)
        start = 0  # of the next frame in `buffered`
        sent = 0  # forwarded up to here
        intents: list[Key] = []
        holding = self.frozen or self.orders.hold
        for request in requests:
            end = start + request.size - already
            if holding and not self._streaming and self._must_hold(request.args):
                self._forward(buffered, sent, start, intents)
                self._hold(buffered[start:])
                return
            if request.args:
                command = self.orders.table.of(request.args)
                if not command.plain and not self._streaming and self._must_wait(command, request.args):
                    self._forward(buffered, sent, start, intents)
                    self._login_waits = True
                    self._hold(buffered[start:])
                    return
                self._streaming = False
                found = self._admit(command, request, buffered, 0 if already else start, 0 if already else end, now)
                if found.rewritten is not None and command.role is Role.RESET:
                    self._forward(buffered, sent, start, intents)
                    self.out.to_server(found.rewritten)
                    self._login_waits = True
                    self._hold(buffered[end:])
                    return
                if self._injected:
                    self._forward(buffered, sent, start, intents)
                    sent, intents = start, []
                    self.out.to_server(self._injected)
                    self._injected = _NOTHING
                if found.write:
                    self._add_keys(found, intents)
                if found.rewritten is not None:
                    self._forward(buffered, sent, start, intents)
                    sent, intents = end, []
                    self.out.to_server(found.rewritten)
                elif found.substitute is not None:
                    self._forward(buffered, sent, start, intents)
                    sent, intents = end, []
                    self.out.to_server(_DISCARD)
            already = 0
            start = end
        if self._requests.broken is not None:
            self._forward(buffered, sent, start, intents)
            if holding and not self._streaming:
                self._hold(buffered[start:])
                return
            self._unsent = _NOTHING
            self._go_unread(self._requests.broken)
            self.out.to_server(buffered[start:])
            return
        limit = _STREAM_BYTES if self.transaction is None else _TRANSACTION_BYTES
        # What is announced to be long is forwarded at once: the server may refuse so much, and says so at once.
        if self._streaming or len(buffered) - start > limit or self._requests.announced > limit:
            args = self._requests.args
            if holding and not self._streaming and (not args or self._must_hold(args)):
                self._forward(buffered, sent, start, intents)
                self._hold(buffered[start:])
                return
            self._streaming = True
            start = len(buffered)
        self._forward(buffered, sent, start, intents)
        self._unsent = buffered[start:] if start < len(buffered) else _NOTHING

    def _forward(self, buffered: bytes, sent: int, end: int, intents: list[Key]) -> None:
        if intents and self.orders.journal is not _OFF:
            self.out.log_intents(intents, None)
        if self._barriers:
            self._log_barriers()
        if end > sent:
            self.out.to_server(buffered[sent:end] if sent or end < len(buffered) else buffered)

    def _log_barriers(self) -> None:
        barriers, self._barriers = self._barriers, []
        for barrier in barriers if self.orders.journal is not _OFF else ():
            self.out.log_intents([], barrier)

    def _go_unread(self, why: str) -> None:
        """Forward what comes from here on without reading it; until the authority says what it thinks of it, it counts as a write."""
        self.opaque = why
        self._count_unread()

    def _count_unread(self) -> None:
        if not self._unread:
            self._unread = True
            self.writes_in_flight += 1

    def _relay_unread(self, data: bytes) -> None:
        if self.streaming_reply:
            # A connection that watches may not touch keys (run on all servers that we know), unless RESET ends that.
            ends = any(request.args and self.orders.table.of(request.args).role is Role.RESET for request in self._requests.feed(data))
            if ends or self._requests.broken is not None:
                self.streaming_reply, self._accepted = False, True
        whole, self._unsent = self._unsent + data, _NOTHING  # the request that was not complete when this began
        if not self.streaming_reply:
            if self.orders.hold or self.frozen:
                self._held = True
                self._keep(whole)
                return
            if self._accepted:
                self._open_gap(UNREADABLE)
            elif not self._closing:
                self._count_unread()
        self.out.to_server(whole)

    def _open_gap(self, why: str) -> None:
        if self.orders.journal is _ALL and (why != SCRIPTS or self.orders.scripts_unseen):
            self.out.gap(why)

    def _lose_count(self, why: str) -> None:
        """Replies and requests do not match: nothing of this connection is known any more, from now on and of what is under way."""
        self.opaque = self.opaque or why
        self._accepted = True
        self._open_gap(why)

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
        if command.role is Role.REPLACES:
            return replaces_data(command.name, args)
        return command.write or command.role is Role.BARRIER

    def _must_wait(self, command: Command, args: list[bytes]) -> bool:
        """Whether a request may be forwarded only when all before it was answered.

        Redis from 7.2 on does not answer a login that it refuses while it still has other replies to send: requests
        and replies would not match from there on. And a CLIENT REPLY is kept from the server, unless it is queued: it
        has to be known which.
        """
        certain = bool(self.in_multi) == (self.transaction is not None)
        if not self.pending.count or (self.in_multi and certain):
            return False
        if command.role is Role.CLIENT:
            return not certain and len(args) == _CLIENT_REPLY_WORDS and args[1].upper() == b"REPLY"
        return command.role is Role.AUTH or (command.role is Role.HELLO and len(args) > _HELLO_WORDS)

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

    def _admit(self, command: Command, request: Request, buffered: bytes, start: int, end: int, now: float) -> Pending:
        """Note a request that is about to be forwarded; what has to be sent before it is left in `_injected`.

        Its bytes are `buffered[start:end]`; none where a part of it was forwarded before.
        """
        args = request.args
        orders = self.orders
        pending = _pending(command, now, request.size)
        if 0 < command.first < len(args) and args[command.first] is not SKIPPED:
            pending.key = args[command.first]
        if command.write:
            pending.write = True
            pending.keys = command.keys(args)
            if request.skipped and _has_skipped(pending.keys):
                pending.unseen = LONG_KEY
            if not command.known:
                pending.unknown = args
        pending.odd = request.odd
        transaction = self.transaction
        if command.role is not Role.PLAIN:
            self._describe(pending, args, skipped=request.skipped)
        if transaction is None and command.plain:
            pass  # by far the most
        elif transaction is not None and command.role not in _UNQUEUED:
            self._queue(transaction, pending, buffered[start:end], request.size)
        elif command.role is not Role.PLAIN:
            self._injected = self._admit_special(pending, args, buffered[start:end], now)
        if (
            orders.picks
            and transaction is None
            and (command.plain or (orders.shadow_scripts and command.script and not pending.write))
            and not self._quiet_asked
            and command.name not in NOT_COMPARABLE
            and request.size <= _SHADOW_BYTES_MAX
        ):
            self._pick(pending, args, buffered[start:end])
        self.pending.push(pending)
        if pending.write:
            self.writes_in_flight += 1
        if pending.rewritten is not None and command.role is Role.RESET:
            self._expect_own(now, _LOGIN)
        if pending.shadowed or pending.substitute is not None or pending.whole or pending.quiet > _ON:
            self._edits += 1
        return pending

    def _pick(self, pending: Pending, args: list[bytes], raw: bytes) -> None:
        """Look at a request more closely, where its one key is in a share."""
        orders = self.orders
        keys = pending.keys or pending.command.keys(args)
        if len(keys) != 1 or not raw:
            return
        # Only what two healthy servers answer with the same bytes; and of database 0, which is the one that our connections are in.
        if (
            orders.canary_below
            and not pending.write
            and pending.command.name in EXACT_ELSEWHERE
            and not self._db_admitted
            and not self._selects_in_flight
            and self._protocol_admitted
            and chosen(keys[0], orders.canary_below)
        ):
            pending.canary = CanaryRead()
        elif not (orders.shadow_below and orders.sampled(keys[0])):
            return
        pending.raw = raw
        pending.shadowed = True

    def _describe(self, pending: Pending, args: list[bytes], *, skipped: bool) -> None:
        """Note what the request does beyond its keys where it is executed, now or by EXEC. Changes nothing of the session."""
        role = pending.command.role
        if role is Role.SELECT:
            pending.select = database(args[1]) if len(args) == 2 else None
        elif role is Role.SUBSCRIBE:
            pending.confirms = True
            pending.names = args[1:]
            pending.expected = len(args) - 1 or 1
        elif role is Role.UNSUBSCRIBE:
            pending.confirms = True
            pending.names = args[1:]
            pending.expected = len(args) - 1 or _ALL_NAMES
        elif role in (Role.AUTH, Role.HELLO, Role.CLIENT):
            pending.names = [] if skipped else args
            if role is Role.CLIENT and len(args) == 3 and args[1].upper() == b"REPLY":
                pending.quiet = {b"ON": _ON, b"OFF": _QUIET, b"SKIP": _SKIP}.get(args[2].upper(), 0)
        elif role is Role.BARRIER:
            pending.write = True
            pending.barrier = barrier_of(pending.command, args, self._db_admitted)
        elif role is Role.MOVES_DB:
            pending.elsewhere = keys_elsewhere(pending.command, args)
        elif role is Role.SCRIPT:
            if pending.write:
                pending.unseen = SCRIPTS  # where no feed hears of it by the time it is answered
            if pending.write and not pending.keys:
                self.orders.risks["script without declared keys"] += 1
            if len(args) > 1 and args[1] is not SKIPPED and not pending.command.name.startswith(b"FCALL"):
                pending.text = args[1]
        elif role is Role.SCRIPTS:
            if len(args) == 3 and args[1].upper() == b"LOAD" and args[2] is not SKIPPED:
                pending.text = args[2]
        elif role is Role.REPLACES and replaces_data(pending.command.name, args):
            pending.write, pending.unseen = True, REPLACED

    def _queue(self, transaction: Transaction, pending: Pending, raw: bytes, size: int) -> None:
        role = pending.command.role
        pending.queued = True
        transaction.raw_bytes += size if raw else _TRANSACTION_BYTES + 1
        if transaction.raw_bytes <= _TRANSACTION_BYTES:
            transaction.raw.append(raw)
        index = transaction.count
        transaction.count += 1
        if role is Role.SELECT:
            if pending.select is not None:
                transaction.items.append(Effect(index, role, db=pending.select))
                transaction.whole = True
        elif role is Role.SCAN:
            if self.tag:
                transaction.items.append(Effect(index, role))
                transaction.whole = True
        elif role in (Role.SUBSCRIBE, Role.UNSUBSCRIBE, Role.STREAMING) or pending.quiet:
            # How many replies come depends on what EXEC makes of it.
            transaction.unreadable = UNMATCHED
            pending.quiet = 0
        elif role in (Role.CLIENT, Role.AUTH, Role.HELLO):
            transaction.session.append((index, pending))
            transaction.whole = True
        elif pending.barrier is not None:
            transaction.items.append(Effect(index, role, barrier=pending.barrier))
        elif role is Role.MOVES_DB:
            transaction.items.append(pending.elsewhere)
        pending.confirms = False
        if pending.unseen is not None and pending.unseen not in transaction.unseen:
            transaction.unseen.append(pending.unseen)
        if pending.unknown is not None:
            transaction.unknown.append(pending.unknown)
        if pending.text is not None and pending.command.name.startswith(b"EVAL"):
            transaction.texts.append(pending.text)
        if pending.write:
            transaction.writes = True
            if pending.keys:
                transaction.items.append(pending.keys)

    def _admit_special(self, pending: Pending, args: list[bytes], raw: bytes, now: float) -> bytes:
        role = pending.command.role
        if role is Role.MULTI:
            if self.transaction is None and len(args) == 1:
                pending.transaction = self.transaction = Transaction()
        elif role is Role.EXEC:
            pending.transaction, self.transaction = self.transaction, None
            if pending.transaction is not None:
                pending.write = pending.transaction.writes
                pending.whole = pending.transaction.whole
            if self.watch_lost and pending.transaction is not None:
                pending.substitute = null_array(self.protocol)
                pending.write = pending.whole = False
                self.watch_lost = False
        elif role is Role.UNWATCH:
            self.watch_lost = self.watch_lost and len(args) != 1
        elif role in (Role.DISCARD, Role.RESET):
            if len(args) == 1:
                self.watch_lost = self.watch_lost and role is Role.DISCARD and self.transaction is None
                self.transaction = None
            if role is Role.RESET and self.logins is not None and self.logins.unasked:
                pending.rewritten = raw + self.logins.unasked
        elif role is Role.SELECT:
            if pending.select is not None:
                self._selects_in_flight += 1
                self._db_admitted = pending.select
        elif role in (Role.AUTH, Role.HELLO):
            if role is Role.HELLO and len(args) > 1:
                self._protocol_admitted = 0
            if self.logins is not None and pending.names:
                pending.rewritten = self.logins.said_to_target(args)
        elif role is Role.CLIENT:
            if pending.quiet > _ON:
                pending.rewritten = _REPLY_ON  # as long, and refused to whom the other would be
                self._quiet_asked = True
        elif role is Role.BLOCKING:
            pending.block = block_timeout(pending.command.name, args)
            if pending.block is not None:
                pending.raw = raw or encode(*args)
                try:
                    seconds = float(args[pending.block.position]) * pending.block.unit_s
                except (ValueError, IndexError):
                    seconds = 0.0  # the server will refuse it
                pending.deadline = now + seconds if seconds > 0 else None
                if self.client_id is None and not self._client_id_asked and not self.channels and not self.in_multi:
                    self._client_id_asked = True
                    self._expect_own(now, _OWN_ID)
                    return _CLIENT_ID
        elif role is Role.SCAN:
            self._admit_scan(pending, args)
        return b""

    def _admit_scan(self, pending: Pending, args: list[bytes]) -> None:
        """Give the server its own cursor, or the beginning where another authority gave it."""
        at = 1 if pending.command.name == b"SCAN" else 2
        if not self.tag or len(args) <= at or _has_skipped(args):
            return
        pending.whole = pending.cursor = True
        cursor = own(args[at], self.tag)
        if cursor != args[at]:
            pending.rewritten = encode(*args[:at], cursor, *args[at + 1 :])

    def _add_keys(self, pending: Pending, intents: list[Key]) -> None:
        """Append what the request may change; the case of one command in one database goes without a list of its own."""
        if pending.transaction is None and not self._selects_in_flight and pending.barrier is None and not pending.elsewhere:
            db = self._db_admitted
            for key in pending.keys:
                intents.append((db, key))  # noqa: PERF401 - no closure in the compiled form
        else:
            keys, found = self._effects_of(pending)
            intents.extend(keys)
            self._barriers.extend(found)

    def _effects_of(self, pending: Pending) -> tuple[list[Key], list[Barrier]]:
        """Return what a request may change, with databases as far as they are known now."""
        dbs = [self._db_admitted]
        if self._selects_in_flight:  # any of these may fail
            dbs = list({self.db, self._db_admitted, *[each.select for each in self.pending if each.select is not None]})
        if pending.transaction is None:
            return [(db, key) for db in dbs for key in pending.keys] + pending.elsewhere, _flushes(pending.barrier, dbs)
        keys: list[Key] = []
        barriers: list[Barrier] = []
        for db in dbs:
            more, flushes, _ = pending.transaction.run(db, None)
            keys, barriers = keys + more, barriers + flushes
        return keys, barriers

    # ------------------------------------------------------------------ from the authority

    def from_server(self, data: bytes, now: float) -> None:
        """Take bytes from the authority."""
        if self.streaming_reply and not self._waiting:
            self.out.to_client(data)
            return
        marks: list[Key] = []
        if not self._edits:
            # Passed on before it is read. An unfinished reply that is not ours to drop has gone out in part.
            self.out.to_client(self._reply_unsent + data if self._reply_unsent else data)
            self._reply_unsent = b""
            for reply in self._replies.feed(data):
                self._answered(reply, now, marks, _NOTHING)
            self._reply_sent = self._replies.partial_bytes
            self._after_replies(marks, now)
            return
        buffered = self._reply_unsent + data
        at = 0
        passed: list[bytes] = []
        for reply in self._replies.feed(data):
            end = at + reply.size - self._reply_sent
            self._reply_sent = 0
            frame = buffered[at:end]
            silent = self._silent or self._skip_next
            self._spoken = False
            frame = self._answered(reply, now, marks, frame)
            if silent and not self._spoken:
                pass
            elif self._waiting:
                self._waiting.append(frame)
            else:
                passed.append(frame)
            at = end
        rest = buffered[at:]
        if rest and self._may_pass_in_part(len(rest)):
            head = self.pending.head
            if head is not None and head.cursor:
                passed.append(self._mark_cursor(rest))
                head.whole = head.cursor = False
                self._edits -= 1
            else:
                passed.append(rest)
            self._reply_sent = self._replies.partial_bytes
            rest = b""
        elif rest and len(rest) > _SHADOW_BYTES_MAX and self._drops_in_part(rest):
            self._reply_sent = self._replies.partial_bytes
            rest = b""
        self._reply_unsent = rest
        whole = b"".join(passed)
        if whole:
            self.out.to_client(whole)
        self._after_replies(marks, now)

    def _may_pass_in_part(self, unfinished_bytes: int) -> bool:
        if self._waiting or self._silent or self._skip_next:
            return False
        head = self.pending.head
        if head is None:
            return True
        if head.swallow or head.substitute is not None or self._unblocking or head.quiet > _ON:
            return False
        if head.shadowed:
            if unfinished_bytes <= SHADOW_PAYLOAD_BYTES_MAX:
                return False
            head.shadowed, head.canary = False, None  # too large to be kept
            self._edits -= 1
        if head.cursor:
            return unfinished_bytes >= _CURSOR_HEAD_BYTES
        if head.whole:
            if unfinished_bytes <= WHOLE_REPLY_BYTES_MAX:
                return False
            head.whole = False
            self._edits -= 1
        return True

    def _drops_in_part(self, rest: bytes) -> bool:
        """Whether an unfinished long reply is one that the client does not want."""
        return (self._silent or self._skip_next) and (self._reply_sent > 0 or rest[:1] != b">") and not self.channels and not self._waiting

    def _after_replies(self, marks: list[Key], now: float) -> None:
        if marks:
            self.out.journal(marks, None)
        if self._login_waits and not self.pending.count and not self.frozen:
            self.thaw(now)
        if self._replies.broken is not None and not self._accepted and not self.streaming_reply:
            self._lose_count(f"a reply could not be read: {self._replies.broken}")
        if self.orders.hold and not self.writes_in_flight:
            self.out.settled()

    def _answered(self, reply: Reply, now: float, marks: list[Key], frame: bytes) -> bytes:
        """Match one reply to its request; returns what the client gets of it (only used where replies are edited)."""
        if reply.kind == 0x3E:  # a push of RESP3
            return self._pushed(reply, now, frame)
        failed = reply.kind in (0x2D, 0x21)
        if self.channels and self.protocol == 2 and reply.first in _OUT_OF_BAND:
            self._spoken = not self.orders.silence_covers_pushes
            return frame
        if not self.pending.count:
            return self._unasked(reply, frame, failed=failed)
        pending = self.pending.pop()
        if pending.confirms and not failed and self._confirmed_one(pending, reply):
            self.pending.put_back(pending)
            return frame
        command = pending.command
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
        if not self._suspend_fence and not failed and command.role is not Role.RESET and command.role is not Role.QUIT:
            self._suspend_fence = True
        if self._skip_next:
            self._skip_next = False
            self._edits -= 1
            self._quiet_asked = self._silent
        if failed and (pending.odd or not command.script) and reply.head.startswith(_REFUSALS):
            self._refuse_all()
        error = reply.head.split(b" ", 1)[0] if failed else _NOTHING
        self.orders.telemetry.observe(command, pending.key, now - pending.since, pending.size, reply.size, error)
        if pending.substitute is not None:
            self._edits -= 1
            self.in_multi = self.watching = False
            return frame if failed else pending.substitute
        done: set[int] | None = None
        if pending.whole:
            self._edits -= 1
            if not failed and not reply.nil:
                frame, done = self._taken_apart(pending, frame)
        if pending.queued and self.in_multi:
            if not failed and reply.head != _QUEUED:
                self._lose_count(UNMATCHED)
        else:
            if self.in_multi and reply.head == _QUEUED and reply.kind == 0x2B:
                self._lose_count(UNMATCHED)  # a command that was to end the transaction did not
            refused = failed and (self._closing or command.refused(reply.head))
            if pending.write and not refused and self.orders.journal is not _OFF:
                self._mark(pending, reply, marks, done)
            if not command.plain:
                self._apply(pending, reply, failed, done)
            if not failed and pending.text is not None:
                self._note_script(pending)
            if pending.quiet > _ON and not failed:
                return _NOTHING
        if pending.shadowed:
            if pending.canary is not None:
                return self._compare(pending.canary, pending.raw, frame, failed)
            self._edits -= 1
            if not failed:
                self.out.shadow(self.db, pending.raw, frame, write=pending.write)
        return frame

    def _pushed(self, reply: Reply, now: float, frame: bytes) -> bytes:
        """No request waits for a push, but a subscription's confirmations are some."""
        self._spoken = not self.orders.silence_covers_pushes
        head = self.pending.head
        if head is not None and head.confirms and reply.first in _CONFIRMATIONS and not self._confirmed_one(head, reply):
            self.pending.pop()
            if self._skip_next:
                self._skip_next = False
                self._edits -= 1
            self.orders.telemetry.observe(head.command, head.key, now - head.since, head.size, reply.size, _NOTHING)
        return frame

    def _confirmed_one(self, pending: Pending, reply: Reply) -> bool:
        """Take one confirmation over; whether the request has more to come."""
        if reply.first not in _CONFIRMATIONS:
            self._lose_count(UNMATCHED)
            return False
        kind = pending.command.name
        if pending.command.role is Role.SUBSCRIBE:
            name = pending.names[len(pending.names) - pending.expected] if pending.names else b""
            if name is SKIPPED or len(self.channels) >= SUBSCRIPTIONS_TRACKED_MAX:
                self.unknown_state = "more subscriptions than are tracked"
            else:
                self.channels.add(kind + b" " + name)
        else:
            kind = kind.replace(b"UNSUBSCRIBE", b"SUBSCRIBE") + b" "
            if pending.expected == _ALL_NAMES:
                pending.names = [entry[len(kind) :] for entry in self.channels if entry.startswith(kind)]
                pending.expected = len(pending.names) or 1
            if pending.names:
                self.channels.discard(kind + pending.names[len(pending.names) - pending.expected])
        pending.expected -= 1
        self._spoken = not self.orders.silence_covers_pushes
        return pending.expected > 0

    def _unasked(self, reply: Reply, frame: bytes, *, failed: bool) -> bytes:
        """A reply that no request waits for: what the authority thinks of what we could not read, or its last word before it closes."""
        if self._unread:
            self._unread = False
            self.writes_in_flight -= 1
        if failed and reply.head.startswith(_REFUSALS):
            self._refuse_all()
        elif self.opaque is None:
            if not failed:
                self._lose_count(UNMATCHED)
        elif not self._accepted and reply.head != b"RESET" and not (failed and reply.head.startswith(REFUSALS)):
            self._accepted = True
            self._open_gap(UNREADABLE)
        return frame

    def _taken_apart(self, pending: Pending, frame: bytes) -> tuple[bytes, set[int] | None]:
        """Look into a whole reply: what to pass on, and which commands of a transaction were done."""
        if pending.cursor:
            return self._mark_cursor(frame), None
        transaction = pending.transaction
        if transaction is None:
            return frame, None
        try:
            parts = elements(frame)
        except ValueError:
            return frame, None
        if len(parts) != transaction.count:
            self._lose_count(UNMATCHED)
            return frame, None
        scans = {item.place for item in transaction.items if isinstance(item, Effect) and item.role is Role.SCAN}
        if scans:
            head = frame[: parts[0].start]
            changed = [
                self._mark_cursor(frame[part.start : part.end]) if index in scans else frame[part.start : part.end]
                for index, part in enumerate(parts)
            ]
            frame = head + b"".join(changed)
        return frame, {index for index, part in enumerate(parts) if not part.error}

    def _mark_cursor(self, frame: bytes) -> bytes:
        found = marked(frame, self.tag)
        if found is None:
            self.orders.risks["a SCAN cursor has no room for where it is from"] += 1
            return frame
        return found

    def _note_script(self, pending: Pending) -> None:
        text, scripts = pending.text, self.orders.scripts
        if text is not None:
            scripts.ask(text) if pending.command.name.startswith(b"EVALSHA") else scripts.see(text)

    # ------------------------------------------------------------------ canary reads

    def _compare(self, read: CanaryRead, raw: bytes, frame: bytes, failed: bool) -> bytes:
        """The authority has answered a canary read: what the client gets now. The read counts as an edit until it is decided.

        The follower is asked only now: it runs it as Exodus, and must not run what the authority refuses this client.
        """
        read.frame, read.refused = frame, failed
        if failed:
            read.done = True
        else:
            self.out.ask_follower(read, raw, self.protocol)
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

    def _mark(self, pending: Pending, reply: Reply, marks: list[Key], done: set[int] | None) -> None:
        """Mark what an answered request may have changed; what cannot be named is a gap."""
        transaction = pending.transaction
        orders = self.orders
        if transaction is None and pending.barrier is None and orders.journal is not _SAMPLE:
            db = self.db
            for key in pending.keys:
                marks.append((db, key))  # noqa: PERF401 - no closure in the compiled form
            if pending.elsewhere:
                marks.extend(pending.elsewhere)
            if pending.unseen is not None:
                self._open_gap(pending.unseen)
            if pending.unknown is not None and orders.journal is _ALL:
                self.out.unknown(pending.unknown, db)
            return
        barriers: list[Barrier] = []
        if transaction is not None:
            if reply.nil:
                return
            keys, barriers, _ = transaction.run(self.db, done)
            for why in transaction.unseen:
                self._open_gap(why)
            if orders.journal is _ALL:
                for args in transaction.unknown:
                    self.out.unknown(args, self.db)
        else:
            keys = [(self.db, key) for key in pending.keys] + pending.elsewhere
            barriers = _flushes(pending.barrier, [self.db])
        if orders.journal is _SAMPLE:
            keys = [key for key in keys if orders.sampled(key[1])]
        marks.extend(keys)
        for barrier in barriers:
            self.out.journal([], barrier)

    def _apply(self, pending: Pending, reply: Reply, failed: bool, done: set[int] | None) -> None:
        """Take over what an answered command did to the session."""
        role = pending.command.role
        if role is Role.SELECT:
            if pending.select is not None and not pending.queued:
                self._selects_in_flight -= 1
            if not failed:
                if pending.select is None:
                    self._lose_count(UNMATCHED)
                else:
                    self.db = pending.select
            if not self._selects_in_flight:
                self._db_admitted = self.db
        elif role is Role.MULTI:
            if not failed:
                self.in_multi = True
            elif self.transaction is pending.transaction:
                self.transaction = None
        elif role is Role.EXEC:
            if self.in_multi:
                self.in_multi = self.watching = False
                if not failed and not reply.nil and pending.transaction is not None:
                    self._apply_transaction(pending.transaction, done)
        elif role is Role.DISCARD:
            if not failed:
                self.in_multi = self.watching = False
        elif role is Role.WATCH:
            self.watching = self.watching or not failed
        elif role is Role.UNWATCH:
            self.watching = self.watching and failed
        elif role is Role.RESET:
            if not failed:
                self._reset()
        elif role in (Role.HELLO, Role.AUTH, Role.CLIENT):
            self._apply_login(pending, reply.head, failed)
        elif role is Role.QUIT and not failed:
            self._refuse_all()
        elif role is Role.STREAMING and not failed:
            self.opaque, self.streaming_reply = pending.command.name.decode(), True

    def _refuse_all(self) -> None:
        """The authority closes the connection, and executes nothing of what is under way."""
        self.opaque = self.opaque or "the authority closes the connection"
        self._closing = True
        self._unread = False
        for pending in self.pending:
            self._edits -= pending.shadowed or pending.substitute is not None or pending.whole or pending.quiet > _ON or pending.swallow
        self.pending.clear()
        self.writes_in_flight = 0

    def _apply_transaction(self, transaction: Transaction, done: set[int] | None) -> None:
        _, _, dbs = transaction.run(self.db, done)
        self.db = dbs[-1]
        if len(dbs) > 1:
            self._lose_count(UNMATCHED)  # its reply was too large to be looked into
        if not self._selects_in_flight:
            self._db_admitted = self.db
        for place, pending in transaction.session:
            if done is None:
                self.unknown_state = "session commands inside MULTI"
            else:
                self._apply_login(pending, b"", place not in done)
        for text in transaction.texts:
            if len(text) != 40:
                self.orders.scripts.see(text)
            else:
                self.orders.scripts.ask(text)
        if transaction.unreadable is not None:
            self._lose_count(transaction.unreadable)

    def _apply_login(self, pending: Pending, head: bytes, failed: bool) -> None:
        """HELLO, AUTH and CLIENT: what is said again on another leg."""
        args, role = pending.names, pending.command.role
        quiet = pending.quiet
        if role is Role.HELLO and len(args) != 1:
            if not failed and len(args) > 1:
                self.protocol = 3 if args[1] == b"3" else 2
            self._protocol_admitted = self.protocol
        if quiet > _ON:
            if failed or self._silent or pending.queued:
                self._edits -= 1
            elif quiet == _QUIET:
                self._silent = True  # the edit is kept until it ends
            else:
                self._skip_next = True
        elif quiet == _ON and not failed:
            self._spoken = True
            self._speak()
        if failed:
            # Its AUTH may have been done before another word of it was refused (Redis 6.2).
            if role is Role.HELLO and len(args) > 2 and head.startswith(b"ERR"):
                self.unknown_state = "a HELLO that was refused in part"
            return
        if not args:
            self.unknown_state = "a session command that is longer than is kept"
            return
        for slot, raw in _states(role, args):
            self.replay.pop(slot, None)
            self.replay[slot] = raw
            if slot == "setname":
                self.name = _name_in(raw)
            elif slot == "tracking":
                self.tracking = args[2].upper() == b"ON"
                self.tracking_redirected = b"REDIRECT" in [arg.upper() for arg in args[3:]]

    def _speak(self) -> None:
        """Silence ends."""
        if self._silent:
            self._silent = False
            self._edits -= 1
        self._quiet_asked = self._skip_next

    def _reset(self) -> None:
        self.replay.clear()
        self.db = self._db_admitted = 0
        self.protocol = self._protocol_admitted = 2
        self.tracking = self.in_multi = self.watching = False
        self.channels.clear()
        self.name = b""
        self._spoken = True
        self._speak()

    def _expect_own(self, now: float, what: int) -> None:
        """Take the next reply for ours: `what` was asked stands in place of the request's size (see `_own_answer`)."""
        pending = _pending(self.orders.table.find(b"CLIENT"), now, what)
        pending.swallow = True
        self.pending.push(pending)
        self._edits += 1

    def log_in(self, logins: Logins | None, now: float) -> None:
        """The session's first leg is there: `logins` are its side's."""
        self.logins = logins
        self.tag = self.orders.tag
        if logins is not None and logins.unasked:
            self._expect_own(now, _LOGIN)
            self.out.to_server(logins.unasked)
            self._held = self._login_waits = True  # refused, nothing behind it may run

    def _own_answer(self, pending: Pending, reply: Reply) -> None:
        if pending.size == _LOGIN:
            self._suspend_fence = self._suspend_fence or reply.kind == 0x2B
            if reply.kind != 0x2B:
                self._login_waits = False  # what was kept is dropped with the connection
                self.out.close("the login that the plan gives was refused")
        elif pending.size == _OWN_ID:
            self._client_id_asked = False
            if reply.kind == 0x3A:
                self.client_id = int(reply.head)

    # ------------------------------------------------------------------ ends

    def server_closed(self) -> None:
        """The leg is gone. What had no answer may have been executed: it counts as changed."""
        self._stop_waiting()
        left = self.unanswered()
        for barrier in left.barriers:
            self.out.journal([], barrier)
        if left.keys and self.orders.journal is not _OFF:
            self.out.journal(left.keys, None)
        for why in left.gaps:
            self._open_gap(why)
        self.pending.clear()
        self._unread = False
        self.writes_in_flight = 0
        self.out.settled()

    def unanswered(self) -> Unanswered:
        """Return what the authority was asked to change and has not answered for.

        Nothing, where it asks for a login and this session has shown none that was taken, nor has one under way.
        """
        logins = any(pending.command.role in (Role.AUTH, Role.HELLO) or pending.swallow for pending in self.pending)
        if self.orders.login_needed and not self._suspend_fence and not logins and not self._unread:
            return Unanswered([], [], [])
        keys: list[Key] = []
        barriers: list[Barrier] = []
        gaps: list[str] = [NO_ANSWER] if self._unread or self._accepted else []  # what could not be read may have been executed
        for pending in self.pending:
            if pending.command.role is Role.QUIT:
                break  # the authority reads nothing behind it
            if not pending.write:
                continue
            found, more = self._effects_of(pending)
            keys.extend(found)
            barriers.extend(more)
            if pending.unseen is not None:
                gaps.append(pending.unseen)
            if pending.unknown is not None:
                gaps.append(NO_ANSWER)
            if pending.transaction is not None:
                gaps.extend(pending.transaction.unseen)
                gaps.extend([NO_ANSWER] if pending.transaction.unknown else [])
        if not self.orders.scripts_unseen:
            gaps = [why for why in gaps if why != SCRIPTS]
        return Unanswered(keys, barriers, list(dict.fromkeys(gaps)))

    def log_pending(self) -> None:
        """Log the intents of what is under way once more: journalling began, or the log's old segments are to go."""
        if self._accepted:
            self._open_gap(UNREADABLE)
        left = self.unanswered()
        if left.keys:
            self.out.log_intents(left.keys, None)
        for barrier in left.barriers:
            self.out.log_intents([], barrier)

    # ------------------------------------------------------------------ hold and handover

    @property
    def idle(self) -> bool:
        """Whether the leg can be replaced: nothing is under way in either direction."""
        under_way = self.pending.count or self._unread or self._streaming or self._reply_sent
        return not (under_way or self._reply_unsent or self._waiting)

    @property
    def unread(self) -> bool:
        """Whether the authority has not said yet what it thinks of bytes that we cannot read."""
        return self._unread

    @property
    def unfinished(self) -> bool:
        """Whether all that keeps a hold from being complete is a long write whose end the client has not sent."""
        return not self.writes_in_flight and self._streaming and self._streams_write()

    @property
    def uncounted(self) -> bool:
        """Whether what the session writes is known to nobody."""
        return self._accepted

    @property
    def cannot_switch(self) -> str | None:
        """Why this session cannot be carried to another server, or None."""
        if self.opaque is not None:
            return self.opaque
        if self.unknown_state is not None:
            return self.unknown_state
        if self.tracking and (self.tracking_redirected or self.protocol == 2):
            return "client tracking that is redirected"
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

    @property
    def confirmed(self) -> bool:
        """Whether every write that was forwarded is known to be executed or not."""
        # A long write that is forwarded while it arrives is executed when its end has come: it counts from its beginning.
        return not self.writes_in_flight and not (self._streaming and self._streams_write())

    def _streams_write(self) -> bool:
        command = self.orders.table.of(self._requests.args) if self._requests.args else None
        return command is None or command.write or command.role is Role.BARRIER

    def freeze(self) -> None:
        """Hold everything from the next request on, reads too."""
        self.frozen = True

    def replay_stages(self, logins: Logins | None = None) -> list[Stage]:
        """Return what to send on a new leg before anything else, stage after stage.

        Nothing is sent behind a command whose failure would change its meaning (principle 6): each login is a stage of
        its own, and a transaction's requests follow when MULTI was taken. `logins` are those of the leg's side.
        """
        stages = [Stage([logins.unasked])] if logins is not None and logins.unasked else []
        state: list[bytes] = []
        optional: set[int] = set()
        for slot, raw in self.replay.items():
            if slot == "auth":
                said = logins.again(raw) if logins is not None else raw
                stages.append(Stage([said], user=_user_in(said)))
                continue
            if slot.partition(" ")[0] in _COSMETIC:  # an older server does not know all that a newer one was told
                optional.add(len(state))
            state.append(raw)
        if self.db:
            state.append(encode("SELECT", self.db))
        if state:
            stages.append(Stage(state, optional=frozenset(optional)))
        for kind in (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"):
            names = sorted(entry.partition(b" ")[2] for entry in self.channels if entry.startswith(kind + b" "))
            if names:
                stages.append(Stage([encode(kind, *names)], confirmations=len(names)))
        if self.transaction is not None:
            stages.append(Stage([encode("MULTI")]))
            if self.transaction.raw:
                stages.append(Stage(list(self.transaction.raw)))
        return stages

    def unasked(self, reply: Reply) -> bool:
        """Whether a reply that comes while the script is replayed is none to it, but a message or an invalidation for the client."""
        if reply.push:
            return reply.first not in _CONFIRMATIONS
        return self.protocol == 2 and reply.first in _OUT_OF_BAND

    def adopt_leg(self, logins: Logins | None = None) -> None:
        """The leg was replaced and the script replayed on it; `logins` are its side's."""
        self.logins = logins
        self.tag = self.orders.tag
        if self.tracking:
            self.out.to_client(_INVALIDATE_ALL)  # what was written while nobody watched, the client must not take from its cache
        self._replies = ReplyScanner()
        self.client_id = None
        self._client_id_asked = False
        self.watch_lost = self.watch_lost or self.watching

    def thaw(self, now: float) -> None:
        """Go on: take what was held as if it arrived now. Writes stay held while `Orders.hold` is on."""
        self.frozen = False
        if not self._held or (self._login_waits and self.pending.count):
            return
        self._held = self._login_waits = False
        data = b"".join(self._backlog)
        self._backlog = []
        self._backlog_bytes = 0
        self.out.resume_client()
        if data:
            self.from_client(data, now)
        if not self._held:
            self.out.caught_up()


def _states(role: Role, args: list[bytes]) -> list[tuple[str, bytes]]:
    """Return what HELLO, AUTH or CLIENT did to the session, each under its own name: a later one takes the place of an earlier one."""
    if role is Role.AUTH:
        return [("auth", encode(*args))]
    word = args[1].upper() if len(args) > 1 else b""
    if role is Role.HELLO:
        found = [("hello", encode(b"HELLO", word))] if word else []
        at = 2
        while at < len(args):
            option = args[at].upper()
            if option == b"AUTH":
                found.append(("auth", encode(b"AUTH", *args[at + 1 : at + 3])))
                at += 2
            elif option == b"SETNAME":
                found.append(("setname", encode(b"CLIENT", b"SETNAME", *args[at + 1 : at + 2])))
                at += 1
            at += 1
        return found
    if word in (b"SETNAME", b"NO-EVICT", b"NO-TOUCH", b"TRACKING"):
        return [(word.decode().lower(), encode(*args))]
    if word == b"SETINFO" and len(args) == 4:
        return [(f"setinfo {args[2].decode('ascii', 'replace').lower()}", encode(*args))]
    return []


def _user_in(raw: bytes) -> bytes:
    """Return the user of an AUTH as it is replayed: without a name it is the default user."""
    args = RequestScanner().feed(raw)[0].args
    return args[1] if len(args) > 2 else b"default"


def _name_in(raw: bytes) -> bytes:
    """Return the client name in a CLIENT SETNAME as it is replayed."""
    return RequestScanner().feed(raw)[0].args[-1]
