"""What a server's COMMAND table does not tell: the one reviewed table of overrides.

Names are upper case. Sources: the command pages of the Redis documentation, and checks on Redis 6.2
to 8.2 and Valkey 8.1 to 9.1. A command that neither the servers nor this table know counts as a
write with unknown keys.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import NamedTuple


class Role(IntEnum):
    """What a command does to the session that sends it; PLAIN for the most."""

    PLAIN = auto()
    MULTI = auto()
    EXEC = auto()
    DISCARD = auto()
    WATCH = auto()
    UNWATCH = auto()
    SELECT = auto()
    AUTH = auto()
    HELLO = auto()
    CLIENT = auto()
    RESET = auto()
    QUIT = auto()  # the server reads nothing behind it
    SUBSCRIBE = auto()
    UNSUBSCRIBE = auto()
    STREAMING = auto()  # the connection becomes a one-way stream: MONITOR, SYNC, PSYNC
    BLOCKING = auto()
    SCAN = auto()
    BARRIER = auto()  # may change every key of a database
    MOVES_DB = auto()  # MOVE and COPY … DB: a key in another database
    SCRIPT = auto()  # may write keys that it does not declare
    SCRIPTS = auto()  # SCRIPT and FUNCTION: the code that EVALSHA and FCALL name
    REPLACES = auto()  # may replace data without naming a key
    CLUSTER = auto()  # for cluster clients only, or tells whether the server is part of a cluster


# Words of HTTP: every server closes the connection where one is a command's name, whether it lists
# it or not.
CLOSE_AT_ONCE = (b"POST", b"HOST:")

ROLES: dict[bytes, Role] = {
    b"MULTI": Role.MULTI,
    b"EXEC": Role.EXEC,
    b"DISCARD": Role.DISCARD,
    b"WATCH": Role.WATCH,
    b"UNWATCH": Role.UNWATCH,
    b"SELECT": Role.SELECT,
    b"AUTH": Role.AUTH,
    b"HELLO": Role.HELLO,
    b"CLIENT": Role.CLIENT,
    b"RESET": Role.RESET,
    b"QUIT": Role.QUIT,
    **dict.fromkeys(CLOSE_AT_ONCE, Role.QUIT),
    b"SUBSCRIBE": Role.SUBSCRIBE,
    b"PSUBSCRIBE": Role.SUBSCRIBE,
    b"SSUBSCRIBE": Role.SUBSCRIBE,
    b"UNSUBSCRIBE": Role.UNSUBSCRIBE,
    b"PUNSUBSCRIBE": Role.UNSUBSCRIBE,
    b"SUNSUBSCRIBE": Role.UNSUBSCRIBE,
    b"MONITOR": Role.STREAMING,
    b"SYNC": Role.STREAMING,
    b"PSYNC": Role.STREAMING,
    b"SCAN": Role.SCAN,
    b"HSCAN": Role.SCAN,
    b"SSCAN": Role.SCAN,
    b"ZSCAN": Role.SCAN,
    b"FLUSHALL": Role.BARRIER,
    b"FLUSHDB": Role.BARRIER,
    b"SWAPDB": Role.BARRIER,
    b"MOVE": Role.MOVES_DB,
    b"COPY": Role.MOVES_DB,
    b"EVAL": Role.SCRIPT,
    b"EVALSHA": Role.SCRIPT,
    b"FCALL": Role.SCRIPT,
    b"EVAL_RO": Role.SCRIPT,
    b"EVALSHA_RO": Role.SCRIPT,
    b"FCALL_RO": Role.SCRIPT,
    b"SCRIPT": Role.SCRIPTS,
    b"FUNCTION": Role.SCRIPTS,
    b"CLUSTER": Role.CLUSTER,
    b"READONLY": Role.CLUSTER,
    b"READWRITE": Role.CLUSTER,
    b"ASKING": Role.CLUSTER,
    b"INFO": Role.CLUSTER,
    b"REPLICAOF": Role.REPLACES,
    b"SLAVEOF": Role.REPLACES,
    b"FAILOVER": Role.REPLACES,
    b"DEBUG": Role.REPLACES,
    b"MODULE": Role.REPLACES,
    b"PFDEBUG": Role.REPLACES,
    b"BLPOP": Role.BLOCKING,
    b"BRPOP": Role.BLOCKING,
    b"BRPOPLPUSH": Role.BLOCKING,
    b"BLMOVE": Role.BLOCKING,
    b"BLMPOP": Role.BLOCKING,
    b"BZPOPMIN": Role.BLOCKING,
    b"BZPOPMAX": Role.BLOCKING,
    b"BZMPOP": Role.BLOCKING,
    b"XREAD": Role.BLOCKING,
    b"XREADGROUP": Role.BLOCKING,
    b"WAIT": Role.BLOCKING,
    b"WAITAOF": Role.BLOCKING,
}

# The servers flag these otherwise, for reasons of their own (replication of scripts; XREADGROUP's
# key specs say read only).
WRITES = frozenset({b"EVAL", b"EVALSHA", b"FCALL", b"XREADGROUP", b"BRPOPLPUSH", b"PFCOUNT"})
# Flagged as writes by the servers, but no key of a database changes.
NOT_WRITES = frozenset({b"EXEC", b"FUNCTION", b"SCRIPT", b"PUBLISH", b"SPUBLISH"})


# Of a known command that answers an error nothing was executed, except of these: MIGRATE may have
# moved some of its keys.
ACTS_ON_ERROR = frozenset({b"MIGRATE"})
# How a node of a cluster refuses what another node has to execute, or none can now.
NOT_HERE = (
    b"MOVED ",
    b"ASK ",
    b"CROSSSLOT Keys in request don't hash to the same slot",
    b"TRYAGAIN Multiple keys request during rehashing of slot",
    b"CLUSTERDOWN The cluster is down",
    b"CLUSTERDOWN Hash slot not served",
)
# How the error of a script begins that was refused before it ran. A script that ran may have
# written before it failed, and can hand on the error of an inner command, so OOM, READONLY and
# their like are not here.
SCRIPT_REFUSALS = (
    b"NOAUTH Authentication required",
    b"NOPERM this user has no permissions",
    b"NOPERM User ",
    b"NOSCRIPT No matching script",
    b"LOADING ",
    b"BUSY ",
    b"ERR unknown command",
    b"ERR wrong number of arguments for 'ev",
    b"ERR wrong number of arguments for 'fcall",
    b"ERR Error compiling script",
    b"ERR Number of keys can't be",
    b"ERR Function not found",
    b"ERR value is not an integer",
    b"ERR Bad number of keys",
    b"ERR Can't execute 'ev",
    b"ERR Can't execute 'fcall",
    b"MASTERDOWN ",
    *NOT_HERE,
)
# First words of errors that refuse a command: the server does not have it, or the user may not run
# it now. A refused command changed nothing.
REFUSALS = (
    b"NOAUTH ",
    b"NOPERM ",
    b"WRONGPASS ",
    b"NOPROTO ",
    b"ERR unknown command",
    b"ERR wrong number of arguments",
    b"LOADING ",
    b"BUSY ",
    b"EXECABORT ",
    b"MASTERDOWN ",
    b"ERR Can't execute",
    *NOT_HERE,
)

# Commands without keys that replace data, or change where the data comes from. No journal can name
# the keys.
REPLACES_DATA = frozenset(
    {
        b"REPLICAOF",
        b"SLAVEOF",
        b"FAILOVER",
        b"PFDEBUG",
        b"MODULE|LOAD",
        b"MODULE|LOADEX",
        b"MODULE|UNLOAD",
    }
)
# The subcommands of DEBUG that only look. Any other may have replaced the data.
DEBUG_LOOKS = frozenset(
    b"HELP OBJECT SLEEP DIGEST DIGEST-VALUE JMAP STRINGMATCH-LEN HTSTATS HTSTATS-KEY SDSLEN "
    b"ZIPLIST LISTPACK QUICKLIST LOG PROTOCOL ERROR "
    b"STRUCTSIZE DICT-STATS CHANGE-REPL-ID SET-ACTIVE-EXPIRE MALLCTL MALLCTL-STR LEAK "
    b"ASSERT OOM".split()
)


_CHANGES_CODE = frozenset({b"LOAD", b"FLUSH", b"DELETE", b"RESTORE"})


def replaces_data(name: bytes, args: list[bytes]) -> bool:
    """Return whether a request may have replaced data in a way that no journal sees."""
    if name.startswith((b"MODULE", b"DEBUG")) and len(args) > 1:
        word = args[1].upper()
        if name.startswith(b"DEBUG"):
            return word not in DEBUG_LOOKS
        return b"MODULE|" + word in REPLACES_DATA
    if name in (b"REPLICAOF", b"SLAVEOF"):
        return [arg.upper() for arg in args[1:]] != [b"NO", b"ONE"]
    return name in REPLACES_DATA


def changes_code(args: list[bytes]) -> bool:
    """Return whether a request of `Role.SCRIPTS` changes what EVALSHA or FCALL can run."""
    return len(args) > 1 and args[1].upper() in _CHANGES_CODE


class Timeout(NamedTuple):
    """Where a blocking command says how long it may block, and in which unit."""

    position: int  # of the argument
    unit_s: float


def block_timeout(name: bytes, args: list[bytes]) -> Timeout | None:
    """Return where the blocking time of a request stands, or None where it cannot block."""
    if name in (b"XREAD", b"XREADGROUP"):
        for index in range(1, len(args) - 1):
            word = args[index].upper()
            if word == b"STREAMS":
                return None
            if word == b"BLOCK":
                return Timeout(index + 1, 0.001)
        return None
    if name in (b"BLMPOP", b"BZMPOP"):
        return Timeout(1, 1.0)
    if name in (b"WAIT", b"WAITAOF"):
        return Timeout(len(args) - 1, 0.001)
    return Timeout(len(args) - 1, 1.0)


# Replies that differ between two healthy servers, so that comparing them means nothing.
NOT_COMPARABLE = frozenset(
    b"TIME INFO DBSIZE OBJECT MEMORY LASTSAVE ROLE CONFIG SLOWLOG LATENCY COMMAND CLIENT DEBUG "
    b"RANDOMKEY "
    b"SCAN HSCAN SSCAN ZSCAN DUMP RESTORE MIGRATE WAIT WAITAOF XINFO "
    b"XPENDING XREADGROUP XCLAIM XAUTOCLAIM "
    b"LOLWUT ACL MODULE MONITOR PSYNC SYNC REPLCONF SHUTDOWN".split()
)
# Reads for the canary: the reply depends on one key's value alone, and has the same bytes on every
# version. No time to live, no order of a hash table, no floating point, no script.
EXACT_ELSEWHERE = frozenset(
    b"GET STRLEN GETRANGE SUBSTR GETBIT BITCOUNT BITPOS EXISTS TYPE HGET HMGET HEXISTS HLEN "
    b"HSTRLEN LLEN LRANGE LINDEX LPOS SCARD SISMEMBER "
    b"SMISMEMBER ZCARD ZCOUNT ZLEXCOUNT ZRANGE ZREVRANGE ZRANGEBYLEX ZREVRANGEBYLEX ZRANK "
    b"ZREVRANK XLEN XRANGE XREVRANGE".split()
)

# What Compare asks of the target with Exodus's own rights: commands that read or change nothing but
# the values of the keys that they name, at a cost that their size bounds. Not RESTORE, RENAME, COPY
# or MOVE, nothing that blocks, looks for keys or runs a script.
COMPARED_READS = EXACT_ELSEWHERE | frozenset(
    b"HGETALL HKEYS HVALS SMEMBERS ZSCORE ZMSCORE ZRANGEBYSCORE ZREVRANGEBYSCORE GEOPOS GEODIST "
    b"GEOHASH GEOSEARCH TTL PTTL EXPIRETIME PEXPIRETIME MGET SINTER SUNION SDIFF SINTERCARD "
    b"ZINTER ZUNION ZDIFF ZINTERCARD LCS SRANDMEMBER HRANDFIELD ZRANDMEMBER".split()
)
COMPARED_WRITES = frozenset(
    b"SET SETEX PSETEX SETNX GETSET GETDEL GETEX DEL UNLINK APPEND SETRANGE SETBIT INCR DECR "
    b"INCRBY DECRBY INCRBYFLOAT "
    b"HSET HSETNX HMSET HDEL HINCRBY HINCRBYFLOAT LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LSET "
    b"LINSERT LREM LTRIM LMPOP SADD SREM SPOP "
    b"ZADD ZINCRBY ZPOPMIN ZPOPMAX ZMPOP ZREM ZREMRANGEBYRANK ZREMRANGEBYSCORE "
    b"ZREMRANGEBYLEX GEOADD PFADD XADD XTRIM "
    b"XDEL "
    b"EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST MSET MSETNX SMOVE LMOVE RPOPLPUSH PFCOUNT PFMERGE "
    b"BITOP SINTERSTORE SUNIONSTORE SDIFFSTORE ZINTERSTORE ZUNIONSTORE ZDIFFSTORE "
    b"ZRANGESTORE".split()
)
