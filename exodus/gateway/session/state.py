"""The state of one client connection: as the authority answered it, and as requests predict it.

`SessionState` follows replies only (principle 1). `Prediction` assumes that the requests under way
will succeed. It is used only where something must be decided before the answer: which writes to
hold, and which intents to log.
"""

from __future__ import annotations

from exodus.gateway.session.transaction import Transaction
from exodus.plan.bounds import SUBSCRIPTIONS_BYTES_MAX, SUBSCRIPTIONS_TRACKED_MAX


class SessionState:
    """What the authority has confirmed."""

    __slots__ = (
        "channel_bytes",
        "channels",
        "db",
        "in_multi",
        "name",
        "protocol",
        "replay",
        "tracking",
        "tracking_redirected",
        "unknown_why",
        "watch_lost",
        "watching",
    )

    def __init__(self) -> None:
        self.db = 0
        self.protocol = 2
        self.name = b""
        self.watching = False
        self.watch_lost = False  # the leg was replaced while WATCH was on: the next EXEC must fail
        self.in_multi = False
        self.channels: set[bytes] = set()  # each with its kind in front: b"SUBSCRIBE name"
        self.channel_bytes = 0
        self.tracking = False
        # Invalidations go to another connection, whose id differs on another server.
        self.tracking_redirected = False
        # HELLO, AUTH and CLIENT by what they set, in the order in which they took effect.
        self.replay: dict[str, bytes] = {}
        self.unknown_why: str | None = None  # why the state is not known well enough to be replayed

    def join(self, channel: bytes) -> None:
        """Note a subscription; beyond a bound, that not all of them are known."""
        if channel in self.channels:
            return
        self.channel_bytes += len(channel)
        if (
            len(self.channels) >= SUBSCRIPTIONS_TRACKED_MAX
            or self.channel_bytes > SUBSCRIPTIONS_BYTES_MAX
        ):
            self.channel_bytes -= len(channel)
            self.unknown_why = "more subscriptions than are tracked"
        else:
            self.channels.add(channel)

    def leave(self, channel: bytes) -> None:
        """Note the end of a subscription."""
        if channel in self.channels:
            self.channels.remove(channel)
            self.channel_bytes -= len(channel)

    def reset(self) -> None:
        """Return to the state of a new connection: the authority answered RESET."""
        self.replay.clear()
        self.db = 0
        self.protocol = 2
        self.tracking = self.in_multi = self.watching = False
        self.channels.clear()
        self.channel_bytes = 0
        self.name = b""


class Prediction:
    """What the state will be if the authority takes every request that is under way."""

    __slots__ = ("db", "protocol", "selects_in_flight", "transaction")

    def __init__(self) -> None:
        self.db = 0
        self.protocol = 2  # 0 while a HELLO is under way
        self.selects_in_flight = 0  # each of them may still fail
        self.transaction: Transaction | None = None  # the open MULTI
