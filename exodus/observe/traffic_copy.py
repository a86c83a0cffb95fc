"""Is the copy of the traffic a copy? Reads of Exodus's own that it must show.

A copy is MONITOR, or the packets of a folder. Each read goes to the source itself, so a copy of
another server, of another port, or with a filter does not show it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exodus.cancellation import end_all, wait_at_most
from exodus.commands.table import CommandTable
from exodus.errors import SourceError
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.observe import monitor
from exodus.observe.capture import Capture
from exodus.observe.coverage import Coverage, Reconciled, commandstats, reconcile
from exodus.observe.events import Event
from exodus.observe.monitor import Beside, hidden
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.observe.shapes import pattern_of
from exodus.plan.address import Address
from exodus.plan.bounds import COPY_PROBES
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.vocabulary import Side

PROBED_KEY = RESERVED_PREFIX + b"watched}"
PROBED_PATTERN = pattern_of(PROBED_KEY)
MONITOR, PACKETS = "MONITOR", "packets"
_PROBED_SHARE = 0.7  # of the time to watch: what is sent later may come too late


@dataclass
class Watched:
    """What a copy showed, and what it was to show."""

    source: str  # MONITOR or packets
    profile: Profile
    probes_sent: int
    reconciled: list[Reconciled] | None  # None: the server does not tell its counts
    coverage: Coverage | None = None  # of packets
    remarks: list[str] = field(default_factory=list)

    @property
    def probes_seen(self) -> int:
        """How many reads of Exodus's the copy shows."""
        return sum(
            row.calls
            for (_, pattern), row in self.profile.rows.items()
            if pattern == PROBED_PATTERN
        )

    @property
    def seen_share(self) -> float | None:
        """The share of the server's count that the copy shows; None: the server tells none."""
        if self.reconciled is None:
            return None
        executed = sum(row.executed for row in self.reconciled)
        seen = sum(min(row.seen, row.executed) for row in self.reconciled)
        return seen / executed if executed else 1.0

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
        }


async def watch_monitor(
    address: Address, table: CommandTable, *, seconds: float, hashed: bool = False
) -> Watched:
    """Watch a server by MONITOR while probes of it are sent.

    With `hashed`, key patterns are shown by hashes of their words.

    Raises:
        SourceError: it refuses MONITOR or the probes, or went away.
    """
    profile, probes = Profile(), _Probes()
    watching = asyncio.create_task(
        monitor.capture(
            address,
            table,
            seconds=seconds,
            profile=profile,
            own=probes.own,
            hashed=hashed,
            beside=probes.beside,
        )
    )
    await _probed(address, watching, seconds, probes)
    watch = watching.result()
    said = (
        [f"ended after {profile.seconds:.1f} s: {why}"] if (why := profile.cost["stopped"]) else []
    )
    return Watched(MONITOR, profile, probes.sent, watch.reconciled, remarks=said)


class _Marked:
    """Hands events on, and counts those between the first and the last probe that it sees.

    The server's own counts are told with these two probes, so both are of the same requests.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._between: Counter[str] = Counter()
        self.probes = 0  # that were seen
        self.counted: Counter[str] = Counter()  # up to the last probe

    def add(self, event: Event) -> None:
        """Count one event."""
        self._profile.add(event)
        if self.probes and not hidden(event.command):
            self._between[event.command] += 1
        if event.pattern == PROBED_PATTERN:
            self.probes += 1
            self.counted = self._between.copy()


async def watch_packets(
    address: Address, table: CommandTable, folder: Path, *, seconds: float, hashed: bool = False
) -> Watched:
    """Watch the packets that come into a folder while probes of the server are sent.

    With `hashed`, key patterns are shown by hashes of their words.

    Raises:
        SourceError: the server went away, or refuses the probes.
        OperatorError: the folder cannot be read, has too many files, or no packet of the server.
    """
    profile, probes = Profile(), _Probes()
    marked = _Marked(profile)
    watcher = PacketWatcher(table, marked, [address.port], hashed=hashed)
    loop = asyncio.get_running_loop()
    capture = Capture(
        str(folder),
        watcher,
        seconds,
        only_new=True,
        begun=lambda: _soon(loop, probes.beside.begin.set),
        enough=lambda: marked.probes >= probes.sent,
    )
    loop.call_later(_PROBED_SHARE * seconds, probes.beside.stop.set)
    watching = asyncio.create_task(asyncio.to_thread(capture.run))
    await _probed(address, watching, seconds, probes)
    watching.result()
    profile.seconds = watcher.last_at - watcher.first_at
    first, last = probes.first, probes.last
    counted = None if first is None or last is None else reconcile(first, last, marked.counted)
    return Watched(
        PACKETS,
        profile,
        probes.sent,
        counted,
        watcher.coverage,
        capture.remarks + watcher.coverage.remarks(),
    )


@dataclass
class _Probes:
    """What was sent, and the server's counts at the first and the last of it."""

    sent: int = 0  # and answered
    own: dict[str, str] = field(default_factory=dict)  # the name of their connection, by address
    beside: Beside = field(default_factory=Beside)
    first: dict[str, int] | None = None  # None: the server does not tell
    last: dict[str, int] | None = None


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call)


async def _probed(
    address: Address, watching: asyncio.Task[Any], seconds: float, probes: _Probes
) -> None:
    """Wait for a watcher's end; meanwhile send probes."""
    probing = asyncio.create_task(_send(address, seconds, probes))
    try:
        await asyncio.wait([watching])
        if probing.done():
            probing.result()
    finally:
        await end_all([probing, watching])


async def _send(address: Address, seconds: float, probes: _Probes) -> None:
    """Send probes once the watcher sees them, until it says that it stops."""
    beside = probes.beside
    try:
        async with await Leg.connect(address, Side.SOURCE, name="exodus-copy-probe") as leg:
            probes.own[leg.local] = leg.name
            await beside.begin.wait()
            await _send_all(leg, seconds, probes)
    finally:
        beside.ended.set()


async def _send_all(leg: Leg, seconds: float, probes: _Probes) -> None:
    stop = probes.beside.stop
    for number in range(COPY_PROBES):
        last = number == COPY_PROBES - 1 or (number > 0 and stop.is_set())
        try:
            if number == 0:
                probes.first = await _marked_counts(leg)
            elif last:
                probes.last = await _marked_counts(leg)
            else:
                await leg.call("EXISTS", PROBED_KEY)
        except ReplyError as exc:
            raise SourceError(
                "the source refuses the reads that the copy of the traffic is to show",
                why=str(exc),
                next_step="let Exodus's user run EXISTS on exodus:* (exodus users)",
            ) from exc
        probes.sent += 1
        if last:
            return
        await wait_at_most(stop, _PROBED_SHARE * seconds / COPY_PROBES)


async def _marked_counts(leg: Leg) -> dict[str, int] | None:
    """Send a probe and ask for the server's counts at once; None: it does not tell them.

    Raises:
        hiredis.ReplyError: it refuses the probe.
    """
    try:
        replies = await leg.transaction([("EXISTS", PROBED_KEY), ("INFO", "commandstats")])
    except ReplyError:
        await leg.call("EXISTS", PROBED_KEY)
        return None
    told = (replies or [None])[-1]
    if not isinstance(told, bytes):
        return None
    found = commandstats(info_of(told))
    return {name: calls for name, calls in found.items() if not hidden(name)}
