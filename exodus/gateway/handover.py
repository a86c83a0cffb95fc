"""Handover: hold the writes of live sessions, move the sessions to the other side, continue there.

A hold is complete when the authority has answered every write. Blocked pops are writes. They are
ended as if their time were over, without the client noticing, and sent again when the session
continues. A session is moved when nothing is under way in it. A session that cannot be moved
(`Session.cannot_switch`) is closed and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from exodus.commands.semantics import NOT_HERE
from exodus.gateway.relay import Connection, Hub, LegProtocol, open_leg
from exodus.gateway.session import Session, Stage
from exodus.plan.bounds import (
    CONNECT_TIMEOUT_S,
    DRAIN_PATIENCE_S,
    HANDOVER_LOOK_S,
    HANDOVER_UNBLOCK_AGAIN_S,
)
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.resp.scanner import ReplyScanner

log = logging.getLogger(__name__)
_WHOAMI = encode("ACL", "WHOAMI")


async def drain_writes(
    connections: Iterable[Connection], settled: asyncio.Event, *, within_s: float
) -> int:
    """Wait until every held session has its answers; return the number of those that have not.

    Sessions that cannot be held in order are closed: opaque ones, and those with requests behind a
    blocking one. `settled` is set when a session may have its answers. They are looked at then,
    since every millisecond is one that applications wait.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    patience = loop.time() + DRAIN_PATIENCE_S
    left = list(connections)  # new sessions begin under the hold; complete ones stay complete
    again = 0.0
    while True:
        busy: list[Connection] = []
        end_blocked = loop.time() >= again
        if end_blocked:
            again = loop.time() + HANDOVER_UNBLOCK_AGAIN_S
        for connection in left:
            session = connection.session
            patient = loop.time() < patience
            if session.uncounted or (session.unread and not patient):
                connection.close(f"held: {session.opaque}")
                continue
            if session.unfinished and not patient:
                # Its end was never sent, so the authority does not execute it.
                connection.close("held: a request that does not end")
                continue
            if session.confirmed:
                continue
            busy.append(connection)
            why = session.unblock(reads=False) if end_blocked else None
            if why is not None:
                connection.close(f"held: {why}")
        if not busy or loop.time() >= deadline:
            return len(busy)
        left = busy
        await _set_within(settled, HANDOVER_UNBLOCK_AGAIN_S)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event and clear it: the caller then looks at everything that it stands for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()


async def move_all(
    hub: Hub, connections: Iterable[Connection], side: Side, *, within_s: float
) -> int:
    """Move sessions to `side`, all at once, subscribers first.

    Returns:
        The number of sessions that could not be moved and were closed.
    """
    members = sorted(connections, key=lambda connection: not connection.session.state.channels)
    outcomes = await asyncio.gather(
        *[_move(hub, connection, side, within_s=within_s) for connection in members]
    )
    for connection in members:
        if connection.side is side and misplaced(hub, connection):
            connection.drop_leg()  # there was a failover of this side meanwhile
    return sum(1 for why in outcomes if why is not None)


def misplaced(hub: Hub, connection: Connection) -> bool:
    """Tell whether a session's leg leads to another server than its listener stands for."""
    leg = connection.leg
    if leg is None or leg.lost or connection.client_gone:
        return False
    try:
        return leg.address != hub.address(connection.side, connection.listener)
    except OSError:
        return False  # nobody knows where else it should lead


async def move_within(hub: Hub, connection: Connection, *, within_s: float) -> None:
    """Move one session to the node for which its listener stands now, on the same side."""
    await _move(hub, connection, connection.side, within_s=within_s)


async def _move(hub: Hub, connection: Connection, side: Side, *, within_s: float) -> str | None:
    while connection.moving is not None:
        await connection.moving.wait()
    if connection.orders.authority is not side:
        return None  # the authority changed meanwhile, and that moves the session
    if connection.leg is None or connection.client_gone:
        return None  # a session without a leg connects to the new authority by itself
    if connection.side is side and not misplaced(hub, connection):
        if connection.session.requests.frozen:
            connection.session.thaw(asyncio.get_running_loop().time())
        return None
    over = connection.moving = asyncio.Event()
    try:
        return await _move_once(hub, connection, side, within_s=within_s)
    finally:
        connection.moving = None
        over.set()


