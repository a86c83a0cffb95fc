"""Applications' logins that are others on the target: what a client says of itself goes on in the target's words, as the plan's `logins` have it.

A client shows the credentials that the source knows, on whatever side its session is. Only who shows the source's password gets the target's, so
the gateway gives nobody more than the source would. Whatever the plan does not name passes as it is: a client may use the target's own
credentials, once they are there. No I/O; secrets are read when the process starts.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from exodus.plan.address import Address
from exodus.plan.settings import Login
from exodus.resp.encode import encode
from exodus.resp.scanner import RequestScanner

_DEFAULT = b"default"  # who says only a password, or nothing


class Logins:
    """What is said to the target in place of what a client says."""

    def __init__(self, logins: Sequence[Login]) -> None:
        """Read the secrets.

        Raises:
            OperatorError: one is not where the plan says.
        """
        self._known: list[tuple[bytes, bytes, tuple[bytes, bytes]]] = []
        self.unasked = b""  # sent first on each connection: the login of those who need none on the source
        for login in logins:
            theirs = (login.target_user or login.user).encode(), login.target_secret().encode()
            secret = login.secret()
            if secret is None:
                self.unasked = encode("AUTH", *theirs)
            else:
                self._known.append((login.user.encode(), secret.encode(), theirs))

    def with_own(self, source: Address, target: Address) -> Logins:
        """Return the same logins and Exodus's own, for the sessions of a rehearsal.

        Raises:
            OperatorError: a secret is not where the plan says.
        """
        found = Logins(())
        found._known, found.unasked = list(self._known), self.unasked
        ours, theirs = source.secret("source"), target.secret("target")
        said = (target.username or "default").encode(), (theirs or "").encode()
        if ours is not None:
            found._known.append(((source.username or "default").encode(), ours.encode(), said))
        elif theirs is not None and not found.unasked:
            found.unasked = encode("AUTH", *said)
        return found

    def said_to_target(self, args: Sequence[bytes]) -> bytes | None:
        """The request in place of AUTH or HELLO with these words; None: as it is."""
        at = _place(args)
        if at is None:
            return None
        short = len(args) == 2  # AUTH password
        user, password = (_DEFAULT, args[1]) if short else (args[at], args[at + 1])
        for known, secret, theirs in self._known:
            if known == user and hmac.compare_digest(secret, password):
                return encode(*args[:at], *theirs, *args[at + (1 if short else 2) :])
        return None

    def again(self, raw: bytes) -> bytes:
        """The same for a request as it was sent."""
        return self.said_to_target(RequestScanner().feed(raw)[0].args) or raw


def _place(args: Sequence[bytes]) -> int | None:
    """Where the credentials begin in AUTH [user] password, HELLO version [AUTH user password] [SETNAME name]; None where there are none."""
    if args[0].upper() == b"AUTH":
        return 1 if len(args) in (2, 3) else None
    at = 2
    while at + 2 < len(args):
        if args[at].upper() == b"AUTH":
            return at + 1
        at += 2
    return None
