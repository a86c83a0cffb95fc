"""What is kept of a request's arguments: a shape, a pattern of its first key, an expiry.

A shape is the command, its subcommand, the option words in the order of the alphabet, and the class
of the number of arguments: `SET EX NX /6`, `ZADD GT /5-8`. A pattern is the key with its variable
parts as `*`: `user:42:cart` is `user:*:cart`. Names and patterns are remembered, and both memories
are bounded: clients may send any bytes.
"""

from __future__ import annotations

import re
from hashlib import sha256

from exodus.commands.semantics import Role, block_timeout
from exodus.commands.table import Command, CommandTable
from exodus.observe.events import NO_EXPIRY, Event
from exodus.plan.bounds import (
    KEY_PATTERNS_MAX,
    PATTERNS_REMEMBERED_MAX,
    SHAPES_EXACT_ARITY_MAX,
    SHAPES_HASH_DIGITS,
    SHAPES_IDENTIFIER_BYTES_MIN,
    SHAPES_MAX,
    SHAPES_NUMBER_DIGITS_MAX,
    SHAPES_PATTERN_BYTES_MAX,
)
from exodus.plan.own_keys import is_own

OTHER = "(other)"

# Option words by command, with the index of the first argument that may be one.
_WORDS: dict[bytes, tuple[int, frozenset[bytes]]] = {
    name: (first, frozenset(words.split()))
    for names, first, words in (
        (b"SET", 3, b"EX PX EXAT PXAT NX XX GET KEEPTTL IFEQ IFNE"),
        (b"GETEX", 2, b"EX PX EXAT PXAT PERSIST"),
        (b"HGETEX", 2, b"EX PX EXAT PXAT PERSIST FIELDS"),
        (b"HSETEX", 2, b"EX PX EXAT PXAT KEEPTTL FNX FXX FIELDS"),
        (b"EXPIRE PEXPIRE EXPIREAT PEXPIREAT", 3, b"NX XX GT LT"),
        (b"HEXPIRE HPEXPIRE HEXPIREAT HPEXPIREAT", 3, b"NX XX GT LT FIELDS"),
        (b"ZADD", 2, b"NX XX GT LT CH INCR"),
        (b"GEOADD", 2, b"NX XX CH"),
        (b"ZRANGE", 4, b"BYSCORE BYLEX REV LIMIT WITHSCORES"),
        (b"ZREVRANGE", 4, b"WITHSCORES"),
        (b"ZRANGEBYSCORE ZREVRANGEBYSCORE", 4, b"WITHSCORES LIMIT"),
        (b"ZRANGEBYLEX ZREVRANGEBYLEX", 4, b"LIMIT"),
        (b"ZRANGESTORE", 5, b"BYSCORE BYLEX REV LIMIT"),
        (b"ZUNION ZINTER ZUNIONSTORE ZINTERSTORE", 2, b"WEIGHTS AGGREGATE WITHSCORES SUM MIN MAX"),
        (b"ZRANK ZREVRANK", 3, b"WITHSCORE"),
        (b"SCAN", 2, b"MATCH COUNT TYPE"),
        (b"HSCAN SSCAN ZSCAN", 3, b"MATCH COUNT NOVALUES"),
        (b"XADD", 2, b"NOMKSTREAM MAXLEN MINID LIMIT"),
        (b"XTRIM", 2, b"MAXLEN MINID LIMIT"),
        (b"XREAD", 1, b"COUNT BLOCK STREAMS"),
        (b"XREADGROUP", 1, b"GROUP COUNT BLOCK NOACK STREAMS"),
        (b"XCLAIM XAUTOCLAIM", 2, b"IDLE TIME RETRYCOUNT FORCE JUSTID COUNT"),
        (b"XRANGE XREVRANGE", 4, b"COUNT"),
        (b"XPENDING", 3, b"IDLE"),
        (b"SORT SORT_RO", 2, b"BY LIMIT GET ASC DESC ALPHA STORE"),
        (b"LPOS", 3, b"RANK COUNT MAXLEN"),
        (b"LMOVE BLMOVE", 3, b"LEFT RIGHT"),
        (b"LMPOP BLMPOP", 2, b"LEFT RIGHT COUNT"),
        (b"ZMPOP BZMPOP", 2, b"MIN MAX COUNT"),
        (b"LINSERT", 2, b"BEFORE AFTER"),
        (b"COPY", 3, b"DB REPLACE"),
        (b"RESTORE", 4, b"REPLACE ABSTTL IDLETIME FREQ"),
        (b"MIGRATE", 3, b"COPY REPLACE AUTH AUTH2 KEYS"),
        (b"BITCOUNT BITPOS", 3, b"BYTE BIT"),
        (b"BITFIELD", 2, b"GET SET INCRBY OVERFLOW"),
        (
            b"GEOSEARCH GEOSEARCHSTORE",
            2,
            b"FROMMEMBER FROMLONLAT BYRADIUS BYBOX ASC DESC COUNT ANY "
            b"WITHCOORD WITHDIST WITHHASH STOREDIST",
        ),
        (
            b"GEORADIUS GEORADIUSBYMEMBER",
            4,
            b"WITHCOORD WITHDIST WITHHASH COUNT ANY ASC DESC STORE STOREDIST",
        ),
        (b"LCS", 3, b"LEN IDX MINMATCHLEN WITHMATCHLEN"),
        (b"FLUSHALL FLUSHDB", 1, b"ASYNC SYNC"),
        (b"SINTERCARD ZINTERCARD", 2, b"LIMIT"),
        (b"HELLO", 2, b"AUTH SETNAME"),
    )
    for name in names.split()
}  # fmt: skip - a table: one line a command

