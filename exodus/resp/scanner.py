"""Framing: where one request or reply ends and the next begins, at any split of the bytes.

Both scanners are fed what arrives and return the frames that it completes. They keep no more than an unfinished header
line and, for requests, the arguments that are short enough to be a name or a key; payloads are skipped by their length.
A byte that does not fit sets `broken` to the reason and ends the scanning of that connection; the relay goes on without.

`RequestScanner` accepts what the servers accept (redis/redis src/networking.c: processMultibulkBuffer and
processInlineBuffer): a header's line feed and the two bytes behind a bulk string are not looked at.
`ReplyScanner` knows RESP2 and RESP3 except the streamed types, which no server sends.
"""

from __future__ import annotations

from typing import NamedTuple

from exodus.config import INLINE_BYTES_MAX, RETAINED_ARG_BYTES, RETAINED_FRAME_BYTES
from exodus.resp.inline import split_line

_STAR, _DOLLAR = 0x2A, 0x24
_ARGS_MAX = 2**31 - 1
_BULK_BYTES_MAX = 2**40


class Skipped(bytes):
    """An argument that was not kept. A type of its own, since an empty key is a key."""

    __slots__ = ()


SKIPPED = Skipped()


class Request(NamedTuple):
    """One complete request. `args` is empty for what a server does not answer (`*0`, an empty line).

    `skipped` says that an argument was too long to be kept: `SKIPPED` stands for it in `args`.
    """

    args: list[bytes]
    size: int  # bytes of the frame
    skipped: bool


def _number(raw: bytes) -> int | None:
    """A length as the servers read it: an optional minus, no leading zero, digits only."""
    digits = raw[1:] if raw[:1] == b"-" else raw
    if not digits.isdigit() or (len(digits) > 1 and digits[0] == 0x30) or len(digits) > 12:
        return None
    return int(raw)


class RequestScanner:
    """Frames of what a client sends."""

    __slots__ = ("_before", "_retained", "_skip", "_skipped", "_tail", "_want", "args", "broken")

    def __init__(self) -> None:
        self.args: list[bytes] = []  # of the frame that is not complete yet
        self.broken: str | None = None
        self._tail = b""  # bytes that cannot be read before more arrive
        self._before = 0  # bytes of the unfinished frame that were consumed by earlier calls
        self._want = 0  # arguments of the unfinished frame still to come; 0 at a frame's start
        self._skip = 0  # bytes of a long argument (and its line end) still to skip
        self._skipped = False
        self._retained = 0

    @property
    def partial_bytes(self) -> int:
        """Bytes of the unfinished frame so far."""
        return self._before + len(self._tail)

    def feed(self, data: bytes) -> list[Request]:
        """Take what arrived; return the requests that it completes."""
        if self.broken is not None:
            return []
        if self._tail:
            data = self._tail + data
            self._tail = b""
        found: list[Request] = []
        at, end = 0, len(data)
        start = -self._before  # where the unfinished frame began, counted from data[0]
        args, want = self.args, self._want
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                if self._skip:
                    break
                want -= 1
            elif not want:
                start = at
                if data[at] != _STAR:
                    eol = data.find(b"\n", at)
                    if eol < 0:
                        if end - at > INLINE_BYTES_MAX:
                            self.broken = "too big inline request"
                        break
                    words = split_line(data[at : eol - 1 if eol > at and data[eol - 1] == 0x0D else eol])
                    if words is None:
                        self.broken = "unbalanced quotes in request"
                        break
                    at = eol + 1
                    found.append(Request(words, at - start, False))
                    start = at
                    continue
                eol = data.find(b"\r", at)
                if eol < 0 or eol + 1 >= end:
                    if end - at > INLINE_BYTES_MAX:
                        self.broken = "too big multibulk count string"
                    break
                count = _number(data[at + 1 : eol])
                if count is None or count > _ARGS_MAX:
                    self.broken = "invalid multibulk length"
                    break
                at = eol + 2
                if count <= 0:
                    found.append(Request([], at - start, False))
                    start = at
                    continue
                want = count
                continue
            else:
                eol = data.find(b"\r", at)
                if eol < 0 or eol + 1 >= end:
                    if end - at > INLINE_BYTES_MAX:
                        self.broken = "too big bulk count string"
                    elif data[at] != _DOLLAR:
                        self.broken = "expected '$'"
                    break
                if data[at] != _DOLLAR:
                    self.broken = "expected '$'"
                    break
                size = _number(data[at + 1 : eol])
                if size is None or not 0 <= size <= _BULK_BYTES_MAX:
                    self.broken = "invalid bulk length"
                    break
                begin = eol + 2
                if size > RETAINED_ARG_BYTES or self._retained + size > RETAINED_FRAME_BYTES:
                    args.append(SKIPPED)
                    self._skipped = True
                    self._skip = size + 2
                    at = begin
                    continue
                if begin + size + 2 > end:
                    break
                args.append(data[begin : begin + size])
                self._retained += size
                at = begin + size + 2
                want -= 1
            if not want:
                found.append(Request(args, at - start, self._skipped))
                args = []
                self._skipped = False
                self._retained = 0
                start = at
        self.args, self._want = args, want
        self._before = at - start
        self._tail = data[at:]
        return found


