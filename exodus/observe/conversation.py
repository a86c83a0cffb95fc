"""One connection's bytes in order, both ways: requests paired with replies, events out.

Replies come in the order of requests, so the oldest unanswered request gets the next reply. Four
things break that, and each has its rule here:

- A reply whose packet does not acknowledge a request cannot be its answer.
- Pushes answer nobody, except the confirmations of (UN)SUBSCRIBE, one a channel.
- `+QUEUED` puts a request into a transaction. It counts when EXEC answers with a list, since only
  then the server has run it.
- After a gap nobody knows how many requests or replies are missing. The connection is *in doubt*:
  requests count without an answer. The doubt ends when the client sends a request at a moment at
  which both sides have acknowledged all that the other sent: then the next reply is its answer.
  A connection that began before the capture begins in doubt.

A side whose place in the frames is unknown is looked through for the beginning of one (`_start`).
"""

from __future__ import annotations

import re
from collections import deque

from exodus.commands.keys import database
from exodus.commands.semantics import Role
from exodus.commands.table import Command
from exodus.observe.coverage import Coverage
from exodus.observe.events import Answer, Event, Sink
from exodus.observe.shapes import Shapes
from exodus.plan.bounds import (
    QUEUED_EVENTS_MAX,
    UNANSWERED_EVENTS_MAX,
    WATCHED_ERROR_BYTES_MAX,
    WATCHED_NAME_BYTES_MAX,
)
from exodus.resp.scanner import Reply, ReplyScanner, Request, RequestScanner

_HALF = 1 << 31
_MASK = (1 << 32) - 1
_PUSH = 0x3E
_CONFIRMATIONS = frozenset(
    {
        b"subscribe",
        b"psubscribe",
        b"ssubscribe",
        b"unsubscribe",
        b"punsubscribe",
        b"sunsubscribe",
    }
)
_TO_SUBSCRIBERS = _CONFIRMATIONS | {b"message", b"pmessage", b"smessage"}
_ANY_TIME = frozenset({"PING", "QUIT", "RESET"})  # RESP2 takes these from a subscriber
_REQUEST_START = re.compile(rb"\*[1-9][0-9]{0,6}\r\n\$[0-9]{1,9}\r\n")
_INLINE = re.compile(rb"([A-Za-z]{2,20})(?: [^\r\n]{0,200})?\r?\n")
_PUSH_START = re.compile(
    rb">[1-9]\r\n|\*3\r\n\$7\r\nmessage\r\n|\*4\r\n\$8\r\npmessage\r\n|\*3\r\n\$8\r\nsmessage\r\n"
)
_TLS_BELOW = 0x18
_TLS_RECORD = re.compile(rb"[\x14-\x17]\x03[\x00-\x04]")


class _Waiting:
    """A request that waits for its answer."""

    __slots__ = ("command", "effect", "end", "event", "replies")

    def __init__(self, event: Event, command: Command, end: int, effect: object) -> None:
        self.event = event
        self.command = command
        self.end = end  # the client's sequence number behind it
        self.effect = effect  # a database, if it is answered without an error
        self.replies = 1  # that it still gets


