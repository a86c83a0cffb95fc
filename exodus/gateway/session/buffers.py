"""The bytes of a session that are not passed on yet, in both directions."""

from __future__ import annotations

from exodus.resp.scanner import ReplyScanner, RequestScanner


class RequestBuffer:
    """Bytes from the client: an unfinished request, and the backlog of a held session."""

    __slots__ = (
        "_kept",
        "backlog",
        "backlog_bytes",
        "frozen",
        "held",
        "login_waits",
        "scanner",
        "sent",
        "streaming",
        "turn",
        "unsent",
    )

    def __init__(self, kept: dict[bytes, int]) -> None:
        self._kept = kept
        self.scanner = RequestScanner(kept)
        self.unsent = b""  # the unfinished request, not forwarded yet
        self.sent = 0  # bytes of the present read that were forwarded
        self.streaming = False  # the unfinished request is forwarded while it arrives
        self.turn = 0  # requests in the last read
        self.frozen = False  # reads are held too
        self.held = False  # everything from the client goes into the backlog
        self.login_waits = False  # held by a login that waits for the replies before it
        self.backlog: list[bytes] = []
        self.backlog_bytes = 0

    def hold(self) -> None:
        """Begin to hold: what comes next is read from its first byte when the session continues."""
        self.held = True
        self.unsent = b""
        self.scanner = RequestScanner(self._kept)

    def keep(self, data: bytes) -> None:
        """Append bytes to the backlog."""
        self.backlog.append(data)
        self.backlog_bytes += len(data)

    def keep_first(self, data: bytes) -> None:
        """Insert bytes before the backlog."""
        self.backlog.insert(0, data)
        self.backlog_bytes += len(data)

    def release(self) -> bytes:
        """End the hold and return the backlog."""
        self.held = self.login_waits = False
        data = b"".join(self.backlog)
        self.backlog = []
        self.backlog_bytes = 0
        return data


class ReplyBuffer:
    """Bytes from the authority: an unfinished reply, and why replies may have to be changed."""

    __slots__ = (
        "copies",
        "edits",
        "scanner",
        "sent_bytes",
        "silence_asked",
        "silent",
        "skip_next",
        "spoken",
        "unsent",
    )

    def __init__(self) -> None:
        self.scanner = ReplyScanner()
        self.unsent = b""  # the unfinished reply that may have to be dropped
        self.sent_bytes = 0  # of the unfinished reply, passed on already
        self.edits = 0  # reasons why replies may not simply be passed on
        self.copies = 0  # replies under way that the comparer gets too
        self.silent = False  # CLIENT REPLY OFF
        self.skip_next = False  # CLIENT REPLY SKIP was answered: the next reply is dropped
        self.silence_asked = False  # CLIENT REPLY OFF or SKIP may be under way
        self.spoken = False  # the last reply is passed on although the client asked for silence

    def speak(self) -> None:
        """End CLIENT REPLY OFF."""
        if self.silent:
            self.silent = False
            self.edits -= 1
        self.silence_asked = self.skip_next