class Reply(NamedTuple):
    """One complete top-level reply.

    `kind` is its type byte, `head` its first line without type and line end, `first` the first element where it is a short
    bulk string in an aggregate (what tells a message from a confirmation in RESP2).
    """

    kind: int
    head: bytes
    size: int
    first: bytes

    @property
    def push(self) -> bool:
        """Out of band: no request waits for it."""
        return self.kind == 0x3E

    @property
    def error(self) -> bool:
        """An error, simple or as a blob."""
        return self.kind in (0x2D, 0x21)

    @property
    def nil(self) -> bool:
        """The null of RESP3 or one of the two of RESP2."""
        return self.kind == 0x5F or (self.kind in (_DOLLAR, _STAR) and self.head == b"-1")


_LINES = frozenset(b"+-:_#,(")
_BULKS = frozenset(b"$=!")
_AGGREGATES = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}  # elements a count stands for
_ATTRIBUTE = ord("|")
_FIRST_BYTES_MAX = 64


class ReplyScanner:
    """Frames of what a server sends."""

    __slots__ = ("_before", "_depth", "_first", "_head", "_kind", "_skip", "_tail", "broken")

    def __init__(self) -> None:
        self.broken: str | None = None
        self._tail = b""
        self._before = 0
        self._depth = 0  # elements still to come in the unfinished frame; 0 at a frame's start
        self._skip = 0
        self._kind = 0
        self._head = b""
        self._first: bytes | None = None

    @property
    def partial_bytes(self) -> int:
        """Bytes of the unfinished frame so far."""
        return self._before + len(self._tail)

    def feed(self, data: bytes) -> list[Reply]:
        """Take what arrived; return the replies that it completes."""
        if self.broken is not None:
            return []
        if self._tail:
            data = self._tail + data
            self._tail = b""
        found: list[Reply] = []
        at, end = 0, len(data)
        start = -self._before
        depth = self._depth
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                if self._skip:
                    break
                depth -= 1
            else:
                eol = data.find(b"\r\n", at)
                if eol < 0:
                    break
                kind = data[at]
                line = at
                if not depth:
                    start = at
                    depth = 1
                    self._kind = kind
                    self._head = data[at + 1 : eol]
                    self._first = None
                elif self._first is None and kind not in _BULKS:
                    self._first = b""
                if kind in _LINES:
                    at = eol + 2
                    depth -= 1
                elif kind in _BULKS:
                    size = _number(data[at + 1 : eol])
                    if size is None:
                        self.broken = "a bulk reply without a length"
                        break
                    at = eol + 2
                    if size < 0:
                        depth -= 1
                    else:
                        if self._first is None and self._kind in _AGGREGATES and size <= _FIRST_BYTES_MAX:
                            if at + size > end:
                                at = line  # wait until the whole element is there
                                break
                            self._first = data[at : at + size]
                        self._skip = size + 2
                        continue
                elif kind in _AGGREGATES:
                    count = _number(data[at + 1 : eol])
                    if count is None:
                        self.broken = "an aggregate reply without a count"
                        break
                    at = eol + 2
                    # An attribute comes before the value that it belongs to, and is none itself.
                    depth += max(count, 0) * _AGGREGATES[kind] - (0 if kind == _ATTRIBUTE else 1)
                else:
                    self.broken = f"unknown reply type {kind:#x}"
                    break
            if not depth:
                found.append(Reply(self._kind, self._head, at - start, self._first or b""))
                start = at
        self._depth = depth
        self._before = at - start
        self._tail = data[at:]
        return found
