"""Splitting one aggregate reply into its elements.

The hot path does not need it. The gateway splits an EXEC reply to learn whether a SELECT was
accepted, and which cursor a SCAN returned.
"""

from __future__ import annotations

from typing import NamedTuple

_LINES, _BULKS, _AGGREGATES = b"+-:_#,(", b"$=!", b"*~>%|"


class Element(NamedTuple):
    """One element: its type byte, its first line, and its place in the frame."""

    kind: int
    head: bytes
    start: int
    end: int

    @property
    def error(self) -> bool:
        """Return whether the element is an error, simple or as a blob."""
        return self.kind in (0x2D, 0x21)


def elements(frame: bytes) -> list[Element]:
    """Return the elements of a whole aggregate reply (`*`, `~` or `>`), in order.

    Raises:
        ValueError: the frame is no such reply, or not whole.
    """
    if frame[:1] not in (b"*", b"~", b">"):
        raise ValueError("no aggregate")
    at = frame.index(b"\r\n") + 2
    found: list[Element] = []
    for _ in range(int(frame[1 : at - 2])):
        start = at
        kind, head, at = _skip(frame, at)
        found.append(Element(kind, head, start, at))
    if at != len(frame):
        raise ValueError("more or less than one reply")
    return found


def _skip(frame: bytes, at: int) -> tuple[int, bytes, int]:
    """Return type byte, first line and end of the element at `at`."""
    kind, head, at = _line(frame, at)
    first, left = (kind, head), 1
    while True:
        left -= 1
        if kind in _BULKS:
            size = int(head)
            at += size + 2 if size >= 0 else 0
        elif kind in _AGGREGATES:
            # An attribute comes before the element that it belongs to, and is none itself.
            left += max(int(head), 0) * (2 if kind in b"%|" else 1) + (1 if kind == 0x7C else 0)
        elif kind not in _LINES:
            raise ValueError(f"unknown type {kind:#x}")
        if at > len(frame):
            raise ValueError("not whole")
        if not left:
            return *first, at
        kind, head, at = _line(frame, at)


def _line(frame: bytes, at: int) -> tuple[int, bytes, int]:
    end = frame.index(b"\r\n", at)
    return frame[at], frame[at + 1 : end], end + 2
