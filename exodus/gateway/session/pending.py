"""Requests that the authority has not answered yet, in the order in which they were forwarded."""

from __future__ import annotations

from collections.abc import Iterator

from exodus.commands.semantics import Timeout
from exodus.commands.table import Command
from exodus.control.changes import Barrier, Key
from exodus.gateway.canary_reads import CanaryRead
from exodus.gateway.session.transaction import Transaction
from exodus.plan.bounds import PENDING_QUEUE_SLACK

_QUEUE_SLACK = PENDING_QUEUE_SLACK
_NOTHING = b""
_NO_KEYS: list[bytes] = []  # shared, never changed
_NOWHERE_ELSE: list[Key] = []  # shared, never changed
# A compiled class begins with None and 0 in every field; its source form has to assign them.
_AS_SOURCE = __file__.endswith(".py")


class Pending:
    """One request without a reply. `PendingQueue.make` creates it."""

    __slots__ = (
        "barrier",
        "block",
        "canary",
        "command",
        "confirms",
        "cursor",
        "deadline",
        "elsewhere",
        "expected",
        "key",
        "keys",
        "misfit",
        "names",
        "own",
        "queued",
        "raw",
        "refused_elsewhere",
        "reply_mode",
        "rewritten",
        "sampled_as",
        "select",
        "shadowed",
        "since",
        "size",
        "substitute",
        "text",
        "transaction",
        "undescribed",
        "unseen",
        "whole",
        "write",
    )

    def begin(self, command: Command, since: float, size: int) -> None:
        """Set every field. Stands in for `__init__`, which would cost a tuple of arguments."""
        self.command = command
        self.since = since
        self.size = size
        self.keys = _NO_KEYS  # of a write
        self.elsewhere = _NOWHERE_ELSE  # keys in another database than the session's
        self.expected = 1  # confirmations still to come
        self.names = _NO_KEYS  # channels; or all arguments of a command that changes the session
        self.raw = _NOTHING  # the request, where it may be sent again or shown to the comparer
        if _AS_SOURCE:
            self.key: bytes | None = None  # the first key, read or written, for the counters
            self.write = False
            self.queued = False  # predicted to be queued in a MULTI
            self.own = False  # a request of the gateway: its reply is dropped
            self.substitute: bytes | None = None  # the client gets this in place of the reply
            self.confirms = False  # answered by confirmations, one a channel
            self.select: int | None = None
            self.reply_mode = 0  # that CLIENT REPLY asks for: REPLY_ON, REPLY_OFF, REPLY_SKIP
            self.transaction: Transaction | None = None
            self.barrier: Barrier | None = None
            self.block: Timeout | None = None
            self.deadline: float | None = None
            # The `Orders.rule` by which its only key is sampled; negative: by which it is not
            self.sampled_as = 0
            self.shadowed = False  # picked for the comparer, or as a canary read
            self.canary: CanaryRead | None = None
            self.rewritten: bytes | None = None  # sent in place of the client's bytes
            self.unseen: str | None = None  # the gap that the request opens unless it is refused
            self.undescribed: list[bytes] | None = (
                None  # the request, if its command is undescribed
            )
            self.text: bytes | None = None  # of a script, or its digest
            self.refused_elsewhere = False  # some servers take it, others find a protocol error
            self.whole = False  # the reply is kept until it is complete, to be parsed or changed
            self.cursor = False  # the reply has a SCAN cursor that must be marked
            self.misfit: str | None = None  # why a cluster would refuse it (misfits.py)


class PendingQueue:
    """A queue of requests. It does what a `deque` does, and the compiled form calls it directly."""

    __slots__ = ("_first", "_items", "count", "writes")

    def __init__(self) -> None:
        self._items: list[Pending] = []
        self._first = 0
        self.count = 0
        self.writes = 0  # of the requests in the queue

    def make(self, command: Command, since: float, size: int) -> Pending:
        """Return a new request, which is not in the queue yet."""
        made = Pending.__new__(Pending)
        made.begin(command, since, size)
        return made

    def push(self, pending: Pending) -> None:
        """Append a request."""
        self._items.append(pending)
        self.count += 1
        if pending.write:
            self.writes += 1

    def pop(self) -> Pending:
        """Remove the first request and return it. The queue must not be empty."""
        first = self._first
        pending = self._items[first]
        self.count -= 1
        self._first = first + 1
        if pending.write:
            self.writes -= 1
        if not self.count or (first > _QUEUE_SLACK and first > self.count):
            del self._items[: first + 1]
            self._first = 0
        return pending

    def put_back(self, pending: Pending) -> None:
        """Insert a request before all others."""
        self._items[: self._first] = [pending]
        self._first = 0
        self.count += 1
        if pending.write:
            self.writes += 1

    def clear(self) -> None:
        """Remove all requests."""
        self._items.clear()
        self._first = self.count = self.writes = 0

    @property
    def head(self) -> Pending | None:
        """Return the first request, or None."""
        return self._items[self._first] if self.count else None

    def head_is_shadowed(self) -> bool:
        """Tell whether the first request is picked for the comparer, or as a canary read."""
        if not self.count:
            return False
        pending = self._items[self._first]
        return pending.shadowed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._items[self._first :])
