"""Whether the control store answers this process."""

from __future__ import annotations

from redis.exceptions import RedisError

from exodus.gateway.journaler import Journaler

STORE_ERRORS = (RedisError, OSError, TimeoutError)


class StoreState:
    """What the last question to the store came to, and whether it takes the journal."""

    def __init__(self, journaler: Journaler) -> None:
        self._journaler = journaler
        self._failures = 0  # since the route was read last
        self.error = ""  # of the last failure

    def answered(self) -> None:
        """Note that the store told the route."""
        self._failures = 0

    def failed(self, exc: Exception) -> None:
        """Note that a question failed."""
        self._failures += 1
        self.error = str(exc) or type(exc).__name__

    @property
    def why_away(self) -> str:
        """Return why the store counts as away, or nothing."""
        if self._journaler.store_away_since is not None or self._failures:
            return f"the control store is away; {self._journaler.spooled} keys are spooled"
        return ""
