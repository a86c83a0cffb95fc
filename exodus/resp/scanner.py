"""Framing: where one request or reply ends and the next begins, at any split of the bytes.

Both scanners are fed what arrives and return the frames that it completes. They keep no more than
an unfinished header line and, for requests, the arguments that are short enough to be a name or a
key; payloads are skipped by their length. A byte that does not fit sets `broken` to the reason and
ends the scanning of that connection; the relay goes on without.

`RequestScanner` accepts what any server accepts (redis/redis src/networking.c:
processMultibulkBuffer and processInlineBuffer). Redis does not look at a header's line feed and at
the two bytes behind a bulk string; Valkey from 8.1 on refuses others than CR LF. A request on which
servers disagree is `odd`. `ReplyScanner` knows RESP2 and RESP3 except the streamed types, which no
server sends.
"""

from __future__ import annotations

from exodus.plan.bounds import INLINE_BYTES_MAX, RETAINED_ARG_BYTES, RETAINED_FRAME_BYTES
from exodus.resp.inline import split_line

_STAR, _DOLLAR = 0x2A, 0x24
_ARGS_MAX = 2**31 - 1
_BULK_BYTES_MAX = 2**40
_DIGITS_MAX = 12
_NO_NUMBER = -(2**62)
_NOTHING = b""
_ARG_BYTES_MAX = (
    RETAINED_ARG_BYTES  # names of this module, which the compiled one reads without a look-up
)
_FRAME_BYTES_MAX = RETAINED_FRAME_BYTES


_SHORT_BYTES = 32  # to copy so much costs no more than to ask whether it is needed


# Compared by identity: bytes cut out of a stream are always another object
SKIPPED = b"(an argument that was not kept)"
PAYLOAD = b"(a value that nobody asks for)"


class Request:
    """One complete request. `args` is empty for what a server does not answer (`*0`, an empty
    line).

    `size` is the frame's, in bytes. `skipped` says that an argument was too long to be kept:
    `SKIPPED` stands for it in `args`. `odd` says that one server takes it and another refuses it as
    a protocol error.
    """

    __slots__ = ("args", "odd", "size", "skipped")

    args: list[bytes]
    size: int
    skipped: bool
    odd: bool


def _request(args: list[bytes], size: int, skipped: bool, odd: bool) -> Request:
    """A constructor that the compiled form calls without making a tuple of its arguments."""
    made = Request.__new__(Request)
    made.args = args
    made.size = size
    made.skipped = skipped
    made.odd = odd
    return made


def _number(raw: bytes) -> int:
    """A length as the servers read it: an optional minus, no leading zero, digits only; or
    `_NO_NUMBER`.
    """
    digits = raw[1:] if raw[:1] == b"-" else raw
    if not digits.isdigit() or (len(digits) > 1 and digits[0] == 0x30) or len(digits) > _DIGITS_MAX:
        return _NO_NUMBER
    return int(raw)


def _line_end(data: bytes, mark: bytes, at: int) -> int:
    """Return where a line ends, or -1 where it does not yet: no server looks for its end beyond a
    NUL.
    """
    end = data.find(mark, at)
    return -1 if end >= 0 and data.find(b"\0", at, end) >= 0 else end