class Conversation:
    """The requests and replies of one connection."""

    __slots__ = (
        "_coverage",
        "_db",
        "_doubt",
        "_muted",
        "_muted_once",
        "_name",
        "_number",
        "_queue",
        "_replies",
        "_reply_sync",
        "_request_end",
        "_request_sync",
        "_requests",
        "_shapes",
        "_sink",
        "_stream",
        "_tls",
        "_waiting",
    )

    def __init__(
        self,
        shapes: Shapes,
        sink: Sink,
        coverage: Coverage,
        number: int,
        client: str,
        *,
        whole: bool,
    ) -> None:
        """Begin a connection; `whole` says that its beginning was captured."""
        self._shapes, self._sink, self._coverage = shapes, sink, coverage
        self._number, self._name = number, client
        self._db = 0
        self._requests = RequestScanner(shapes.table.kept)
        self._replies = ReplyScanner()
        self._request_sync = self._reply_sync = whole
        self._doubt = not whole
        self._request_end = 0
        self._waiting: deque[_Waiting] = deque()
        self._queue: list[_Waiting] = []
        self._muted = self._muted_once = False
        self._stream = False
        self._tls = False

    def requests(self, at: float, seq: int, data: bytes, *, quiet: bool) -> None:
        """Take what the client sent next.

        Args:
            at: time of the packet in s.
            seq: the sequence number of the first byte.
            quiet: each side has acknowledged all that the other sent before.
        """
        if self._stream or self._tls:
            self._elsewhere(len(data))
            return
        if data[0] < _TLS_BELOW and not self._requests.partial_bytes and _TLS_RECORD.match(data):
            self._is_tls(len(data))
            return
        if not self._request_sync:
            start = self._start(data)
            if start < 0:
                return
            seq, data = seq + start, data[start:]
            self._requests = RequestScanner(self._shapes.table.kept)
            self._request_sync = True
            quiet = quiet and start == 0
        scanner = self._requests
        before = scanner.partial_bytes
        if not before:
            self._request_end = seq
            if self._doubt and quiet:
                self._settle()
        found = scanner.feed(data)
        for request in found:
            self._request_end = (self._request_end + request.size) & _MASK
            self._coverage.request_bytes += request.size
            if request.args:
                self._request(at, request)
            else:
                self._coverage.empty_requests += 1
        if scanner.broken is not None:
            self._broken_requests(before + len(data) - sum(each.size for each in found))

    def replies(self, at: float, ack: int, data: bytes) -> None:
        """Take what the server sent next, in a packet that acknowledges the client's bytes up to
        `ack`.
        """
        if self._stream or self._tls:
            self._elsewhere(len(data))
            return
        if not self._reply_sync:
            if _PUSH_START.match(data) is None:
                if _TLS_RECORD.match(data) is not None and not self._requests.partial_bytes:
                    self._is_tls(len(data))
                else:
                    self._coverage.unparsed("of replies before the first request", len(data))
                return
            self._replies = ReplyScanner()
            self._reply_sync = True
        scanner = self._replies
        before = scanner.partial_bytes
        parsed = 0
        for reply in scanner.feed(data):
            parsed += reply.size
            self._reply(at, ack, reply)
        self._coverage.reply_bytes += parsed
        if scanner.broken is not None:
            self._coverage.unparsed(scanner.broken, before + len(data) - parsed)
            self._reply_sync = False
            self._lost_track()

    def request_gap(self) -> None:
        """Bytes of the client are missing here."""
        self._coverage.unparsed("of requests that a gap cut", self._requests.partial_bytes)
        self._requests = RequestScanner(self._shapes.table.kept)
        self._request_sync = False
        self._lost_track()

    def reply_gap(self) -> None:
        """Bytes of the server are missing here."""
        self._coverage.unparsed("of replies that a gap cut", self._replies.partial_bytes)
        self._replies = ReplyScanner()
        self._reply_sync = False
        self._lost_track()

    def finish(self) -> None:
        """The connection, or the capture, ends."""
        self._lost_track()
        coverage = self._coverage
        if not (self._stream or self._tls):
            coverage.unparsed("of requests that have no end", self._requests.partial_bytes)
            coverage.unparsed("of replies that have no end", self._replies.partial_bytes)
            self._requests = RequestScanner()
            self._replies = ReplyScanner()

    # Finding the place again.

    def _start(self, data: bytes) -> int:
        """Return where a request begins in what the client sent, or -1."""
        if _REQUEST_START.match(data) is not None:
            return 0
        inline = _INLINE.fullmatch(data)
        if inline is not None and self._shapes.table.find(inline.group(1)).known:
            return 0
        found = _REQUEST_START.search(data)
        start = len(data) if found is None else found.start()
        self._coverage.unparsed("of requests before the first whole one", start)
        return -1 if found is None else start

    def _settle(self) -> None:
        """Nothing is under way: the next reply answers the next request."""
        self._doubt = False
        self._coverage.unparsed("of replies that have no end", self._replies.partial_bytes)
        self._replies = ReplyScanner()
        self._reply_sync = True

    def _lost_track(self) -> None:
        """What waits gets no answer that could be told apart."""
        self._doubt = True
        for waiting in (*self._queue, *self._waiting):
            self._coverage.requests_without_reply += 1
            self._sink.add(waiting.event)
        self._queue.clear()
        self._waiting.clear()

    def _broken_requests(self, rest: int) -> None:
        assert self._requests.broken is not None
        self._coverage.unparsed(self._requests.broken, rest)
        self._requests = RequestScanner(self._shapes.table.kept)
        self._request_sync = False
        self._lost_track()

    def _is_tls(self, size: int) -> None:
        self._tls = True
        self._coverage.tls_connections += 1
        self._coverage.tls_bytes += size

    def _elsewhere(self, size: int) -> None:
        if self._tls:
            self._coverage.tls_bytes += size
        else:
            self._coverage.stream_bytes += size

    # Requests.

    def _request(self, at: float, request: Request) -> None:
        args = request.args
        shapes = self._shapes
        command = shapes.table.of(args)
        event = shapes.event(at, self._number, self._name, self._db, command, args, request.size)
        effect: object = None
        if command.role is not Role.PLAIN:
            effect = self._special(command, args)
            if effect is Answer.NONE:
                event.answer = Answer.NONE
                self._sink.add(event)
                return
        if self._muted or self._muted_once:
            self._muted_once = False
            event.answer = Answer.NONE
            self._sink.add(event)
            return
        if self._doubt or self._stream:
            self._coverage.requests_without_reply += self._doubt
            self._sink.add(event)
            return
        waiting = _Waiting(event, command, self._request_end, effect)
        if command.role is Role.SUBSCRIBE or command.role is Role.UNSUBSCRIBE:
            waiting.replies = max(1, len(args) - 1)
        self._waiting.append(waiting)
        event.depth = len(self._waiting)
        if event.depth > UNANSWERED_EVENTS_MAX:
            self._lost_track()

    def _special(self, command: Command, args: list[bytes]) -> object:
        """Note what a request does to its connection; return the database that it chooses, the name
        that it gives, or `Answer.NONE` where it is not answered.
        """
        role = command.role
        words = [arg.upper() for arg in args[1:3]]
        if role is Role.STREAMING or (command.name == b"REPLCONF" and words[:1] == [b"ACK"]):
            self._lost_track()
            self._stream = True
        elif role is Role.SELECT and len(args) == 2:
            return database(args[1])
        elif role is Role.RESET:
            return 0
        elif role is Role.CLIENT and words[:1] == [b"REPLY"]:
            self._muted = words[1:] == [b"OFF"]
            self._muted_once = words[1:] == [b"SKIP"]
            if self._muted or self._muted_once:
                return Answer.NONE
        elif role is Role.CLIENT and words[:1] == [b"SETNAME"] and len(args) == 3:
            self._name = (
                args[2][:WATCHED_NAME_BYTES_MAX].decode("utf-8", "backslashreplace") or self._name
            )
        elif role is Role.CLIENT and words == [b"SETINFO", b"LIB-NAME"] and len(args) == 4:
            self._coverage.library(
                args[3][:WATCHED_NAME_BYTES_MAX].decode("utf-8", "backslashreplace")
            )
        return None

    # Replies.

    def _reply(self, at: float, ack: int, reply: Reply) -> None:
        waiting = self._waiting
        head = waiting[0] if waiting else None
        if (
            reply.kind == _PUSH or (reply.first in _TO_SUBSCRIBERS and self._is_message(head))
        ) and (head is None or reply.first not in _CONFIRMATIONS or not self._subscribes(head)):
            self._coverage.pushes += 1
            return
        if head is None or ((ack - head.end) & _MASK) >= _HALF:
            self._coverage.replies_without_request += 1
            return
        if head.replies > 1:
            head.replies -= 1
            return
        waiting.popleft()
        event = head.event
        event.latency_us = max(0, int((at - event.at) * 1_000_000))
        event.reply_bytes = reply.size
        if reply.error:
            event.answer = Answer.ERROR
            event.error = (
                reply.head[:WATCHED_ERROR_BYTES_MAX].split(b" ", 1)[0].decode("ascii", "replace")
            )
        elif reply.nil:
            event.answer = Answer.NIL
        else:
            event.answer = Answer.VALUE
            if reply.kind == 0x2B and reply.head == b"QUEUED":
                self._queued(head)
                return
            if head.effect is not None:
                self._db = head.effect if isinstance(head.effect, int) else self._db
        if head.command.role in (Role.EXEC, Role.DISCARD, Role.RESET):
            self._ended(event, executed=head.command.role is Role.EXEC)
        self._sink.add(event)

    @staticmethod
    def _subscribes(head: _Waiting) -> bool:
        return head.command.role in (Role.SUBSCRIBE, Role.UNSUBSCRIBE)

    def _is_message(self, head: _Waiting | None) -> bool:
        """Whether a list that begins like a message is one: RESP2 has no pushes of their own."""
        return head is None or self._subscribes(head) or head.event.command in _ANY_TIME

    def _queued(self, waiting: _Waiting) -> None:
        waiting.event.queued = True
        waiting.event.answer = Answer.UNKNOWN  # it is in the answer to EXEC
        if len(self._queue) < QUEUED_EVENTS_MAX:
            self._queue.append(waiting)
        else:
            self._coverage.requests_without_reply += 1
            self._sink.add(waiting.event)

    def _ended(self, event: Event, *, executed: bool) -> None:
        """A transaction ends."""
        if executed and event.answer is Answer.VALUE:
            event.batch = len(self._queue)
            for waiting in self._queue:
                self._sink.add(waiting.event)
                if isinstance(waiting.effect, int):
                    self._db = waiting.effect
        else:
            self._coverage.requests_not_executed += len(self._queue)
        self._queue.clear()
