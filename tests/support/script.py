"""The input of a sans-IO session and its whole expected output, played in one piece, then at every
byte split.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, ClassVar

from exodus.control.changes import Barrier, Key
from exodus.gateway.canary_reads import CanaryRead


class Recorder:
    """An `Outlet` that records each call; neighbouring bytes in one direction are one call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.reads: list[CanaryRead] = []

    def _bytes(self, name: str, data: bytes) -> None:
        if self.calls and self.calls[-1][0] == name:
            self.calls[-1] = (name, self.calls[-1][1] + data)
        elif data:
            self.calls.append((name, data))

    def to_server(self, data: bytes) -> None:
        self._bytes("to_server", data)

    def to_client(self, data: bytes) -> None:
        self._bytes("to_client", data)

    def log_intents(self, keys: list[Key], barrier: Barrier | None) -> None:
        self.calls.append(("log_intents", sorted(keys), barrier))

    def log_gap(self, why: str) -> None:
        self.calls.append(("log_gap", why))

    def journal(self, keys: list[Key], barrier: Barrier | None) -> None:
        self.calls.append(("journal", sorted(keys), barrier))

    def gap(self, why: str) -> None:
        self.calls.append(("gap", why))

    def learn_command(self, args: list[bytes], db: int) -> None:
        self.calls.append(("learn_command", args, db))

    def shadow(self, db: int, request: bytes, reply: bytes, write: bool) -> None:
        self.calls.append(("shadow", db, request, reply, write))

    def ask_follower(self, read: CanaryRead, request: bytes, protocol: int) -> None:
        self.reads.append(read)
        self.calls.append(("ask_follower", request, protocol))

    def pause_client(self) -> None:
        self.calls.append(("pause_client",))

    def resume_client(self) -> None:
        self.calls.append(("resume_client",))

    def caught_up(self) -> None:
        pass  # called after every backlog; every test would have to repeat it

    def unblock(self, client_id: int) -> None:
        self.calls.append(("unblock", client_id))

    def told_error(self, head: bytes, *, by_server: bool) -> bytes:
        kind, slot, _ = head.split(b" ")
        return b"%b %b %b:7001" % (kind, slot, b"gateway" if by_server else b"doubted")

    def told_reply(self, word: bytes, frame: bytes) -> bytes:
        return b"$%d\r\n%b\r\n" % (len(word), word)

    def as_cluster(self, args: list[bytes], protocol: int) -> bytes:
        return b"+%b of %d\r\n" % (b" ".join(args), protocol)

    def settled(self) -> None:
        # One call wakes a waiter as well as two
        if not self.calls or self.calls[-1] != ("settled",):
            self.calls.append(("settled",))

    def close(self, why: str) -> None:
        self.calls.append(("close", why))

    def take(self) -> list[tuple[Any, ...]]:
        """Everything since the last call."""
        calls, self.calls = self.calls, []
        return calls


class Script:
    """Steps (method, bytes) and the calls that each must cause.

    A test that builds a script and does not play it fails (`unplayed`, tests/conftest.py).
    """

    _unplayed: ClassVar[list[Script]] = []

    def __init__(self, make: Callable[[Recorder], Any]) -> None:
        self.make = make
        self.steps: list[tuple[tuple[Any, ...], list[tuple[Any, ...]]]] = []
        self._unplayed.append(self)

    @classmethod
    def unplayed(cls) -> int:
        """Return how many scripts were built and not played since the last call."""
        count = len(cls._unplayed)
        cls._unplayed.clear()
        return count

    def __rshift__(self, step: tuple[Any, ...]) -> Script:
        self.steps.append((step, []))
        self._note_change()
        return self

    def __lshift__(self, call: tuple[Any, ...]) -> Script:
        self.steps[-1][1].append(call)
        self._note_change()
        return self

    def _note_change(self) -> None:
        if not any(script is self for script in self._unplayed):  # played, and then extended
            self._unplayed.append(self)

    def play(self, cut_step: int | None = None, cut: int = 0) -> None:
        self._unplayed[:] = [script for script in self._unplayed if script is not self]
        out = Recorder()
        session = self.make(out)
        for number, ((name, *arguments), wanted) in enumerate(self.steps):
            if name in ("from_client", "from_server"):
                data = arguments[0]
                for part in (data[:cut], data[cut:]) if number == cut_step else (data,):
                    getattr(session, name)(part, float(number))
            elif callable(arguments[0] if arguments else None):
                arguments[0](session)
            else:
                getattr(session, name)(*arguments)
            got = out.take()
            if got != wanted:
                where = f" cut at byte {cut}" if number == cut_step else ""
                raise AssertionError(
                    f"step {number}: {name}({arguments!r}){where}\n{_difference(wanted, got)}"
                )

    def play_at_every_split(self) -> None:
        self.play()
        for number, ((name, *arguments), _) in enumerate(self.steps):
            if name in ("from_client", "from_server"):
                for cut in range(1, len(arguments[0])):
                    self.play(number, cut)


def _difference(wanted: list[tuple[Any, ...]], got: list[tuple[Any, ...]]) -> str:
    """Return a diff, one call a line: `-` was expected, `+` came."""
    lines = [[repr(call) for call in calls] for calls in (wanted, got)]
    return "\n".join(difflib.unified_diff(*lines, "expected", "came", n=99, lineterm=""))


def replayed(session: Any, logins: Any = None) -> tuple[bytes, int, frozenset[int]]:
    """Return what a session sends on a new leg, all stages together: the bytes, the number of
    replies, and which of them may be errors.
    """
    data, expected, optional = b"", 0, set()
    for stage in session.replay_stages(logins):
        optional |= {expected + place for place in stage.optional}
        data += b"".join(stage.requests)
        expected += stage.confirmations or len(stage.requests)
    return data, expected, frozenset(optional)
