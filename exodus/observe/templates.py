"""How a command of a workload model is written again: its arguments on a scratch key.

A template gives the arguments behind the key, with `VALUE` where bytes fill the request up to its
size. Its family says which type the key must have: keys of different families never share a name.
A command without a template is not played, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from exodus.plan.bounds import (
    PLAYED_ELEMENTS_MAX,
    PLAYED_WAIT_S,
    TEMPLATES_ELEMENTS,
    TEMPLATES_FIELDS,
    TEMPLATES_MEMBERS,
)

Arg = bytes | str | int
VALUE = b"(a value)"  # told by identity


class Template(NamedTuple):
    """How one command is written."""

    family: str  # a letter in the key's name: the type that its key has; empty: of the pattern
    arguments: Callable[[Random], Sequence[Arg]]  # behind the key
    many_keys: bool = False
    each_value: bool = False  # one value a key (MSET)


def _field(draw: Random) -> str:
    return f"f{draw.randrange(TEMPLATES_FIELDS)}"


def _member(draw: Random) -> str:
    return f"m{draw.randrange(TEMPLATES_MEMBERS)}"


def _fixed(*arguments: Arg) -> Callable[[Random], Sequence[Arg]]:
    return lambda _: arguments


STRING, NUMBER, HASH, LIST, SET, SORTED, STREAM, BITS, COUNTING = "snhltzxbp"

TEMPLATES: dict[str, Template] = {
    "GET": Template(STRING, _fixed()),
    "SET": Template(STRING, _fixed(VALUE)),
    "SETEX": Template(STRING, _fixed("EXPIRY_S", VALUE)),
    "PSETEX": Template(STRING, _fixed("EXPIRY_MS", VALUE)),
    "SETNX": Template(STRING, _fixed(VALUE)),
    "GETSET": Template(STRING, _fixed(VALUE)),
    "GETDEL": Template(STRING, _fixed()),
    "GETEX": Template(STRING, _fixed()),
    "STRLEN": Template(STRING, _fixed()),
    "GETRANGE": Template(STRING, _fixed(0, 63)),
    "SETRANGE": Template(STRING, _fixed(0, VALUE)),
    "MGET": Template(STRING, _fixed(), many_keys=True),
    "MSET": Template(STRING, _fixed(VALUE), many_keys=True, each_value=True),
    "INCR": Template(NUMBER, _fixed()),
    "DECR": Template(NUMBER, _fixed()),
    "INCRBY": Template(NUMBER, _fixed(1)),
    "DECRBY": Template(NUMBER, _fixed(1)),
    "INCRBYFLOAT": Template(NUMBER, _fixed("1")),
    "HSET": Template(HASH, lambda draw: (_field(draw), VALUE)),
    "HMSET": Template(HASH, lambda draw: (_field(draw), VALUE)),
    "HSETNX": Template(HASH, lambda draw: (_field(draw), VALUE)),
    "HGET": Template(HASH, lambda draw: (_field(draw),)),
    "HMGET": Template(HASH, lambda draw: (_field(draw),)),
    "HGETALL": Template(HASH, _fixed()),
    "HKEYS": Template(HASH, _fixed()),
    "HVALS": Template(HASH, _fixed()),
    "HLEN": Template(HASH, _fixed()),
    "HEXISTS": Template(HASH, lambda draw: (_field(draw),)),
    "HDEL": Template(HASH, lambda draw: (_field(draw),)),
    "HINCRBY": Template(HASH, _fixed("n", 1)),
    "LPUSH": Template(LIST, _fixed(VALUE)),
    "RPUSH": Template(LIST, _fixed(VALUE)),
    "LPOP": Template(LIST, _fixed()),
    "RPOP": Template(LIST, _fixed()),
    "BLPOP": Template(LIST, _fixed(PLAYED_WAIT_S)),
    "BRPOP": Template(LIST, _fixed(PLAYED_WAIT_S)),
    "LLEN": Template(LIST, _fixed()),
    "LINDEX": Template(LIST, _fixed(0)),
    "LRANGE": Template(LIST, _fixed(0, TEMPLATES_ELEMENTS - 1)),
    "LTRIM": Template(LIST, _fixed(0, TEMPLATES_MEMBERS)),
    "SADD": Template(SET, lambda draw: (_member(draw),)),
    "SREM": Template(SET, lambda draw: (_member(draw),)),
    "SISMEMBER": Template(SET, lambda draw: (_member(draw),)),
    "SMISMEMBER": Template(SET, lambda draw: (_member(draw),)),
    "SMEMBERS": Template(SET, _fixed()),
    "SCARD": Template(SET, _fixed()),
    "SPOP": Template(SET, _fixed()),
    "SRANDMEMBER": Template(SET, _fixed()),
    "ZADD": Template(SORTED, lambda draw: (draw.randrange(TEMPLATES_MEMBERS), _member(draw))),
    "ZREM": Template(SORTED, lambda draw: (_member(draw),)),
    "ZSCORE": Template(SORTED, lambda draw: (_member(draw),)),
    "ZRANK": Template(SORTED, lambda draw: (_member(draw),)),
    "ZREVRANK": Template(SORTED, lambda draw: (_member(draw),)),
    "ZINCRBY": Template(SORTED, lambda draw: (1, _member(draw))),
    "ZCARD": Template(SORTED, _fixed()),
    "ZCOUNT": Template(SORTED, _fixed(0, TEMPLATES_MEMBERS)),
    "ZRANGE": Template(SORTED, _fixed(0, TEMPLATES_ELEMENTS - 1)),
    "ZREVRANGE": Template(SORTED, _fixed(0, TEMPLATES_ELEMENTS - 1)),
    "ZRANGEBYSCORE": Template(SORTED, _fixed(0, TEMPLATES_MEMBERS)),
    "ZREVRANGEBYSCORE": Template(SORTED, _fixed(TEMPLATES_MEMBERS, 0)),
    "ZPOPMIN": Template(SORTED, _fixed()),
    "ZPOPMAX": Template(SORTED, _fixed()),
    "BZPOPMIN": Template(SORTED, _fixed(PLAYED_WAIT_S)),
    "BZPOPMAX": Template(SORTED, _fixed(PLAYED_WAIT_S)),
    "ZREMRANGEBYRANK": Template(SORTED, _fixed(0, 0)),
    "ZREMRANGEBYSCORE": Template(SORTED, _fixed(0, 1)),
    "XADD": Template(STREAM, _fixed("*", "f", VALUE)),
    "XLEN": Template(STREAM, _fixed()),
    "XRANGE": Template(STREAM, _fixed("-", "+")),
    "XREVRANGE": Template(STREAM, _fixed("+", "-")),
    "SETBIT": Template(BITS, lambda draw: (draw.randrange(TEMPLATES_MEMBERS), 1)),
    "GETBIT": Template(BITS, lambda draw: (draw.randrange(TEMPLATES_MEMBERS),)),
    "BITCOUNT": Template(BITS, _fixed()),
    "PFADD": Template(COUNTING, lambda draw: (_member(draw),)),
    "PFCOUNT": Template(COUNTING, _fixed()),
    "DEL": Template("", _fixed(), many_keys=True),
    "UNLINK": Template("", _fixed(), many_keys=True),
    "EXISTS": Template("", _fixed(), many_keys=True),
    "TOUCH": Template("", _fixed(), many_keys=True),
    "TYPE": Template("", _fixed()),
    "TTL": Template("", _fixed()),
    "PTTL": Template("", _fixed()),
    "PERSIST": Template("", _fixed()),
    "EXPIRE": Template("", _fixed("EXPIRY_S")),
    "PEXPIRE": Template("", _fixed("EXPIRY_MS")),
}

# Requests without a key of their own
KEYLESS: dict[str, tuple[Arg, ...]] = {
    "PING": (),
    "ECHO": (VALUE,),
    "TIME": (),
    "PUBLISH": ("CHANNEL", VALUE),
}

# Commands that take their arguments several times
REPEATED = frozenset(
    {"HSET", "HMSET", "HMGET", "HDEL", "LPUSH", "RPUSH"}
    | {"SADD", "SREM", "SMISMEMBER", "ZADD", "ZREM", "PFADD"}
)

# Option words that can be written behind the arguments, with what follows each.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "SET": {
        "EX": ("EXPIRY_S",),
        "PX": ("EXPIRY_MS",),
        "NX": (),
        "XX": (),
        "GET": (),
        "KEEPTTL": (),
    },
    "GETEX": {"EX": ("EXPIRY_S",), "PX": ("EXPIRY_MS",), "PERSIST": ()},
    "EXPIRE": {"NX": (), "XX": (), "GT": (), "LT": ()},
    "PEXPIRE": {"NX": (), "XX": (), "GT": (), "LT": ()},
    "ZRANGE": {"WITHSCORES": (), "REV": ()},
    "ZREVRANGE": {"WITHSCORES": ()},
    "ZRANGEBYSCORE": {"WITHSCORES": ()},
    "ZREVRANGEBYSCORE": {"WITHSCORES": ()},
}
OPTIONS_BEFORE = {"ZADD": frozenset({"NX", "XX", "GT", "LT", "CH", "INCR"})}  # the arguments


def preparation(family: str, key: bytes, size: int, draw: Random) -> tuple[Arg, ...]:
    """Return the request that makes a key which reads find, of about `size` bytes."""
    value = b"v" * max(1, size)
    elements = min(max(size // 24, 1), PLAYED_ELEMENTS_MAX)
    if family == HASH:
        each = b"v" * max(1, size // TEMPLATES_FIELDS)
        return ("HSET", key, *[arg for n in range(TEMPLATES_FIELDS) for arg in (f"f{n}", each)])
    if family == LIST:
        return ("RPUSH", key, *[b"v" * 16] * elements)
    if family in (SET, SORTED):
        places = draw.sample(range(TEMPLATES_MEMBERS), elements)
        if family == SET:
            return ("SADD", key, *[f"m{n}" for n in places])
        return ("ZADD", key, *[arg for n in places for arg in (n, f"m{n}")])
    simple: dict[str, tuple[Arg, ...]] = {
        STRING: ("SET", key, value),
        NUMBER: ("SET", key, draw.randrange(TEMPLATES_MEMBERS)),
        STREAM: ("XADD", key, "*", "f", value),
        BITS: ("SETBIT", key, draw.randrange(TEMPLATES_MEMBERS), 1),
        COUNTING: ("PFADD", key, "m0"),
    }
    return simple[family]
