"""A sampled request and what the authority answered, as the shadow stream carries it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exodus.resp.scanner import RequestScanner


class Unreadable(ValueError):
    """An entry of the shadow stream that is no request with its reply."""


@dataclass(frozen=True)
class Exchange:
    """One request and its reply."""

    at_ms: int  # when a gateway published it, by the control store's clock
    db: int
    args: list[bytes]
    reply: bytes
    write: bool

    @property
    def command(self) -> bytes:
        """The command's name in upper case."""
        return self.args[0].upper()

    @classmethod
    def of(cls, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Exchange:
        """Read an entry.

        Raises:
            Unreadable: it has no whole request, or lacks a field.
        """
        try:
            args = RequestScanner().feed(fields[b"q"])[0].args
            db, reply = int(fields[b"db"]), fields[b"r"]
        except (KeyError, IndexError, ValueError) as exc:
            raise Unreadable(f"entry {entry_id.decode()}: {type(exc).__name__}") from exc
        if not args:
            raise Unreadable(f"entry {entry_id.decode()}: an empty request")
        return cls(int(entry_id.partition(b"-")[0]), db, args, reply, fields.get(b"w") == b"1")
