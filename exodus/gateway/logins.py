"""Logins that differ on the target: the gateway translates credentials as the plan's `logins` say.

A client shows the credentials that the source knows, whatever side its session is on. Only a
client that shows the source's password gets the target's, so the gateway gives nobody more than
the source would. Credentials that the plan does not name pass unchanged: a client may use the
target's own. No I/O; secrets are read when the process starts.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from exodus.plan.address import ServerLogin
from exodus.plan.settings import Login
from exodus.resp.encode import encode
from exodus.resp.scanner import RequestScanner

_DEFAULT = b"default"  # the user of a login without a name


class Logins:
    """Translates credentials for the target."""

    def __init__(self, logins: Sequence[Login]) -> None:
        """Read the secrets.

        Raises:
            OperatorError: a secret is not where the plan says.
        """
        self._known: list[tuple[bytes, bytes, tuple[bytes, bytes]]] = []
        # Sent first on each connection: the login of clients that need none on the source.
        self.default_login = b""
        for login in logins:
            theirs = (login.target_user or login.user).encode(), login.target_secret().encode()
            secret = login.secret()
            if secret is None:
                self.default_login = encode("AUTH", *theirs)
            else:
                self._known.append((login.user.encode(), secret.encode(), theirs))

    def with_own(self, source: ServerLogin, target: ServerLogin) -> Logins:
        """Return these logins and Exodus's own, for the sessions of a rehearsal.

        Raises:
            OperatorError: a secret is not where the plan says.
        """
        found = Logins(())
        found._known, found.default_login = list(self._known), self.default_login
        ours, theirs = source.secret("source"), target.secret("target")
        said = (target.username or "default").encode(), (theirs or "").encode()
        if ours is not None:
            found._known.append(((source.username or "default").encode(), ours.encode(), said))
        elif theirs is not None and not found.default_login:
            found.default_login = encode("AUTH", *said)
        return found

    def translated(self, args: Sequence[bytes]) -> bytes | None:
        """Return the request for the target in place of an AUTH or HELLO; None: it is unchanged."""
        at = _place(args)
        if at is None:
            return None
        short = len(args) == 2  # AUTH password
        user, password = (_DEFAULT, args[1]) if short else (args[at], args[at + 1])
        for known, secret, theirs in self._known:
            if known == user and hmac.compare_digest(secret, password):
                return encode(*args[:at], *theirs, *args[at + (1 if short else 2) :])
        return None

    def translated_request(self, raw: bytes) -> bytes:
        """Return the request for the target in place of an encoded AUTH."""
        return self.translated(RequestScanner().feed(raw)[0].args) or raw


def _place(args: Sequence[bytes]) -> int | None:
    """Return where the credentials begin, or None if there are none.

    The forms are AUTH [user] password, HELLO version [AUTH user password] [SETNAME name].
    """
    if args[0].upper() == b"AUTH":
        return 1 if len(args) in (2, 3) else None
    at = 2
    while at + 2 < len(args):
        if args[at].upper() == b"AUTH":
            return at + 1
        at += 2
    return None