# Where a command gives an expiry: index of the number, its unit in ms, whether it is a time of day.
_EXPIRIES = {
    b"SETEX": (2, 1000, False),
    b"PSETEX": (2, 1, False),
    b"EXPIRE": (2, 1000, False),
    b"PEXPIRE": (2, 1, False),
    b"EXPIREAT": (2, 1000, True),
    b"PEXPIREAT": (2, 1, True),
}
_EXPIRY_WORDS = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}
_EXPIRES_BY_WORD = frozenset({b"SET", b"GETEX"})

_LITERAL = re.compile(r"[^:/.|,{}\[\]#@*…]+")
_DIGITS = re.compile(rb"[0-9]+")
_WORD = re.compile(rb"[^:/.|,{}\[\]#@]+")
_MIXED = re.compile(rb"(?=[^0-9]*[0-9])[0-9A-Za-z_=+~-]+").fullmatch


def arity_class(arguments: int) -> str:
    """The class of a number of arguments, the command's name included."""
    if arguments <= SHAPES_EXACT_ARITY_MAX:
        return str(arguments)
    most = 1 << (arguments - 1).bit_length()
    return f"{most // 2 + 1}-{most}"


def pattern_of(key: bytes) -> str:
    """Return a key with its variable parts as `*`.

    A part ends at one of `: / . | , { } [ ] # @`. Digits are variable, and a part of letters and
    digits of `SHAPES_IDENTIFIER_BYTES_MIN` bytes or more is wholly so: identifiers and hashes.
    """
    cut = key[:SHAPES_PATTERN_BYTES_MAX]
    return _WORD.sub(_part, cut).decode("utf-8", "backslashreplace") + (
        "…" if len(key) > SHAPES_PATTERN_BYTES_MAX else ""
    )


def hashed_words(name: str) -> str:
    """Return a key name or pattern with each of its words as a hash: the same word, the same hash.

    It hides names from who reads a report. Who can guess a word can recognise it.
    """
    return _LITERAL.sub(
        lambda word: sha256(word[0].encode()).hexdigest()[:SHAPES_HASH_DIGITS], name
    )


def _part(found: re.Match[bytes]) -> bytes:
    part = found.group()
    if len(part) >= SHAPES_IDENTIFIER_BYTES_MIN and _MIXED(part) is not None:
        return b"*"
    if not part.isascii() or not part.decode("ascii").isprintable():
        return b"*"
    return _DIGITS.sub(b"*", part)


