"""Is the copy of the traffic a copy? Reads of Exodus's own that it must show.

A copy is MONITOR, or the packets of a folder. Each read goes to the source itself, so a copy of
another server, of another port, or with a filter does not show it. Of a cluster every master is
watched, and each gets reads of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exodus.cancellation import end_all, wait_at_most
from exodus.commands.slots import tag_of
from exodus.commands.table import CommandTable
from exodus.errors import SourceError
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.net.masters import located
from exodus.net.routed import together
from exodus.observe import monitor
from exodus.observe.capture import Capture
from exodus.observe.coverage import Coverage, Reconciled, commandstats, reconcile
from exodus.observe.events import Event
from exodus.observe.monitor import MonitorProbes, hidden
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.observe.shapes import pattern_of
from exodus.plan.address import Place
from exodus.plan.bounds import (
    COPY_PROBED_SHARE,
    COPY_PROBES,
    MONITOR_CPU_SHARE_MAX,
    PROFILE_CLIENTS_MAX,
    WATCHED_CONNECTIONS_MAX,
)
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node

PROBED_KEY = RESERVED_PREFIX + b"watched}"
PROBED_PATTERN = pattern_of(PROBED_KEY)
PROBED_PATTERNS = (PROBED_PATTERN, pattern_of(RESERVED_PREFIX + b"watched.1}"))
MONITOR, PACKETS = "MONITOR", "packets"


@dataclass
class WatchedTraffic:
    """What a copy showed, and what it was to show."""

    source: str  # MONITOR or packets
    profile: Profile
    probes_sent: int
    reconciled: list[Reconciled] | None  # None: the server does not tell its counts
    coverage: Coverage | None = None  # of packets
    remarks: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)  # what was seen of each
    uncounted: str = "the source does not tell its counts"  # why, where `reconciled` is None
    # Of packets: clients that the source had and the copy not; a text: why nobody knows
    unseen_clients: list[dict[str, Any]] | str | None = None

    @property
    def probes_seen(self) -> int:
        """How many reads of Exodus's the copy shows."""
        return sum(
            row.calls
            for (_, pattern), row in self.profile.rows.items()
            if pattern in PROBED_PATTERNS
        )

    @property
    def seen_share(self) -> float | None:
        """The share of the server's count that the copy shows; None: the server tells none."""
        return None if self.reconciled is None else share_of(self.reconciled)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        share = self.seen_share
        return {
            **self.profile.report(),
            "source": self.source,
            "probes_sent": self.probes_sent,
            "probes_seen": self.probes_seen,
            "seen_share": None if share is None else round(share, 6),
            "reconciled": [row.report() for row in self.reconciled or []],
            "coverage": None if self.coverage is None else self.coverage.report(),
            "remarks": self.remarks,
            "nodes": self.nodes,
            "uncounted": self.uncounted,
            "unseen_clients": self.unseen_clients,
        }


def share_of(rows: Sequence[Reconciled]) -> float:
    """Return the share of what servers counted that was seen; 1 where they counted nothing."""
    executed = sum(row.executed for row in rows)
    seen = sum(min(row.seen, row.executed) for row in rows)
    return seen / executed if executed else 1.0


