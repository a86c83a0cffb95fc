"""The gateway process: listener, route follower, heartbeat, telemetry, journal and shadow stream around the sessions.

Applications come first: every task here but the relay may fail, wait or fall behind without a session noticing. The process starts
with the plan and the route from the control store, or, when the store is away, with those it had last (`last.json`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple, cast

import orjson
import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus import compiled, gc_tuning
from exodus.cancellation import end_all
from exodus.commands.table import CommandTable
from exodus.control import registry
from exodus.control.durable import check_store
from exodus.control.registry import Claim, Heartbeat
from exodus.control.route import (
    SOON,
    Route,
    announced,
    asked_at_ms,
    change_route,
    read_route,
    restore_route,
)
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused, ExodusError, OperatorError, SourceError
from exodus.gateway.canary import Canary, CanaryRead
from exodus.gateway.cursors import tag_of
from exodus.gateway.exposure import check_address, check_certificates, check_pinned
from exodus.gateway.follower import Follower
from exodus.gateway.handover import drain_writes, move_all
from exodus.gateway.identity import identify, note_end
from exodus.gateway.intents import MANIFEST
from exodus.gateway.journaler import Journaler
from exodus.gateway.listeners import BACKLOG_MAX, inherited, listen, unlink
from exodus.gateway.logins import Logins
from exodus.gateway.orders import Orders
from exodus.gateway.redirect import Redirecting, kind_of
from exodus.gateway.relay import Connection, LegProtocol, Refusal, Turns, open_leg
from exodus.gateway.scripts import digest
from exodus.gateway.session import Session, Unanswered
from exodus.gateway.supervisor import lock_state
from exodus.gateway.undescribed import Undescribed
from exodus.net.client import answered, make_client
from exodus.net.tls import ssl_context
from exodus.plan.address import Address
from exodus.plan.bounds import (
    HEARTBEAT_S,
    HEARTBEAT_STALE_S,
    HELD_HEARTBEAT_S,
    MOVE_SECONDS_MAX,
    SHADOW_BYTES_PER_S_MAX,
    SHADOW_KEPT_MS,
    SHADOW_QUEUE_MAX,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, Hold, JournalMode, Side, UserRole
from exodus.private_files import write_private
from exodus.telemetry.counters import OTHER, NoKeyStatistics, Telemetry
from exodus.telemetry.http import StatusServer
from exodus.telemetry.sample import Sample
from exodus.telemetry.sketches import KeySketches
from exodus.telemetry.states import States

log = logging.getLogger(__name__)
_NAMES_MAX, _NAME_CHARS_MAX = 100, 64
_OWN_FILES = 64  # of the process itself
_STORE_ERRORS = (RedisError, OSError, TimeoutError)
_GRACE_S = 1.0  # between a flow's own time limit on a hold and the gateway's, so that the flow can end it in order
_SETTLE_WAIT_S = 1.0  # how long the release of held writes waits for the fence to be lifted
_SETTLE_AGAIN_S = 0.5
_TEND_EVERY_S = 10.0  # a fence that a server's restart took away is up again after this
_SPARE_LEGS_MAX = 1_000
_SPARE_S = 5.0  # how long they are kept where no hold comes
_REMEMBER_S = 0.5  # after an epoch was acted on: a file is not written while applications wait
_FLUSH_LOOK_S = 0.01  # where no flush ends in between
_SHADOW_EVERY_S = 0.05
_SHADOW_BATCH = 500
_TELL_S = 0.2
_NOT_ASKED = "the authority was not asked yet"
_FLUSH_S = 2.0  # what a stopping gateway gives the control store
_CANARY_LINGERS_S = 1.0  # for what was asked before the canary ended
_FIELDS_OF_7 = 10  # of a row of COMMAND, from Redis 7.0 on
_PROBE_S = 2.0  # between two questions to the authority, and how long one may take


@dataclass
class Scope:
    """The sessions that follow one part of the route: all of them, or those of a rehearsal."""

    orders: Orders
    hold_deadline: float | None = None
    held_at: Side | None = None  # the authority when the hold began
    held: bool = False
    released_alone: bool = False
    holding: asyncio.Task[None] | None = None  # waits for the answers of what was under way when the hold began


@dataclass
class GatewayOptions:
    """How one process is run. `listen` overrides the plan's."""

    process: str
    state_dir: Path
    listen_host: str
    listen_port: int
    status_port: int = 0
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    listen_fds: tuple[int, ...] = ()  # listening sockets that a supervisor lends; instead of host and port
    drain_s: float = 2.0  # what a stopping gateway gives its sessions
    status_host: str = "127.0.0.1"  # of /metrics and /health, which ask for no login
    lend_certificate: bool = False  # Exodus's own, for clients that were asked for none
    lend_address: bool = False  # of this machine, towards a server that trusts it
    pinned: Plan | None = None  # of the local migration file: the store's must name the same servers and secrets
    connections_expected: int = 0  # checked against the server's maxclients at the start
    # Puts right what a switch that ended early left on both sides; what could not be done yet, in words.
    settle: Callable[[ControlStore, Plan], Awaitable[list[str]]] | None = None


@dataclass
class _Admin:
    """Connections of our own to both sides, for CLIENT UNBLOCK."""

    clients: dict[Side, redis.Redis] = field(default_factory=dict)


