"""A whole reply as a tree, for the few replies of which the gateway changes a part inside.

Each part keeps its type byte, so what is not changed is written as it came.
"""

from __future__ import annotations

from dataclasses import dataclass

from exodus.plan.bounds import REPLY_DEPTH_MAX

_LINES, _BULKS, _AGGREGATES = b"+-:_#,(", b"$=!", b"*~>%"
_PAIRS = b"%"


@dataclass
class ReplyElement:
    """One element. `value` is the line, the payload, or the elements (key, value, key … of a map);
    None: a null.
    """

    kind: bytes
    value: bytes | list[ReplyElement] | None

    @property
    def parts(self) -> list[ReplyElement]:
        """Return the elements.

        Raises:
            ValueError: this is no aggregate.
        """
        if not isinstance(self.value, list):
            raise ValueError("no aggregate")  # noqa: TRY004 - of what a peer sent
        return self.value

    @property
    def text(self) -> str:
        """Return a line or a payload as text; empty for a null.

        Raises:
            ValueError: this is an aggregate, or no text.
        """
        if isinstance(self.value, list):
            raise ValueError("an aggregate, and no text")  # noqa: TRY004 - likewise
        return (self.value or b"").decode()


def bulk(data: bytes) -> ReplyElement:
    """Return a bulk string."""
    return ReplyElement(b"$", data)


def number(value: int) -> ReplyElement:
    """Return an integer."""
    return ReplyElement(b":", b"%d" % value)


def array(parts: list[ReplyElement]) -> ReplyElement:
    """Return an array."""
    return ReplyElement(b"*", parts)


def parse(frame: bytes) -> ReplyElement:
    """Return a whole reply as a tree.

    Raises:
        ValueError: it is not whole, too deep, or of a type that no server sends inside a reply.
    """
    found, at = _part(frame, 0, 0)
    if at != len(frame):
        raise ValueError("more than one reply")
    return found


def render(part: ReplyElement) -> bytes:
    """Return the bytes of a tree."""
    found: list[bytes] = []
    _render(part, found)
    return b"".join(found)


def _part(frame: bytes, at: int, depth: int) -> tuple[ReplyElement, int]:
    if depth > REPLY_DEPTH_MAX:
        raise ValueError("a reply that is too deep")
    kind, end = frame[at : at + 1], frame.index(b"\r\n", at)
    line, at = frame[at + 1 : end], end + 2
    if kind and kind in _LINES:
        return ReplyElement(kind, line), at
    if not kind or kind not in _BULKS + _AGGREGATES:
        raise ValueError(f"unknown type {kind!r}")
    size = int(line)
    if size < 0:
        return ReplyElement(kind, None), at
    if kind in _BULKS:
        if len(frame) < at + size + 2:
            raise ValueError("not whole")
        return ReplyElement(kind, frame[at : at + size]), at + size + 2
    parts = []
    for _ in range(size * (2 if kind in _PAIRS else 1)):
        part, at = _part(frame, at, depth + 1)
        parts.append(part)
    return ReplyElement(kind, parts), at


def _render(part: ReplyElement, found: list[bytes]) -> None:
    kind, value = part.kind, part.value
    if isinstance(value, list):
        found.append(b"%b%d\r\n" % (kind, len(value) // (2 if kind in _PAIRS else 1)))
        for each in value:
            _render(each, found)
    elif kind in _LINES:
        found.append(b"%b%b\r\n" % (kind, value or b""))
    elif value is None:
        found.append(kind + b"-1\r\n")
    else:
        found.append(b"%b%d\r\n%b\r\n" % (kind, len(value), value))
