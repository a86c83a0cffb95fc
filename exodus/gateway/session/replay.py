"""Replay: the requests that bring a new leg into the session's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from exodus.commands.key_slots import slot_of
from exodus.commands.semantics import Role
from exodus.gateway.logins import Logins
from exodus.gateway.session.parts import REPLY_OFF, REPLY_ON, SessionParts
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.state import Prediction, SessionState
from exodus.plan.bounds import REPLAYED_BYTES_MAX
from exodus.resp.encode import encode
from exodus.resp.scanner import RequestScanner

# Settings that change no reply. An older server may not know them all.
_COSMETIC = frozenset({"setinfo", "no-evict", "no-touch"})
_SHARDED = b"SSUBSCRIBE"
_TOO_LONG = "a session command that is longer than is kept"
_READONLY = "readonly"  # a server that is no node of a cluster refuses it, and needs it not


class Stage(NamedTuple):
    """Requests that are replayed together on a new leg."""

    requests: list[bytes]
    optional: frozenset[int] = frozenset()  # positions of requests that the server may refuse
    user: bytes | None = None  # the session has to be this user afterwards
    confirmations: int = 0  # replies to a subscription
    shard_channels: tuple[bytes, ...] = ()  # of one slot: the server may not have it


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
        if slot.partition(" ")[0] in _COSMETIC or slot == _READONLY:
            optional.add(len(requests))
        requests.append(raw)
    if state.db:
        requests.append(encode("SELECT", state.db))
    if requests:
        stages.append(Stage(requests, optional=frozenset(optional)))
    for kind in (b"SUBSCRIBE", b"PSUBSCRIBE"):
        names = _channels(state, kind)
        if names:
            stages.append(Stage([encode(kind, *names)], confirmations=len(names)))
    # A node takes channels of one slot at a time.
    by_slot: dict[int, list[bytes]] = {}
    for name in _channels(state, _SHARDED):
        by_slot.setdefault(slot_of(name), []).append(name)
    for names in by_slot.values():
        request = encode(_SHARDED, *names)
        stages.append(Stage([request], confirmations=len(names), shard_channels=tuple(names)))
    if predicted.transaction is not None:
        stages.append(Stage([encode("MULTI")]))
        if predicted.transaction.raw:
            stages.append(Stage(list(predicted.transaction.raw)))
    return stages


def _channels(state: SessionState, kind: bytes) -> list[bytes]:
    """Return what a session is subscribed to by a command."""
    prefix = kind + b" "
    return sorted(each[len(prefix) :] for each in state.channels if each.startswith(prefix))


def leave_channels(state: SessionState, names: Sequence[bytes]) -> bytes:
    """End subscriptions to channels whose slot the new server does not have.

    Returns:
        The messages for the client: a node whose slot moved away sends the same. The client then
        subscribes at the slot's new node.
    """
    found = []
    for name in names:
        state.leave(_SHARDED + b" " + name)
        left = len(_channels(state, _SHARDED))
        kind = b">" if state.protocol == 3 else b"*"
        found.append(
            b"%b3\r\n$12\r\nsunsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (kind, len(name), name, left)
        )
    return b"".join(found)


def take_over_command(parts: SessionParts, pending: Pending, head: bytes, *, failed: bool) -> None:
    """Take over an answered HELLO, AUTH, CLIENT or READONLY: it is replayed on the next leg.

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
    if role is Role.CLUSTER:
        _take_over_readonly(state, args)
        return
    if not args:
        state.unknown_why = _TOO_LONG
        return
    for slot, raw in _slots(role, args):
        state.replay.pop(slot, None)
        if len(raw) > REPLAYED_BYTES_MAX:
            state.unknown_why = _TOO_LONG
            continue
        state.replay[slot] = raw
        if slot == "setname":
            state.name = _name_in(raw)
        elif slot == "tracking":
            state.tracking = args[2].upper() == b"ON"
            state.tracking_redirected = b"REDIRECT" in [arg.upper() for arg in args[3:]]


def _take_over_readonly(state: SessionState, args: list[bytes]) -> None:
    """Take over an answered READONLY or READWRITE. ASKING is for one request, and not replayed."""
    word = args[0].upper() if len(args) == 1 else b""
    if word == b"READONLY":
        state.replay[_READONLY] = encode(word)
    elif word == b"READWRITE":
        state.replay.pop(_READONLY, None)


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