async def watch_monitor(
    nodes: Sequence[Node],
    table: CommandTable,
    *,
    seconds: float,
    hashed: bool = False,
    cpu_share_max: float = MONITOR_CPU_SHARE_MAX,
) -> WatchedTraffic:
    """Watch all masters of a side by MONITOR while probes of them are sent.

    With `hashed`, key patterns are shown by hashes of their words. It ends early if a master spends
    more than `cpu_share_max` of a core on it.

    Raises:
        SourceError: one refuses MONITOR or the probes, or went away.
    """
    profile = Profile()
    watches = [_NodeWatch(node, profile, number) for number, node in enumerate(nodes)]
    tasks = [
        asyncio.create_task(each.run(table, seconds, hashed, cpu_share_max)) for each in watches
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await end_all(tasks)
    profile.seconds = max(each.part.seconds for each in watches)
    profile.unreadable = sum(each.part.unreadable for each in watches)
    profile.from_scripts = sum(each.part.from_scripts for each in watches)
    profile.cost = _cost_of([(each.node.where, each.part.cost) for each in watches])
    counted = [each.reconciled for each in watches if each.reconciled is not None]
    said = [
        f"ended after {each.part.seconds:.1f} s: {why}"
        + (f" ({each.node.where})" if len(watches) > 1 else "")
        for each in watches
        if (why := each.part.cost["stopped"])
    ]
    return WatchedTraffic(
        MONITOR,
        profile,
        sum(each.probes.sent for each in watches),
        _summed(counted) if len(counted) == len(watches) else None,
        remarks=said + monitor.notes(profile.cost),
        nodes=[each.row() for each in watches],
    )


class _OfNode(Profile):
    """Counts what one node shows, and hands it on to the profile of the whole side."""

    def __init__(self, whole: Profile, number: int) -> None:
        super().__init__()
        self.seen_by_key: Counter[int] = Counter()  # reads of Exodus's
        self._whole = whole
        self._connections_before = number * PROFILE_CLIENTS_MAX

    def add(self, event: Event) -> None:
        """Count one request."""
        self.requests += 1
        if event.pattern in PROBED_PATTERNS:
            self.seen_by_key[event.key] += 1
        event.connection += self._connections_before
        self._whole.add(event)


class _NodeWatch:
    """MONITOR of one node, and the probes of it."""

    def __init__(self, node: Node, whole: Profile, number: int) -> None:
        self.node = node
        self.part = _OfNode(whole, number)
        self.probes = _Probes(_probe_of(node))
        self.reconciled: list[Reconciled] | None = None

    async def run(
        self, table: CommandTable, seconds: float, hashed: bool, cpu_share_max: float
    ) -> None:
        """Watch for some seconds.

        Raises:
            SourceError: the node refuses MONITOR or the probes, or went away.
        """
        watching = asyncio.create_task(
            monitor.capture(
                self.node.place,
                table,
                seconds=seconds,
                profile=self.part,
                cpu_share_max=cpu_share_max,
                own=self.probes.own,
                hashed=hashed,
                beside=self.probes.beside,
            )
        )
        await _probed(self.node.place, watching, seconds, self.probes)
        self.reconciled = watching.result().reconciled

    def row(self) -> dict[str, Any]:
        """Return what was seen of the node, as JSON."""
        share = None if self.reconciled is None else share_of(self.reconciled)
        return {
            **_node_row(self.node, self.probes, self.part.seen_by_key),
            "requests": self.part.requests,
            "seen_share": None if share is None else round(share, 6),
        }


def _probe_of(node: Node) -> bytes:
    """Return the key by which a node's probes are known."""
    if node.shard is None:
        return PROBED_KEY
    return RESERVED_PREFIX + tag_of(b"watched", node.shard.ranges[0][0]) + b"}"


def _node_row(node: Node, probes: _Probes, seen_by_key: Counter[int]) -> dict[str, Any]:
    # As `Shapes.event` tells keys apart.
    seen = seen_by_key[hash((0, probes.key))]
    return {"node": node.where, "probes_sent": probes.sent, "probes_seen": seen}


def _cost_of(parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return what watching cost: the highest figure of a node, and the rates of all together."""
    if len(parts) == 1:
        return parts[0][1]
    found: dict[str, Any] = {}
    for name in parts[0][1]:
        values = [cost[name] for _, cost in parts]
        if name == "stopped":
            found[name] = "; ".join(f"{node}: {cost[name]}" for node, cost in parts if cost[name])
        else:
            found[name] = round(sum(values), 1) if name.startswith("requests") else max(values)
    return found


def _summed(parts: Sequence[Sequence[Reconciled]]) -> list[Reconciled]:
    """Sum the counts of several nodes: one row for each command."""
    seen: Counter[str] = Counter()
    executed: Counter[str] = Counter()
    for row in (row for part in parts for row in part):
        seen[row.command] += row.seen
        executed[row.command] += row.executed
    return [Reconciled(name, seen[name], executed[name]) for name in sorted(executed)]


class _Marked:
    """Hands events on, and counts those between the first and the last probe that it sees of one
    server.

    The server's own counts are told with these two probes, so both are of the same requests.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._between: Counter[str] = Counter()
        self.probes = 0  # that were seen
        self.counted: Counter[str] = Counter()  # up to the last probe
        self.seen_by_key: Counter[int] = Counter()

    def add(self, event: Event) -> None:
        """Count one event."""
        self._profile.add(event)
        if self.probes and not hidden(event.command):
            self._between[event.command] += 1
        if event.pattern in PROBED_PATTERNS:
            self.probes += 1
            self.seen_by_key[event.key] += 1
            self.counted = self._between.copy()


async def watch_packets(
    nodes: Sequence[Node],
    table: CommandTable,
    folder: Path,
    *,
    seconds: float,
    hashed: bool = False,
) -> WatchedTraffic:
    """Watch the packets that come into a folder while probes of all masters of a side are sent.

    With `hashed`, key patterns are shown by hashes of their words. Packets of several masters are
    not held against what each of them counted.

    Raises:
        SourceError: the server went away, or refuses the probes.
        OperatorError: the folder cannot be read, has too many files, or no packet of the server.
    """
    profile, probes = Profile(), [_Probes(_probe_of(node), ask_clients=True) for node in nodes]
    ports = sorted({(await located(node.place)).port for node in nodes})
    marked = _Marked(profile)
    watcher = PacketWatcher(table, marked, ports, hashed=hashed)

    def begin() -> None:
        for each in probes:
            each.beside.begin.set()

    def stop() -> None:
        for each in probes:
            each.beside.stop.set()

    loop = asyncio.get_running_loop()
    capture = Capture(
        str(folder),
        watcher,
        seconds,
        only_new=True,
        begun=lambda: _soon(loop, begin),
        enough=lambda: marked.probes >= sum(each.sent for each in probes),
    )
    loop.call_later(COPY_PROBED_SHARE * seconds, stop)
    watching = asyncio.create_task(asyncio.to_thread(capture.run))
    await together(
        _probed(node.place, watching, seconds, each)
        for node, each in zip(nodes, probes, strict=True)
    )
    watching.result()
    profile.seconds = watcher.last_at - watcher.first_at
    first, last = probes[0].first, probes[0].last
    alone = len(nodes) == 1 and first is not None and last is not None
    found = WatchedTraffic(
        PACKETS,
        profile,
        sum(each.sent for each in probes),
        reconcile(first or {}, last or {}, marked.counted) if alone else None,
        watcher.coverage,
        capture.remarks + watcher.coverage.remarks(),
        [
            _node_row(node, each, marked.seen_by_key)
            for node, each in zip(nodes, probes, strict=True)
        ],
    )
    found.unseen_clients = _unseen_clients(probes, watcher.addresses)
    if len(nodes) > 1:
        found.uncounted = "packets of several masters are not held against each one's counts"
    return found


def _unseen_clients(probes: Sequence[_Probes], seen: Set[str]) -> list[dict[str, Any]] | str:
    """Return the clients whose packets did not come, by name, user and host; or why nobody knows.

    Args:
        probes: each with the clients that a master had.
        seen: addresses of clients in the packets.
    """
    if len(seen) >= WATCHED_CONNECTIONS_MAX:
        return "the copy shows more clients than Exodus keeps track of"
    if any(each.connected is None for each in probes):
        return "the source does not tell its clients"
    if any(_plain(address) not in seen for each in probes for address in each.own):
        return "the copy shows other addresses of clients than the source"
    found: Counter[tuple[str, str, str]] = Counter()
    for facts in (row for each in probes for row in each.connected or ()):
        if _plain(facts["addr"]) not in seen:
            host = _plain(facts["addr"]).rpartition(":")[0]
            found[facts.get("name", ""), facts.get("user", "?"), host] += 1
    return [
        {"client": name or "(no name)", "user": user, "host": host, "connections": count}
        for (name, user, host), count in sorted(found.items())
    ]


def _plain(address: str) -> str:
    """Return an address without the brackets of IPv6."""
    return address.replace("[", "").replace("]", "")


@dataclass
class _Probes:
    """What was sent, and the server's counts at the first and the last of it."""

    key: bytes  # that they ask for
    sent: int = 0  # and answered
    own: dict[str, str] = field(default_factory=dict)  # the name of their connection, by address
    beside: MonitorProbes = field(default_factory=MonitorProbes)
    first: dict[str, int] | None = None  # None: the server does not tell
    last: dict[str, int] | None = None
    ask_clients: bool = False  # with the last one
    connected: list[dict[str, str]] | None = None  # that were active; None: it does not tell


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call)


async def _probed(
    place: Place, watching: asyncio.Task[Any], seconds: float, probes: _Probes
) -> None:
    """Wait for a watcher's end; meanwhile send probes."""
    probing = asyncio.create_task(_send(place, seconds, probes))
    try:
        await asyncio.wait([watching])
        if probing.done():
            probing.result()
    finally:
        await end_all([probing, watching])


async def _send(place: Place, seconds: float, probes: _Probes) -> None:
    """Send probes once the watcher sees them, until it says that it stops."""
    beside = probes.beside
    try:
        async with await Leg.connect(place, Side.SOURCE, name="exodus-copy-probe") as leg:
            probes.own[leg.local] = leg.name
            await beside.begin.wait()
            await _send_all(leg, seconds, probes)
    finally:
        beside.ended.set()


async def _send_all(leg: Leg, seconds: float, probes: _Probes) -> None:
    stop, began = probes.beside.stop, time.monotonic()
    for number in range(COPY_PROBES):
        last = number == COPY_PROBES - 1 or (number > 0 and stop.is_set())
        try:
            if number == 0:
                probes.first = await _marked_counts(leg, probes.key)
            elif last:
                probes.last = await _marked_counts(leg, probes.key)
            else:
                await leg.call("EXISTS", probes.key)
        except ReplyError as exc:
            raise SourceError(
                "the source refuses the reads that the copy of the traffic is to show",
                why=str(exc),
                next_step="let Exodus's user run EXISTS on exodus:* (exodus users)",
            ) from exc
        probes.sent += 1
        if last:
            if probes.ask_clients:
                probes.connected = await _active_clients(leg, time.monotonic() - began)
            return
        await wait_at_most(stop, COPY_PROBED_SHARE * seconds / COPY_PROBES)


async def _active_clients(leg: Leg, seconds: float) -> list[dict[str, str]] | None:
    """Return the clients that sent requests within some seconds; None: the server does not tell.

    Connections of Exodus and of replicas are none.
    """
    try:
        told = await leg.call("CLIENT", "LIST")
    except ReplyError:
        return None
    found = []
    for line in told.decode("utf-8", "replace").splitlines():
        facts = dict(pair.partition("=")[::2] for pair in line.split())
        # Both are whole seconds. Who came just now may come in the next packet.
        active = int(facts.get("idle", 0)) + 1 < seconds and int(facts.get("age", 0)) >= 1
        own = facts.get("name", "").startswith("exodus")
        if active and not own and "S" not in facts.get("flags", "") and "addr" in facts:
            found.append(facts)
    return found


async def _marked_counts(leg: Leg, key: bytes) -> dict[str, int] | None:
    """Send a probe and ask for the server's counts at once; None: it does not tell them.

    Raises:
        hiredis.ReplyError: it refuses the probe.
    """
    try:
        replies = await leg.transaction([("EXISTS", key), ("INFO", "commandstats")])
    except ReplyError:
        await leg.call("EXISTS", key)
        return None
    told = (replies or [None])[-1]
    if not isinstance(told, bytes):
        return None
    found = commandstats(info_of(told))
    return {name: calls for name, calls in found.items() if not hidden(name)}
