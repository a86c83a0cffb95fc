"""Replays: a write as it is run again, later and on another server, with the same effect. No I/O.

Some writes draw lots or make up an id. What the authority drew is in its reply, so the replay names
it: SPOP becomes the SREM of the members that went, and XADD gets the id that it was given. The
effect of others depends on when they run. These cannot be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from exodus.shadow.exchange import Exchange

TIMED = "its effect or its reply depends on the time at which it runs"
UNREAD = "its reply is not what such a request is answered"
_XADD_FLAGS = frozenset({b"NOMKSTREAM", b"KEEPREF", b"DELREF", b"ACKED"})
_XADD_TRIMS = frozenset({b"MAXLEN", b"MINID"})
# Their expiry is a part of the value, and counts from when they run.
_FIELD_EXPIRIES = frozenset({b"HEXPIRE", b"HPEXPIRE", b"HSETEX", b"HGETEX"})
_EXPIRE_IF = frozenset({b"GT", b"LT"})  # compare the time left with the one that is there


class NoReplay(Exception):
    """A write that cannot be replayed; the text is the reason."""


def replay(exchange: Exchange, reply: object) -> tuple[Exchange, object]:
    """Return the write as it is run again, and the reply that it is to have then.

    Raises:
        NoReplay: its effect or its reply would be another one.
    """
    if not exchange.transaction:
        args, wanted = _replay(exchange.args, reply)
        return replace(exchange, requests=(args,)), wanted
    if not isinstance(reply, list) or len(reply) != len(exchange.requests):
        raise NoReplay(UNREAD)
    found = [_replay(*each) for each in zip(exchange.requests, reply, strict=True)]
    return replace(exchange, requests=tuple(args for args, _ in found)), [each for _, each in found]


def _replay(args: Sequence[bytes], reply: object) -> tuple[list[bytes], object]:
    name, words = args[0].upper(), list(args)
    if name.endswith((b"TTL", b"EXPIRETIME")) or name in _FIELD_EXPIRIES:
        raise NoReplay(TIMED)
    if b"EXPIRE" in name and _EXPIRE_IF & {word.upper() for word in words[3:]}:
        raise NoReplay(TIMED)
    if name == b"XADD" and isinstance(reply, bytes):
        words[_id_of(words)] = reply
    elif name == b"SPOP":
        members = _members(reply)
        if members:
            return [b"SREM", words[1], *members], len(members)
    return words, reply


def _members(reply: object) -> list[bytes]:
    found = reply if isinstance(reply, list | set) else [reply]
    return [each for each in found if isinstance(each, bytes)]


def _id_of(words: Sequence[bytes]) -> int:
    """Return where the id of an XADD stands.

    Raises:
        NoReplay: it stands nowhere.
    """
    at = 2
    while at < len(words):
        word = words[at].upper()
        if word in _XADD_FLAGS:
            at += 1
        elif word in _XADD_TRIMS:
            at += 3 if at + 1 < len(words) and words[at + 1] in (b"=", b"~") else 2
        elif word == b"LIMIT":
            at += 2
        else:
            return at
    raise NoReplay(UNREAD)
