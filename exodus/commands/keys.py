"""Which arguments of a request are keys.

For most commands the server's table gives first, last, and step. The rules for the others are here.
Tests compare them with the servers' COMMAND GETKEYS.
"""

from __future__ import annotations

from collections.abc import Callable

_DATABASES_MAX = 2**31
_DIGITS_MAX = 10  # more are in no range that a server accepts, and Python refuses to read thousands


def integer(raw: bytes) -> int | None:
    """Return a number that is written with digits only, or None where it is not or has too many."""
    return int(raw) if len(raw) <= _DIGITS_MAX and raw.isdigit() else None


def database(raw: bytes) -> int | None:
    """Return the number of a database, or None where no server can have it: they count in 32 bits
    with a sign.
    """
    number = integer(raw)
    return number if number is not None and number < _DATABASES_MAX else None


def _integer(raw: bytes) -> int:
    return integer(raw) or 0


def by_position(args: list[bytes], first: int, last: int, step: int) -> list[bytes]:
    """Return the arguments at `first`, `first + step`, up to `last`. A negative `last` counts from
    the end.
    """
    if first <= 0:
        return []
    end = len(args) + last if last < 0 else last
    return args[first : end + 1 : step]


def _counted(at: int) -> Callable[[list[bytes]], list[bytes]]:
    def keys(args: list[bytes]) -> list[bytes]:
        if at >= len(args):
            return []
        return args[at + 1 : at + 1 + _integer(args[at])]

    return keys


def _destination_and_counted(args: list[bytes]) -> list[bytes]:
    return args[1:2] + args[3 : 3 + _integer(args[2])] if len(args) > 2 else args[1:2]


def _sort(args: list[bytes]) -> list[bytes]:
    keys = args[1:2]
    index = 2
    while index < len(args) - 1:
        word = args[index].upper()
        if word == b"STORE":
            keys = [*args[1:2], args[index + 1]]  # the last one given counts
            index += 2
        elif word == b"LIMIT":
            index += 3
        elif word in (b"BY", b"GET"):
            index += 2
        else:
            index += 1
    return keys


def _georadius(args: list[bytes]) -> list[bytes]:
    keys = args[1:2]
    for index in range(5 if args[0].upper() == b"GEORADIUSBYMEMBER" else 6, len(args) - 1):
        if args[index].upper() in (b"STORE", b"STOREDIST"):
            keys = [*args[1:2], args[index + 1]]
    return keys


def _streams(args: list[bytes]) -> list[bytes]:
    index = 1
    while index < len(args):
        word = args[index].upper()
        if word == b"STREAMS":
            rest = args[index + 1 :]
            return rest[: len(rest) // 2]
        index += 3 if word == b"GROUP" else 1 if word == b"NOACK" else 2
    return []


def _migrate(args: list[bytes]) -> list[bytes]:
    if len(args) > 3 and args[3]:
        return args[3:4]
    for index in range(6, len(args)):
        if args[index].upper() == b"KEYS":
            return args[index + 1 :]
    return []


def _msetex(args: list[bytes]) -> list[bytes]:
    return args[2 : 2 + 2 * _integer(args[1]) : 2] if len(args) > 1 else []


MOVABLE: dict[bytes, Callable[[list[bytes]], list[bytes]]] = {
    **dict.fromkeys(
        [b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL", b"FCALL_RO"], _counted(2)
    ),
    **dict.fromkeys([b"ZUNIONSTORE", b"ZINTERSTORE", b"ZDIFFSTORE"], _destination_and_counted),
    **dict.fromkeys(
        [b"ZUNION", b"ZINTER", b"ZDIFF", b"ZINTERCARD", b"SINTERCARD", b"LMPOP", b"ZMPOP"],
        _counted(1),
    ),
    **dict.fromkeys([b"BLMPOP", b"BZMPOP"], _counted(2)),
    **dict.fromkeys([b"SORT", b"SORT_RO"], _sort),
    **dict.fromkeys([b"GEORADIUS", b"GEORADIUSBYMEMBER"], _georadius),
    **dict.fromkeys([b"XREAD", b"XREADGROUP"], _streams),
    b"MIGRATE": _migrate,
    b"MSETEX": _msetex,
}
