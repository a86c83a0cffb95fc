"""Texts of scripts that clients load or run. A switch loads them on the other side first.

A client expects a script that it has loaded to last as long as its connection, and the gateway
keeps that connection over a switch. No server lists its scripts. So the texts come from the
traffic: EVAL and SCRIPT LOAD contain them.
"""

from __future__ import annotations

import hashlib

from exodus.plan.bounds import (
    SCRIPT_OVERHEAD_BYTES,
    SCRIPTS_ASKED_DIGESTS_MAX,
    SCRIPTS_BYTES_MAX,
)


class Scripts:
    """The scripts that one process has seen. `take` hands new texts over to the control store."""

    __slots__ = ("_bytes", "_fresh", "_seen", "_shas", "asked", "left_out")

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._shas: set[bytes] = set()
        self._fresh: list[bytes] = []
        self._bytes = 0
        self.left_out = 0  # texts and digests beyond the bounds
        self.asked: set[bytes] = set()  # digests that clients named, of unseen texts

    def see(self, text: bytes) -> None:
        """Note the text of a script that the authority accepted."""
        if text in self._seen:
            return
        size = len(text) + SCRIPT_OVERHEAD_BYTES  # a client may send many short ones
        if self._bytes + size > SCRIPTS_BYTES_MAX:
            self.left_out += 1
            return
        self._bytes += size
        self._seen.add(text)
        sha = digest(text)
        self._shas.add(sha)
        self.asked.discard(sha)
        self._fresh.append(text)

    def ask(self, sha: bytes) -> None:
        """Note the digest of a script that the authority ran."""
        sha = sha.lower()
        if sha in self._shas or sha in self.asked or len(sha) != 40:
            return
        if len(self.asked) < SCRIPTS_ASKED_DIGESTS_MAX:
            self.asked.add(sha)
        else:
            self.left_out += 1

    @property
    def waiting(self) -> bool:
        """Return whether `take` has something to hand over."""
        return bool(self._fresh)

    def take(self) -> list[bytes]:
        """Return the texts since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def give_back(self, texts: list[bytes]) -> None:
        """Keep texts for the next `take`: the store did not accept them."""
        self._fresh = texts + self._fresh


def digest(text: bytes) -> bytes:
    """Return the name by which EVALSHA calls a script."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
