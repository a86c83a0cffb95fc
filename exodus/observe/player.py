"""Playing a workload model on a server, in an open loop.

Requests go out when they are due, whether earlier ones were answered or not, and their latency
counts from then: a server that stalls for a second has delayed everything that was due in that
second. A closed loop would send less and hide it.

The keys are scratch keys with a prefix of their own, which is removed afterwards. A server whose
memory limit leaves no room for them is refused, since it would evict the applications' keys.
"""

from __future__ import annotations

import asyncio
import string
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import hiredis

from exodus.errors import ExodusError, OperatorError, TargetError
from exodus.net.connect import login_of, open_protocol
from exodus.net.info import info_of
from exodus.net.leg import Leg, ReplyError
from exodus.net.tls import ssl_context
from exodus.observe.composer import Composer, Unit
from exodus.observe.distribution import Distribution
from exodus.plan.address import Address
from exodus.plan.bounds import (
    PLAYED_CLEANING_KEYS,
    PLAYED_CONNECTIONS_MAX,
    PLAYED_ERRORS_MAX,
    PLAYED_LAST_ANSWERS_S,
    PLAYED_WAITING_MAX,
    PLAYER_LATE_US_MAX,
    PLAYER_TICK_S,
    READ_BATCH_BYTES,
)
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode

SCRATCH = b"exodus:load:"
_TOKEN_LETTERS = 8
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def scratch_prefix(draw: Random) -> bytes:
    """Return a prefix for the keys of one run."""
    token = "".join(draw.choices(string.ascii_lowercase, k=_TOKEN_LETTERS))
    return SCRATCH + token.encode() + b":"


@dataclass
class Played:
    """What a run did and how the server took it. Latencies in µs from when a request was due."""

    seconds: float = 0.0
    due: int = 0
    sent: int = 0
    answered: int = 0
    not_sent: int = 0  # due while `PLAYED_WAITING_MAX` requests waited for an answer
    not_waited: int = 0  # blocking ones, due while every connection for them waited
    prepared: int = 0  # scratch keys made before
    removed: int = 0  # scratch keys removed afterwards
    latency_us: Distribution = field(default_factory=Distribution)
    late_us: Distribution = field(default_factory=Distribution)  # sent after they were due
    by_shape: dict[str, Distribution] = field(default_factory=dict)
    errors: dict[str, dict[str, int]] = field(default_factory=dict)  # by shape and first word

    def answer(self, shape: str, latency_s: float | None, reply: Any) -> None:
        """Count an answer. That of a blocking request has no latency of the server."""
        self.answered += 1
        if latency_s is not None:
            micros = int(latency_s * 1_000_000)
            self.latency_us.record(micros)
            found = self.by_shape.get(shape)
            if found is None:
                found = self.by_shape[shape] = Distribution()
            found.record(micros)
        if isinstance(reply, ReplyError):
            code = str(reply).split(" ", 1)[0][:32]
            codes = self.errors.setdefault(shape, {})
            if code in codes or len(codes) < PLAYED_ERRORS_MAX:
                codes[code] = codes.get(code, 0) + 1

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": round(self.seconds, 3),
            "due": self.due,
            "sent": self.sent,
            "answered": self.answered,
            "not_sent": self.not_sent,
            "not_waited": self.not_waited,
            "requests_per_s": round(self.sent / self.seconds, 1) if self.seconds else 0.0,
            "errors": sum(sum(codes.values()) for codes in self.errors.values()),
            "errors_by_shape": self.errors,
            "latency_us": _quantiles(self.latency_us),
            "late_us": _quantiles(self.late_us),
            "latency_us_by_shape": {
                shape: {"calls": found.total, **_quantiles(found)}
                for shape, found in sorted(self.by_shape.items(), key=lambda item: -item[1].total)
            },
            "keys_prepared": self.prepared,
            "keys_removed": self.removed,
        }


def _quantiles(found: Distribution) -> dict[str, int]:
    return {name: found.quantile(share) for name, share in _QUANTILES.items()} | {
        "max": found.value_max
    }


