"""A sampled request and what the authority answered, as the shadow stream carries it. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from exodus.control.shadow_pairs import Pair, UnreadablePairs
from exodus.resp.scanner import RequestScanner


@dataclass(frozen=True)
class Exchange:
    """One request and its reply."""

    at_ms: int  # when a gateway published it, by the control store's clock
    db: int
    requests: tuple[list[bytes], ...]  # one; those of a transaction without MULTI and EXEC
    reply: bytes
    write: bool
    transaction: bool = False
    client: str = ""  # who sent it

    @property
    def args(self) -> list[bytes]:
        """The request, or the first one of a transaction."""
        return self.requests[0]

    @property
    def command(self) -> bytes:
        """The command's name in upper case; MULTI for a transaction."""
        return b"MULTI" if self.transaction else self.args[0].upper()

    @property
    def digest(self) -> str:
        """Return which request it is: another exchange of the same words has the same digest."""
        words = [word for args in self.wire() for word in (b"%d" % len(args), *args)]
        text = b"".join(b"%d:%b" % (len(word), word) for word in words)
        return hashlib.sha256(text).hexdigest()[:16]

    def wire(self, requests: Sequence[list[bytes]] | None = None) -> list[list[bytes]]:
        """What is sent; the last reply is the exchange's. `requests` stand in for its own."""
        sent = list(self.requests if requests is None else requests)
        return [[b"MULTI"], *sent, [b"EXEC"]] if self.transaction else sent

    @classmethod
    def of(cls, at_ms: int, pair: Pair) -> Exchange:
        """Read a pair that was published at a time of the control store.

        Raises:
            UnreadablePairs: it has no whole request.
        """
        requests = [each.args for each in RequestScanner().feed(pair.request)]
        transaction = bool(requests) and requests[0] == [b"MULTI"]
        requests = requests[1:] if transaction else requests[:1]
        if not requests or not all(requests):
            raise UnreadablePairs(f"an empty request at {at_ms}")
        client = pair.client.decode("utf-8", "backslashreplace").strip()
        return cls(at_ms, pair.db, tuple(requests), pair.reply, pair.write, transaction, client)
