"""The state of a process's surroundings: each change is logged once, at INFO, with its reason.

A server that is away is asked all the time. The log has one line when it went and one when it came
back.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

import orjson

from exodus.safe_text import LogFormatter

WAITS = ("waits", "goes on")


class States:
    """Remembers what was logged last of each thing."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: dict[str, tuple[str, float]] = {}

    def away(
        self,
        what: str,
        why: str,
        *,
        kind: str = "",
        verbs: tuple[str, str] = ("is away", "is back"),
    ) -> None:
        """Say that something is away, and why; an empty text: that it is back.

        Args:
            kind: what counts as a change; the reason itself, where it is left away.
            verbs: said of it, before the reason and before the time that it took.
        """
        before, since = self._known.get(what, ("", 0.0))
        now = kind or why
        if now == before:
            return
        self._known[what] = (now, time.monotonic() if not before else since)
        if why:
            self._log.info("%s %s: %s", what, verbs[0], why)
        else:
            self._log.info("%s %s after %.1f s", what, verbs[1], time.monotonic() - since)

    def now(self, what: str, state: str) -> None:
        """Say what something is now."""
        if self._known.get(what, ("", 0.0))[0] != state:
            self._known[what] = (state, 0.0)
            self._log.info("%s: %s", what, state)

    def once(self, what: str) -> None:
        """Say something that stays."""
        if what not in self._known:
            self._known[what] = (what, 0.0)
            self._log.info("%s", what)


class JsonFormatter(LogFormatter):
    """Writes a record as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        found = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = record.exc_text or self.formatException(record.exc_info)
        return orjson.dumps(found).decode()
