"""The hub: one gateway process, put together.

Applications come first. Every task here except the relay may fail, wait or fall behind, and no
session notices.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import cast

from exodus.background import BackgroundTasks
from exodus.control.gap_reasons import UNDESCRIBED
from exodus.control.heartbeats import GatewayHeartbeat
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.errors import ExodusError, OperatorError
from exodus.gateway import reporting
from exodus.gateway.acceptor import Acceptor
from exodus.gateway.authority_probe import AuthorityProbe
from exodus.gateway.canary_control import CanaryControl
from exodus.gateway.canary_reads import CanaryRead
from exodus.gateway.faces import open_face
from exodus.gateway.groups import SessionGroups
from exodus.gateway.handover import misplaced, move_within
from exodus.gateway.heartbeats import HeartbeatWriter
from exodus.gateway.holds import Holds
from exodus.gateway.identity import identify, note_end
from exodus.gateway.intents import MANIFEST
from exodus.gateway.journaler import Journaler
from exodus.gateway.last_route import LastRoute
from exodus.gateway.listeners import inherited, listen_all, unlink
from exodus.gateway.logins import Logins
from exodus.gateway.lost_legs import LostLegs
from exodus.gateway.node_listeners import NodeListeners
from exodus.gateway.options import GatewayOptions
from exodus.gateway.orders import Orders
from exodus.gateway.redirect import RedirectControl, kind_of
from exodus.gateway.relay import Connection, LegProtocol, Refusal, Turns
from exodus.gateway.route_changes import RouteChanges
from exodus.gateway.route_following import RouteFollower
from exodus.gateway.sentinel_face import SentinelFace
from exodus.gateway.session import Dialect, Session, Unanswered
from exodus.gateway.settlement import Settlement
from exodus.gateway.shadow_stream import ShadowStream
from exodus.gateway.side_clients import SideClients
from exodus.gateway.spare_legs import SpareLegs
from exodus.gateway.store_state import STORE_ERRORS, StoreState
from exodus.gateway.tables import Tables
from exodus.gateway.tls import TlsContexts
from exodus.gateway.undescribed import UndescribedCommands
from exodus.net.masters import standing
from exodus.plan.address import Address, Cluster
from exodus.plan.bounds import (
    HUB_DRAIN_LOOK_S,
    HUB_FLUSH_S,
    LEAVERS_TURN_S,
    MOVE_SECONDS_MAX,
    STRANGERS_SHARE,
    STRANGERS_TURN_S,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from exodus.telemetry.http import StatusServer
from exodus.telemetry.sample import Sample
from exodus.telemetry.sketches import KeySketches
from exodus.telemetry.windows import Windows
from exodus.topology.watch import TopologyWatch

log = logging.getLogger(__name__)


class Gateway:
    """One process. Implements `relay.Hub`."""

    def __init__(
        self, store: ControlStore, plan: Plan, tables: Tables, options: GatewayOptions
    ) -> None:
        self.store = store
        self.plan = plan
        self.options = options
        self.turns = Turns()
        self.strangers = Turns(STRANGERS_SHARE, turn_s=STRANGERS_TURN_S)
        self.leavers = Turns(turn_s=LEAVERS_TURN_S)
        self.telemetry = Telemetry(KeySketches())
        self.tasks = BackgroundTasks("gateway")
        self.connections_ever = 0
        self.refused = 0  # connections that were closed at once
        self.sessions_closed: Counter[str] = Counter()  # by the gateway, by reason
        self.room_why = ""  # why the expected connections do not fit
        self.draining = False
        self.status_port = 0
        self.face: SentinelFace | None = None
        self._stopping = asyncio.Event()
        self._begin_journal()
        self._reach_sides(tables)
        self._follow_route(tables)

    def _begin_journal(self) -> None:
        """Open the state folder, and open a gap where it lacks what was written."""
        options = self.options
        self._identity = identify(options.state_dir)
        ended = self._identity.ended
        log_is_gone = not ended and not (options.state_dir / MANIFEST).exists()
        self.journaler = Journaler(
            self.store, self.plan.partitions, options.state_dir, options.process
        )
        if log_is_gone:
            self.journaler.gap("the intent log is missing")
        if self._identity.host_restarted:
            self.journaler.gap("the host was restarted: the intent log may lack the last writes")
        # Called for every request, so they lead straight to the journaler.
        self.intend = self.journaler.intend
        self.mark = self.journaler.mark
        self.store_state = StoreState(self.journaler)

    def _reach_sides(self, tables: Tables) -> None:
        """Make what speaks to the two sides, for the sessions and beside them."""
        plan, journaler = self.plan, self.journaler
        self.groups = SessionGroups(tables.commands, self.telemetry)
        self.connections = self.groups.connections
        self.tls_contexts = TlsContexts(plan, self.options)
        self.probe = AuthorityProbe(plan, self.tls_contexts, self.groups.main.orders)
        self.spare_legs = SpareLegs(self)
        self._clients = SideClients(plan)
        self.lost_legs = LostLegs(
            journaler, self._clients, lambda: self.groups.main.orders.authority
        )
        self.undescribed = UndescribedCommands(
            tables.commands,
            self._clients.client,
            journaler.mark,
            journaler.gap,
            self.groups.main.orders,
        )
        self.topology = TopologyWatch(
            plan.acting(UserRole.GATEWAY),
            self.store,
            self._failed_over,
            lambda _: self.settlement.tend_now(),
            self._looked,
        )
        self.nodes = NodeListeners(
            plan,
            self.store,
            tls=self.tls_contexts.listener is not None,
            changed=self._listeners_changed,
            look_now=self.topology.look_now,
            advertise=self.options.advertise,
        )
        self._logins = Logins(plan.logins) if plan.logins else None
        self._rehearsal_logins = self._logins_of_rehearsals()

    def _follow_route(self, tables: Tables) -> None:
        """Make what acts on the route and reports to the control store."""
        store, plan, options = self.store, self.plan, self.options
        beat_now = asyncio.Event()
        changes = RouteChanges(store, options.process)
        self.shadow_stream = ShadowStream(store)
        self.shadow = self.shadow_stream.offer
        self.canary = CanaryControl(
            plan,
            self.tls_contexts,
            self.groups.main.orders,
            self.tasks,
            changes,
            beat_now,
            self.topology.look_now,
        )
        self.redirects = RedirectControl(
            self.connections,
            lambda: self.connections_ever,
            lambda: self.probe.why,
            self.tasks,
            changes,
            beat_now,
        )
        self.holds = Holds(
            plan,
            self.groups,
            self.journaler,
            lambda: self.unflushed,
            self.spare_legs,
            self.probe,
            self.tasks,
            beat_now,
        )
        self.heartbeats = HeartbeatWriter(
            store,
            options.process,
            identity=self._identity,
            groups=self.groups,
            journaler=self.journaler,
            store_state=self.store_state,
            beat_now=beat_now,
            stopping=self._stopping,
            describe=self.heartbeat,
            snapshot=lambda: reporting.snapshot(self),
            windows=Windows(self.telemetry, partial(reporting.clients_now, self)),
            log_pending=self._log_pending,
        )
        self._last_route = LastRoute(options.state_dir, lambda: self.nodes.maps)
        self.settlement = Settlement(store, plan, self.tasks, self.groups.main, options.settle)
        self.route_follower = RouteFollower(
            self,
            store=store,
            plan=plan,
            process=options.process,
            groups=self.groups,
            holds=self.holds,
            settlement=self.settlement,
            canary=self.canary,
            redirects=self.redirects,
            probe=self.probe,
            heartbeats=self.heartbeats,
            store_state=self.store_state,
            tasks=self.tasks,
            last_route=self._last_route,
            old_sides=tables.old,
            stopping=self._stopping,
            journaler=self.journaler,
        )

    # ------------------------------------------------------------------ Hub, for connections

    def orders_for(self, name: bytes) -> Orders:
        return self.groups.orders_for(name)

    def address(self, side: Side, listener: int) -> Address:
        place = self.plan.address(side)
        if isinstance(place, Cluster):
            return self.nodes.address(side, listener)
        return standing(place)

    def dialect(self, side: Side) -> Dialect:
        if isinstance(self.plan.address(side), Cluster):
            return Dialect.CLUSTER
        return Dialect.PLAIN if self.plan.gateway.facade is None else Dialect.FACADE

    def told_error(self, connection: Connection, head: bytes, *, by_server: bool) -> bytes:
        return self.nodes.told_error(connection, head, by_server=by_server)

    def as_cluster(self, connection: Connection, args: list[bytes], protocol: int) -> bytes:
        return self.nodes.as_cluster(connection, args, protocol)

    def told_reply(self, connection: Connection, word: bytes, frame: bytes) -> bytes:
        return self.nodes.told_reply(connection, word, frame)

    def tls(self, side: Side) -> ssl.SSLContext | None:
        return self.tls_contexts.side(side)

    def logins(self, side: Side, orders: Orders) -> Logins | None:
        if side is not Side.TARGET:
            return None
        rehearses = orders is self.groups.rehearsal.orders
        return self._rehearsal_logins if rehearses else self._logins

    def _logins_of_rehearsals(self) -> Logins | None:
        """Return the logins of a rehearsal's sessions, which may use Exodus's own."""
        try:
            return (self._logins or Logins(())).with_own(self.plan.source, self.plan.target)
        except OperatorError as exc:  # a gateway need not have its passwords
            log.info("a rehearsal's sessions cannot use Exodus's own login here: %s", exc.what)
            return self._logins

    def log_gap(self, why: str) -> None:
        self.journaler.log_gap(why)

    def gap(self, why: str) -> None:
        self.journaler.gap(why)

    def ask_follower(
        self, session: Session, read: CanaryRead, request: bytes, protocol: int
    ) -> None:
        self.canary.ask(session, read, request, protocol)

    def unblock(self, side: Side, address: Address | None, client_id: int) -> None:
        self.tasks.spawn(self._clients.unblock(side, address, client_id))

    def settled(self) -> None:
        self.holds.settled.set()

    def closed(self, why: str) -> None:
        self.sessions_closed[why] += 1

    def learn_command(self, side: Side, args: list[bytes], db: int) -> None:
        if self.undescribed.note(side, args, db):
            self.tasks.spawn(self.undescribed.resolve())

    def lost_leg(
        self, side: Side, address: Address | None, local_address: str, left: Unanswered
    ) -> None:
        leg = self.lost_legs.add(left)
        self.tasks.spawn(self.lost_legs.mark_again(side, address, local_address, leg))

    def spare_leg(self, side: Side, listener: int) -> LegProtocol | None:
        return self.spare_legs.take(side, listener)

    def _looked(self, side: Side) -> None:
        self.nodes.looked(side)

    def _listeners_changed(self, side: Side) -> None:
        """Move the sessions of a side whose listeners stand for other nodes now.

        What a client sends from here on waits for the new leg: the old node would answer by a
        MOVED that names the same listener.
        """
        for connection in list(self.connections):
            if connection.side is side and misplaced(self, connection):
                connection.session.freeze()
                self.tasks.spawn(move_within(self, connection, within_s=MOVE_SECONDS_MAX))
        self.route_follower.remember()

    def _failed_over(self, side: Side) -> None:
        """End the legs to the server that was the master of a side, as its own failover does.

        A cluster ends none: sessions follow their listeners.
        """
        if isinstance(self.plan.address(side), Cluster):
            log.warning("failover of the %s", side)
            self.settlement.tend_now()
            self.heartbeats.now.set()
            return
        ended = 0
        for connection in list(self.connections):
            if connection.side is side and connection.leg is not None:
                connection.drop_leg()
                ended += 1
        self.spare_legs.drop()
        self.route_follower.remember()
        log.warning("failover of the %s: %d sessions end", side, ended)
        self.settlement.tend_now()
        self.heartbeats.now.set()

    # ------------------------------------------------------------------ reports

    @property
    def unflushed(self) -> int:
        """Return how many things must reach the control store before a hold is complete."""
        return self.journaler.unflushed + len(self.lost_legs) + len(self.undescribed)

    def _log_pending(self) -> None:
        """Log the intents of all writes under way again."""
        for connection in self.connections:
            connection.session.log_pending()
        self.lost_legs.log_intents()
        if len(self.undescribed):
            self.journaler.log_gap(UNDESCRIBED)

    @property
    def refuses(self) -> bool:
        """Tell whether new connections are refused, since clients are sent away."""
        return self.redirects.refuses(self.route_follower.route)

    def heartbeat(self, at_ms: int) -> GatewayHeartbeat:
        """Return the heartbeat at a time of the control store."""
        return reporting.heartbeat(self, at_ms)

    def metrics(self) -> Iterable[Sample]:
        """Return the samples for Prometheus."""
        return reporting.metrics(self)

    def health(self) -> tuple[bool, str]:
        """Return whether the process is ready, and its state in words."""
        return reporting.health(self)

    # ------------------------------------------------------------------ life

    async def run(self, route: Route, ready: asyncio.Event | None = None) -> None:
        """Serve until SIGTERM or `stop`."""
        await self.nodes.begin(self._last_route.listener_maps())
        await self.route_follower.apply(route)
        options = self.options
        sockets = [inherited(fd) for fd in options.listen_fds]
        sockets = sockets or listen_all(
            options.listen_host, options.listen_port, self.plan.listener_count, 1
        )
        try:
            self.face = await open_face(
                self.plan,
                options,
                0 if options.listen_host.startswith("unix:") else sockets[0].getsockname()[1],
                self.tls_contexts.listener,
                lambda: self.route_follower.route,
            )
        except ExodusError:
            for each in sockets:
                each.close()
            raise
        listeners = [self._acceptor(each) for each in sockets]
        status = StatusServer(options.status_host, options.status_port, self.metrics, self.health)
        log.info(
            "gateway %s listens on %s; /health and /metrics on port %d of %s",
            options.process,
            sockets[0].getsockname(),
            status.port,
            options.status_host,
        )
        self.status_port = status.port
        for work in (
            self.journaler.run,
            self.route_follower.run,
            self.heartbeats.run,
            self.shadow_stream.publish,
            self.probe.run,
            self.topology.run,
            self.nodes.run,
            lambda: reporting.log_states(self),
        ):
            self.tasks.keep_running(work)
        if self.face is not None:
            log.info("it answers like a Sentinel on port %d", self.face.port)
            self.tasks.keep_running(self.face.publish_changes)
        if ready is not None:
            ready.set()
        try:
            await self._stopping.wait()
        finally:
            self.draining = True
            for listener in listeners:
                listener.close()
            if self.face is not None:
                self.face.close()
            await self._end(status)
            if not options.listen_fds:
                unlink(options.listen_host)

    def _acceptor(self, sock: socket.socket) -> Acceptor:
        number = 0
        if self.plan.listener_count > 1:
            number = int(sock.getsockname()[1]) - self.options.listen_port
        return Acceptor(partial(self._accept, number), sock, self.tls_contexts.listener)

    def _accept(self, listener: int) -> asyncio.Protocol:
        self.connections_ever += 1
        if self.refuses:
            self.refused += 1
            return Refusal()
        return cast("asyncio.Protocol", Connection(self, listener))

    def stop(self) -> None:
        """End in order."""
        self._stopping.set()

    async def _end(self, status: StatusServer) -> None:
        self.heartbeats.now.set()
        await self._drain()
        self.canary.end()
        await asyncio.sleep(0)
        flushed = await self.holds.flushed(HUB_FLUSH_S)
        await self.tasks.end()
        self.spare_legs.drop()
        if flushed:
            await self._unregister()
        else:
            log.error(
                "ends with %d keys that are not journalled; they are journalled at the next start "
                "of this id",
                self.journaler.unflushed,
            )
        self.journaler.close()
        status.close()
        self.telemetry.keys = NoKeyStatistics()  # the library complains at exit about sketches
        await self._clients.close()

    async def _drain(self) -> None:
        """Wait for the sessions to end, then for their writes, then close what is left."""
        loop, drain_s = asyncio.get_running_loop(), self.options.drain_s
        deadline = loop.time() + drain_s
        while loop.time() < deadline and self.connections:
            await asyncio.sleep(HUB_DRAIN_LOOK_S)
        while loop.time() < deadline + HUB_FLUSH_S and any(
            connection.session.writes_in_flight for connection in self.connections
        ):
            await asyncio.sleep(HUB_DRAIN_LOOK_S)
        if self.connections:
            kinds = Counter(kind_of(connection.session) for connection in self.connections)
            log.warning(
                "%d sessions did not end by themselves within %.0f s and are closed: %s",
                len(self.connections),
                drain_s,
                ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            )
        for connection in list(self.connections):
            connection.close("the gateway stops")

    async def _unregister(self) -> None:
        try:
            await self.store.unregister("gateway", self.heartbeats.registered)
            # Nobody waits for this gateway from here on, so it may not start from the last route.
            self._last_route.forget()
            note_end(self.options.state_dir, self._identity)
        except STORE_ERRORS as exc:
            log.warning("the control store was not told of this end: %s", exc)
