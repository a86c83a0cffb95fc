"""Pre-test capture by MONITOR: what the source executes, in order, without touching the
applications.

It makes the events of `events.py`, without answers. MONITOR's lines are simple strings on the wire,
so the reply scanner frames them; their quoted arguments use the escapes of inline requests. It
shows no replies, no CONFIG and no refused commands, and it costs the source a good part of its
throughput while it runs (more than half of it by Redis' own documentation). So it runs for a stated
time, and ends before if it costs too much (`monitor_cost.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from exodus.cancellation import end_all, wait_at_most
from exodus.commands.table import Command, CommandTable
from exodus.errors import SourceError
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.observe.coverage import Reconciled, commandstats, reconcile
from exodus.observe.monitor_cost import Look, MonitorCost
from exodus.observe.profile import Profile
from exodus.observe.shapes import Shapes
from exodus.plan.address import Place
from exodus.plan.bounds import (
    MONITOR_BASELINE_S,
    MONITOR_CPU_SHARE_MAX,
    MONITOR_LOOK_S,
    MONITOR_MARKED_S,
    MONITOR_READ_BYTES,
    PROFILE_CLIENTS_MAX,
)
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.resp.inline import split_line
from exodus.resp.scanner import ReplyScanner

_MARK = b"exodus-mark:"
_SETNAME_ARGS = 3
# Containers and commands that a server shows in MONITOR not at all, or only in part
_HIDDEN = frozenset(
    {"ACL", "AUTH", "CLIENT", "CLUSTER", "CONFIG", "DEBUG", "FAILOVER", "HELLO", "LATENCY"}
    | {"MODULE", "MONITOR", "PSYNC", "REPLCONF", "REPLICAOF", "SLAVEOF", "SLOWLOG", "SYNC"}
)


class MonitorWatch(NamedTuple):
    """What MONITOR showed. `reconciled` is None where the server does not tell its counts."""

    profile: Profile
    reconciled: list[Reconciled] | None


def parse_line(line: bytes) -> tuple[float, int, str, list[bytes]] | None:
    """One line of MONITOR as (time in s, database, client, arguments), or None where it is none.

    `1339518083.107412 [0 127.0.0.1:60866] "keys" "*"`; the client is `lua` for what a script
    executes.
    """
    stamp, _, rest = line.partition(b" [")
    where, closed, quoted = rest.partition(b'] "')
    if not closed:
        return None
    db, _, client = where.partition(b" ")
    args = split_line(b'"' + quoted)
    try:
        return (float(stamp), int(db), client.decode("ascii", "replace"), args) if args else None
    except ValueError:
        return None


@dataclass
class MonitorProbes:
    """Requests that somebody sends while MONITOR is on, and that it must show."""

    begin: asyncio.Event = field(default_factory=asyncio.Event)  # MONITOR is on
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # send no more
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # all were answered


class MonitorReader:
    """MONITOR's bytes in, events into a profile; no I/O."""

    def __init__(
        self, table: CommandTable, profile: Profile | None = None, *, hashed: bool = False
    ) -> None:
        self.profile = Profile() if profile is None else profile
        self.last_stamp = 0.0
        self.mark = b""  # an argument of PING; what is executed between two of these is counted
        self.marks = 0
        self.names: dict[str, str] = {}  # of connections that are known by address
        self.between: Counter[str] = Counter()  # by command, of scripts also
        self._shapes = Shapes(table, hashed=hashed)
        self._connections: dict[str, int] = {}
        self._scanner = ReplyScanner()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        buffered = self._tail + data
        at = 0
        for reply in self._scanner.feed(data):
            at += reply.size
            if reply.head == b"OK":
                continue
            parsed = parse_line(reply.head) if reply.kind == 0x2B else None
            if parsed is None:
                self.profile.unreadable += 1
                continue
            self.last_stamp, db, client, args = parsed
            command = self._shapes.table.of(args)
            if self.mark:
                self._count(command, args)
            if command.name == b"CLIENT|SETNAME" and len(args) == _SETNAME_ARGS:
                self._named(client, args[2])
            if client == "lua":
                self.profile.from_scripts += 1
                continue
            self.profile.add(
                self._shapes.event(
                    self.last_stamp,
                    self._number(client),
                    self.names.get(client, client),
                    db,
                    command,
                    args,
                    sum(map(len, args)),
                )
            )
        self._tail = buffered[at:]

    def _named(self, client: str, name: bytes) -> None:
        if len(self.names) < PROFILE_CLIENTS_MAX:
            self.names[client] = name.decode("utf-8", "backslashreplace")

    def _count(self, command: Command, args: list[bytes]) -> None:
        if self.marks == 1 and command.known:
            self.between[command.name.decode("ascii", "replace")] += 1
        self.marks += args[-1] == self.mark and command.name == b"PING"

    def _number(self, client: str) -> int:
        """Return the number of a connection, which has its own address for as long as it lasts."""
        if client not in self._connections and len(self._connections) >= PROFILE_CLIENTS_MAX:
            self._connections.clear()
        return self._connections.setdefault(client, len(self._connections) + 1)


