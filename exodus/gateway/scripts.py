"""Texts of scripts that clients load or run: they are loaded on the other side before a switch lets writes go there.

A client believes that a script it has loaded is there for as long as its connection lasts, and the gateway keeps the
connection. No server lists its scripts, so the texts are taken from the traffic: EVAL and SCRIPT LOAD carry them.
"""

from __future__ import annotations

import hashlib

from exodus.plan.bounds import SCRIPTS_BYTES_MAX

_ASKED_MAX = 10_000


class Scripts:
    """What one process has seen. `take` hands new texts over to the control store."""

    __slots__ = ("_bytes", "_fresh", "_seen", "_shas", "asked", "left_out")

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._shas: set[bytes] = set()
        self._fresh: list[bytes] = []
        self._bytes = 0
        self.left_out = 0  # texts that did not fit into the bound
        self.asked: set[bytes] = set()  # digests that clients named, of texts that were not seen

    def see(self, text: bytes) -> None:
        """Note the text of a script that the authority took."""
        if text in self._seen:
            return
        if self._bytes + len(text) > SCRIPTS_BYTES_MAX:
            self.left_out += 1
            return
        self._bytes += len(text)
        self._seen.add(text)
        sha = digest(text)
        self._shas.add(sha)
        self.asked.discard(sha)
        self._fresh.append(text)

    def ask(self, sha: bytes) -> None:
        """Note the digest of a script that the authority ran."""
        sha = sha.lower()
        if sha not in self._shas and len(sha) == 40 and len(self.asked) < _ASKED_MAX:
            self.asked.add(sha)

    @property
    def waiting(self) -> bool:
        """Whether `take` has something to hand over."""
        return bool(self._fresh)

    def take(self) -> list[bytes]:
        """Return the texts that came since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def give_back(self, texts: list[bytes]) -> None:
        """Keep texts for the next `take`: the store did not take them."""
        self._fresh = texts + self._fresh


def digest(text: bytes) -> bytes:
    """Return the name by which EVALSHA calls a script."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
