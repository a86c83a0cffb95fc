"""Encoding requests, and the few replies that the gateway gives itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Arg = bytes | str | int
_HEADS_MAX = 256
_HEADS = tuple(b"$%d\r\n" % length for length in range(_HEADS_MAX))
_HEADS_AFTER = tuple(b"\r\n$%d\r\n" % length for length in range(_HEADS_MAX))


def encode(*args: Arg) -> bytes:
    """Encode one request as an array of bulk strings."""
    return _joined([b"*%d" % len(args)], args)


def encode_arguments(*args: Arg) -> bytes:
    """Further arguments of a request whose head already counts them."""
    return _joined([], args)


def encode_many(commands: Iterable[Iterable[Arg]]) -> bytes:
    """Several requests behind one another."""
    return b"".join([encode(*command) for command in commands])


def encode_strings(
    keys: Sequence[bytes], expiries_ms: Sequence[int], values: Sequence[bytes]
) -> bytes:
    """Return a SET of each string, with its absolute expiry where that is above 0."""
    parts: list[bytes] = []
    for key, expiry_ms, value in zip(keys, expiries_ms, values, strict=True):
        if expiry_ms > 0:
            at = b"%d" % expiry_ms
            parts += (
                b"*5\r\n$3\r\nSET\r\n",
                _head(len(key)),
                key,
                _head_after(len(value)),
                value,
                b"\r\n$4\r\nPXAT\r\n",
                _head(len(at)),
                at,
                b"\r\n",
            )
        else:
            parts += (
                b"*3\r\n$3\r\nSET\r\n",
                _head(len(key)),
                key,
                _head_after(len(value)),
                value,
                b"\r\n",
            )
    return b"".join(parts)


def string_commands(
    keys: Sequence[bytes],
    expiries_ms: Sequence[int],
    values: Sequence[bytes],
    groups: Sequence[list[int]],
) -> tuple[bytes, int, list[list[int]]]:
    """Return commands that write strings, as arguments of a script: each behind the number of its
    words. Then the number of all these words, and for each command the places of its keys.

    Args:
        keys: names.
        expiries_ms: absolute; 0 or less for none.
        values: what they hold.
        groups: places of keys. Those of one group that do not expire are written by one MSET.
    """
    parts: list[bytes] = []
    written: list[list[int]] = []
    count = 0
    for group in groups:
        lasting: list[int] = []
        for place in group:
            if expiries_ms[place] <= 0:
                lasting.append(place)
                continue
            at = b"%d" % expiries_ms[place]
            parts += (
                b"$1\r\n5\r\n$3\r\nSET\r\n",
                _head(len(keys[place])),
                keys[place],
                _head_after(len(values[place])),
                values[place],
                b"\r\n$4\r\nPXAT\r\n",
                _head(len(at)),
                at,
                b"\r\n",
            )
            written.append([place])
            count += 6
        if not lasting:
            continue
        words = b"%d" % (2 * len(lasting) + 1)
        parts += (
            _head(len(words)),
            words,
            b"\r\n$4\r\nMSET\r\n" if len(lasting) > 1 else b"\r\n$3\r\nSET\r\n",
        )
        for place in lasting:
            parts += (
                _head(len(keys[place])),
                keys[place],
                _head_after(len(values[place])),
                values[place],
                b"\r\n",
            )
        written.append(lasting)
        count += 2 * len(lasting) + 2
    return b"".join(parts), count, written


def _head(length: int) -> bytes:
    return _HEADS[length] if length < _HEADS_MAX else b"$%d\r\n" % length


def _head_after(length: int) -> bytes:
    """Return the head of an argument behind another one."""
    return _HEADS_AFTER[length] if length < _HEADS_MAX else b"\r\n$%d\r\n" % length


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
