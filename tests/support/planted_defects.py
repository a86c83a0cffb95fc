"""Defects that tests plant in a copy of data. Compare and Test have to find each."""

from __future__ import annotations

from typing import NamedTuple

from exodus.shadow.causes import Cause

FAR = 2_000_000_000_000
STATE = "state"
VALUES = "trial copy: values are equal"
EXPIRIES = "trial copy: expiries are equal"
OTHERS = "trial copy: no other keys are there"


class Defect(NamedTuple):
    """An application's requests, the defect of the target, and what reports it."""

    name: str
    made: list[str]  # {k} is the key
    asked: str  # through the gateway, which Compare samples
    planted: list[str]  # on the target
    command: str  # of Compare's row
    cause: Cause  # that Compare gives
    red: str = VALUES  # Test's row


_WRITTEN = Cause.FOLLOWER_WRITTEN
CATALOGUE = [
    Defect("stale value", ["SET {k} new"], "GET {k}", ["SET {k} old"], "GET", _WRITTEN),
    Defect(
        "score in the 15th digit",
        ["ZADD {k} 0.123456789012345 m"],
        "ZSCORE {k} m",
        ["ZADD {k} 0.123456789012346 m"],
        "ZSCORE",
        Cause.PRECISION,
    ),
    Defect(
        "number in a string rounded",
        ["SET {k} 3.14159265358979"],
        "GET {k}",
        ["SET {k} 3.14159265358978"],
        "GET",
        Cause.PRECISION,
    ),
    Defect(
        "consumer group missing",
        ["XADD {k} 1-1 f v", "XGROUP CREATE {k} g 0"],
        "XLEN {k}",
        ["XGROUP DESTROY {k} g"],
        STATE,
        _WRITTEN,
    ),
    Defect(
        "pending entry lost",
        ["XADD {k} 1-1 f v", "XGROUP CREATE {k} g 0", "XREADGROUP GROUP g c STREAMS {k} >"],
        "XLEN {k}",
        ["XACK {k} g 1-1"],
        STATE,
        _WRITTEN,
    ),
    Defect(
        "last id of a stream",
        ["XADD {k} 1-1 f v"],
        "XLEN {k}",
        ["XSETID {k} 9-9"],
        STATE,
        _WRITTEN,
    ),
    Defect(
        "stream entry missing",
        ["XADD {k} 1-1 f v", "XADD {k} 1-2 f v"],
        "XRANGE {k} - +",
        ["XDEL {k} 1-1"],
        "XRANGE",
        _WRITTEN,
    ),
    Defect(
        "expiry off by 1 s",
        ["SET {k} v", f"PEXPIREAT {{k}} {FAR}"],
        "GET {k}",
        [f"PEXPIREAT {{k}} {FAR + 1000}"],
        STATE,
        _WRITTEN,
        EXPIRIES,
    ),
    Defect(
        "expiry off by 1 s, as a client sees it",
        ["SET {k} v", f"PEXPIREAT {{k}} {FAR}"],
        "PTTL {k}",
        [f"PEXPIREAT {{k}} {FAR - 1000}"],
        "PTTL",
        _WRITTEN,
        EXPIRIES,
    ),
    Defect(
        "expiry lost",
        ["SET {k} v", f"PEXPIREAT {{k}} {FAR}"],
        "TTL {k}",
        ["PERSIST {k}"],
        "TTL",
        _WRITTEN,
        EXPIRIES,
    ),
    Defect(
        "expiry from nowhere",
        ["RPUSH {k} a"],
        "PTTL {k}",
        [f"PEXPIREAT {{k}} {FAR}"],
        "PTTL",
        _WRITTEN,
        EXPIRIES,
    ),
    Defect("key in another database", ["SET {k} v"], "GET {k}", ["MOVE {k} 5"], "GET", _WRITTEN),
    Defect(
        "list reversed",
        ["RPUSH {k} a b c"],
        "LRANGE {k} 0 -1",
        ["DEL {k}", "RPUSH {k} c b a"],
        "LRANGE",
        _WRITTEN,
    ),
    Defect(
        "element of a list",
        ["RPUSH {k} a b c"],
        "LINDEX {k} 1",
        ["LSET {k} 1 x"],
        "LINDEX",
        _WRITTEN,
    ),
    Defect(
        "expiry of a hash field lost",
        ["HSET {k} f 1 g 2", f"HPEXPIREAT {{k}} {FAR} FIELDS 1 f"],
        "HLEN {k}",
        ["HPERSIST {k} FIELDS 1 f"],
        STATE,
        _WRITTEN,
    ),
    Defect("key deleted", ["HSET {k} f 1"], "HGETALL {k}", ["DEL {k}"], "HGETALL", _WRITTEN),
    Defect("extra field", ["HSET {k} f 1"], "HGETALL {k}", ["HSET {k} g 2"], "HGETALL", _WRITTEN),
    Defect("field missing", ["HSET {k} f 1 g 2"], "HGET {k} g", ["HDEL {k} g"], "HGET", _WRITTEN),
    Defect("member lost", ["SADD {k} a b"], "SMEMBERS {k}", ["SREM {k} a"], "SMEMBERS", _WRITTEN),
    Defect("another type", ["SET {k} 1"], "TYPE {k}", ["DEL {k}", "RPUSH {k} 1"], "TYPE", _WRITTEN),
    Defect("string cut", ["SET {k} abc"], "STRLEN {k}", ["SET {k} ab"], "STRLEN", _WRITTEN),
    Defect(
        "bit flipped", ["SETBIT {k} 7 1"], "GETBIT {k} 7", ["SETBIT {k} 7 0"], "GETBIT", _WRITTEN
    ),
    Defect(
        "member of a sorted set lost",
        ["ZADD {k} 1 a 2 b"],
        "ZCARD {k}",
        ["ZREM {k} a"],
        "ZCARD",
        _WRITTEN,
    ),
    Defect(
        "empty string lost",
        ["SET {k} x", "SETRANGE {k} 0 y"],
        "EXISTS {k}",
        ["DEL {k}"],
        "EXISTS",
        _WRITTEN,
    ),
    Defect(
        "deleted key is back",
        ["SET {k} v", "DEL {k}"],
        "EXISTS {k}",
        ["SET {k} v"],
        "EXISTS",
        Cause.RESURRECTED,
        OTHERS,
    ),
    Defect(
        "position moved",
        ["GEOADD {k} 13.361389 38.115556 m"],
        "GEOPOS {k} m",
        ["GEOADD {k} 13.5 38.2 m"],
        "GEOPOS",
        _WRITTEN,
    ),
    Defect("nobody reads it", ["SET {k} v"], "PING", ["SET {k} w"], STATE, _WRITTEN),
]


def key_of(defect: Defect) -> str:
    return "d:" + defect.name.replace(" ", "-").replace(",", "")


def words_of(text: str, key: str) -> list[str]:
    return [word.replace("{k}", key) for word in text.split()]