class RequestScanner:
    """Frames of what a client sends.

    `kept` says of a command, by its name as it was spelled, how many of its arguments anybody asks
    for: `PAYLOAD` stands for a large one behind these, which is neither copied nor kept. All
    arguments of a command that is not in it are kept.
    """

    __slots__ = (
        "_before",
        "_kept",
        "_odd",
        "_retained",
        "_skip",
        "_skipped",
        "_tail",
        "_want",
        "announced",
        "args",
        "broken",
    )

    def __init__(self, kept: dict[bytes, int] | None = None) -> None:
        self._kept = {} if kept is None else kept
        self.args: list[bytes] = []  # of the frame that is not complete yet
        self.broken: str | None = None
        self.announced = (
            0  # bytes of the unfinished argument, or arguments of the frame, that are still to come
        )
        self._tail = b""  # bytes that cannot be read before more arrive
        self._before = 0  # bytes of the unfinished frame that were consumed by earlier calls
        self._want = 0  # arguments of the unfinished frame still to come; 0 at a frame's start
        self._skip = 0  # bytes of a long argument (and its line end) still to skip
        self._skipped = False
        self._odd = False
        self._retained = 0

    @property
    def partial_bytes(self) -> int:
        """Bytes of the unfinished frame so far."""
        return self._before + len(self._tail)

    # One loop over the bytes, since a call a frame would cost more than it explains.
    def feed(self, data: bytes) -> list[Request]:  # noqa: C901, PLR0912, PLR0915
        """Take what arrived; return the requests that it completes."""
        if self.broken is not None:
            return []
        if self._tail:
            data = self._tail + data
            self._tail = b""
        found: list[Request] = []
        at, end = 0, len(data)
        view = data  # the compiled form reads it as an array of bytes
        start = -self._before  # where the unfinished frame began, counted from data[0]
        self.announced = 0
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
                if view[at] != _STAR:
                    eol = _line_end(data, b"\n", at)
                    if eol < 0:
                        if end - at > INLINE_BYTES_MAX:
                            self.broken = "too big inline request"
                        break
                    words = split_line(
                        data[at : eol - 1 if eol > at and data[eol - 1] == 0x0D else eol]
                    )
                    if words is None:
                        self.broken = "unbalanced quotes in request"
                        break
                    at = eol + 1
                    found.append(_request(words, at - start, False, False))
                    start = at
                    continue
                count = 0
                eol = at + 1
                stop = min(eol + _DIGITS_MAX, end)
                while eol < stop and 0x30 <= view[eol] <= 0x39:
                    count = count * 10 + view[eol] - 0x30
                    eol += 1
                if (
                    eol + 1 < end
                    and data[eol] == 0x0D
                    and data[eol + 1] == 0x0A
                    and eol > at + 1
                    and (data[at + 1] != 0x30 or eol == at + 2)
                ):
                    at = eol + 2
                else:  # not the common form: incomplete, negative, or wrong
                    eol = _line_end(data, b"\r", at)
                    if eol < 0 or eol + 1 >= end:
                        if end - at > INLINE_BYTES_MAX:
                            self.broken = "too big multibulk count string"
                        break
                    count = _number(data[at + 1 : eol])
                    self._odd = self._odd or data[eol + 1] != 0x0A
                    at = eol + 2
                if count == _NO_NUMBER or count > _ARGS_MAX:
                    self.broken = "invalid multibulk length"
                    break
                if count <= 0:
                    found.append(_request([], at - start, False, self._odd))
                    self._odd = False
                    start = at
                    continue
                want = count
                continue
            else:
                size = 0
                eol = at + 1
                stop = min(eol + _DIGITS_MAX, end)
                while eol < stop and 0x30 <= view[eol] <= 0x39:
                    size = size * 10 + view[eol] - 0x30
                    eol += 1
                if data[at] != _DOLLAR or not (
                    eol + 1 < end
                    and data[eol] == 0x0D
                    and data[eol + 1] == 0x0A
                    and eol > at + 1
                    and (data[at + 1] != 0x30 or eol == at + 2)
                ):  # not the common form: incomplete or wrong
                    eol = _line_end(data, b"\r", at)
                    if eol < 0 or eol + 1 >= end:
                        if end - at > INLINE_BYTES_MAX:
                            self.broken = "too big bulk count string"
                        break
                    if data[at] != _DOLLAR:
                        self.broken = "expected '$'"
                        break
                    size = _number(data[at + 1 : eol])
                    self._odd = self._odd or data[eol + 1] != 0x0A
                if not 0 <= size <= _BULK_BYTES_MAX:
                    self.broken = "invalid bulk length"
                    break
                begin = eol + 2
                if size > _SHORT_BYTES and args and len(args) >= self._kept.get(args[0], _ARGS_MAX):
                    args.append(PAYLOAD)
                    self._skip = size + 2
                    at = begin
                    continue
                if size > _ARG_BYTES_MAX or self._retained + size > _FRAME_BYTES_MAX:
                    args.append(SKIPPED)
                    self._skipped = True
                    self._skip = size + 2
                    at = begin
                    continue
                if begin + size + 2 > end:
                    self.announced = size
                    break
                if view[begin + size] != 0x0D or view[begin + size + 1] != 0x0A:
                    self._odd = True
                args.append(view[begin : begin + size])
                self._retained += size
                at = begin + size + 2
                want -= 1
            if not want:
                found.append(_request(args, at - start, self._skipped, self._odd))
                args = []
                self._skipped = self._odd = False
                self._retained = 0
                start = at
        self.announced = max(self.announced, self._skip, want)
        if self._odd:
            self.announced = _BULK_BYTES_MAX  # a server may say at once that it refuses this
        self.args, self._want = args, want
        self._before = at - start
        self._tail = view[at:end] if at < end else _NOTHING
        return found


