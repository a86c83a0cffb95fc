"""SCAN cursors that say from which authority they are.

A cursor means something only to the server that gave it. Clients go on with it on any connection of their pool, also
after a switch, and the new server would silently skip elements. So from the first switch on the gateway marks each
cursor that it hands out: the bits above `CURSOR_BITS` name the route's generation, which grows with each change of
the authority. A cursor of another generation is answered from the beginning of the iteration: elements are returned
again, and none is skipped. Before the first switch cursors pass as they are. All values stay below 2**53.
"""

from __future__ import annotations

from exodus.plan.bounds import CURSOR_BITS

_TAGS = 255
_MASK = (1 << CURSOR_BITS) - 1
_DIGITS_MAX = 20


def tag_of(generation: int) -> int:
    """Return the mark of a generation: 0 for the first, which has none, else 1 to 255."""
    return 1 + (generation - 1) % _TAGS if generation else 0


def own(cursor: bytes, tag: int) -> bytes:
    """Return the server's cursor for one that a client sent: its own, or 0 where another authority gave it."""
    if len(cursor) > _DIGITS_MAX or not cursor.isdigit():
        return cursor  # the server refuses it
    value = int(cursor)
    if not value:
        return cursor
    return b"%d" % (value & _MASK) if value >> CURSOR_BITS == tag else b"0"


def marked(frame: bytes, tag: int) -> bytes | None:
    """Return a whole reply to SCAN with its cursor marked, or None where the cursor has no room for the mark."""
    # *2 CRLF $LENGTH CRLF CURSOR CRLF …
    if not frame.startswith(b"*2\r\n$"):
        return frame  # an error
    begin = frame.index(b"\r\n", 5) + 2
    end = frame.index(b"\r\n", begin)
    value = int(frame[begin:end])
    if not value:
        return frame
    if value > _MASK:
        return None
    text = b"%d" % (value | tag << CURSOR_BITS)
    return b"".join((b"*2\r\n$%d\r\n" % len(text), text, frame[end:]))