class Gateway:
    """One process. Implements `relay.Hub`."""

    def __init__(self, store: ControlStore, plan: Plan, tables: Tables, options: GatewayOptions) -> None:
        table = tables.commands
        self.store = store
        self.plan = plan
        self.options = options
        self.connections: set[Connection] = set()
        self.turns = Turns()
        self.telemetry = Telemetry(KeySketches())
        self.sessions_closed: Counter[str] = Counter()
        self.connections_ever = 0
        self.shadow_dropped = 0
        self.task_failures = 0
        self.tls_reload_failures = 0
        self._main = Scope(Orders(table, self.telemetry))
        self._rehearsal = Scope(Orders(table, self.telemetry))
        self._rehearsal_name: bytes | None = None
        self._identity = identify(options.state_dir)
        log_is_gone = not self._identity.ended and not (options.state_dir / MANIFEST).exists()
        self._journaler = Journaler(store, plan.partitions, options.state_dir, options.process)
        self.registered = options.process  # under which id its heartbeats stand
        if log_is_gone:
            self._journaler.gap("the intent log is missing")
        if self._identity.host_restarted:
            self._journaler.gap("the host was restarted: the intent log may lack the last writes")
        # Called for every request, so without a stop here (see `relay.Hub`).
        self.intend = self._journaler.intend
        self.mark = self._journaler.mark
        self._shadow: deque[dict[str, bytes | int]] = deque()
        self._settled = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._applying = asyncio.Lock()
        self._route = Route(epoch=-1)
        self._applied = -1  # the last epoch acted on in full
        self._looked = 0.0  # when the route was looked at last
        self._unfinished_since: float | None = None
        self._tending: asyncio.Task[None] | None = None
        self._tended = 0.0
        self._known_ms = 0  # the store's time, as last read
        self._asked_ms: int | None = None  # its time when a switch asked for a heartbeat
        self._settling: asyncio.Task[None] | None = None
        self._store_errors = 0
        self._store_why = ""  # what the store was asked last came to
        self._states = States(log)
        self._admin = _Admin()
        self._canary = Canary(plan.canary.bad_max, self._give_canary_up)
        self._main.orders.canary = self._canary
        self._canary_changing = asyncio.Lock()
        self._canary_share = 0.0  # that this process serves
        self._foreseen: dict[Side, bool] = {}  # whether a side that is not the authority asks everybody for a login
        self._canary_why = ""  # why it gave the canary up, which the route may not say yet
        self._follower: Follower | None = None
        self._redirecting: Redirecting | None = None
        self._redirect_task: asyncio.Task[None] | None = None
        self.refused = 0  # connections that were closed at once
        self._spare: list[LegProtocol] = []
        self._spare_side = Side.TARGET
        self._spare_ready = False
        self._left_behind: dict[object, Unanswered] = {}  # by lost leg
        self._undescribed = Undescribed(table, self._admin_client, self._journaler.mark, self._journaler.gap)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._tls: dict[Side, ssl.SSLContext | None] = {side: ssl_context(plan.address(side)) for side in Side}
        self._logins = Logins(plan.logins) if plan.logins else None
        self._rehearsal_logins = self._logins_of_rehearsals()
        self._listener_tls = listener_tls(options)
        self._authority_why = _NOT_ASKED  # why it does not serve; empty when it answers
        self._draining = False
        self._old_sides = tables.old  # whose CLIENT REPLY OFF keeps back messages too
        self.room_why = ""  # what is wrong with the number of connections that fit

    # ------------------------------------------------------------------ Hub: called by connections

    def orders_for(self, name: bytes) -> Orders:
        if self._rehearsal_name is not None and name == self._rehearsal_name:
            return self._rehearsal.orders
        return self._main.orders

    def address(self, side: Side) -> Address:
        return self.plan.address(side)

    def tls(self, side: Side) -> ssl.SSLContext | None:
        return self._tls[side]

    def logins(self, side: Side, orders: Orders) -> Logins | None:
        if side is not Side.TARGET:
            return None
        return self._rehearsal_logins if orders is self._rehearsal.orders else self._logins

    def _logins_of_rehearsals(self) -> Logins | None:
        """Sessions of a rehearsal may use Exodus's own login, which is each side's own."""
        try:
            return (self._logins or Logins(())).with_own(self.plan.source, self.plan.target)
        except OperatorError as exc:  # a gateway need not have them; applications need none of it
            log.info("a rehearsal's sessions cannot use Exodus's own login here: %s", exc.what)
            return self._logins

    def gap(self, why: str) -> None:
        self._journaler.gap(why)

    def shadow(self, db: int, request: bytes, reply: bytes, *, write: bool) -> None:
        if len(self._shadow) >= SHADOW_QUEUE_MAX:
            self.shadow_dropped += 1
            return
        self._shadow.append({"db": db, "q": request, "r": reply, "w": int(write)})

    def ask_follower(self, session: Session, read: CanaryRead, request: bytes, protocol: int) -> None:
        if self._follower is None:
            read.left_out()
        else:
            self._follower.ask(session, read, request, protocol)

    def unblock(self, side: Side, client_id: int) -> None:
        self._spawn(self._unblock(side, client_id))

    def settled(self) -> None:
        self._settled.set()

    def closed(self, why: str) -> None:
        self.sessions_closed[why] += 1

    def unknown(self, side: Side, args: list[bytes], db: int) -> None:
        if self._undescribed.note(side, args, db):
            self._spawn(self._undescribed.resolve())

    def left_behind(self, side: Side, local_address: str, left: Unanswered) -> None:
        leg = object()  # its address may come again before it is dealt with
        self._left_behind[leg] = left
        self._spawn(self._journal_left_behind(side, local_address, leg))

    async def _journal_left_behind(self, side: Side, local_address: str, leg: object) -> None:
        """Mark what a lost leg had under way, once the authority can execute nothing of it any more.

        The bytes may still lie in the socket of a server that was stopped or is behind: it would execute them after the first mark was
        synced. So the connection is ended there too, and only then is all of it marked again.
        """
        while True:
            try:
                client = self._admin_client(side)
                await answered(client.execute_command("CLIENT", "KILL", "ADDR", local_address))
                await answered(client.ping())
                break
            except _STORE_ERRORS as exc:
                if side is not self._main.orders.authority:
                    break  # it was given up for dead: what it does with them concerns nobody here
                log.info("waiting for the %s, to learn what became of the writes of a lost connection: %s", side, exc)
                await asyncio.sleep(_SETTLE_AGAIN_S)
            except Exception as exc:
                log.exception("what became of the writes of a lost connection cannot be learnt: they are a gap")
                self._journaler.gap(f"the writes of a lost connection: {type(exc).__name__}", self._left_behind[leg].keys or None)
                break
        left = self._left_behind[leg]
        self._journaler.mark(left.keys, None)
        for barrier in left.barriers:
            self._journaler.mark([], barrier)
        for why in left.gaps:
            self._journaler.gap(why)
        del self._left_behind[leg]  # not before: until here it counts as unflushed

    @property
    def _unflushed(self) -> int:
        return self._journaler.unflushed + len(self._left_behind) + len(self._undescribed)

    def _admin_client(self, side: Side) -> redis.Redis:
        if side not in self._admin.clients:
            self._admin.clients[side] = make_client(self.plan.acting(UserRole.GATEWAY).address(side), field=side)
        return self._admin.clients[side]

    async def _unblock(self, side: Side, client_id: int) -> None:
        try:
            await answered(self._admin_client(side).execute_command("CLIENT", "UNBLOCK", str(client_id), "TIMEOUT"))
        except _STORE_ERRORS as exc:
            log.warning("a blocked command on the %s could not be ended: %s", side, exc)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    async def _keep_running(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start a task of the process again if it should fail: a bug there must not end the journal or the route's being followed."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("a task of the gateway failed and is started again; the relay goes on")
                self.task_failures += 1
                await asyncio.sleep(1)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the gateway failed; the relay goes on", exc_info=task.exception())

    # ------------------------------------------------------------------ the route

    async def follow_route(self) -> None:
        """Apply each new route; survive the store's absence."""
        await registry.follow(self._look_at_route, self.store, poll_s=HEARTBEAT_S)

    def spare_leg(self, side: Side) -> LegProtocol | None:
        while self._spare and self._spare_side is side:
            leg = self._spare.pop()
            if not leg.lost:
                return leg
        return None

    async def _prepare_legs(self, scope: Scope) -> None:
        """Connect to where the sessions may be about to go, as far as that is not done yet."""
        if self._spare_side is scope.orders.authority:
            self._drop_spare_legs()
            self._spare_side = scope.orders.authority.other
        side = self._spare_side
        for _ in range(min(len(self._members(scope)), _SPARE_LEGS_MAX) - len(self._spare)):
            try:
                leg = await open_leg(self, side, owner=None)
            except (OSError, TimeoutError) as exc:
                log.info("no leg could be made beforehand to the %s: %s", side, exc)
                return
            if side is not self._spare_side:  # another scope's sessions go the other way
                if leg.transport is not None:
                    leg.transport.abort()
                return
            self._spare.append(leg)
        self._spare_ready = True

    async def _before_hold(self) -> None:
        """Writes are about to be held: what takes time with every session is done now, since applications wait for it under the hold."""
        await self._prepare_legs(self._main)
        self._beat_now.set()
        await asyncio.sleep(_SPARE_S)
        if not self._main.orders.hold:
            self._drop_spare_legs()

    def _drop_spare_legs(self) -> None:
        for leg in self._spare:
            if leg.transport is not None:
                leg.transport.abort()
        self._spare.clear()
        self._spare_ready = False

    async def _look_at_route(self, word: bytes | None) -> None:
        asked_ms = asked_at_ms(word)
        if asked_ms is not None:
            self._asked_ms = asked_ms
            self._beat_now.set()
            return
        if word == SOON:
            self._spawn(self._before_hold())
            return
        told = announced(word)
        now = asyncio.get_running_loop().time()
        # Who was frozen may find words that are long out of date. As long as our heartbeat is not stale, nobody switches past us.
        awake, self._looked = now - self._looked < HEARTBEAT_STALE_S / 2, now
        if told is not None and told.epoch == self._applied + 1 and (awake or told.hold is Hold.WRITES):
            await self.apply(told)  # writes wait for this; to hold them is never wrong
            return
        try:
            route = await read_route(self.store)
            self._store_errors = 0
        except _STORE_ERRORS as exc:
            self._store_errors += 1
            self._store_why = str(exc) or type(exc).__name__
            self._release_alone()
            return
        if route.epoch < self._applied:
            await self._restore_route(route)
        elif route.epoch != self._applied:
            await self.apply(route)
        elif self._overdue():
            await self._end_hold(route)
        self._look_for_unfinished()

    async def _restore_route(self, found: Route) -> None:
        """Put the route back that this gateway acts on: the store has an older one, so it lost what it had acknowledged.

        Epochs only go up. An older route may name an authority that is fenced, or end a hold that a switch counts on.
        """
        log.error("the control store went back from epoch %d of the route to %d: epoch %d is put back", self._applied, found.epoch, self._applied)
        self._journaler.gap("the control store lost the newest route, and may have lost entries of the journal")
        if not await restore_route(self.store, found, self._route):
            log.info("another process has put a route back already")

    async def apply(self, route: Route) -> None:
        """Act on an epoch in full, then say so in the heartbeat."""
        async with self._applying:
            before, self._route = self._route, route
            if route.rehearsal_name is not None:
                self._rehearsal_name = route.rehearsal_name.encode()
            await self._apply_to(self._main, route, route.authority, route.hold)
            if self._rehearsal_name is not None:
                await self._apply_to(self._rehearsal, route, route.rehearsal_authority, route.rehearsal_hold)
            if route.rehearsal_name is None and before.rehearsal_name is not None:
                self._rehearsal_name = None
            if route.canary != before.canary:
                self._change_canary(route)
            if route.redirect != before.redirect:
                self._change_redirect(route)
            self._applied = route.epoch
            if self._main.holding is None or self._main.held:
                self._beat_now.set()  # else when it is held: a word before that would only stand in its way
        asyncio.get_running_loop().call_later(0 if route.hold_until_told else _REMEMBER_S, self._remember, route)

    def _members(self, scope: Scope) -> list[Connection]:
        return [connection for connection in self.connections if connection.orders is scope.orders]

    async def _apply_to(self, scope: Scope, route: Route, authority: Side, hold: Hold) -> None:
        orders = scope.orders
        first = orders.epoch < 0
        # A rehearsal copies its keys by itself. Live sync would copy them from where they are not written now, over what is.
        journal = route.journal if authority is route.authority else JournalMode.OFF
        began = orders.journal is not journal
        orders.epoch = route.epoch
        orders.journal = journal
        orders.shadow_scripts = route.shadow_scripts
        orders.pick(shadow_below=int(route.shadow_rate * 2**32), shadow_salt=route.shadow_salt, canary_below=orders.canary_below)
        if began:
            # A write that is under way now was forwarded without an intent; its answer will be journalled.
            for connection in self._members(scope):
                connection.session.log_pending()
        loop = asyncio.get_running_loop()
        if scope.holding is not None:
            scope.holding.cancel()
            scope.holding = None
        if hold is Hold.WRITES and not orders.hold:
            orders.hold = True
            scope.held_at = authority
            scope.released_alone = False
            scope.hold_deadline = loop.time() + self.plan.hold_seconds_max + _GRACE_S
        # Of a switch that was done nothing is in the way of writes, and they wait for no look at the old side.
        given_up = orders.hold and hold is Hold.NONE and authority is scope.held_at
        # A rehearsal goes to the other side and back by itself.
        generation = route.generation + int(authority is not route.authority)
        orders.scripts_unseen = route.feed is Feed.GATEWAY and not route.native  # a replica hears of all
        if first:
            self._orders_of(orders, authority, generation)
        elif authority is not orders.authority:
            self._orders_of(orders, authority, generation)
            await move_all(self, self._members(scope), authority, within_s=min(MOVE_SECONDS_MAX, self.plan.hold_seconds_max))
        if hold is Hold.WRITES and not scope.held:
            # Not waited for: an order to end the hold must not queue behind an authority that does not answer.
            scope.holding = self._spawn(self._complete_hold(scope))
        if hold is Hold.NONE:
            if given_up and scope is self._main:
                await self._settle_before_release()
            self._release(scope)

    def _orders_of(self, orders: Orders, authority: Side, generation: int) -> None:
        orders.authority = authority
        orders.login_needed = self._foreseen.get(authority, False)  # until it is asked again
        orders.tag = tag_of(generation)
        orders.silence_covers_pushes = authority in self._old_sides

    async def _foresee(self, side: Side) -> None:
        """Ask a side that may soon be the authority whether it asks for a login: what strangers leave unanswered there is no gap from the start.

        On a connection that is closed at once, since the side counts who is still connected.
        """
        self._foreseen.pop(side, None)
        try:
            async with asyncio.timeout(_PROBE_S):
                reader, writer = await self._probe(side)
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    self._foreseen[side] = (await reader.readline()).startswith(b"-NOAUTH ")
        except (OSError, TimeoutError, ValueError) as exc:
            log.info("whether the %s asks for a login is not known: %s", side, str(exc) or type(exc).__name__)

    async def _complete_hold(self, scope: Scope) -> None:
        limit_s = self.plan.hold_seconds_max
        self._spawn(self._foresee(scope.orders.authority.other))
        busy = await drain_writes(self._members(scope), self._settled, within_s=limit_s)
        self._journaler.hurry.set()
        if self._main.orders.scripts.waiting:
            self._beat_now.set()
        try:
            scope.held = busy == 0 and await self._flushed(limit_s)
        finally:
            self._journaler.hurry.clear()
        self._beat_now.set()
        if scope.held:
            await self._prepare_legs(scope)

    async def _settle_before_release(self) -> None:
        """A switch was given up: the fence that it may have put up goes first, or the writes that were held would be refused."""
        self._settle()
        if self._settling is not None:
            await asyncio.wait([self._settling], timeout=_SETTLE_WAIT_S)

    def _settle(self) -> None:
        if self.options.settle is not None and (self._settling is None or self._settling.done()):
            self._settling = self._spawn(self._settle_until_done(self.options.settle))

    async def _tend(self, settle: Callable[[ControlStore, Plan], Awaitable[list[str]]]) -> None:
        """Once: a fenced server that was restarted is no longer fenced, and a switch back that died had let Exodus in behind its fence."""
        left = await settle(self.store, self.plan)
        if left:
            log.debug("not in order: %s", "; ".join(left))

    async def _settle_until_done(self, settle: Callable[[ControlStore, Plan], Awaitable[list[str]]]) -> None:
        while left := await settle(self.store, self.plan):
            log.warning("what a switch left is not put right yet: %s", "; ".join(left))
            if self._main.orders.hold and not self._main.released_alone:
                return  # another switch has begun, and looks after it
            await asyncio.sleep(_SETTLE_AGAIN_S)

    def _look_for_unfinished(self) -> None:
        """A switch whose process died after the authority had changed is finished by the gateways; a fence that went is put up again."""
        route, now = self._route, asyncio.get_running_loop().time()
        if route.switch and route.hold is Hold.NONE and now - self._tended > _TEND_EVERY_S:
            self._tended = now
            if self.options.settle is not None and (self._tending is None or self._tending.done()):
                self._tending = self._spawn(self._tend(self.options.settle))
        if not route.switch or route.hold is Hold.WRITES or route.sync or route.journal is not JournalMode.ALL:
            self._unfinished_since = None
        elif self._unfinished_since is None:
            self._unfinished_since = now
        elif now - self._unfinished_since > self.plan.hold_seconds_max + _GRACE_S:
            self._settle()

    def _release(self, scope: Scope) -> None:
        scope.orders.hold = False
        scope.held = scope.released_alone = False
        self._drop_spare_legs()
        scope.hold_deadline = None
        now = asyncio.get_running_loop().time()
        for connection in self._members(scope):
            connection.session.thaw(now)

    async def _flushed(self, within_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._unflushed:
            if loop.time() >= deadline:
                return False
            await self._journaler.next_flush(_FLUSH_LOOK_S)
        return True

    def _overdue(self) -> bool:
        now = asyncio.get_running_loop().time()
        return any(scope.hold_deadline is not None and now >= scope.hold_deadline for scope in (self._main, self._rehearsal))

    async def _end_hold(self, route: Route) -> None:
        """A hold that nobody ended in time ends here: a dead flow must not keep applications waiting.

        The route decides: whoever changes it first, this gateway or the switch, has it their way, and the other follows.
        """
        log.error("a hold was not ended within %.1f s: writes go on at the %s", self.plan.hold_seconds_max, route.authority)
        # A new epoch of the writers: the switch may have ended the right of the old one on the follower.
        writer_epoch = route.writer_epoch + int(route.hold is Hold.WRITES and route.sync)
        after = route.next(
            hold=Hold.NONE, rehearsal_hold=Hold.NONE, writer_epoch=writer_epoch, why=f"{self.options.process}: a hold was not ended in time"
        )
        try:
            await change_route(self.store, route, after)
        except DecisionRefused as exc:
            log.info("the hold was ended elsewhere: %s", exc.what)
            await self.apply(await read_route(self.store))
        except _STORE_ERRORS:
            self._release_alone()
        else:
            await self.apply(after)
            self._settle()  # whoever began it is gone: where the authority has changed, nobody else lets changes flow back soon

    def _release_alone(self) -> None:
        """The store is away and the hold's time is over: sessions go on where they are, and nothing is decided.

        Whether the authority has changed is not known here. If it has, the fence on the old side refuses these writes: an error, never a
        lost write. It is said in the heartbeat, and the switch needs a fresh 'held' of every gateway behind its fence.
        """
        now = asyncio.get_running_loop().time()
        for scope in (self._main, self._rehearsal):
            if scope is self._main and self._route.hold_until_told:
                continue  # no server would refuse these writes
            if scope.hold_deadline is not None and now >= scope.hold_deadline and not scope.released_alone:
                log.error("a hold was not ended in time and the control store is away: writes go on at the %s", scope.orders.authority)
                deadline = scope.hold_deadline
                self._release(scope)
                scope.released_alone, scope.hold_deadline = True, deadline  # ended for all as soon as the store is back

    # ------------------------------------------------------------------ canary reads

    def _serve_canary(self, share: float) -> None:
        orders = self._main.orders
        self._canary_share = share
        orders.pick(shadow_below=orders.shadow_below, shadow_salt=orders.shadow_salt, canary_below=int(share * 2**32))

    def _change_canary(self, route: Route) -> None:
        if route.canary:
            self._spawn(self._begin_canary(route.canary, route.follower))  # not waited for: an order to hold must not queue behind a connection
        else:
            self._serve_canary(0.0)
            asyncio.get_running_loop().call_later(_CANARY_LINGERS_S, self._end_canary)

    async def _begin_canary(self, share: float, side: Side) -> None:
        async with self._canary_changing:
            self._canary_why = ""
            self._canary.restart()
            await self._serve_follower(share, side)

    async def _serve_follower(self, share: float, side: Side) -> None:
        if self._follower is not None and self._follower.lost:
            self._follower.close()
            self._follower = None
        if self._follower is None:
            address, wait_s = self.plan.acting(UserRole.GATEWAY).address(side), self.plan.canary.wait_ms_max / 1000
            follower = Follower(self._canary, address, self._tls[side], field=side, wait_s=wait_s)
            try:
                await follower.connect()
            except (OSError, TimeoutError) as exc:
                self._give_canary_up(f"the {side} takes no connection: {str(exc) or type(exc).__name__}")
                return
            self._follower = follower
        if self._route.canary == share:
            self._serve_canary(share)
            self._beat_now.set()

    def _end_canary(self) -> None:
        if self._follower is not None and not self._canary_share:
            self._follower.close()
            self._follower = None

    def _give_canary_up(self, why: str) -> None:
        """The limit is passed: this process asks the follower no more, now, and the route is changed for all the others."""
        if self._canary_why or not self._route.canary:
            return
        self._canary_why = why
        log.error("canary reads are given up: %s", why)
        self._serve_canary(0.0)
        self._beat_now.set()
        self._spawn(self._return_to_authority(why))

    async def _return_to_authority(self, why: str) -> None:
        await self._take_back(lambda route: bool(route.canary) and bool(self._canary_why), f"canary reads given up: {why}", canary=0.0)

    async def _take_back(self, stands: Callable[[Route], bool], why: str, **changes: object) -> None:
        """Change the route for every gateway, as long as what is to be changed `stands` there."""
        while True:
            try:
                route = await read_route(self.store)
                if stands(route):
                    await change_route(self.store, route, route.next(why=f"{self.options.process}: {why}", **changes))
                return
            except DecisionRefused as exc:
                log.info("the route was changed meanwhile: %s", exc.what)
            except _STORE_ERRORS as exc:
                log.warning("the other gateways are not told yet (%s): %s", why, exc)
                await asyncio.sleep(HEARTBEAT_S)

    def canary(self) -> dict[str, object]:
        """What became of canary reads since the last share was chosen."""
        counts = {str(outcome): count for outcome, count in self._canary.counts.items()}
        answer_ms_p99 = round(self._canary.answer_us.quantile(0.99) / 1000, 1)
        return {"share": self._canary_share, "gave_up": self._canary_why, "answer_ms_p99": answer_ms_p99, "reads": counts}

    # ------------------------------------------------------------------ clients are sent away

    def _change_redirect(self, route: Route) -> None:
        if self._redirect_task is not None:
            self._redirect_task.cancel()
            self._redirect_task = None
        if route.redirect is not None:
            self._redirecting = Redirecting(route.redirect, self.connections, lambda: self.connections_ever, lambda: self._authority_why)
            self._redirect_task = self._spawn(self._redirect(self._redirecting))

    async def _redirect(self, redirecting: Redirecting) -> None:
        await redirecting.run()
        self._beat_now.set()
        stopped = f"clients are not sent away any more: {redirecting.stopped}"
        await self._take_back(lambda route: route.redirect == redirecting.orders, stopped, redirect=None)

    @property
    def _refuses(self) -> bool:
        orders = self._route.redirect
        return orders is not None and orders.refuse_new and self._redirecting is not None and not self._redirecting.stopped

    def redirect(self) -> dict[str, object]:
        """How far the last order to send clients away has come."""
        last = self._redirecting
        if last is None:
            return {"closed": {}, "came_back": 0, "stopped": ""}
        return {"closed": dict(last.closed), "came_back": last.came_back, "stopped": last.stopped}

    def clients(self) -> list[dict[str, object]]:
        """Who is connected, by name, host and kind; the most frequent ones."""
        found = Counter((self._name(each), each.host, kind_of(each.session)) for each in self.connections)
        return [{"name": name, "host": host, "kind": kind, "connections": count} for (name, host, kind), count in found.most_common(_NAMES_MAX)]

    @staticmethod
    def _name(connection: Connection) -> str:
        return connection.session.name.decode("utf-8", "backslashreplace")[:_NAME_CHARS_MAX]

    # ------------------------------------------------------------------ the other tasks

    async def beat(self) -> None:
        """Write the heartbeat, at once after an epoch was applied."""
        while True:
            holding = self._main.orders.hold or self._rehearsal.orders.hold
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELD_HEARTBEAT_S if holding else HEARTBEAT_S):  # wait_for may swallow a cancellation here
                    await self._beat_now.wait()
            soon, asked_ms = self._beat_now.is_set(), self._asked_ms
            self._beat_now.clear()
            self._asked_ms = None
            holding = self._main.orders.hold or self._rehearsal.orders.hold  # it may have begun while this waited
            self._journaler.rotate(self._log_pending)
            try:
                # Never a later time than that of what it tells: a switch counts on it. Where one waits, the last that is known here will do.
                if asked_ms is None and not (holding and soon):
                    self._known_ms = await self.store.now_ms()
                await self._keep_scripts()
                await self._tell_heartbeat(self._known_ms if asked_ms is None else asked_ms, announce=holding)
                if holding or (soon and not self._stopping.is_set()):
                    continue  # a switch waits for this heartbeat, or has just let writes go; nobody waits for the telemetry
                await answered(self.store.client.set(self.store.keys.telemetry(self.options.process), orjson.dumps(self.snapshot()), ex=3600))
            except _STORE_ERRORS as exc:
                self._store_errors += 1
                self._store_why = str(exc) or type(exc).__name__

    def _log_pending(self) -> None:
        for connection in self.connections:
            connection.session.log_pending()
        for left in self._left_behind.values():
            self._journaler.intend(left.keys, None)
            for barrier in left.barriers:
                self._journaler.intend([], barrier)

    async def _keep_scripts(self) -> None:
        """Hand texts of scripts to the control store, from where a switch loads them on the other side."""
        scripts = self._main.orders.scripts
        texts = scripts.take()
        if not texts:
            return
        try:
            await answered(self.store.client.hset(self.store.keys.scripts, mapping={digest(text): text for text in texts}))
        except _STORE_ERRORS:
            scripts.give_back(texts)
            raise

    async def _tell_heartbeat(self, at_ms: int, *, announce: bool) -> None:
        while True:
            told, found = await registry.beat_as(self.store, self.heartbeat(at_ms), self._identity.token, self._journaler.proof, announce=announce)
            if told == "ok":
                return
            if told == "tail":
                self._journaler.look_for_tail(found or None)
            else:
                await self.claim()

    async def claim(self) -> registry.Heartbeat | None:
        """Ask for the registration under this id; where another instance has it, register beside it and return its heartbeat."""
        claim, other = await registry.claim(self.store, "gateway", self.registered, self._identity.token)
        if claim is Claim.LEFT:
            self._journaler.gap("another instance of this id went away, and its state folder is not this one")
        if claim is Claim.TAKEN:
            self.registered = f"{self.options.process}~{self._identity.token[:8]}"
            self._journaler.rename(self.registered)
            log.error("another gateway runs under the id %s: this one is registered as %s", self.options.process, self.registered)
        return other

    def heartbeat(self, at_ms: int) -> Heartbeat:
        """What this process says of itself."""
        main = self._main
        state = "held" if main.held and main.orders.hold else "holding" if main.orders.hold else "draining" if self._draining else "serving"
        if main.released_alone:
            state = "released alone"
        return Heartbeat(
            kind="gateway",
            process=self.registered,
            at_ms=at_ms,
            epoch=self._applied,
            state=state,
            why=self._why(),
            facts={
                "authority": str(main.orders.authority),
                "connections": len(self.connections),
                "connections_ever": self.connections_ever,
                "writes_in_flight": sum(connection.session.writes_in_flight for connection in self.connections),
                "unflushed": self._unflushed,
                "spooled": self._journaler.spooled,
                "intent_segments": self._journaler.segments,
                "rehearsal_held": self._rehearsal.held,
                "legs_ready": self._spare_ready,
                "requests": self.telemetry.calls,
                "errors": self.telemetry.errors,
                "sessions_closed": dict(self.sessions_closed),
                "risks": dict(main.orders.risks),
                "renamed_commands": self._undescribed.renamed,
                "scripts_unseen": len(main.orders.scripts.asked) + main.orders.scripts.left_out,
                "gaps": {why: gap.count for why, gap in self._journaler.gaps.items()},
                "room": self.room_why,
                "canary": self.canary(),
                "redirect": self.redirect(),
                "shadow_dropped": self.shadow_dropped,
                "task_failures": self.task_failures,
            },
        )

    def _why(self) -> str:
        if self._journaler.store_away_since is not None or self._store_errors:
            return f"the control store is away; {self._journaler.spooled} keys are spooled"
        return ""

    def snapshot(self) -> dict[str, object]:
        """Telemetry as JSON, for the phases."""
        return {
            "process": self.options.process,
            "commands": self.telemetry.snapshot(),
            "requests": self.telemetry.calls,
            "errors": self.telemetry.errors,
            "connections": len(self.connections),
            "connections_by_name": self.names(),
            "clients": self.clients(),
            "in_flight": self.in_flight(),
            "risks": dict(self._main.orders.risks),
            "prefixes": self.telemetry.prefixes_snapshot(),
            "hot_keys": self.telemetry.hot_keys(),
            "distinct_keys": self.telemetry.distinct_keys(),
        }

    def in_flight(self) -> int:
        """Requests that were forwarded and not answered."""
        return sum(len(connection.session.pending) for connection in self.connections)

    def names(self) -> dict[str, int]:
        """Connections by client name, the most frequent ones; the rest together."""
        found = Counter(self._name(connection) for connection in self.connections)
        named = dict(found.most_common(_NAMES_MAX))
        rest = found.total() - sum(named.values())
        return {**named, OTHER: rest} if rest else named

    async def publish_shadow(self) -> None:
        """Carry sampled pairs to the comparer's stream.

        They are requests and replies of applications, so the control store keeps few of them and not for long:
        `SHADOW_BYTES_PER_S_MAX` of each gateway process, for `SHADOW_KEPT_MS`. More are dropped and counted.
        """
        name, allowed, then = self.store.keys.shadow, 0.0, monotonic()
        while True:
            await asyncio.sleep(_SHADOW_EVERY_S)
            now = monotonic()
            allowed, then = min(allowed + (now - then) * SHADOW_BYTES_PER_S_MAX, SHADOW_BYTES_PER_S_MAX), now
            if not self._shadow:
                continue
            pipe = self.store.client.pipeline(transaction=False)
            count = 0
            for _ in range(min(len(self._shadow), _SHADOW_BATCH)):
                pair = self._shadow.popleft()
                size = len(cast("bytes", pair["q"])) + len(cast("bytes", pair["r"]))
                if size > allowed:
                    self.shadow_dropped += 1
                    continue
                allowed -= size
                count += 1
                pipe.xadd(name, pair, maxlen=2 * SHADOW_QUEUE_MAX, approximate=True)  # type: ignore[arg-type]
            try:
                if count:
                    ids = await pipe.execute()
                    await self._expire_shadow(name, int(ids[-1].partition(b"-")[0]))
            except _STORE_ERRORS:
                self.shadow_dropped += count

    async def _expire_shadow(self, name: str, now_ms: int) -> None:
        """Drop pairs that are older than they are kept, and all of them where none comes any more."""
        pipe = self.store.client.pipeline(transaction=False)
        pipe.xtrim(name, minid=now_ms - SHADOW_KEPT_MS, approximate=False)
        pipe.pexpire(name, SHADOW_KEPT_MS)
        await pipe.execute()

    def metrics(self) -> Iterable[Sample]:
        """For Prometheus."""
        beat = self.heartbeat(0)
        yield "exodus_gateway_connections", "open client connections", {}, len(self.connections)
        yield "exodus_gateway_epoch", "route epoch acted on", {}, beat.epoch
        yield "exodus_gateway_journal_unflushed_keys", "written keys not yet in the control store", {}, self._journaler.unflushed
        yield "exodus_gateway_journal_spooled_keys", "written keys on disk because the control store is away", {}, self._journaler.spooled
        yield "exodus_gateway_shadow_dropped_total", "sampled pairs that were not published", {}, self.shadow_dropped
        for why, gap in list(self._journaler.gaps.items()):
            yield "exodus_gateway_gaps_total", "writes that no journal covers", {"why": why}, gap.count
        for why, count in self.sessions_closed.items():
            yield "exodus_gateway_sessions_closed_total", "sessions that could not be carried over", {"why": why}, count
        yield "exodus_gateway_canary_share", "share of key hashes whose reads the follower is asked, too", {}, self._canary_share
        for outcome, count in self._canary.counts.items():
            yield "exodus_gateway_canary_reads", "canary reads since the share was chosen, by what became of them", {"outcome": str(outcome)}, count
        yield "exodus_gateway_canary_answer_us_p99", "99th percentile of the time to the follower's answer", {}, self._canary.answer_us.quantile(0.99)
        if self._redirecting is not None:
            yield "exodus_gateway_redirect_returns", "connections that came since clients are sent away", {}, self._redirecting.came_back
            for kind, count in self._redirecting.closed.items():
                yield "exodus_gateway_redirected_sessions", "sessions ended so that their clients go elsewhere", {"kind": kind}, count
        yield "exodus_gateway_refused_total", "connections closed at once, since clients are sent away", {}, self.refused
        yield "exodus_gateway_in_flight_requests", "requests that the authority has not answered", {}, self.in_flight()
        yield "exodus_gateway_connections_total", "client connections ever accepted", {}, self.connections_ever
        yield "exodus_gateway_store_away", "1 while the control store is away", {}, int(bool(self._why()))
        yield "exodus_gateway_authority_away", "1 while the authority does not answer", {}, int(bool(self._authority_why))
        yield "exodus_gateway_compiled", "1 where the hot path runs compiled", {}, int(compiled.why_not() is None)
        yield "exodus_gateway_task_failures_total", "tasks of the process that failed and were started again", {}, self.task_failures
        yield "exodus_gateway_tls_reload_failures_total", "certificates that could not be read again", {}, self.tls_reload_failures
        yield "exodus_gateway_journal_coalesced_total", "marks of keys that were marked already", {}, self._journaler.coalesced
        yield "exodus_gateway_intent_segments", "files of the intent log", {}, self._journaler.segments
        for name, count in self.names().items():
            yield "exodus_gateway_named_connections", "open client connections by client name", {"client": name}, count
        for risk, count in self._main.orders.risks.items():
            yield "exodus_gateway_risks_total", "requests that may write what no journal covers", {"risk": risk}, count
        yield from self.telemetry.samples()

    def health(self) -> tuple[bool, str]:
        """Ready only while the authority answers and we accept; a store that is away, or too little room, only degrades."""
        if self._draining or self._refuses:
            return False, f"{'draining' if self._draining else 'clients are sent away'}: no new connections are accepted"
        if self._authority_why:
            return False, self._authority_why
        degraded = "; ".join(why for why in (self._why(), self.room_why) if why)
        return True, f"degraded: {degraded}" if degraded else "serving"

    async def tell_states(self) -> None:
        """Log each change of what this process depends on, once, with its reason."""
        while True:
            states = self._states
            away = self._store_why or "it does not take the journal" if self._why() else ""
            states.away("the control store", away and f"{away}; keys are spooled, applications are not affected", kind="away" if away else "")
            if self._authority_why != _NOT_ASKED:
                states.away(f"the {self._main.orders.authority}", self._authority_why)
            if self._applied >= 0:
                states.now("route", self._route.text)
            for why in list(self._journaler.gaps):
                states.once(f"a gap is open until a verification closes it: {why}")
            await asyncio.sleep(_TELL_S)

    async def watch_authority(self) -> None:
        """Whether the authority answers, for `/health`: on one connection of our own, without a login."""
        while True:
            side = self._main.orders.authority
            try:
                async with asyncio.timeout(_PROBE_S):
                    reader, writer = await self._probe(side)
            except (OSError, TimeoutError) as exc:
                self._authority_why = f"the {side} takes no connection: {str(exc) or type(exc).__name__}"
                self._main.orders.login_needed = False  # not known
                await asyncio.sleep(_PROBE_S)
                continue
            try:
                while side is self._main.orders.authority:
                    writer.write(b"PING\r\n")
                    async with asyncio.timeout(_PROBE_S):
                        line = await reader.readline()
                    if not line:
                        break
                    code = line[1:].split(b" ", 1)[0].strip()
                    self._main.orders.login_needed = line[:1] == b"-" and code == b"NOAUTH"
                    busy = line[:1] == b"-" and code in (b"LOADING", b"MASTERDOWN", b"BUSY", b"ERR")
                    self._authority_why = f"the {side} answers {code.decode('ascii', 'replace')}" if busy else ""
                    await asyncio.sleep(_PROBE_S)
            except (OSError, TimeoutError, ValueError) as exc:
                self._authority_why = f"the {side} does not answer: {type(exc).__name__}"
            finally:
                writer.close()

    async def _probe(self, side: Side) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address, context = self.plan.address(side), self._tls[side]
        return await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=(address.server_name or address.host) if context else None
        )

    def reload_tls(self) -> None:
        """Read certificates and keys again, for connections from now on; what cannot be read leaves the old ones in force."""
        try:
            fresh = {side: ssl_context(self.plan.address(side)) for side in Side}
            listener = listener_tls(self.options)
            if self._listener_tls is not None and listener is not None and self.options.cert_file is not None:
                self._listener_tls.load_cert_chain(self.options.cert_file, self.options.key_file)
                if self.options.client_ca_file is not None:
                    self._listener_tls.load_verify_locations(self.options.client_ca_file)
        except (OSError, OperatorError) as exc:
            self.tls_reload_failures += 1
            log.error("the certificates could not be read again, the old ones stay in force: %s", exc)
            return
        self._tls = fresh
        log.info("certificates were read again")

    def _remember(self, route: Route) -> None:
        if route.epoch != self._applied or self._stopping.is_set():
            return  # a later one is remembered instead
        path = self.options.state_dir / "last.json"
        try:
            write_private(path, orjson.dumps({"plan": self.plan.model_dump(mode="json"), "route": route.model_dump(mode="json")}))
        except OSError as exc:
            log.warning("the last route could not be kept in %s: %s", path, exc)

    # ------------------------------------------------------------------ life

    async def run(self, route: Route, ready: asyncio.Event | None = None) -> None:
        """Serve until SIGTERM or `stop`."""
        await self.apply(route)
        loop = asyncio.get_running_loop()

        def accept() -> asyncio.Protocol:
            self.connections_ever += 1
            if self._refuses:
                self.refused += 1
                return Refusal()
            return cast("asyncio.Protocol", Connection(self))

        options = self.options
        sockets = [inherited(fd) for fd in options.listen_fds] or listen(options.listen_host, options.listen_port, 1)
        listeners = [
            await (loop.create_unix_server if sock.family is socket.AF_UNIX else loop.create_server)(
                accept, sock=sock, ssl=self._listener_tls, backlog=BACKLOG_MAX
            )
            for sock in sockets
        ]
        status = StatusServer(options.status_host, options.status_port, self.metrics, self.health)
        at = status.port, options.status_host
        log.info("gateway %s listens on %s; /health and /metrics on port %d of %s", options.process, sockets[0].getsockname(), *at)
        self.status_port = status.port
        for work in (self._journaler.run, self.follow_route, self.beat, self.publish_shadow, self.watch_authority, self.tell_states):
            self._spawn(self._keep_running(work))
        if ready is not None:
            ready.set()
        try:
            await self._stopping.wait()
        finally:
            self._draining = True
            for listener in listeners:
                listener.close()
            await self._end(status)
            if not options.listen_fds:
                unlink(options.listen_host)

    def stop(self) -> None:
        """End in order."""
        self._stopping.set()

    def _remaining(self) -> tuple[int, float, str]:
        """What a drain leaves, by kind."""
        kinds = Counter(kind_of(connection.session) for connection in self.connections)
        return len(self.connections), self.options.drain_s, ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())

    async def _end(self, status: StatusServer) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.drain_s
        self._beat_now.set()
        while loop.time() < deadline and self.connections:
            await asyncio.sleep(0.01)
        while loop.time() < deadline + _FLUSH_S and any(connection.session.writes_in_flight for connection in self.connections):
            await asyncio.sleep(0.01)
        if self.connections:
            log.warning("%d sessions did not end by themselves within %.0f s and are closed: %s", *self._remaining())
        for connection in list(self.connections):
            connection.close("the gateway stops")
        self._serve_canary(0.0)
        self._end_canary()
        await asyncio.sleep(0)
        flushed = await self._flushed(_FLUSH_S)
        await end_all(list(self._tasks))
        self._drop_spare_legs()
        if flushed:
            try:
                await self.store.unregister("gateway", self.registered)
                # Nobody waits for this gateway from here on, so it may not come back on the strength of what it knew.
                (self.options.state_dir / "last.json").unlink(missing_ok=True)
                note_end(self.options.state_dir, self._identity)
            except _STORE_ERRORS as exc:
                log.warning("the control store did not hear of this end: %s", exc)
        else:
            log.error("ends with %d keys that are not journalled; they are journalled at the next start of this id", self._journaler.unflushed)
        self._journaler.close()
        status.close()
        self.telemetry.keys = NoKeyStatistics()  # the library complains at exit of sketches that are still there
        for client in self._admin.clients.values():
            await client.aclose()