async def capture(
    address: Place,
    table: CommandTable,
    *,
    seconds: float,
    profile: Profile | None = None,
    cpu_share_max: float = MONITOR_CPU_SHARE_MAX,
    own: dict[str, str] | None = None,
    hashed: bool = False,
    beside: MonitorProbes | None = None,
) -> MonitorWatch:
    """Watch the source for `seconds`, into the given profile or a new one.

    It ends before if the server spends more than `cpu_share_max` of a core on it, or keeps too much
    of it in its memory; `Profile.cost` says so. The time before MONITOR is for comparison.

    What was seen is held against the server's own counts. Both are of the time between two
    transactions of Exodus, each with a mark and INFO commandstats, so they must be equal.

    Args:
        address: the source.
        table: its commands.
        seconds: to watch.
        profile: that counts what is seen.
        cpu_share_max: of a core, that MONITOR may cost.
        own: names of Exodus's own connections by their address; it may grow meanwhile.
        hashed: key patterns are shown by hashes of their words.
        beside: requests of others, which are told when they are seen. MONITOR ends behind the last.

    Raises:
        SourceError: it refuses the credentials or MONITOR.
    """
    loop = asyncio.get_running_loop()
    watcher = MonitorReader(table, profile, hashed=hashed)
    watcher.names = {} if own is None else own
    async with (
        await Leg.connect(address, Side.SOURCE, name="exodus-monitor-cost") as asked,
        await Leg.connect(address, Side.SOURCE, name="exodus-monitor") as leg,
    ):
        watcher.names[asked.local] = asked.name
        before = await _look(asked)
        await asyncio.sleep(MONITOR_BASELINE_S)
        started = await _look(asked)
        cost = MonitorCost(before, started, started, cpu_share_max)
        leg.write(encode("MONITOR"))
        await leg.drain()
        answer = await leg.line()
        if not answer.startswith(b"+OK"):
            raise SourceError(
                "the source refuses MONITOR",
                why=answer.decode("utf-8", "replace")[:200],
                next_step="grant +monitor to Exodus's user, or skip the capture: "
                "analyze learns the same once applications use the gateway",
            )
        began = loop.time()
        watcher.mark = _MARK + secrets.token_hex(8).encode()
        reading = loop.create_task(_read(leg, watcher, within_s=2 * seconds + MONITOR_MARKED_S))
        try:
            first = await _counts(asked, watcher.mark)
            if beside is not None:
                beside.begin.set()
            while not reading.done() and not cost.too_much and loop.time() < began + seconds:
                left = began + seconds - loop.time()
                await asyncio.wait([reading], timeout=min(MONITOR_LOOK_S, left))
                cost.last = await _look(asked)
            watcher.profile.seconds = loop.time() - began
            if beside is not None:
                beside.stop.set()
                await wait_at_most(beside.ended, MONITOR_MARKED_S)
            last = await _counts(asked, watcher.mark)
            ends = loop.time() + MONITOR_MARKED_S
            while not reading.done() and watcher.marks < 2 and loop.time() < ends:
                await asyncio.wait([reading], timeout=0.01)
            if reading.done():
                reading.result()
        finally:
            await end_all([reading])
    watcher.profile.cost = cost.report()
    counted = first is not None and last is not None
    seen = {name: calls for name, calls in watcher.between.items() if not hidden(name)}
    return MonitorWatch(
        watcher.profile, reconcile(first or {}, last or {}, seen) if counted else None
    )


def notes(cost: Mapping[str, Any]) -> list[str]:
    """Return what MONITOR does not show, and what it cost the server, for people."""
    return [
        "MONITOR shows no answer, no latency, no refused command, and no CONFIG or AUTH",
        f"MONITOR cost the server {cost['cpu_share_added']:.1%} of a core at "
        f"{cost['requests_per_s_during']:,.0f} requests a second",
    ]


def hidden(name: str) -> bool:
    """Return whether MONITOR shows a command not at all, or only in part."""
    return name.partition("|")[0] in _HIDDEN


async def _counts(leg: Leg, mark: bytes) -> dict[str, int] | None:
    """Return the server's counts at a mark, without what MONITOR hides; None: it does not say."""
    try:
        replies = await leg.transaction([("PING", mark), ("INFO", "commandstats")])
    except ReplyError:
        return None
    told = (replies or [None])[-1]
    if not isinstance(told, bytes):
        return None
    found = commandstats(info_of(told), rejected=False)
    return {name: calls for name, calls in found.items() if not hidden(name)}


async def _read(leg: Leg, watcher: MonitorReader, *, within_s: float) -> None:
    while True:
        watcher.feed(await leg.raw(MONITOR_READ_BYTES, within_s=within_s))


async def _look(leg: Leg) -> Look:
    info = info_of(await leg.call("INFO"))
    return Look.of(asyncio.get_running_loop().time(), info)