async def _move_once(
    hub: Hub, connection: Connection, side: Side, *, within_s: float
) -> str | None:
    session = connection.session
    session.freeze()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    why = session.cannot_switch
    again = 0.0
    may_be_idle = connection.may_be_idle = asyncio.Event()
    while why is None and not session.idle:
        if loop.time() >= again:
            again = loop.time() + HANDOVER_UNBLOCK_AGAIN_S
            why = session.unblock(reads=True)
        if loop.time() >= deadline:
            why = "a request was under way for too long"
        if why is None:
            await _set_within(may_be_idle, HANDOVER_LOOK_S)
        if connection.client_gone:
            return None
        why = why or session.cannot_switch
    if why is None:
        try:
            leg, messages, rest = await _new_leg(hub, connection, side)
        except (OSError, TimeoutError, _Refused) as exc:
            why = f"the {side} did not take the session over: {exc}"
    if why is not None:
        log.warning("a session was closed at the switch to the %s: %s", side, why)
        connection.close(why)
        return why
    if connection.client_gone:
        if leg.transport is not None:
            leg.transport.abort()  # nothing else ends it
        return None
    old, connection.leg = connection.leg, leg
    connection.side = side
    leg.owner = connection
    session.adopt_leg(hub.logins(side, connection.orders), hub.dialect(side))
    if messages:
        connection.to_client(messages)
    if rest:
        session.from_server(rest, loop.time())
    if old is not None and old.transport is not None:
        old.owner = None
        old.transport.close()
    session.thaw(loop.time())
    return None


class _Refused(Exception):
    """The new server answered a session command with an error. The text has no argument in it."""


async def _new_leg(
    hub: Hub, connection: Connection, side: Side
) -> tuple[LegProtocol, bytes, bytes]:
    """Return a leg on which the session was replayed, and what came meanwhile for the client.

    That is whole messages, and the beginning of one that is not complete.
    """
    session = connection.session
    stages = session.replay_stages(hub.logins(side, connection.orders))
    listener = connection.listener
    leg = hub.spare_leg(side, listener) or await open_leg(hub, side, listener, owner=None)
    if leg.transport is None:
        raise _Refused("no transport")
    messages, rest = b"", b""
    try:
        for stage in stages:
            said, rest = await _replay(session, leg, leg.transport, stage, rest)
            messages += said
    except BaseException:
        leg.transport.abort()
        raise
    return leg, messages, rest


async def _replay(
    session: Session, leg: LegProtocol, transport: asyncio.Transport, stage: Stage, buffered: bytes
) -> tuple[bytes, bytes]:
    """Send one stage and take its replies; return what came meanwhile for the client."""
    leg.arrived = asyncio.Event()
    asked = [_WHOAMI] if stage.user is not None else []
    transport.write(b"".join([*stage.requests, *asked]))
    expected = stage.confirmations or len(stage.requests) + len(asked)
    scanner, messages, answered = ReplyScanner(), b"", 0
    scanner.feed(buffered)  # the beginning of a message: no reply is complete in it
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        while answered < expected:
            await leg.arrived.wait()
            leg.arrived.clear()
            data, leg.early = b"".join(leg.early), []
            buffered += data
            for reply in scanner.feed(data):
                frame, buffered = buffered[: reply.size], buffered[reply.size :]
                if session.out_of_band(reply):
                    messages += frame
                elif reply.error and stage.shard_channels and reply.head.startswith(NOT_HERE):
                    messages += session.leave_channels(stage.shard_channels)
                    answered = expected
                elif reply.error and answered < len(stage.requests):
                    if answered not in stage.optional:
                        raise _Refused(reply.head.split(b" ", 1)[0].decode("ascii", "replace"))
                    answered += 1
                else:
                    if stage.user is not None and answered == len(stage.requests):
                        _check_user(stage.user, frame)
                    answered += 1
            if leg.lost:
                raise _Refused("it closed the connection")
    leg.arrived = None
    return messages, buffered


def _check_user(user: bytes, frame: bytes) -> None:
    """Compare the session's user with the expected one.

    A server that does not tell the user has at least accepted the login.
    """
    found = frame.split(b"\r\n")[1] if frame.startswith(b"$") else user
    if found != user:
        raise _Refused("it takes the session for another user")
