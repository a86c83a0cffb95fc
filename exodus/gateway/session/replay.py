"""Replay: the requests that bring a new leg into the session's state."""

from __future__ import annotations

from typing import NamedTuple

from exodus.commands.semantics import Role
from exodus.gateway.logins import Logins
from exodus.gateway.session.parts import REPLY_OFF, REPLY_ON, SessionParts
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.state import Prediction, SessionState
from exodus.resp.encode import encode
from exodus.resp.scanner import RequestScanner

# Settings that change no reply. An older server may not know them all.
_COSMETIC = frozenset({"setinfo", "no-evict", "no-touch"})


class Stage(NamedTuple):
    """Requests that are replayed together on a new leg."""

    requests: list[bytes]
    optional: frozenset[int] = frozenset()  # positions of requests that the server may refuse
    user: bytes | None = None  # the session has to be this user afterwards
    confirmations: int = 0  # replies to a subscription


def replay_stages(state: SessionState, predicted: Prediction, logins: Logins | None) -> list[Stage]:
    """Return the stages of a replay, in order.

    Nothing is sent behind a command whose failure would change its meaning (principle 6). So each
    login is a stage of its own, and a transaction's requests follow after MULTI was answered.

    Args:
        state: the session's state.
        predicted: its open transaction.
        logins: those of the new leg's side.
    """
    stages = [Stage([logins.default_login])] if logins is not None and logins.default_login else []
    requests: list[bytes] = []
    optional: set[int] = set()
    for slot, raw in state.replay.items():
        if slot == "auth":
            said = logins.translated_request(raw) if logins is not None else raw
            stages.append(Stage([said], user=_user_in(said)))
            continue
        if slot.partition(" ")[0] in _COSMETIC:
            optional.add(len(requests))
        requests.append(raw)
    if state.db:
        requests.append(encode("SELECT", state.db))
    if requests:
        stages.append(Stage(requests, optional=frozenset(optional)))
    for kind in (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"):
        prefix = kind + b" "
        names = sorted(
            each.partition(b" ")[2] for each in state.channels if each.startswith(prefix)
        )
        if names:
            stages.append(Stage([encode(kind, *names)], confirmations=len(names)))
    if predicted.transaction is not None:
        stages.append(Stage([encode("MULTI")]))
        if predicted.transaction.raw:
            stages.append(Stage(list(predicted.transaction.raw)))
    return stages


def take_over_command(parts: SessionParts, pending: Pending, head: bytes, *, failed: bool) -> None:
    """Take over an answered HELLO, AUTH or CLIENT: it is replayed on the next leg.

    Args:
        parts: those of the session.
        pending: the command.
        head: the first line of its reply.
        failed: the reply was an error.
    """
    args, role, state = pending.names, pending.command.role, parts.state
    if role is Role.HELLO and len(args) != 1:
        if not failed and len(args) > 1:
            state.protocol = 3 if args[1] == b"3" else 2
        parts.predicted.protocol = state.protocol
    _take_over_silence(parts, pending, failed=failed)
    if failed:
        # Redis 6.2 may have run the AUTH in a HELLO before it refused another word of it.
        if role is Role.HELLO and len(args) > 2 and head.startswith(b"ERR"):
            state.unknown_why = "a HELLO that was refused in part"
        return
    if not args:
        state.unknown_why = "a session command that is longer than is kept"
        return
    for slot, raw in _slots(role, args):
        state.replay.pop(slot, None)
        state.replay[slot] = raw
        if slot == "setname":
            state.name = _name_in(raw)
        elif slot == "tracking":
            state.tracking = args[2].upper() == b"ON"
            state.tracking_redirected = b"REDIRECT" in [arg.upper() for arg in args[3:]]


def _take_over_silence(parts: SessionParts, pending: Pending, *, failed: bool) -> None:
    """Take over an answered CLIENT REPLY."""
    replies, mode = parts.replies, pending.reply_mode
    if mode > REPLY_ON:
        if failed or replies.silent or pending.queued:
            replies.edits -= 1
        elif mode == REPLY_OFF:
            replies.silent = True  # counts as an edit until it ends
        else:
            replies.skip_next = True
    elif mode == REPLY_ON and not failed:
        replies.spoken = True
        replies.speak()


def _slots(role: Role, args: list[bytes]) -> list[tuple[str, bytes]]:
    """Return what a command sets and the request that sets it again.

    A later request for the same slot replaces the earlier one.
    """
    if role is Role.AUTH:
        return [("auth", encode(*args))]
    word = args[1].upper() if len(args) > 1 else b""
    if role is Role.HELLO:
        return _slots_of_hello(word, args)
    if word in (b"SETNAME", b"NO-EVICT", b"NO-TOUCH", b"TRACKING"):
        return [(word.decode().lower(), encode(*args))]
    if word == b"SETINFO" and len(args) == 4:
        return [(f"setinfo {args[2].decode('ascii', 'replace').lower()}", encode(*args))]
    return []


def _slots_of_hello(version: bytes, args: list[bytes]) -> list[tuple[str, bytes]]:
    found = [("hello", encode(b"HELLO", version))] if version else []
    at = 2
    while at < len(args):
        option = args[at].upper()
        if option == b"AUTH":
            found.append(("auth", encode(b"AUTH", *args[at + 1 : at + 3])))
            at += 2
        elif option == b"SETNAME":
            found.append(("setname", encode(b"CLIENT", b"SETNAME", *args[at + 1 : at + 2])))
            at += 1
        at += 1
    return found


def _user_in(raw: bytes) -> bytes:
    """Return the user of an AUTH as it is replayed: the default user if it names none."""
    args = RequestScanner().feed(raw)[0].args
    return args[1] if len(args) > 2 else b"default"


def _name_in(raw: bytes) -> bytes:
    """Return the client name in a CLIENT SETNAME as it is replayed."""
    return RequestScanner().feed(raw)[0].args[-1]
