"""The relay: the asyncio shell of a session, with the two transports that the session speaks to.

Back pressure goes from each transport to the other, and comes from nothing else. A client that does
not read stops the reading of its own leg, so that the server's output-buffer limit applies. A
server that does not read stops the reading of its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from time import monotonic, thread_time
from typing import Protocol, cast

from exodus.control.changes import Barrier, Key
from exodus.control.gap_reasons import FAILED_SESSION
from exodus.gateway.canary_reads import CanaryRead
from exodus.gateway.logins import Logins
from exodus.gateway.orders import Orders
from exodus.gateway.session.effects import Unanswered
from exodus.gateway.session.leg import Dialect
from exodus.gateway.session.machine import Session
from exodus.net.connect import open_protocol
from exodus.plan.address import Address
from exodus.plan.bounds import (
    CONNECT_TIMEOUT_S,
    PIPELINE_MAX,
    SHADOW_CLIENT_BYTES_MAX,
    STRANGER_FREE_BYTES,
    STRANGER_TURN_BYTES,
    STRANGER_TURN_LINES,
    STRANGERS_WAITING_MAX,
    TURN_BYTES,
    TURN_BYTES_BUSY,
    TURN_REQUESTS,
    TURNS_S,
)
from exodus.plan.vocabulary import JournalMode, Side

log = logging.getLogger(__name__)
_TURN_BYTES, _TURN_BYTES_BUSY, _TURN_REQUESTS = TURN_BYTES, TURN_BYTES_BUSY, TURN_REQUESTS
_PIPELINE_MAX = PIPELINE_MAX
_STRANGER_TURN_BYTES, _STRANGER_TURN_LINES = STRANGER_TURN_BYTES, STRANGER_TURN_LINES


class Hub(Protocol):
    """The gateway process, as a connection sees it."""

    connections: set[Connection]
    turns: Turns
    strangers: Turns
    leavers: Turns

    def orders_for(self, name: bytes) -> Orders:
        """Return the orders for a client name: a rehearsal's sessions follow their own."""

    def address(self, side: Side, listener: int) -> Address:
        """Return the address to which sessions of a listener connect: of a side's master of now, or
        of the cluster's node for which the listener stands.

        Raises:
            OSError: no master is known.
        """

    def dialect(self, side: Side) -> Dialect:
        """Return what a side's servers say that a session must read."""

    def told_error(self, connection: Connection, head: bytes, *, by_server: bool) -> bytes:
        """See `Outlet.told_error`."""

    def told_reply(self, connection: Connection, word: bytes, frame: bytes) -> bytes:
        """See `Outlet.told_reply`."""

    def tls(self, side: Side) -> ssl.SSLContext | None:
        """Return the TLS context towards a side; None: no TLS."""

    def logins(self, side: Side, orders: Orders) -> Logins | None:
        """Return the translation of credentials for a side; None: they pass unchanged."""

    def intend(self, keys: list[Key], barrier: Barrier | None) -> None:
        """See `Outlet.log_intents`."""

    def log_gap(self, why: str) -> None:
        """See `Outlet.log_gap`."""

    def mark(self, keys: list[Key], barrier: Barrier | None) -> None:
        """See `Outlet.journal`."""

    def gap(self, why: str) -> None:
        """See `Outlet.gap`."""

    def learn_command(self, side: Side, args: list[bytes], db: int) -> None:
        """See `Outlet.learn_command`."""

    def shadow(self, db: int, request: bytes, reply: bytes, write: bool, client: bytes) -> None:
        """See `Outlet.shadow`; `client` says who sent it."""

    def ask_follower(
        self, session: Session, read: CanaryRead, request: bytes, protocol: int
    ) -> None:
        """See `Outlet.ask_follower`."""

    def as_cluster(self, connection: Connection, args: list[bytes], protocol: int) -> bytes:
        """See `Outlet.as_cluster`."""

    def unblock(self, side: Side, address: Address | None, client_id: int) -> None:
        """See `Outlet.unblock`; `address` is that of the leg's server."""

    def settled(self) -> None:
        """See `Outlet.settled`."""

    def lost_leg(
        self, side: Side, address: Address | None, local_address: str, left: Unanswered
    ) -> None:
        """Mark the writes of a lost leg again, once the server at `address` cannot execute them as
        the authority any more.
        """

    def spare_leg(self, side: Side, listener: int) -> LegProtocol | None:
        """Return a leg that was made beforehand for a session of a listener, or None."""

    def closed(self, why: str) -> None:
        """Count a session that the gateway itself ended."""