class _Line(asyncio.Protocol):
    """One connection: requests out, answers counted."""

    def __init__(self, played: Played, now: Callable[[], float]) -> None:
        self.waiting: deque[tuple[str, float | None]] = deque()
        self.lost: str | None = None
        self._played, self._now = played, now
        self._parser = hiredis.Reader(notEnoughData=Ellipsis)
        self._transport: asyncio.Transport
        self._skipped = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def log_in(self, login: bytes) -> None:
        """Send what is not counted."""
        if login:
            self._skipped += 1
            self._transport.write(login)

    def send(self, unit: Unit, due: float) -> None:
        """Send a unit's requests together."""
        since = None if unit.waits else due
        self.waiting.extend((request.shape, since) for request in unit.requests)
        self._transport.write(b"".join([request.data for request in unit.requests]))

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        now = self._now()
        while (reply := self._parser.gets()) is not Ellipsis:
            if self._skipped:
                self._skipped -= 1
                if isinstance(reply, ReplyError):
                    self.lost = str(reply)
                    self._transport.close()
            elif self.waiting:
                shape, due = self.waiting.popleft()
                self._played.answer(shape, None if due is None else now - due, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or (str(exc) if exc else "the server closed the connection")

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


class Player:
    """Plays a composer's units on one server."""

    def __init__(self, target: Address, composer: Composer, *, prefix: bytes) -> None:
        self.played = Played()
        self._target, self._composer, self._prefix = target, composer, prefix
        self._lines: list[_Line] = []
        self._blocking_lines: list[_Line] = []
        self._next = 0

    async def run(
        self,
        *,
        seconds: float,
        connections: int,
        keep: bool,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Played:
        """Prepare, play for some seconds, and remove the scratch keys, after an error too.

        Raises:
            OperatorError: the server has no room, is a replica, or refuses the login.
            TargetError: it went away.
        """
        async with await Leg.connect(self._target, Side.TARGET, name="exodus-load") as leg:
            await self._check(leg)
            try:
                await self._prepare(leg)
                await self._play(seconds, min(connections, PLAYED_CONNECTIONS_MAX), on_progress)
            finally:
                for line in self._all_lines():
                    line.close()
                if not keep:
                    self.played.removed = await remove_scratch(self._target, self._prefix)
        return self.played

    async def _check(self, leg: Leg) -> None:
        info = info_of(await leg.call("INFO"))
        if info.get("role") != "master":
            raise OperatorError(
                f"--target: {self._target.url} is a {info.get('role', 'server without a role')}",
                why="a replica takes no writes of a client",
                next_step="name the server that takes writes",
            )
        limit = int(info.get("maxmemory", 0))
        used = int(info.get("used_memory", 0))
        needed = self._composer.prepared_bytes_max
        if limit and used + needed > limit:
            raise OperatorError(
                f"--target: {self._target.url} may run out of memory",
                why=f"it uses {used:,} of {limit:,} bytes (maxmemory), and the load may need "
                f"{needed:,}: keys of applications would be evicted or refused",
                next_step="raise maxmemory for the test, or name an empty server",
            )

    async def _prepare(self, leg: Leg) -> None:
        waiting, size = 0, 0
        for _, request in self._composer.preparation():
            leg.write(request)
            waiting, size = waiting + 1, size + len(request)
            if size > READ_BATCH_BYTES:
                await self._prepared(leg, waiting)
                waiting = size = 0
        await self._prepared(leg, waiting)

    async def _prepared(self, leg: Leg, count: int) -> None:
        await leg.drain()
        for reply in await leg.replies(count):
            if isinstance(reply, ReplyError):
                raise TargetError(
                    f"{self._target.url} refuses the scratch keys of the load",
                    why=str(reply),
                    next_step="let the user write keys that begin with exodus:load:",
                )
        self.played.prepared += count

    async def _play(
        self, seconds: float, connections: int, on_progress: Callable[[float], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        await self._connect(connections)
        played, composer = self.played, self._composer
        began = loop.time()
        unit = composer.unit()
        while unit.due_s < seconds:
            now = loop.time() - began
            if unit.due_s > now:
                on_progress(now)
                await asyncio.sleep(min(unit.due_s - now, PLAYER_TICK_S))
                continue
            count = len(unit.requests)
            played.due += count
            if unit.waits:
                self._send_blocking(unit, began)
            elif played.sent - played.answered + count > PLAYED_WAITING_MAX:
                played.not_sent += count
            else:
                self._line().send(unit, began + unit.due_s)
                played.sent += count
                played.late_us.record(int((now - unit.due_s) * 1_000_000))
            if played.due % 256 < count:
                await asyncio.sleep(0)  # answers are read meanwhile
            unit = composer.unit()
        await self._last_answers(began + seconds)
        played.seconds = seconds

    def _all_lines(self) -> list[_Line]:
        return [*self._lines, *self._blocking_lines]

    def _send_blocking(self, unit: Unit, began: float) -> None:
        line = next((each for each in self._blocking_lines if not each.waiting), None)
        if line is None:
            self.played.not_waited += 1
            return
        if line.lost is not None:
            raise self._gone(line.lost)
        line.send(unit, began + unit.due_s)
        self.played.sent += 1

    async def _connect(self, connections: int) -> None:
        await self._open(connections, self._lines)
        if self._composer.blocks:
            await self._open(connections, self._blocking_lines)

    async def _open(self, connections: int, lines: list[_Line]) -> None:
        loop = asyncio.get_running_loop()
        login = login_of(self._target, "--target")
        context = ssl_context(self._target)
        for _ in range(connections):
            try:
                line = await open_protocol(
                    self._target, context, lambda: _Line(self.played, loop.time)
                )
            except (OSError, TimeoutError) as exc:
                raise TargetError(
                    f"{self._target.url} took {len(lines)} of {connections} connections",
                    why=str(exc) or type(exc).__name__,
                    next_step="raise maxclients, or play with fewer: --connections N",
                ) from exc
            line.log_in(login)
            line.log_in(encode("CLIENT", "SETNAME", "exodus-load"))
            lines.append(line)

    def _line(self) -> _Line:
        """Return a connection that waits for nothing, else the one that waits for the fewest."""
        lines = self._lines
        self._next = (self._next + 1) % len(lines)
        line = lines[self._next]
        if line.waiting:
            line = min(lines, key=lambda each: len(each.waiting))
        if line.lost is not None:
            raise self._gone(line.lost)
        return line

    async def _last_answers(self, ends: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < ends or any(line.waiting for line in self._all_lines()):
            if loop.time() > ends + PLAYED_LAST_ANSWERS_S:
                return
            lost = next((line.lost for line in self._all_lines() if line.lost is not None), None)
            if lost is not None:
                raise self._gone(lost)
            await asyncio.sleep(PLAYER_TICK_S)

    def _gone(self, why: str) -> ExodusError:
        return TargetError(
            f"{self._target.url} ended a connection of the load",
            why=why,
            next_step="look into the server's log; the scratch keys are removed if it answers",
        )


async def remove_scratch(target: Address, prefix: bytes) -> int:
    """Remove the scratch keys of a run, over a connection that waits for nothing else.

    Returns how many there were.

    Raises:
        TargetError: the server went away.
    """
    removed = 0
    cursor: bytes = b"0"
    async with await Leg.connect(target, Side.TARGET, name="exodus-load") as leg:
        while True:
            try:
                cursor, keys = await leg.call(
                    "SCAN", cursor, "MATCH", prefix + b"*", "COUNT", PLAYED_CLEANING_KEYS
                )
                if keys:
                    removed += await leg.call("UNLINK", *keys)
            except ReplyError as exc:
                raise TargetError(
                    f"{target.url} does not let the load remove its scratch keys",
                    why=str(exc),
                    next_step=f"remove the keys {prefix.decode()}* from it, and let the user run "
                    "SCAN and UNLINK",
                ) from exc
            if cursor == b"0":
                return removed


def remarks(played: Played, composer: Composer) -> list[str]:
    """Return what a person must know before trusting the figures."""
    said = []
    if composer.not_played:
        total = sum(composer.not_played.values())
        by_count = sorted(composer.not_played.items(), key=lambda item: -item[1])
        names = ", ".join(name for name, _ in by_count[:8])
        share = total / composer.workload.requests
        said.append(f"{share:.1%} of the model's requests were not played: {names}")
    if played.not_sent:
        said.append(
            f"{played.not_sent:,} requests were due while {PLAYED_WAITING_MAX:,} waited for an "
            "answer, and were not sent: the server is slower than the load"
        )
    if played.not_waited:
        said.append(
            f"{played.not_waited:,} blocking requests were due while every connection for them "
            "waited, and were not sent: the workload has more clients that wait"
        )
    unanswered = played.sent - played.answered
    if unanswered:
        said.append(f"{unanswered:,} requests got no answer within {PLAYED_LAST_ANSWERS_S:.0f} s")
    late = played.late_us.quantile(0.99)
    if late > PLAYER_LATE_US_MAX:
        said.append(
            f"1 % of the requests left {late / 1000:.0f} ms late or more: this machine is too slow "
            "for the load, and the latencies contain it"
        )
    return said
