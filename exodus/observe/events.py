"""The event model of traffic that was watched: one request and what was seen of its answer.

Packets, MONITOR, and tests make the same events, and `tally.py` sums them up. An event has no
argument of a request: a key is a pattern and a number that only this process can tell apart, a
value is its size.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

LATENCY_UNKNOWN = -1
NO_EXPIRY = -1


class Answer(IntEnum):
    """What was seen of a request's answer."""

    UNKNOWN = 0  # lost, cut off, or never shown by the source of events
    VALUE = 1
    NIL = 2
    ERROR = 3
    NONE = 4  # the client asked for none (CLIENT REPLY)


class Event:
    """One request. Times in s since 1970, sizes in bytes."""

    __slots__ = (
        "answer",
        "at",
        "batch",
        "blocking",
        "client",
        "command",
        "connection",
        "db",
        "depth",
        "error",
        "expiry_ms",
        "key",
        "keys",
        "latency_us",
        "pattern",
        "queued",
        "reply_bytes",
        "request_bytes",
        "shape",
        "write",
    )

    def __init__(
        self,
        at: float,
        connection: int,
        client: str,
        db: int,
        command: str,
        shape: str,
        *,
        pattern: str = "",
        key: int = 0,
        keys: int = 0,
        write: bool = False,
        blocking: bool = False,
        expiry_ms: int = NO_EXPIRY,
        request_bytes: int = 0,
    ) -> None:
        self.at = at
        self.connection = connection  # a number, the same for all requests of a connection
        self.client = client  # the name that it gave itself, else its address
        self.db = db
        self.command = command  # the server's name of it, with the subcommand: CONFIG|GET
        self.shape = shape  # command, option words and class of the number of arguments
        self.pattern = pattern  # of the first key, with the server's database; empty: no key
        self.key = key  # tells keys apart, in this process only
        self.keys = keys
        self.write = write
        self.blocking = blocking  # it may have waited for another client, so its latency is its own
        self.expiry_ms = expiry_ms  # that it gives to its key
        self.request_bytes = request_bytes
        self.depth = 1  # requests of its connection that waited for an answer, itself included
        self.queued = False  # in a transaction
        self.batch = 0  # requests of the transaction that this EXEC ran
        self.answer = Answer.UNKNOWN
        self.error = ""  # the error's first word
        self.reply_bytes = 0
        self.latency_us = LATENCY_UNKNOWN  # to the first packet of the answer's end


class Sink(Protocol):
    """Takes the events of a source."""

    def add(self, event: Event) -> None:
        """Count one event."""
