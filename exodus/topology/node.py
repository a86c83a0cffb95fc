"""One server of a side, and what it can do.

Exodus asks the server for its capabilities. It never derives them from the vendor's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from exodus.commands.slots import Shard, tag_of
from exodus.errors import OperatorError
from exodus.net.info import databases_of, info_of
from exodus.net.leg import Leg, ReplyError, not_yet
from exodus.net.masters import failovers_of
from exodus.plan.address import Address, Service
from exodus.plan.vocabulary import Side

# Settings that bound what one command may be; the server ends the connection of whoever goes
# beyond.
LIMITS = ("proto-max-bulk-len", "client-query-buffer-limit")
_SCRIPT_LIMIT = "lua-time-limit"  # from 7.0 on another name of busy-reply-threshold
_SCRIPT_MS = 5_000  # the servers' own default
# Payload versions of servers that have no FUNCTION DUMP, or do not let us
# (docs/decisions/0002-payload-versions.md): since which version → which.
_PAYLOAD_VERSIONS: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "redis": [((7, 4), 12), ((7, 2), 11), ((7,), 10), ((5,), 9), ((4,), 8)],
    "valkey": [((9,), 80), ((7, 2), 11)],
}


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    engine: str  # redis or valkey
    version: tuple[int, ...]
    run_id: str
    payload_version: int | None  # of DUMP; None where DUMP is refused
    databases: dict[int, int]  # database → keys, expired ones that were not reaped included
    used_memory: int
    maxmemory: int
    maxmemory_policy: str
    user: str
    capabilities: dict[str, bool] = field(default_factory=dict)
    database_count: int = 1  # databases that Exodus can enter: 0 to this, less one
    limits: dict[str, int] = field(default_factory=dict)  # `LIMITS` that the server tells
    script_ms: int = (
        _SCRIPT_MS  # a script that runs for longer makes the server answer BUSY to everybody
    )
    failovers: str = ""  # of its service or shard; empty for a server that stands alone

    @property
    def life(self) -> str:
        """Return what is another one where the server may have lost keys: it restarted, another
        took its place, or it was a replica meanwhile.
        """
        return self.run_id + self.failovers

    @property
    def servers(self) -> set[str]:
        """Return the run ids of its servers: one, or those of a cluster's masters."""
        return {life.partition("@")[0] for life in self.run_id.split()}

    @property
    def version_text(self) -> str:
        """Return the version as people write it."""
        return ".".join(map(str, self.version))


class Node:
    """One server of a side, the server that is the master of a service, or the master of a shard.

    The name stays through failovers, so that a slice is the same slice after one.
    """

    def __init__(self, side: Side, place: Address | Service, *, shard: Shard | None = None) -> None:
        """With a `shard`, it is that shard's master."""
        self.side = side
        self.place = place
        self.shard = shard
        if shard is not None:
            self.name = shard.name
        else:
            self.name = place.place if isinstance(place, Address) else place.service

    @property
    def where(self) -> str:
        """Return the server's address, or the name of the service, for people."""
        return self.place.place if isinstance(self.place, Address) else self.place.service

    @property
    def first_slot(self) -> int | None:
        """Return the first slot that this node has; None where the side is no cluster."""
        return None if self.shard is None else self.shard.ranges[0][0]

    @property
    def tag(self) -> str:
        """Return a hash tag, in braces, of a slot that this node has: scratch keys begin with it,
        since another node's would be refused. Empty where the side is no cluster.
        """
        if self.shard is None:
            return ""
        return "{" + tag_of(b"probe", self.shard.ranges[0][0]).decode() + "}"

    @property
    def scratch(self) -> bytes:
        """Return the name of a key of Exodus's own that this node can have."""
        return b"exodus:" + (self.tag.encode() or b"{probe}")

    async def connect(self, db: int = 0, *, name: str = "exodus") -> Leg:
        """Connect to the server, or to the master of now."""
        return await Leg.connect(self.place, self.side, db=db, name=name)

    async def info(self) -> dict[str, str]:
        """Return the fields of INFO.

        Raises:
            SourceError, TargetError, OperatorError: the server does not answer, or refuses INFO.
        """
        async with await self.connect() as leg:
            return await self._info(leg)

    async def _info(self, leg: Leg) -> dict[str, str]:
        (raw,) = await leg.pipeline([("INFO",)])
        if isinstance(raw, ReplyError):
            if (later := not_yet(self.side, str(raw))) is not None:
                raise later
            raise OperatorError(
                f"{self.side}: the user may not run INFO",
                why=str(raw),
                next_step="grant +info (docs/operating/users.md)",
            )
        return info_of(raw)

    async def life(self) -> str:
        """Return what `NodeFacts.life` is now. Asks for nothing but INFO.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses INFO.
        """
        async with await self.connect() as leg:
            return await self.life_on(leg)

    async def life_on(self, leg: Leg) -> str:
        """Return the same, over a connection to the server that is open already.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses INFO.
        """
        failovers = failovers_of(self.place)
        info = await self._info(leg)
        return info["run_id"] + (failovers if self.shard is None else _promoted(info))

    async def facts(self) -> NodeFacts:
        """Ask the server for all that the engine wants to know.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses INFO.
        """
        async with await self.connect() as leg:
            failovers = failovers_of(self.place)
            info = await self._info(leg)
            engine = "valkey" if "valkey_version" in info else "redis"
            version = tuple(
                int(part)
                for part in info.get("valkey_version", info["redis_version"]).split(".")
                if part.isdigit()
            )
            scratch = self.scratch
            names = (
                "pexpiretime",
                "acl",
                "monitor",
                "scripts",
                "hash field ttl",
                "no-touch",
                "read-only scripts",
                "memory usage",
            )
            probes = await leg.pipeline(
                [
                    ("PEXPIRETIME", scratch),
                    ("ACL", "WHOAMI"),
                    ("COMMAND", "INFO", "MONITOR"),
                    ("EVAL", "return 1", 0),
                    ("HPEXPIRETIME", scratch, "FIELDS", 1, "f"),
                    ("CLIENT", "NO-TOUCH", "OFF"),
                    ("EVAL_RO", "return 1", 0),
                    ("MEMORY", "USAGE", scratch),
                ]
            )
            for reply in probes:
                if (
                    isinstance(reply, ReplyError)
                    and (later := not_yet(self.side, str(reply))) is not None
                ):
                    raise later  # its answers say nothing of what it can do
            able = {
                name: not isinstance(reply, ReplyError)
                for name, reply in zip(names, probes, strict=True)
            }
            able["monitor"] = able["monitor"] and bool(probes[2]) and probes[2][0] is not None
            user = probes[1].decode() if able["acl"] else "default"
            databases = databases_of(info)
            payload = await _payload_version(leg, scratch, engine, version)
            limits = await _settings_of(leg, *LIMITS)
            script_ms = (await _settings_of(leg, _SCRIPT_LIMIT)).get(
                _SCRIPT_LIMIT
            ) or _SCRIPT_MS  # 0: no limit
            database_count = await _database_count(leg)
        return NodeFacts(
            engine=engine,
            version=version,
            run_id=info["run_id"],
            failovers=failovers if self.shard is None else _promoted(info),
            payload_version=payload,
            databases=databases,
            used_memory=int(info.get("used_memory", 0)),
            maxmemory=int(info.get("maxmemory", 0)),
            maxmemory_policy=info.get("maxmemory_policy", ""),
            user=user,
            capabilities=able,
            database_count=database_count,
            limits=limits,
            script_ms=script_ms,
        )


