"""SCAN cursors that name the authority that gave them.

A cursor means something only to the server that gave it. Clients continue with it on any
connection of their pool, also after a switch. The new server would then skip elements. So from the
first switch on, the gateway marks each cursor that it hands out: the bits above `CURSOR_BITS` name
the route's generation, which grows with each change of the authority. A cursor of another
generation is answered from the start of the iteration. Elements come again, and none is skipped.
Before the first switch, cursors pass unchanged. All values stay below 2**53.
"""

from __future__ import annotations

from exodus.plan.bounds import CURSOR_BITS, CURSORS_DIGITS_MAX

_TAGS = 255  # then they repeat
_MASK = (1 << CURSOR_BITS) - 1


def tag_of(generation: int) -> int:
    """Return the tag of a generation: 0 for the first, which is not marked, else 1 to 255."""
    return 1 + (generation - 1) % _TAGS if generation else 0


def server_cursor(cursor: bytes, tag: int) -> bytes:
    """Return the server's cursor for a client's, or 0 if another authority gave it."""
    if len(cursor) > CURSORS_DIGITS_MAX or not cursor.isdigit():
        return cursor  # the server refuses it
    value = int(cursor)
    if not value:
        return cursor
    return b"%d" % (value & _MASK) if value >> CURSOR_BITS == tag else b"0"


def mark_reply(frame: bytes, tag: int) -> bytes | None:
    """Return a whole reply to SCAN with its cursor marked.

    Returns None if the cursor has no room for the tag.
    """
    # *2 CRLF $LENGTH CRLF CURSOR CRLF …
    if not frame.startswith(b"*2\r\n$"):
        return frame  # an error
    begin = frame.index(b"\r\n", 5) + 2
    end = frame.find(b"\r\n", begin)
    cursor = frame[begin : max(end, begin)]
    if len(cursor) > CURSORS_DIGITS_MAX or not cursor.isdigit():
        return frame  # no cursor that a client could continue with
    value = int(cursor)
    if not value:
        return frame
    if value > _MASK:
        return None
    text = b"%d" % (value | tag << CURSOR_BITS)
    return b"".join((b"*2\r\n$%d\r\n" % len(text), text, frame[end:]))
