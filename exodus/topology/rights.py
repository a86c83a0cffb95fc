"""The commands that Exodus's users need on source and target, by role and server version, each with
its reason.

`exodus users` prints users from this table, and the pre-flight checks try it
(`exodus/topology/permits.py`). If the engine needs another command, add it here:
`tests/fault/test_users.py` runs a migration with exactly these rights.

A right is written as in an ACL rule, without its `+`. `SINCE` leaves out commands that a server
version lacks, since a server refuses a rule with an unknown command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from exodus.commands.semantics import COMPARED_READS, COMPARED_WRITES, EXACT_ELSEWHERE
from exodus.errors import OperatorError
from exodus.plan.vocabulary import CopyStrategy, Feed, FenceKind, Side, UserRole

Version = tuple[int, ...]
# The first version of each engine that has a command. Valkey began as Redis 7.2; `(99,)`: it has
# none yet.
SINCE: dict[str, dict[str, Version]] = {
    "eval_ro": {"redis": (7, 0), "valkey": (7, 2)},
    "evalsha_ro": {"redis": (7, 0), "valkey": (7, 2)},
    "pexpiretime": {"redis": (7, 0), "valkey": (7, 2)},
    "expiretime": {"redis": (7, 0), "valkey": (7, 2)},
    "function|dump": {"redis": (7, 0), "valkey": (7, 2)},
    "function|list": {"redis": (7, 0), "valkey": (7, 2)},
    "function|kill": {"redis": (7, 0), "valkey": (7, 2)},
    "function|load": {"redis": (7, 0), "valkey": (7, 2)},
    "command|list": {"redis": (7, 0), "valkey": (7, 2)},
    "acl|dryrun": {"redis": (7, 0), "valkey": (7, 2)},
    "client|no-touch": {"redis": (7, 2), "valkey": (7, 2)},
    "lcs": {"redis": (7, 0), "valkey": (7, 2)},
    "lmpop": {"redis": (7, 0), "valkey": (7, 2)},
    "zmpop": {"redis": (7, 0), "valkey": (7, 2)},
    "sintercard": {"redis": (7, 0), "valkey": (7, 2)},
    "zintercard": {"redis": (7, 0), "valkey": (7, 2)},
    "hpexpiretime": {"redis": (7, 4), "valkey": (9, 0)},
    "hpexpireat": {"redis": (7, 4), "valkey": (9, 0)},
}
_SERVER = re.compile(r"^(redis|valkey)-(\d+(?:\.\d+)*)$")
_ALL = frozenset(UserRole)
_SYNCER, _GATEWAY, _COMPARER, _SWITCH, _VERIFIER = (
    frozenset({role})
    for role in (
        UserRole.SYNCER,
        UserRole.GATEWAY,
        UserRole.COMPARER,
        UserRole.SWITCH,
        UserRole.VERIFIER,
    )
)
_READERS = _SYNCER | _COMPARER | _VERIFIER
_WRITERS = _SYNCER | _COMPARER
_BOTH = frozenset(Side)
_AUTO = frozenset({FenceKind.AUTO})


@dataclass(frozen=True)
class UsedFeatures:
    """What a migration makes use of."""

    fence: FenceKind = FenceKind.AUTO
    feed: Feed = Feed.AUTO
    strategy: CopyStrategy = CopyStrategy.KEYS
    sentinel: bool = False
    cluster: bool = False


@dataclass(frozen=True)
class Right:
    """Commands that some roles need, and what for. With fences, feeds or strategies: only where one
    of them is wanted.
    """

    commands: tuple[str, ...]
    roles: frozenset[UserRole]
    why: str
    sides: frozenset[Side] = _BOTH
    fences: frozenset[FenceKind] = frozenset()
    feeds: frozenset[Feed] = frozenset()
    strategies: frozenset[CopyStrategy] = frozenset()
    sentinel: bool = False  # only on the servers of a service behind Sentinel
    cluster: bool = False  # only on the nodes of a cluster
    without: str = ""  # what happens without it, where the engine goes on; empty: it does not

    def applies(self, role: UserRole, side: Side, wanted: UsedFeatures) -> bool:
        """Return whether a role needs it on a side."""
        return (
            role in self.roles
            and side in self.sides
            and (not self.fences or wanted.fence in self.fences)
            and (not self.feeds or wanted.feed in self.feeds)
            and (not self.strategies or wanted.strategy in self.strategies)
            and (not self.sentinel or wanted.sentinel)
            and (not self.cluster or wanted.cluster)
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _names(commands: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(sorted(name.decode().lower() for name in commands))


_READS_SLOWER = "keys are read type by type, in more round trips"
RIGHTS = (
    Right(
        _words("client|setname ping select info"),
        _ALL,
        "to name the connection, to see who answers, and how it fares",
    ),
    Right(_words("command"), _ALL, "which commands the server has, and where their keys stand"),
    Right(
        _words("role"),
        _ALL,
        "behind Sentinel: whether the server is the master",
        sentinel=True,
    ),
    Right(
        _words("wait"),
        _SWITCH,
        "behind Sentinel: that a replica has what was copied, before the cutover",
        sentinel=True,
    ),
    Right(
        _words("wait"),
        _SWITCH,
        "on a cluster: that a replica of each master has what was copied, before the cutover",
        cluster=True,
    ),
    Right(
        _words("readonly cluster|nodes eval"),
        _SWITCH,
        "on a cluster: to fence masters and replicas, and to end the right to write",
        cluster=True,
    ),
    Right(
        _words("cluster|slots cluster|info"),
        _ALL,
        "on a cluster: which node has which slots",
        cluster=True,
    ),
    Right(
        _words("asking"),
        _READERS | _WRITERS,
        "on a cluster: keys of a slot that is on its way to another node",
        cluster=True,
    ),
    Right(
        _words("hget hmget hset"),
        _WRITERS | _SWITCH,
        "on a cluster: the guard keys that hold the right to write",
        cluster=True,
    ),
    Right(_words("multi discard"), _ALL, "to try rights without running anything"),
    Right(
        _words("acl|whoami"),
        _ALL,
        "as whom Exodus is connected",
        without="the checks count it as connected as 'default'",
    ),
    Right(
        _words("acl|dryrun"),
        _ALL,
        "the checks try rights that cannot be tried in a transaction",
        without="MONITOR, PSYNC and their like are not tried",
    ),
    Right(
        _words("scan type exists pttl pexpiretime time"),
        _READERS,
        "which keys there are, of which type, until when",
    ),
    Right(
        _words(
            "get mget strlen getrange llen lrange scard smembers smismember sscan hlen hgetall "
            "hmget hkeys hscan"
        ),
        _READERS,
        "to read strings, lists, sets and hashes",
    ),
    Right(
        _words(
            "zcard zrange zmscore zscan xlen xrange xinfo|stream xinfo|groups xinfo|consumers "
            "xpending"
        ),
        _READERS,
        "to read sorted sets and streams",
    ),
    Right(_words("hpexpiretime"), _READERS, "expiry of hash fields"),
    Right(
        _words("multi exec discard watch unwatch"),
        _READERS | _SWITCH,
        "a value and its expiry of one instant; writes only while the right to write lasts",
    ),
    Right(
        _words("dump"),
        _READERS,
        "a key's value as one payload",
        without="keys are copied type by type",
    ),
    Right(
        _words("eval evalsha eval_ro evalsha_ro"),
        _READERS,
        "to read many keys in one call",
        without=_READS_SLOWER,
    ),
    Right(
        _words("memory|usage"),
        _READERS,
        "to find large keys before they are read",
        without="large keys are found by their number of elements",
    ),
    Right(
        _words("client|no-touch"),
        _READERS,
        "to read keys without making them look used",
        without="reading makes keys look used",
    ),
    Right(
        _words("object|idletime object|freq"),
        _READERS,
        "idle time or frequency of keys (keep_usage)",
        without="keep_usage carries nothing",
    ),
    Right(
        _words("object|encoding"),
        _SYNCER,
        "which encodings a sample of the keys has, for Analyze",
        frozenset({Side.SOURCE}),
        without="Analyze lists the encodings as unknown",
    ),
    Right(
        _words("config|get"),
        _ALL,
        "limits, databases and settings of the server",
        without="they are not compared, databases are counted by SELECT",
    ),
    Right(
        _words("function|dump function|list"),
        _READERS | _SWITCH,
        "which function libraries there are",
        without="functions are not compared",
    ),
    Right(
        _words(
            "set append rpush sadd zadd hset xadd xclaim xdel xsetid unlink del rename "
            "xgroup|create xgroup|createconsumer xgroup|destroy"
        ),
        _WRITERS,
        "to write keys on the follower: type by type, in pieces, and to remove them",
    ),
    Right(
        _words("restore"),
        _WRITERS,
        "to write a key from its payload",
        without="keys are copied type by type",
    ),
    Right(
        _words("mset"),
        _WRITERS,
        "to write strings of one slot together",
        cluster=True,
        without="each string is written by itself, which takes longer",
    ),
    Right(_words("pexpireat pexpire persist hpexpireat"), _WRITERS, "to set and remove expiries"),
    Right(
        _words("function|load"),
        _SYNCER | _SWITCH,
        "to carry function libraries",
        without="functions are carried by hand",
    ),
    Right(
        _words("script|load"),
        _SYNCER | _SWITCH,
        "to load applications' scripts on the other side",
        without="EVALSHA is answered NOSCRIPT at first",
    ),
    Right(
        _words("incr hset ttl zscore role persist"),
        _SYNCER,
        "what an application does, in the rehearsal, on keys under rehearsal_prefix",
    ),
    Right(
        _words("acl|list acl|users acl|getuser module|list command|list client|list"),
        _SYNCER | _SWITCH,
        "to compare users and modules, and to see who is still connected",
        without="they are not compared",
    ),
    Right(
        _words("monitor"),
        _SYNCER,
        "to capture traffic in pre-test",
        frozenset({Side.SOURCE}),
        without="pre-test captures nothing",
    ),
    Right(
        _words("replconf psync"),
        _SYNCER,
        "the replication stream as change feed",
        feeds=frozenset({Feed.AUTO, Feed.REPLICATION}),
        without="another change feed is used",
    ),
    Right(
        _words("replconf psync"),
        _SWITCH,
        "to let the stream of the new side begin at the switch",
        feeds=frozenset({Feed.AUTO, Feed.REPLICATION}),
        without="another change feed is used",
    ),
    Right(
        _words("client|tracking"),
        _SYNCER | _SWITCH,
        "CLIENT TRACKING as change feed",
        feeds=frozenset({Feed.AUTO, Feed.TRACKING}),
        without="another change feed is used",
    ),
    Right(
        _words("psubscribe"),
        _SYNCER | _SWITCH,
        "keyspace notifications as change feed",
        feeds=frozenset({Feed.AUTO, Feed.NOTIFICATIONS}),
        without="another change feed is used",
    ),
    Right(
        _words("client|unblock client|kill"),
        _GATEWAY,
        "to end what a session still waits for at the side that it leaves",
    ),
    Right(
        _names(EXACT_ELSEWHERE),
        _GATEWAY,
        "canary reads",
        without="canary reads fail, and the canary ends",
    ),
    Right(
        _names(COMPARED_READS | COMPARED_WRITES),
        _COMPARER,
        "sampled requests of applications, tried again; compare_user tries them on the target "
        "instead, where it is named",
        without="what the target refuses is listed as a difference",
    ),
    Right(
        _words("blpop brpop bzpopmin bzpopmax"),
        _COMPARER,
        "the applications' blocking pops, played on scratch keys; compare_user plays them instead, "
        "where it is named",
        frozenset({Side.TARGET}),
        without="they are not played, and Pre-test says so",
    ),
    Right(
        _words("copy dbsize"),
        _COMPARER,
        "scratch copies, on which Compare tries writes",
        frozenset({Side.TARGET}),
        without="writes are not tried",
    ),
    Right(
        _words("script|kill function|kill"),
        _COMPARER,
        "to end a script that Compare tried and that takes too long (compare_scripts)",
        frozenset({Side.TARGET}),
        without="it blocks the target until it ends by itself; leave compare_scripts away",
    ),
    Right(
        _words("get mget set exists pttl"),
        _SWITCH,
        "the right to write to a side, and probes of its fence",
    ),
    Right(
        _words("eval"),
        _SWITCH,
        "a script's write as a probe of the fence",
        fences=frozenset({FenceKind.MIN_REPLICAS, FenceKind.REPLICA}),
    ),
    Right(
        _words("client|list client|kill"), _SWITCH, "to end connections that a fence leaves a way"
    ),
    Right(
        _words("acl|setuser acl|getuser acl|users acl|list"),
        _SWITCH,
        "the fence `acl`: this user can give itself every right, so guard its password as the "
        "server's administrator's",
        fences=_AUTO | {FenceKind.ACL},
        without="another fence is used",
    ),
    Right(
        _words("config|set"),
        _SWITCH,
        "the fence `min-replicas`: this user can change any setting that the server does not "
        "protect",
        fences=frozenset({FenceKind.MIN_REPLICAS}),
    ),
    Right(
        _words("replicaof"),
        _SWITCH,
        "the fence `replica`: this user can make the server a copy of another and lose its data",
        fences=frozenset({FenceKind.REPLICA}),
    ),
    Right(
        _words("migrate"),
        _SYNCER,
        "MIGRATE sends keys",
        frozenset({Side.SOURCE}),
        strategies=frozenset({CopyStrategy.MIGRATE}),
    ),
    Right(
        _words("acl|setuser acl|deluser acl|users client|kill"),
        _SYNCER | _SWITCH,
        "a user a slice, as which the source sends: this user can give itself every right",
        frozenset({Side.TARGET}),
        strategies=frozenset({CopyStrategy.MIGRATE}),
    ),
    Right(
        _words("psync sync replconf ping"),
        _SYNCER,
        "the target as the source's replica",
        frozenset({Side.SOURCE}),
        strategies=frozenset({CopyStrategy.NATIVE}),
    ),
    Right(
        _words("replicaof config|set"),
        _SYNCER | _SWITCH,
        "the target as the source's replica",
        frozenset({Side.TARGET}),
        strategies=frozenset({CopyStrategy.NATIVE}),
    ),
)


def has(command: str, engine: str, version: Version) -> bool:
    """Return whether a server of this version has a command."""
    since = SINCE.get(command)
    return since is None or version >= since[engine]


def rights_of(
    role: UserRole, side: Side, engine: str, version: Version, wanted: UsedFeatures
) -> list[tuple[str, Right]]:
    """Return each command that a role needs on a side with its first reason; the indispensable ones
    first.
    """
    found: dict[str, Right] = {}
    for right in sorted(RIGHTS, key=lambda right: bool(right.without)):
        if right.applies(role, side, wanted):
            for command in right.commands:
                if has(command, engine, version):
                    found.setdefault(command, right)
    return list(found.items())


def server_of(text: str) -> tuple[str, Version]:
    """Engine and version of a text such as redis-6.2.

    Raises:
        OperatorError: it is none.
    """
    found = _SERVER.match(text)
    if found is None:
        raise OperatorError(
            f"--for: {text!r} is no server",
            why="an engine and a version are needed",
            next_step="write it as redis-6.2, redis-8.2 or valkey-9.1",
        )
    version = tuple(map(int, found[2].split(".")))
    least = {"redis": (6, 2), "valkey": (7, 2)}[found[1]]
    if version < least:
        raise OperatorError(
            f"--for: {text} is older than Exodus supports",
            why=f"the oldest is {found[1]}-{'.'.join(map(str, least))}",
            next_step="name a later version",
        )
    return found[1], version


def rule_of(
    roles: Iterable[UserRole], side: Side, engine: str, version: Version, wanted: UsedFeatures
) -> str:
    """Return the ACL SETUSER rule for a user of these roles."""
    commands = dict.fromkeys(
        command for role in roles for command, _ in rights_of(role, side, engine, version, wanted)
    )
    heads = {command for command in commands if "|" not in command}
    kept = sorted(
        command
        for command in commands
        if "|" not in command or command.partition("|")[0] not in heads
    )
    channels = "&*" if "psubscribe" in commands else "resetchannels"
    return f"~* {channels} -@all " + " ".join(f"+{command}" for command in kept)