class Turns:
    """The connections that have more to do than one turn; first come, first served.

    Each pass gives them `turn_s` together, and reads the requests of all other clients in between.
    So the delay of those does not grow with the number of clients that send more than the gateway
    can read.

    Args:
        share: the part of the process's time that these connections may take: after a turn they
            rest the longer, the longer it took. 1: each pass of the event loop is one of theirs.
        turn_s: what a pass gives them together.
    """

    def __init__(self, share: float = 1.0, turn_s: float = TURNS_S) -> None:
        self._turn_s = turn_s
        self._waiting: deque[Connection] = deque()
        self._scheduled = False
        self._rests = 1 / share - 1  # for so many times as long as the turn took

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: Connection) -> None:
        """Give a connection its next turn, behind all that are waiting."""
        self._waiting.append(connection)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        ends = monotonic() + self._turn_s
        began_cpu = thread_time() if self._rests > 0 else 0.0
        waiting = self._waiting
        while waiting:
            connection = waiting.popleft()
            if connection.turns is self:
                connection.take_turn()
            if monotonic() >= ends:
                break
        if self._rests > 0:
            # Also when nobody waits: who comes next waits for the end of the rest. It goes by
            # processor time, since on a busy machine a turn may wait in its middle.
            rest_s = max(self._turn_s, thread_time() - began_cpu) * self._rests
            asyncio.get_running_loop().call_later(rest_s, self._rested)
        elif waiting:
            asyncio.get_running_loop().call_soon(self._run)
        else:
            self._scheduled = False

    def _rested(self) -> None:
        if self._waiting:
            self._run()
        else:
            self._scheduled = False


class LegProtocol:
    """The connection to the authority. `owner` is the `Connection` that uses it.

    An `asyncio.Protocol` in all but name, since a compiled class has no Python base.
    """

    def __init__(self, owner: Connection | None) -> None:
        self.owner = owner
        self.address: Address | None = None  # of its server
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []  # bytes for a handover, which reads them
        self.arrived: asyncio.Event | None = None
        self.lost = False
        self.local_address = ""  # as the server sees it, unless a NAT is in between

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        host, port, *_ = transport.get_extra_info("sockname")
        self.local_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def data_received(self, data: bytes) -> None:
        owner = self.owner
        if owner is not None:
            try:
                owner.session.from_server(data, monotonic())
            except Exception:  # it must end one session, not the loop that all sessions share
                log.exception("a session failed and is closed")
                owner.failed()
                return
            if owner.full:
                owner.answered()
            if owner.turns is not None:
                owner.let_in()
            if owner.session.state.name and owner.session.orders is owner.orders:
                owner.follow(owner.session)
            return
        self.early.append(data)
        if self.arrived is not None:
            self.arrived.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        self.lost = True
        if self.arrived is not None:
            self.arrived.set()
        if self.owner is not None:
            self.owner.leg_lost(self)

    def pause_writing(self) -> None:
        if self.owner is not None:
            self.owner.leg_full()

    def resume_writing(self) -> None:
        if self.owner is not None:
            self.owner.leg_writable()


