"""Encoding requests, and the few replies that the gateway gives itself."""

from __future__ import annotations

from collections.abc import Iterable

Arg = bytes | str | int
_HEADS_MAX = 256
_HEADS = tuple(b"$%d\r\n" % length for length in range(_HEADS_MAX))


def encode(*args: Arg) -> bytes:
    """Encode one request as an array of bulk strings."""
    return _joined([b"*%d" % len(args)], args)


def encode_arguments(*args: Arg) -> bytes:
    """Further arguments of a request whose head already counts them."""
    return _joined([], args)


def encode_many(commands: Iterable[Iterable[Arg]]) -> bytes:
    """Several requests behind one another."""
    return b"".join([encode(*command) for command in commands])


def _joined(parts: list[bytes], args: tuple[Arg, ...]) -> bytes:
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        length = len(raw)
        if length < _HEADS_MAX:
            parts.append(_HEADS[length] + raw)
        else:
            parts.append(b"$%d" % length)
            parts.append(raw)  # copied once, when all are joined
    parts.append(b"")
    return b"\r\n".join(parts)


def null_array(protocol: int) -> bytes:
    """Return EXEC's answer after a watched key changed, in RESP2 or RESP3."""
    return b"_\r\n" if protocol == 3 else b"*-1\r\n"
