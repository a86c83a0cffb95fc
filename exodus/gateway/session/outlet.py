"""The calls that a session makes: `relay.Connection` performs them, tests record them."""

from __future__ import annotations

from typing import Protocol

from exodus.control.changes import Barrier, Key
from exodus.gateway.canary_reads import CanaryRead


class Outlet(Protocol):
    """The shell around a session. No method waits."""

    def to_server(self, data: bytes) -> None:
        """Send bytes to the authority."""

    def to_client(self, data: bytes) -> None:
        """Send bytes to the application."""

    def log_intents(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Log what a request may change, before it is forwarded."""

    def log_gap(self, why: str) -> None:
        """Log that a request may change unknown keys, before it is forwarded."""

    def journal(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Mark keys as changed, after the authority answered."""

    def gap(self, why: str) -> None:
        """Open a gap: a write happened, and its keys are unknown."""

    def learn_command(self, args: list[bytes], db: int) -> None:
        """Learn a command that no server has described, and mark the keys of this request."""

    def shadow(self, db: int, request: bytes, reply: bytes, write: bool) -> None:
        """Offer a sampled request and its reply to the comparer."""

    def ask_follower(self, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Send a canary read to the follower. Call `Session.from_follower` when `read` is done."""

    def pause_client(self) -> None:
        """Stop reading from the application."""

    def resume_client(self) -> None:
        """Read from the application again."""

    def caught_up(self) -> None:
        """Note that the session has forwarded its whole backlog."""

    def unblock(self, client_id: int) -> None:
        """End this connection's blocking command on the authority, as if its timeout had passed."""

    def told_error(self, head: bytes, *, by_server: bool) -> bytes:
        """Return the first line of the error that the client gets in place of a MOVED or ASK. The
        session may be frozen when this returns: then it is about to be moved.

        Args:
            head: the first line of the server's error.
            by_server: the server itself said it, and no script of a client.
        """

    def told_reply(self, word: bytes, frame: bytes) -> bytes:
        """Return the reply that the client gets in place of a whole one to `CLUSTER word`."""

    def as_cluster(self, args: list[bytes], protocol: int) -> bytes:
        """Return the reply to a request of a cluster client, in place of a single server's."""

    def settled(self) -> None:
        """Note that `writes_in_flight` or `idle` may have changed."""

    def close(self, why: str) -> None:
        """End the session: it cannot continue correctly."""