def _promoted(info: Mapping[str, str]) -> str:
    """Return what tells lives of a shard's master apart: at which offset it was promoted last, or
    nothing where it never was. A restart brings another run id.
    """
    offset = info.get("second_repl_offset", "-1")
    return "" if offset == "-1" else f"@{offset}"


def of_all(nodes: Sequence[NodeFacts]) -> NodeFacts:
    """Return what a side of several nodes says of itself: what all of them can do, and the sums.

    Where versions differ, as during an upgrade, the oldest one counts, and keys are copied by type.
    """
    first = min(nodes, key=lambda facts: facts.version)
    databases: Counter[int] = Counter()
    for each in nodes:
        databases.update(each.databases)
    payloads = {each.payload_version for each in nodes}
    bounded = all(each.maxmemory for each in nodes)
    return replace(
        first,
        run_id=" ".join(sorted(each.life for each in nodes)),
        failovers="",
        payload_version=payloads.pop() if len(payloads) == 1 else None,
        databases=dict(databases),
        used_memory=sum(each.used_memory for each in nodes),
        maxmemory=sum(each.maxmemory for each in nodes) if bounded else 0,
        capabilities={
            name: all(each.capabilities.get(name, False) for each in nodes)
            for name in first.capabilities
        },
        database_count=min(each.database_count for each in nodes),
        script_ms=min(each.script_ms for each in nodes),
    )


async def _payload_version(
    leg: Leg, scratch: bytes, engine: str, version: tuple[int, ...]
) -> int | None:
    """Return the version in the footer of DUMP payloads, None where DUMP is refused.

    Writes nothing: applications that track keys or listen to notifications would hear of a key of
    ours.
    """
    allowed, libraries = await leg.pipeline([("DUMP", scratch), ("FUNCTION", "DUMP")])
    if isinstance(allowed, ReplyError):
        return None
    if isinstance(libraries, bytes):  # from Redis 7.0 on; it ends as the payload of a key does
        return int.from_bytes(libraries[-10:-8], "little")
    return next((found for since, found in _PAYLOAD_VERSIONS[engine] if version >= since), None)


async def _settings_of(leg: Leg, *names: str) -> dict[str, int]:
    found = await leg.pipeline([("CONFIG", "GET", name) for name in names])
    told = zip(names, found, strict=True)
    return {name: int(pair[1]) for name, pair in told if isinstance(pair, list) and len(pair) == 2}


async def _database_count(leg: Leg) -> int:
    """Count the databases that Exodus can enter: as many as the setting says, or by bisection where
    it may not be read.
    """

    async def enters(db: int) -> bool:
        (said,) = await leg.pipeline([("SELECT", db)])
        return not isinstance(said, ReplyError)

    (told,) = await leg.pipeline([("CONFIG", "GET", "databases")])
    try:
        if isinstance(told, list) and len(told) == 2 and await enters(int(told[1]) - 1):
            return int(told[1])
        inside, outside = 0, 1
        while await enters(outside):
            inside, outside = outside, outside * 2
        while outside - inside > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if await enters(middle) else (inside, middle)
        return outside
    finally:
        await leg.call("SELECT", 0)


def payload_fits(authority: NodeFacts, follower: NodeFacts) -> bool:
    """Return whether the follower takes the authority's DUMP payloads by their version.

    Upward always works; Valkey 9 (80) and Redis 7.4 and later (12 and up) refuse each other's
    (docs/decisions/0002-payload-versions.md, run on seven servers).
    """
    theirs, ours = authority.payload_version, follower.payload_version
    if theirs is None or ours is None or theirs > ours:
        return False
    return not (12 <= theirs < 80 <= ours)