class Shapes:
    """Makes events of requests; one for all connections of a source."""

    def __init__(self, table: CommandTable, *, hashed: bool = False) -> None:
        self.table = table
        self._hashed = hashed  # words of patterns are hashed, but those of Exodus's own keys
        self._shapes: dict[tuple[Command, int, tuple[bytes, ...]], str] = {}
        self._names: dict[Command, str] = {}
        self._patterns: dict[str, str] = {}
        self._of_key: dict[bytes, str] = {}

    def event(
        self,
        at: float,
        connection: int,
        client: str,
        db: int,
        command: Command,
        args: list[bytes],
        size: int,
    ) -> Event:
        """Return the event of one request of `command`."""
        name = self._names.get(command)
        if name is None:
            name = self._names[command] = command.name.decode("ascii", "replace")
        if command.subcommands and len(args) > 1:
            name = f"{name}|{OTHER}"  # a subcommand that no server lists
        made = Event(at, connection, client, db, name, "", write=command.write, request_bytes=size)
        words = self._words(command, args)
        made.shape = self._shape(command, name, len(args), words)
        if command.role is Role.BLOCKING:
            made.blocking = block_timeout(command.name, args) is not None
        keys = command.keys(args)
        if keys:
            key = keys[0]
            made.keys = len(keys)
            made.own = all(map(is_own, keys))
            made.key = hash((db, key))
            made.pattern = self._of_key.get(key) or self._pattern(key)
            if command.write:
                made.expiry_ms = _expiry_ms(command.name, args, words, at)
        return made

    def _words(self, command: Command, args: list[bytes]) -> tuple[bytes, ...]:
        """Return the option words of a request, sorted."""
        known = _WORDS.get(command.name)
        if known is None or len(args) <= known[0]:
            return ()
        first, words = known
        found = {word for arg in args[first:] if len(arg) <= 12 and (word := arg.upper()) in words}
        return tuple(sorted(found)) if found else ()

    def _shape(self, command: Command, name: str, count: int, words: tuple[bytes, ...]) -> str:
        exact = count if count <= SHAPES_EXACT_ARITY_MAX else 1 << (count - 1).bit_length()
        shape = self._shapes.get((command, exact, words))
        if shape is None:
            if len(self._shapes) >= SHAPES_MAX:
                return OTHER
            spelled = " ".join([name.replace("|", " "), *(word.decode() for word in words)])
            shape = self._shapes[command, exact, words] = f"{spelled} /{arity_class(count)}"
        return shape

    def _pattern(self, key: bytes) -> str:
        pattern = pattern_of(key)
        kept = self._patterns.get(pattern)
        if kept is None:
            if len(self._patterns) >= KEY_PATTERNS_MAX:
                return OTHER
            kept = hashed_words(pattern) if self._hashed and not is_own(key) else pattern
            self._patterns[pattern] = kept
        if len(self._of_key) >= PATTERNS_REMEMBERED_MAX:
            self._of_key.clear()
        if len(key) <= SHAPES_PATTERN_BYTES_MAX:
            self._of_key[key] = kept
        return kept


def _expiry_ms(name: bytes, args: list[bytes], words: tuple[bytes, ...], at: float) -> int:
    """Return the time to live that a write gives to its key, or `NO_EXPIRY`."""
    place = _EXPIRIES.get(name)
    if place is not None and len(args) > place[0]:
        return _millis(args[place[0]], place[1], absolute=place[2], at=at)
    if words and name in _EXPIRES_BY_WORD:
        for index in range(2, len(args) - 1):
            unit, absolute = _EXPIRY_WORDS.get(args[index].upper(), (0, False))
            if unit:
                return _millis(args[index + 1], unit, absolute=absolute, at=at)
    return NO_EXPIRY


def _millis(number: bytes, unit: int, *, absolute: bool, at: float) -> int:
    if not number.isdigit() or len(number) > SHAPES_NUMBER_DIGITS_MAX:
        return NO_EXPIRY
    millis = int(number) * unit
    return max(0, millis - int(at * 1000)) if absolute else millis
