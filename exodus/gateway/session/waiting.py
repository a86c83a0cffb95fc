"""Replies that wait: a canary read waits for the follower, and later replies wait behind it.

The client gets its replies in the order of its requests, whatever the follower does.
"""

from __future__ import annotations

from collections import deque

from exodus.gateway.canary_reads import CanaryRead
from exodus.gateway.session.parts import SessionParts

_NOTHING = b""


class WaitingReplies:
    """The queue that begins with the first undecided canary read; empty without one."""

    __slots__ = ("items", "parts")

    def __init__(self, parts: SessionParts) -> None:
        self.parts = parts
        self.items: deque[bytes | CanaryRead] = deque()

    def compare(self, read: CanaryRead, raw: bytes, frame: bytes, failed: bool) -> bytes:
        """Take the authority's reply to a canary read; return what the client gets now.

        The follower is asked only now. It runs the read with Exodus's rights, so it must not run
        what the authority refuses this client. The read counts as an edit until it is decided.
        """
        read.frame, read.refused = frame, failed
        if failed:
            read.done = True
        else:
            self.parts.out.ask_follower(read, raw, self.parts.state.protocol)
        if not read.done or self.items:
            self.items.append(read)
            return _NOTHING
        return self._decide(read)

    def _decide(self, read: CanaryRead) -> bytes:
        self.parts.replies.edits -= 1
        canary = self.parts.orders.canary
        if canary is not None:
            canary.note(read.outcome())
        return read.reply()

    def pass_on(self) -> None:
        """Pass on what waited, up to the next undecided read."""
        found: list[bytes] = []
        while self.items:
            head = self.items[0]
            if isinstance(head, CanaryRead):
                if not head.done:
                    break
                head_bytes = self._decide(head)
            else:
                head_bytes = head
            found.append(head_bytes)
            self.items.popleft()
        whole = b"".join(found)
        if whole:
            self.parts.out.to_client(whole)
        if not self.items:
            self.parts.out.settled()

    def give_up(self) -> None:
        """Stop waiting for the follower."""
        for item in self.items:
            if isinstance(item, CanaryRead) and not item.done:
                item.gave_up()
        if self.items:
            self.pass_on()