class Refusal(asyncio.Protocol):
    """Closes a connection at once: no new ones are accepted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


class Connection:
    """One application's connection: the client's transport, the leg, and the session between them.

    An `asyncio.Protocol` in all but name, like `LegProtocol`.
    """

    def __init__(self, hub: Hub, listener: int = 0) -> None:
        self.hub = hub
        self.listener = listener  # by which the client came
        self.moving: asyncio.Event | None = None  # set when a move of this session is over
        self.orders = hub.orders_for(b"")
        self.session = Session(self, self.orders)
        self.side = self.orders.authority
        self.leg: LegProtocol | None = None
        self.client: asyncio.Transport | None = None
        self.client_gone = False
        self.host = ""  # the client's
        # Set when the session may have become idle, where a handover waits for it.
        self.may_be_idle: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()
        # Called for every request, so they lead straight to the process.
        self.log_intents = hub.intend
        self.journal = hub.mark
        self._connecting: asyncio.Task[None] | None = None
        self._paused_by_session = False
        self._paused_by_leg = False
        self._rest = b""  # bytes of the client for its next turn
        self._rest_at = 0  # read up to here
        self.turns: Turns | None = None  # where it waits for its next turn
        self._free_bytes = STRANGER_FREE_BYTES  # that it may still send without a login
        self._shown_name: bytes | None = None  # the client's name in `_shown`
        self._shown = b""  # who it is, for the comparer
        self.full = False  # it has too many unanswered requests
        self._eof_waits = False  # the client's EOF is behind bytes that wait for their turn
        self._ended = False  # the client sends no more; the authority is to be told
        self._leaves = False  # the client has gone, and nothing is waited for
        # Before the leg: uvloop reads once, whatever connection_made says.
        self._early: list[bytes] = []

    # ---- the client's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if isinstance(peer, tuple) else "a Unix socket"
        self.hub.connections.add(self)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        while True:
            side = self.orders.authority
            try:
                leg = await open_leg(self.hub, side, self.listener, owner=self)
                stands = leg.address == self.hub.address(side, self.listener)
            except (OSError, TimeoutError) as exc:
                # As with a server that is down: the client's connection ends.
                log.debug("no leg to the %s: %s", side, exc)
                if self.client is not None:
                    self.client.abort()
                return
            if stands and side is self.orders.authority:
                break
            leg.owner = None  # the authority or its master changed while the leg was being made
            if leg.transport is not None:
                leg.transport.abort()
        self.leg, self.side = leg, side
        if self.client_gone:
            self.drop_leg()
            return
        logins = self.hub.logins(side, self.orders)
        self.session.log_in(logins, monotonic(), self.hub.dialect(side))
        early, self._early = self._early, []
        if early:
            self.data_received(b"".join(early))
        self._resume()

    def data_received(self, data: bytes) -> None:
        if self.leg is None:
            self._early.append(data)
            self._pause_reading()  # until `_connect` has the leg
            return
        if (
            self._rest
            or len(data) > _TURN_BYTES_BUSY
            or self.session.requests.turn > _TURN_REQUESTS
            or self.session.parts.is_stranger()
        ):
            self._take_turns(data)
        else:
            self._read(data)

    def _take_turns(self, data: bytes) -> None:
        """Read bytes in turns, with other clients in between."""
        if self._rest:
            self._rest = self._rest[self._rest_at :] + data
        else:
            self._rest = data
            # The number of requests in it is unknown: begin with a short turn.
            self.session.requests.turn = _TURN_REQUESTS + 1
        self._rest_at = 0
        if len(self._rest) > _TURN_BYTES:
            self._pause_reading()
        self.wait_for_turn()

    def wait_for_turn(self) -> None:
        """Wait for the next turn, unless the connection waits already."""
        if self.turns is not None:
            return
        hub = self.hub
        if not self.session.parts.is_stranger() or self._free_bytes > 0:
            self.turns = hub.turns
        elif len(hub.strangers) < STRANGERS_WAITING_MAX:
            self.turns = hub.strangers
        else:
            self.close("too many clients without a login")
            return
        self.turns.add(self)

    def let_in(self) -> None:
        """Wait among the clients with a login, if the session has one by now."""
        if self.turns is self.hub.strangers and not self.session.parts.is_stranger():
            self.turns = None
            self.wait_for_turn()

    def take_turn(self) -> None:
        """Read the next part of the bytes, or end; `Turns` calls it."""
        self.turns = None
        if self._leaves:
            self.drop_leg()
        if self.full or self.client_gone:
            return  # `answered` continues
        at, size = (
            self._rest_at,
            _TURN_BYTES_BUSY if self.session.requests.turn > _TURN_REQUESTS else _TURN_BYTES,
        )
        if self.session.parts.is_stranger():
            size = self._strangers_part(at)
        self._rest_at = at + size
        self._read(self._rest[at : at + size])
        if self.client_gone:
            return
        if self._rest_at < len(self._rest):
            self.wait_for_turn()
            return
        self._rest, self._rest_at = b"", 0
        self._resume()
        if self._eof_waits:
            self._eof_waits = False
            self.eof_received()

    def _strangers_part(self, at: int) -> int:
        """Return how many bytes from `at` a client without a login has read in this turn.

        A login is short. Many small requests cost more than their bytes say.
        """
        end = at + (self._free_bytes if self._free_bytes > 0 else _STRANGER_TURN_BYTES)
        found = at
        for _ in range(_STRANGER_TURN_LINES):
            found = self._rest.find(b"\n", found, end) + 1
            if found <= 0:
                self._free_bytes -= min(end, len(self._rest)) - at
                return end - at
        self._free_bytes = 0
        return found - at

    def _read(self, data: bytes) -> None:
        session = self.session
        try:
            session.from_client(data, monotonic())
        except Exception:  # as in LegProtocol
            log.exception("a session failed and is closed")
            self.failed()
            return
        if session.pending.count > _PIPELINE_MAX and not self.full:
            self.full = True
            self._pause_reading()

    def answered(self) -> None:
        """Read on if the session is no longer full; called after replies."""
        if self.session.pending.count <= _PIPELINE_MAX // 2:
            self.full = False
            if not self._rest:
                self._resume()
            else:
                self.wait_for_turn()

    def _pause_reading(self) -> None:
        if self.client is not None and not self.client_gone:
            self.client.pause_reading()

    def follow(self, session: Session) -> None:
        """Follow the orders for the session's client name."""
        orders = self.hub.orders_for(session.state.name)
        if orders is not session.orders:
            session.follow(orders)
            self.orders = orders
            if orders.authority is not self.side:
                self.close("a rehearsal's session came in the middle of it")

    def eof_received(self) -> bool:
        if self._rest:
            self._eof_waits = True
            return True
        # The server answers before it notices the EOF, so the end of the leg closes the client.
        if (
            self.leg is not None
            and self.leg.transport is not None
            and self.leg.transport.can_write_eof()
        ):
            self._ended = True
            if not self.session.waits:  # the backlog goes first
                self.caught_up()
            return True
        return False

    def caught_up(self) -> None:
        if (
            self._ended
            and self.leg is not None
            and self.leg.transport is not None
            and not self.leg.lost
        ):
            self._ended = False
            with contextlib.suppress(OSError):  # the authority ended it already
                self.leg.transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        self.client_gone = True
        self._rest = b""
        if self.leg is None or self.leg.transport is None or self.leg.lost:
            self.hub.connections.discard(self)
            self.hub.settled()
            return
        if (
            self.session.writes_in_flight
            and self.session.blocked() is None
            and self.leg.transport.can_write_eof()
        ):
            # The authority may still execute these writes: wait for the replies and journal them.
            self._ended = True
            self.caught_up()
            self._loop.call_later(CONNECT_TIMEOUT_S, self.drop_leg)
        else:
            # In turns, since hundreds of clients may end at once.
            self._leaves = True
            self.turns = self.hub.leavers
            self.turns.add(self)

    def pause_writing(self) -> None:
        if self.leg is not None and self.leg.transport is not None and not self.leg.lost:
            self.leg.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.leg is not None and self.leg.transport is not None and not self.leg.lost:
            self.leg.transport.resume_reading()

    # ---- the leg

    def leg_lost(self, leg: LegProtocol) -> None:
        """End the session: the authority's side ended."""
        if leg is not self.leg:
            return
        left = self.session.unanswered()
        if left and self.orders.journal is not JournalMode.OFF:
            self.hub.lost_leg(self.side, leg.address, leg.local_address, left)
        self.session.server_closed()
        self.hub.connections.discard(self)
        if self.client is not None and not self.client_gone:
            self.client.close()  # after the bytes that it still has to get

    def leg_full(self) -> None:
        """Stop reading from the client: the authority does not read fast enough."""
        self._paused_by_leg = True
        if self.client is not None and not self.client_gone:
            self.client.pause_reading()

    def leg_writable(self) -> None:
        """Read from the client again: the authority reads."""
        self._paused_by_leg = False
        self._resume()

    def drop_leg(self) -> None:
        """End the leg. Unanswered writes count as changed."""
        if self.leg is not None and self.leg.transport is not None and not self.leg.lost:
            self.leg.transport.abort()

    def _resume(self) -> None:
        waits = self._paused_by_leg or self._paused_by_session or self.full or self._rest
        if not waits and self.client is not None and not self.client_gone:
            self.client.resume_reading()

    # ---- Outlet

    def to_server(self, data: bytes) -> None:
        leg = self.leg
        if leg is not None and not leg.lost and leg.transport is not None:
            leg.transport.write(data)

    def to_client(self, data: bytes) -> None:
        if self.client is not None and not self.client_gone:
            self.client.write(data)

    def log_gap(self, why: str) -> None:
        self.hub.log_gap(why)

    def gap(self, why: str) -> None:
        self.hub.gap(why)

    def learn_command(self, args: list[bytes], db: int) -> None:
        self.hub.learn_command(self.side, args, db)

    def shadow(self, db: int, request: bytes, reply: bytes, write: bool) -> None:
        name = self.session.state.name
        if name is not self._shown_name:
            self._shown_name = name
            self._shown = (self.host.encode() + b" " + name)[:SHADOW_CLIENT_BYTES_MAX]
        self.hub.shadow(db, request, reply, write, self._shown)

    def ask_follower(self, read: CanaryRead, request: bytes, protocol: int) -> None:
        self.hub.ask_follower(self.session, read, request, protocol)

    def pause_client(self) -> None:
        self._paused_by_session = True
        if self.client is not None and not self.client_gone:
            self.client.pause_reading()

    def resume_client(self) -> None:
        self._paused_by_session = False
        self._resume()

    def unblock(self, client_id: int) -> None:
        address = self.leg.address if self.leg is not None else None
        self.hub.unblock(self.side, address, client_id)

    def told_error(self, head: bytes, *, by_server: bool) -> bytes:
        return self.hub.told_error(self, head, by_server=by_server)

    def as_cluster(self, args: list[bytes], protocol: int) -> bytes:
        return self.hub.as_cluster(self, args, protocol)

    def told_reply(self, word: bytes, frame: bytes) -> bytes:
        return self.hub.told_reply(self, word, frame)

    def settled(self) -> None:
        if self.may_be_idle is not None:
            self.may_be_idle.set()
        self.hub.settled()

    def failed(self) -> None:
        """End the session after a bug. The others continue; its writes may be missing: a gap."""
        self.gap(FAILED_SESSION)
        self.close("a bug of the gateway")

    def close(self, why: str) -> None:
        """End both sides and count that: the session cannot continue correctly."""
        self.hub.closed(why)
        self.end()

    def end(self) -> None:
        """End both sides. The client still gets what it was sent."""
        if self.client is not None and not self.client_gone:
            self.client.close()
        self.drop_leg()


async def open_leg(hub: Hub, side: Side, listener: int, *, owner: Connection | None) -> LegProtocol:
    """Connect to a side, for a session of a listener.

    Raises:
        OSError, TimeoutError: it does not take the connection.
    """
    leg = LegProtocol(owner)
    leg.address = hub.address(side, listener)
    await open_protocol(leg.address, hub.tls(side), lambda: cast("asyncio.Protocol", leg))
    return leg