def listener_tls(options: GatewayOptions) -> ssl.SSLContext | None:
    """TLS on the applications' side, or None."""
    if options.cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.cert_file, options.key_file)
    if options.client_ca_file is not None:
        context.load_verify_locations(options.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Tables(NamedTuple):
    """What the servers tell of their commands: of both sides together, and which sides are older than Redis 7.0."""

    commands: CommandTable
    old: frozenset[Side] = frozenset()


async def load_table(plan: Plan) -> Tables:
    """Ask both sides for their commands; the target's may be missing, since it must not matter to applications yet.

    Raises:
        SourceError: the source does not tell its commands.
    """
    replies = []
    old: set[Side] = set()
    for side in Side:
        client = make_client(plan.acting(UserRole.GATEWAY).address(side), field=side)
        client.response_callbacks.pop("COMMAND", None)  # redis-py would turn the rows into its own shape
        try:
            rows = await answered(client.execute_command("COMMAND"))
            replies.append(rows)
            if rows and len(rows[0]) < _FIELDS_OF_7:
                old.add(side)
        except _STORE_ERRORS as exc:
            if side is Side.SOURCE:
                raise SourceError(
                    f"the source {plan.source.url} does not tell its commands",
                    why=str(exc) or type(exc).__name__,
                    next_step="start the source, or let the user in source run COMMAND",
                ) from exc
            log.warning("the target does not tell its commands: %s", exc)
        finally:
            await client.aclose()
    return Tables(CommandTable.from_replies(*replies), frozenset(old))


async def room(plan: Plan, connections_expected: int) -> str:
    """What is wrong with the room for connections, or nothing: each client takes one connection of the source and two files of this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = []
    if connections_expected and 2 * connections_expected + _OWN_FILES > hard:
        found.append(f"{connections_expected} connections take {2 * connections_expected + _OWN_FILES} open files and {hard} are allowed (ulimit -n)")
    client = make_client(plan.acting(UserRole.GATEWAY).source, field="source")
    try:
        clients = await answered(client.info("clients"))
        most = clients.get("maxclients")
        if most is None:
            most = int((await answered(client.config_get("maxclients")))["maxclients"])
        left = int(most) - int(clients["connected_clients"])
        if connections_expected > left:
            found.append(f"the source has room for {left} more connections (maxclients {most}), and {connections_expected} are expected")
    except (*_STORE_ERRORS, KeyError, ValueError) as exc:
        log.warning("the source does not tell its maxclients: %s", exc)
        if connections_expected:
            found.append("the source does not tell its maxclients")
    finally:
        await client.aclose()
    return "; ".join(found)


async def start_state(store: ControlStore, state_dir: Path) -> tuple[Plan, Route]:
    """Plan and route from the store, or the last known ones while it is away.

    Raises:
        ExodusError: the store is away and there are none, or no such migration is registered.
    """
    try:
        return await store.plan(), await read_route(store)
    except _STORE_ERRORS:
        path = state_dir / "last.json"
        if not path.exists():
            raise
        log.warning("the control store is away: going on with the last known plan and route")
        last = orjson.loads(path.read_bytes())
        return Plan.model_validate(last["plan"]), Route.model_validate(last["route"])


async def claim_id(gateway: Gateway) -> None:
    """Take the registration of this id, or refuse to start while another instance has it.

    Raises:
        OperatorError: a gateway with another state folder runs under this id.
    """
    try:
        other = await gateway.claim()
    except _STORE_ERRORS:
        log.warning("the control store is away: the id %s is asked for when it is back", gateway.options.process)
        return
    if other is not None:
        raise OperatorError(
            f"a gateway runs under the id {gateway.options.process}",
            why=f"its process is {other.pid} on {other.host}, with another state folder; one heartbeat cannot answer for both",
            next_step="give each process an --id and a --state-dir of its own; if that process is gone, start again in a few seconds",
        )


async def look_at_store(store: ControlStore) -> None:
    """Say in the log what is wrong with the control store's settings; applications are served all the same."""
    try:
        for found in await check_store(store, {}):
            if found.severity != "ok":
                log.error("%s: %s; %s", found.what, found.why, found.next_step)
    except _STORE_ERRORS as exc:
        log.warning("the control store does not tell its settings: %s", exc)


async def serve(store: ControlStore, options: GatewayOptions) -> None:
    """`exodus gateway`."""
    plan, route = await start_state(store, options.state_dir)
    check_pinned(options.pinned, plan)
    check_certificates(plan, options.client_ca_file, lend=options.lend_certificate)
    await check_address(plan, options.listen_host, lend=options.lend_address)
    if lock_state(options.state_dir) is None:  # before anything there is read: it mends what a crash tore
        raise OperatorError(
            f"{options.state_dir} belongs to a gateway that runs",
            why="two processes would journal each other's intents",
            next_step="give each process an --id and a --state-dir of its own",
        )
    gateway = Gateway(store, plan, await load_table(plan), options)
    gc_tuning.settle()  # it then costs next to nothing a request
    await claim_id(gateway)
    await look_at_store(store)
    gateway.room_why = await room(plan, options.connections_expected)
    if gateway.room_why:
        log.error("%s", gateway.room_why)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, gateway.stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload_tls)
    try:
        await gateway.run(route)
    except OSError as exc:
        raise ExodusError(
            f"cannot listen on {options.listen_host}:{options.listen_port}",
            why=str(exc),
            next_step="stop what uses the port, or choose another with --listen",
        ) from exc