class Reply:
    """One complete top-level reply.

    `kind` is its type byte, `head` its first line without type and line end, `size` the frame's
    bytes, `first` the first element where it is a short bulk string in an aggregate (what tells a
    message from a confirmation in RESP2).
    """

    __slots__ = ("first", "head", "kind", "size")

    first: bytes
    head: bytes
    kind: int
    size: int

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
        """Return the null of RESP3 or one of the two of RESP2."""
        return self.kind == 0x5F or (self.kind in (_DOLLAR, _STAR) and self.head == b"-1")


def _reply(kind: int, head: bytes, size: int, first: bytes) -> Reply:
    """As `_request`."""
    made = Reply.__new__(Reply)
    made.kind = kind
    made.head = head
    made.size = size
    made.first = first
    return made


# What follows a type byte: a line alone, a bulk string, or as many elements (pairs) as the line
# says.
_LINE, _BULK, _ELEMENTS, _PAIRS = 1, 2, 3, 4
_SHAPES = bytes(
    _LINE
    if type_ in b"+-:_#,("
    else _BULK
    if type_ in b"$=!"
    else _ELEMENTS
    if type_ in b"*~>"
    else _PAIRS
    if type_ in b"%|"
    else 0
    for type_ in range(256)
)
_ATTRIBUTE = 0x7C
_FIRST_BYTES_MAX = 64
_SHORT_LINE_BYTES = 24


def _length(data: bytes, at: int, eol: int) -> int:
    """Return the number between two positions, or `_NO_NUMBER`."""
    number = 0
    index = at
    while index < eol and index < at + _DIGITS_MAX and 0x30 <= data[index] <= 0x39:
        number = number * 10 + data[index] - 0x30
        index += 1
    if index == eol and eol > at and (data[at] != 0x30 or eol == at + 1):
        return number
    return _number(data[at:eol])


class ReplyScanner:
    """Frames of what a server sends."""

    __slots__ = (
        "_aggregate",
        "_before",
        "_depth",
        "_first",
        "_head",
        "_kind",
        "_skip",
        "_tail",
        "broken",
    )

    def __init__(self) -> None:
        self.broken: str | None = None
        self._tail = b""
        self._before = 0
        self._depth = 0  # elements still to come in the unfinished frame; 0 at a frame's start
        self._skip = 0
        self._kind = 0
        self._aggregate = False
        self._head = b""
        self._first: bytes | None = None

    @property
    def partial_bytes(self) -> int:
        """Bytes of the unfinished frame so far."""
        return self._before + len(self._tail)

    def feed(self, data: bytes) -> list[Reply]:  # noqa: C901, PLR0912, PLR0915 - as above
        """Take what arrived; return the replies that it completes."""
        if self.broken is not None:
            return []
        if self._tail:
            data = self._tail + data
            self._tail = b""
        found: list[Reply] = []
        at, end = 0, len(data)
        view = data
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
                eol = at + 1
                stop = min(eol + _SHORT_LINE_BYTES, end - 1)
                while eol < stop and view[eol] != 0x0D:
                    eol += 1
                if eol >= stop or data[eol + 1] != 0x0A:  # a long line, or not all of it
                    eol = data.find(b"\r\n", at)
                    if eol < 0:
                        break
                kind = view[at]
                shape = _SHAPES[kind]
                if not shape:
                    self.broken = f"unknown reply type {kind:#x}"
                    break
                line = at
                if not depth:
                    start = at
                    depth = 1
                    self._kind = kind
                    self._head = view[at + 1 : eol]
                    self._first = None
                    self._aggregate = shape >= _ELEMENTS
                elif self._first is None and shape != _BULK:
                    self._first = _NOTHING
                if shape == _LINE:
                    at = eol + 2
                    depth -= 1
                elif shape == _BULK:
                    size = _length(data, at + 1, eol)
                    if size == _NO_NUMBER:
                        self.broken = "a bulk reply without a length"
                        break
                    at = eol + 2
                    if size < 0:
                        depth -= 1
                    else:
                        if self._aggregate and self._first is None and size <= _FIRST_BYTES_MAX:
                            if at + size > end:
                                at = line  # wait until the whole element is there
                                break
                            self._first = view[at : at + size]
                        self._skip = size + 2
                        continue
                else:
                    count = _length(data, at + 1, eol)
                    if count == _NO_NUMBER:
                        self.broken = "an aggregate reply without a count"
                        break
                    at = eol + 2
                    # An attribute comes before the value that it belongs to, and is none itself.
                    depth += max(count, 0) * (2 if shape == _PAIRS else 1) - (
                        0 if kind == _ATTRIBUTE else 1
                    )
            if not depth:
                found.append(_reply(self._kind, self._head, at - start, self._first or _NOTHING))
                start = at
        self._depth = depth
        self._before = at - start
        self._tail = view[at:end] if at < end else _NOTHING
        return found
